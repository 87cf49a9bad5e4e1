"""Normal laws of weights, with cheap divergences: what a step of variational inference spends its time on."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Independent, LowRankMultivariateNormal, Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch.distributions import register_kl
from torch.distributions.utils import lazy_property

NO_SHAPE = torch.Size()


class MeanFieldNormal(Normal):
    """N(m, σ²) given log σ, so that the divergence from a normal prior takes no logarithm. Shapes (…)."""

    def __init__(self, loc: torch.Tensor, log_scale: torch.Tensor):
        self.log_scale = log_scale
        self.loc, self.scale = loc, log_scale.exp()
        TorchDistribution.__init__(self, loc.shape, validate_args=False)

    @lazy_property
    def variance(self) -> torch.Tensor:
        """σ², computed once for the divergence and for local reparameterisation."""
        return self.scale.square()

    def rsample(self, sample_shape=NO_SHAPE):
        """Draw m + σ ε."""
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise)

    def expand(self, batch_shape, _instance=None):
        """Return the same law with another batch shape."""
        return _expanded(self, batch_shape, ("loc", "log_scale", "scale"))


class FixedNormal(Normal):
    """A normal prior without gradients, which keeps what a divergence from it needs."""

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor):
        super().__init__(loc, scale, validate_args=False)
        self.constant, self.half_precision = scale.log() - 0.5, 0.5 / scale.square()
        self.centred = not bool(loc.any())

    def expand(self, batch_shape, _instance=None):
        """Return the same law with another batch shape."""
        new = _expanded(self, batch_shape, ("loc", "scale", "constant", "half_precision"))
        new.centred = self.centred
        return new


def _expanded(law: TorchDistribution, batch_shape: torch.Size, names: tuple[str, ...]) -> Any:
    """Return a law of the same type whose tensors are views, so that nothing is computed again."""
    new = type(law).__new__(type(law))
    for name in names:
        setattr(new, name, getattr(law, name).expand(batch_shape))
    TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
    return new


@register_kl(MeanFieldNormal, Normal)
def _kl_mean_field(q: MeanFieldNormal, p: Normal) -> torch.Tensor:
    """Return log τ − log σ + (σ² + (m − μ)²) / 2τ² − ½."""
    if isinstance(p, FixedNormal):
        difference = q.loc if p.centred else q.loc - p.loc
        return _FixedDivergence.apply(difference, q.log_scale, q.variance.detach(), p.constant, p.half_precision)
    difference = q.loc - p.loc
    second = torch.addcmul(q.variance, difference, difference)
    return torch.addcmul(p.scale.log() - 0.5, second, 0.5 / p.scale.square()) - q.log_scale


class _FixedDivergence(torch.autograd.Function):
    """The divergence from a fixed normal law, and its derivatives, in the fewest passes over the weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(difference, log_scale, variance, constant, half_precision):
        second = torch.addcmul(variance, difference, difference)
        return torch.addcmul(constant, second, half_precision) - log_scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        difference, log_scale, variance, _, half_precision = inputs
        ctx.save_for_backward(difference, log_scale, variance, half_precision)

    @staticmethod
    def backward(ctx, gradient):
        difference, log_scale, variance, half_precision = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, through log σ
            variance = (2 * log_scale).exp()
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
    return 0.5 * ((ratio - 1 + variance.log()).sum(-1) - log_determinant)
