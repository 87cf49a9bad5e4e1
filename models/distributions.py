"""Distributions on structures: relaxed and hard, with the Kullback–Leibler divergences that Pyro lacks.

Relaxed draws are made in log space, so that every temperature is safe; the divergence of two relaxed categoricals of
one temperature is computed to machine precision, not from one draw.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import Categorical, Independent, LowRankMultivariateNormal, Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch.distributions import constraints, register_kl
from torch.distributions.utils import lazy_property
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid, one_hot, softmax, softplus

NODES = 256


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

    def rsample(self, sample_shape=torch.Size()):
        """Draw m + σ ε."""
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise)

    def expand(self, batch_shape, _instance=None):
        """Return the same law with another batch shape."""
        return type(self)(self.loc.expand(batch_shape), self.log_scale.expand(batch_shape))


class FixedNormal(Normal):
    """A normal prior without gradients, which keeps what a divergence from it needs."""

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor):
        super().__init__(loc, scale, validate_args=False)
        self.constant, self.half_precision = scale.log() - 0.5, 0.5 / scale.square()

    def expand(self, batch_shape, _instance=None):
        """Return the same law with another batch shape."""
        return type(self)(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


@register_kl(MeanFieldNormal, Normal)
def _kl_mean_field(q: MeanFieldNormal, p: Normal) -> torch.Tensor:
    """Return log τ − log σ + (σ² + (m − μ)²) / 2τ² − ½."""
    difference = q.loc - p.loc
    second = torch.addcmul(q.variance, difference, difference)
    if isinstance(p, FixedNormal):
        return torch.addcmul(p.constant, second, p.half_precision) - q.log_scale
    return torch.addcmul(p.scale.log() - 0.5, second, 0.5 / p.scale.square()) - q.log_scale


class ClassIndex(Categorical):
    """Categorical given unnormalised logits, (…, classes), whose log-probability is one fused call."""

    def __init__(self, logits: torch.Tensor):
        self.unnormalised = logits
        self._num_events = logits.shape[-1]
        TorchDistribution.__init__(self, logits.shape[:-1], validate_args=False)

    @lazy_property
    def logits(self) -> torch.Tensor:
        """Log-probabilities."""
        return self.unnormalised.log_softmax(-1)

    @lazy_property
    def probs(self) -> torch.Tensor:
        """Probabilities."""
        return self.unnormalised.softmax(-1)

    @property
    def param_shape(self) -> torch.Size:
        """The shape of the logits."""
        return self.unnormalised.shape

    def expand(self, batch_shape, _instance=None):
        """Return the same law with another batch shape."""
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return type(self)(self.unnormalised.expand(*batch_shape, -1))

    def log_prob(self, value):
        """Return log softmax(logits) at the index ``value``."""
        if value.shape == self.batch_shape and value.dim() == 1:
            return -cross_entropy(self.unnormalised, value, reduction="none")
        return super().log_prob(value)


class GumbelSoftmax(TorchDistribution):
    """The Gumbel-Softmax (Concrete) law on the simplex: γ = softmax((log s + G) / τ), G standard Gumbel.

    ``logits`` log s: shape (…, K), ``temperature`` τ > 0. P(argmax γ = l) = s_l / Σ s at every τ.
    Jang, Gu and Poole 2016; Maddison, Mnih and Teh 2016.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012
    support = constraints.simplex
    has_rsample = True

    def __init__(self, temperature: float, logits: torch.Tensor, validate_args: bool | None = None):
        self.temperature, self.logits = temperature, logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """Return the same law with another batch shape."""
        return type(self)(self.temperature, self.logits.expand(*batch_shape, -1), validate_args=False)

    @property
    def probs(self) -> torch.Tensor:
        """The probabilities of argmax γ, shape (…, K)."""
        return softmax(self.logits, -1)

    def rsample_log(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:
        """Draw log γ, shape sample_shape + (…, K): finite at every temperature."""
        noise = self.logits.new_empty(self._extended_shape(sample_shape)).exponential_().log()
        return log_softmax((self.logits - noise) / self.temperature, -1)

    def rsample(self, sample_shape=torch.Size()):
        """Draw γ."""
        return self.rsample_log(sample_shape).exp()

    def log_prob_of_log(self, log_value: torch.Tensor) -> torch.Tensor:
        """Return the log-density on the simplex at log γ, shape (…).

        log (K−1)! + (K−1) log τ + Σ (log s_k − (τ+1) log γ_k) − K log Σ s_k γ_k^−τ.
        """
        size = self.logits.shape[-1]
        score = self.logits - self.temperature * log_value
        constant = math.lgamma(size) + (size - 1) * math.log(self.temperature)
        return constant + score.sum(-1) - size * score.logsumexp(-1) - log_value.sum(-1)

    def log_prob(self, value):
        """Return the log-density at γ; a γ that underflowed counts as the smallest normal number."""
        return self.log_prob_of_log(value.clamp_min(torch.finfo(value.dtype).tiny).log())


class StraightThrough(GumbelSoftmax):
    """One-hot draws of the Gumbel-Softmax whose gradient is that of the relaxed draw (Jang, Gu and Poole 2016).

    As a law it is the categorical one, and so are its log-probability and its divergence. Its pathwise gradient is
    biased with respect to the expectation over one-hot draws; plain categorical structure has an unbiased one.
    """

    support = constraints.one_hot

    def rsample(self, sample_shape=torch.Size()):
        """Draw one-hot γ, exactly 0 and 1, through which the relaxed draw's gradient passes."""
        relaxed = super().rsample(sample_shape)
        hard = one_hot(relaxed.argmax(-1), relaxed.shape[-1]).to(relaxed.dtype)
        return hard + (relaxed - relaxed.detach())

    def log_prob(self, value):
        """Return log P(γ)."""
        return (value * log_softmax(self.logits, -1)).sum(-1)


class RelaxedBernoulli(TorchDistribution):
    """The relaxed Bernoulli law on (0, 1): γ = σ((l + L) / τ), L standard logistic; elementwise.

    ``logits`` l: shape (…), P(γ > ½) = σ(l). It is the Gumbel-Softmax law of two choices with logits (l, 0).
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, temperature: float, logits: torch.Tensor, validate_args: bool | None = None):
        self.temperature, self.logits = temperature, logits
        super().__init__(logits.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """Return the same law with another batch shape."""
        return type(self)(self.temperature, self.logits.expand(batch_shape), validate_args=False)

    @property
    def probs(self) -> torch.Tensor:
        """The probabilities of γ > ½."""
        return torch.sigmoid(self.logits)

    def rsample_logit(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:
        """Draw log γ/(1−γ): finite at every temperature."""
        pair = self.logits.new_empty((2, *self._extended_shape(sample_shape))).exponential_().log()
        return (self.logits + pair[0] - pair[1]) / self.temperature

    def rsample(self, sample_shape=torch.Size()):
        """Draw γ."""
        return torch.sigmoid(self.rsample_logit(sample_shape))

    def log_prob_of_logit(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log-density on (0, 1) at the logit of γ: that of the logit plus log-Jacobian."""
        score = self.logits - self.temperature * value
        of_logit = math.log(self.temperature) + logsigmoid(score) + logsigmoid(-score)
        return of_logit - logsigmoid(value) - logsigmoid(-value)

    def log_prob(self, value):
        """Return the log-density at γ; a γ that rounded to 0 or 1 counts as the nearest number between."""
        info = torch.finfo(value.dtype)
        return self.log_prob_of_logit(torch.logit(value.clamp(info.tiny, 1 - info.eps)))


def relaxed_divergence(logits: torch.Tensor, prior_logits: torch.Tensor) -> torch.Tensor:
    """Return KL(q ‖ p) of two Gumbel-Softmax laws of one temperature, shapes (…, K) → (…).

    At one temperature the divergence does not depend on it. With s, r the probabilities and E_k standard exponential,
    KL = Σ log(s_k/r_k) + K (E log Σ c_k E_k − E log Σ E_k), c_k = r_k/s_k, and by Frullani's integral with t = e^u
    the bracket is ∫ [(1+e^u)^−K − Π (1+c_k e^u)^−1] du, an analytic integrand that decays at both ends: the trapezoidal
    rule converges geometrically.
    """
    log_c = (log_softmax(prior_logits, -1) - log_softmax(logits, -1)).double()  # (…, K)
    size = log_c.shape[-1]
    span = log_c.detach()
    low = (-span.amax(-1)).clamp_max(0.0) - 30.0
    high = (-span.amin(-1)).clamp_min(0.0) + 20.0
    step = (high - low) / (NODES - 1)
    grid = torch.arange(NODES, dtype=torch.double, device=log_c.device)
    u = low.unsqueeze(-1) + step.unsqueeze(-1) * grid  # (…, nodes)
    ours = (-softplus(u.unsqueeze(-1) + log_c.unsqueeze(-2)).sum(-1)).exp()
    bracket = ((-size * softplus(u)).exp() - ours).sum(-1) * step
    return (size * bracket - log_c.sum(-1)).to(logits.dtype)


@register_kl(GumbelSoftmax, GumbelSoftmax)
def _kl_relaxed(q: GumbelSoftmax, p: GumbelSoftmax) -> torch.Tensor:
    if q.temperature == p.temperature:
        return relaxed_divergence(q.logits, p.logits)
    draw = q.rsample_log()
    return q.log_prob_of_log(draw) - p.log_prob_of_log(draw)


@register_kl(StraightThrough, StraightThrough)
def _kl_hard(q: StraightThrough, p: StraightThrough) -> torch.Tensor:
    difference = log_softmax(q.logits, -1) - log_softmax(p.logits, -1)
    return (q.probs * difference).sum(-1)


@register_kl(RelaxedBernoulli, RelaxedBernoulli)
def _kl_relaxed_bernoulli(q: RelaxedBernoulli, p: RelaxedBernoulli) -> torch.Tensor:
    if q.temperature == p.temperature:
        pairs = [torch.stack([law.logits, torch.zeros_like(law.logits)], -1) for law in (q, p)]
        return relaxed_divergence(*pairs)
    draw = q.rsample_logit()
    return q.log_prob_of_logit(draw) - p.log_prob_of_logit(draw)


@register_kl(LowRankMultivariateNormal, Independent)
def _kl_low_rank(q: LowRankMultivariateNormal, p: Independent) -> torch.Tensor:
    """Return ½ [Σ (Σ_ii + (m_i − μ_i)²)/τ_i² − n + Σ log τ_i² − log det Σ], Σ = W Wᵀ + D."""
    base = p.base_dist
    if not isinstance(base, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    variance = base.scale.square().expand(q.event_shape)
    triangle = q._capacitance_tril  # Cholesky factor of I + Wᵀ D⁻¹ W
    log_determinant = q._unbroadcasted_cov_diag.log().sum(-1) + 2 * triangle.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    ratio = (q.variance + (q.loc - base.loc).square()) / variance
    return 0.5 * ((ratio - 1 + variance.log()).sum(-1) - log_determinant)
