"""Normal laws of weights, with cheap divergences: what a step of variational inference spends its time on."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from pyro.distributions import Independent, LowRankMultivariateNormal, Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch.distributions import kl_divergence, register_kl
from torch.distributions.utils import lazy_property

from pyro_nas.models.distributions import NO_SHAPE, Shape

__all__ = ["FixedNormal", "JointNormal", "MeanFieldNormal"]

L = TypeVar("L", bound=TorchDistribution)


class MeanFieldNormal(Normal):
    """N(m, σ²) given log σ, so that the divergence from a normal prior takes no logarithm. Shapes (…)."""

    def __init__(self, loc: torch.Tensor, log_scale: torch.Tensor):
        self.loc, self.log_scale = loc, log_scale
        self._narrow: MeanFieldNormal | None = None  # the law that this one repeats
        TorchDistribution.__init__(self, loc.shape, validate_args=False)

    @lazy_property
    def scale(self) -> torch.Tensor:
        """σ, which local reparameterisation does without."""
        return self.log_scale.exp() if self._narrow is None else self._narrow.scale.expand(self.batch_shape)

    @lazy_property
    def variance(self) -> torch.Tensor:
        """σ²."""
        if self._narrow is not None:
            return self._narrow.variance.expand(self.batch_shape)
        return self.scale.square() if "scale" in self.__dict__ else (2 * self.log_scale).exp()

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> torch.Tensor:
        """Draw m + σ ε."""
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise)

    def expand(self, batch_shape: Shape, _instance: object = None) -> MeanFieldNormal:
        """Return the same law with another batch shape."""
        new = _expanded(self, batch_shape, ("loc", "log_scale"))
        new._narrow = self
        return new

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> TorchDistribution:
        """Return the law of the last axes together."""
        law = super().to_event(reinterpreted_batch_ndims)
        return JointNormal(self, law.reinterpreted_batch_ndims) if isinstance(law, Independent) else law


class JointNormal(Independent):
    """Independent normal weights as one draw, whose divergence from a fixed prior is summed as it is computed."""

    def expand(self, batch_shape: Shape, _instance: object = None) -> JointNormal:
        """Return the same law with another batch shape."""
        shape = torch.Size(batch_shape) + self.event_shape[: self.reinterpreted_batch_ndims]
        return JointNormal(self.base_dist.expand(shape), self.reinterpreted_batch_ndims)


class FixedNormal(Normal):
    """A normal prior without gradients, which keeps what a divergence from it needs."""

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor):
        super().__init__(loc, scale, validate_args=False)
        same = scale.numel() > 0 and bool((scale == scale.flatten()[0]).all())
        spread = scale.flatten()[:1] if same else scale
        self.constant = (scale.log() - 0.5).sum(-1, dtype=torch.double)
        self.half_precision = 0.5 / spread.square()
        self.centred = not bool(loc.any())

    def expand(self, batch_shape: Shape, _instance: object = None) -> FixedNormal:
        """Return the same law with another batch shape."""
        new = _expanded(self, batch_shape, ("loc", "scale"))
        new.constant, new.half_precision, new.centred = self.constant, self.half_precision, self.centred
        return new


def _expanded(law: L, batch_shape: Shape, names: tuple[str, ...]) -> L:
    """Return a law of the same type whose tensors are views, so that nothing is computed again."""
    new = type(law).__new__(type(law))
    for name in names:
        setattr(new, name, getattr(law, name).expand(batch_shape))
    TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
    return new


@register_kl(MeanFieldNormal, Normal)
def _kl_mean_field(q: MeanFieldNormal, p: Normal) -> torch.Tensor:
    """Return log τ − log σ + (σ² + (m − μ)²) / 2τ² − ½."""
    difference = q.loc - p.loc
    second = torch.addcmul(q.variance, difference, difference)
    return torch.addcmul(p.scale.log() - 0.5, second, 0.5 / p.scale.square()) - q.log_scale


@register_kl(JointNormal, Independent)
def _kl_joint_normal(q: JointNormal, p: Independent) -> torch.Tensor:
    """Return the sum of the divergences over the event's axes."""
    ours, theirs, axes = q.base_dist, p.base_dist, q.reinterpreted_batch_ndims
    if axes == p.reinterpreted_batch_ndims == 1 and isinstance(theirs, FixedNormal):
        difference = ours.loc if theirs.centred else ours.loc - theirs.loc
        value: torch.Tensor = _FixedDivergence.apply(
            difference, ours.log_scale, ours.variance.detach(), theirs.constant, theirs.half_precision
        )
        return value
    general: torch.Tensor = kl_divergence(Independent(ours, axes), p)
    return general


class _FixedDivergence(torch.autograd.Function):
    """The divergence from a fixed normal law, (…, size) → (…), and its derivatives, in few passes over the weights.

    The sums of log σ and log τ are in double precision, since their difference may be small beside them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        difference: torch.Tensor,
        log_scale: torch.Tensor,
        variance: torch.Tensor,
        constant: torch.Tensor,
        half_precision: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(difference, log_scale, variance, half_precision)
        if half_precision.numel() == 1:
            second = torch.linalg.vector_norm(difference, dim=-1).square() + variance.sum(-1)
            quadratic = half_precision[0] * second
        else:
            quadratic = (torch.addcmul(variance, difference, difference) * half_precision).sum(-1)
        divergence: torch.Tensor = (constant + quadratic - log_scale.sum(-1, dtype=torch.double)).to(log_scale.dtype)
        return divergence

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        difference, log_scale, variance, half_precision = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, through log σ
            variance = (2 * log_scale).exp()
        gradient = gradient.unsqueeze(-1)
        weight = 2 * half_precision * gradient
        return difference * weight, torch.addcmul(-gradient, variance, weight), None, None, None


@register_kl(LowRankMultivariateNormal, Independent)
def _kl_low_rank(q: LowRankMultivariateNormal, p: Independent) -> torch.Tensor:
    """Return ½ [Σ (Σ_ii + (m_i − μ_i)²)/τ_i² − n + Σ log τ_i² − log det Σ], Σ = W Wᵀ + D."""
    base = p.base_dist
    if not isinstance(base, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    variance = base.scale.square().expand(torch.broadcast_shapes(base.scale.shape, q.event_shape))
    triangle = q._capacitance_tril  # Cholesky factor of I + Wᵀ D⁻¹ W
    log_determinant = q._unbroadcasted_cov_diag.log().sum(-1) + 2 * triangle.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    ratio = (q.variance + (q.loc - base.loc).square()) / variance
    divergence: torch.Tensor = 0.5 * ((ratio - 1 + variance.log()).sum(-1) - log_determinant)
    return divergence
