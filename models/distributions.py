"""Distributions on structures: relaxed and hard, with the Kullback–Leibler divergences that Pyro lacks.

Draws near a vertex are made in log space, and keep their logarithm (or logit), at which a density is evaluated: of the
numbers themselves rounding leaves 0 and 1. The divergence of two relaxed categoricals of one temperature is computed to
machine precision, not from one draw.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from pyro import distributions
from pyro.distributions import Bernoulli
from pyro.distributions.torch_distribution import TorchDistribution
from torch.distributions import constraints, register_kl
from torch.nn.functional import log_softmax, logsigmoid, one_hot, softmax, softplus

from pyro_nas.models.temperatures import Temperature, log_temperature, same_temperature

__all__ = [
    "NODES",
    "NO_SHAPE",
    "Dirichlet",
    "GumbelSoftmax",
    "RelaxedBernoulli",
    "Shape",
    "StraightThrough",
    "relaxed_divergence",
]

NODES = 256
SPARSE = 0.3
Shape: TypeAlias = torch.Size | list[int] | tuple[int, ...]
NO_SHAPE = torch.Size()


def _rounded(value: torch.Tensor, unrounded: torch.Tensor) -> torch.Tensor:
    """Return a draw, of any shape, that keeps its logarithm or logit, of that shape."""
    vars(value)["unrounded"] = unrounded
    return value


def _unrounded(value: torch.Tensor) -> torch.Tensor | None:
    """Return the logarithm or logit that a draw keeps, of its shape; None of other tensors, its copies among them."""
    return vars(value).get("unrounded")


def _log(value: torch.Tensor) -> torch.Tensor:
    """Return log γ of shape (…, K); a γ that is no draw of ours counts as the smallest normal number, or more."""
    kept = _unrounded(value)
    return value.clamp_min(torch.finfo(value.dtype).tiny).log() if kept is None else kept


class Dirichlet(distributions.Dirichlet):
    """The Dirichlet law on the simplex, (…, K), right also where concentrations are small.

    Where one is below ``SPARSE``, log γ = log softmax (log G_k), log G_k = log Gamma(α_k + 1) − E_k / α_k, E_k standard
    exponential, which is log γ of Dirichlet(α) (Marsaglia and Tsang 2000, §6). torch's draws in single precision are
    1e-38 or more: of α about .01 densities are another law's there (E_q p/q = .7 of two laws, not 1), of α about .001
    the moments too. For larger concentrations they are right, and their gradients vary less.
    """

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> torch.Tensor:
        """Draw γ."""
        if bool((self.concentration >= SPARSE).all()):
            dense: torch.Tensor = super().rsample(sample_shape)
            return dense
        concentration = self.concentration.expand(self._extended_shape(sample_shape))
        log_gamma = torch.distributions.Gamma(concentration + 1, 1.0, validate_args=False).rsample().log()
        noise = torch.empty_like(concentration, memory_format=torch.contiguous_format).exponential_()
        log_value = log_softmax(log_gamma - noise / concentration, -1)
        return _rounded(log_value.exp(), log_value)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log-density at γ: log Γ(Σ α) − Σ log Γ(α_k) + Σ (α_k − 1) log γ_k, shape (…)."""
        alpha = self.concentration
        terms = ((alpha - 1) * _log(value)).sum(-1)
        log_density: torch.Tensor = terms + torch.lgamma(alpha.sum(-1)) - torch.lgamma(alpha).sum(-1)
        return log_density


class GumbelSoftmax(TorchDistribution):
    """The Gumbel-Softmax (Concrete) law on the simplex: γ = softmax((log s + G) / τ), G standard Gumbel.

    ``logits`` log s: shape (…, K), ``temperature`` τ > 0: a number or a tensor (). P(argmax γ = l) = s_l / Σ s.
    Jang, Gu and Poole 2016; Maddison, Mnih and Teh 2016.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012
    support: constraints.Constraint = constraints.simplex
    has_rsample = True

    def __init__(self, temperature: Temperature, logits: torch.Tensor, validate_args: bool | None = None):
        self.temperature, self.logits, self._log_temperature = temperature, logits, log_temperature(temperature)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: object = None) -> GumbelSoftmax:
        """Return the same law with another batch shape."""
        return type(self)(self.temperature, self.logits.expand(*batch_shape, -1), validate_args=False)

    @property
    def probs(self) -> torch.Tensor:
        """The probabilities of argmax γ, shape (…, K)."""
        return softmax(self.logits, -1)

    def rsample_log(self, sample_shape: Shape = NO_SHAPE) -> torch.Tensor:
        """Draw log γ, shape sample_shape + (…, K): finite at every temperature."""
        noise = self.logits.new_empty(self._extended_shape(sample_shape)).exponential_().log()
        return log_softmax((self.logits - noise) / self.temperature, -1)

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> torch.Tensor:
        """Draw γ."""
        log_value = self.rsample_log(sample_shape)
        return _rounded(log_value.exp(), log_value)

    def log_prob_of_log(self, log_value: torch.Tensor) -> torch.Tensor:
        """Return the log-density on the simplex at log γ, shape (…).

        log (K−1)! + (K−1) log τ + Σ (log s_k − (τ+1) log γ_k) − K log Σ s_k γ_k^−τ.
        """
        size = self.logits.shape[-1]
        score = self.logits - self.temperature * log_value
        constant = math.lgamma(size) + (size - 1) * self._log_temperature
        return constant + score.sum(-1) - size * score.logsumexp(-1) - log_value.sum(-1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log-density at γ."""
        return self.log_prob_of_log(_log(value))


class StraightThrough(GumbelSoftmax):
    """One-hot draws of the Gumbel-Softmax whose gradient is that of the relaxed draw (Jang, Gu and Poole 2016).

    As a law it is the categorical one, and so are its log-probability and its divergence. Its pathwise gradient is
    biased with respect to the expectation over one-hot draws; plain categorical structure has an unbiased one.
    """

    support = constraints.one_hot

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> torch.Tensor:
        """Draw one-hot γ, exactly 0 and 1, through which the relaxed draw's gradient passes."""
        relaxed = super().rsample(sample_shape)
        hard = one_hot(relaxed.argmax(-1), relaxed.shape[-1]).to(relaxed.dtype)
        return hard + (relaxed - relaxed.detach())

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return log P(γ)."""
        log_probability: torch.Tensor = (value * log_softmax(self.logits, -1)).sum(-1)
        return log_probability


class RelaxedBernoulli(TorchDistribution):
    """The relaxed Bernoulli law on (0, 1): γ = σ((l + L) / τ), L standard logistic; elementwise.

    ``logits`` l: shape (…), P(γ > ½) = σ(l). It is the Gumbel-Softmax law of two choices with logits (l, 0).
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, temperature: Temperature, logits: torch.Tensor, validate_args: bool | None = None):
        self.temperature, self.logits, self._log_temperature = temperature, logits, log_temperature(temperature)
        super().__init__(logits.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: object = None) -> RelaxedBernoulli:
        """Return the same law with another batch shape."""
        return type(self)(self.temperature, self.logits.expand(batch_shape), validate_args=False)

    @property
    def probs(self) -> torch.Tensor:
        """The probabilities of γ > ½."""
        return torch.sigmoid(self.logits)

    def rsample_logit(self, sample_shape: Shape = NO_SHAPE) -> torch.Tensor:
        """Draw log γ/(1−γ): finite at every temperature."""
        pair = self.logits.new_empty((2, *self._extended_shape(sample_shape))).exponential_().log()
        return (self.logits + pair[0] - pair[1]) / self.temperature

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> torch.Tensor:
        """Draw γ."""
        logit = self.rsample_logit(sample_shape)
        return _rounded(torch.sigmoid(logit), logit)

    def log_prob_of_logit(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log-density on (0, 1) at the logit of γ: that of the logit plus log-Jacobian."""
        score = self.logits - self.temperature * value
        of_logit = self._log_temperature + logsigmoid(score) + logsigmoid(-score)
        return of_logit - logsigmoid(value) - logsigmoid(-value)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log-density at γ; one that is no draw of ours counts as the nearest number within (0, 1)."""
        info, kept = torch.finfo(value.dtype), _unrounded(value)
        return self.log_prob_of_logit(torch.logit(value.clamp(info.tiny, 1 - info.eps)) if kept is None else kept)


@register_kl(Bernoulli, Bernoulli)
def _kl_bernoulli(q: Bernoulli, p: Bernoulli) -> torch.Tensor:
    """Return the divergence for any two shapes that broadcast; torch's own refuses some."""
    on = q.probs * (logsigmoid(q.logits) - logsigmoid(p.logits))
    divergence: torch.Tensor = on + (1 - q.probs) * (logsigmoid(-q.logits) - logsigmoid(-p.logits))
    return divergence


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
    if same_temperature(q.temperature, p.temperature):
        return relaxed_divergence(q.logits, p.logits)
    draw = q.rsample_log()
    return q.log_prob_of_log(draw) - p.log_prob_of_log(draw)


@register_kl(StraightThrough, StraightThrough)
def _kl_hard(q: StraightThrough, p: StraightThrough) -> torch.Tensor:
    difference = log_softmax(q.logits, -1) - log_softmax(p.logits, -1)
    return (q.probs * difference).sum(-1)


@register_kl(RelaxedBernoulli, RelaxedBernoulli)
def _kl_relaxed_bernoulli(q: RelaxedBernoulli, p: RelaxedBernoulli) -> torch.Tensor:
    if same_temperature(q.temperature, p.temperature):
        pairs = [torch.stack([law.logits, torch.zeros_like(law.logits)], -1) for law in (q, p)]
        return relaxed_divergence(*pairs)
    draw = q.rsample_logit()
    return q.log_prob_of_logit(draw) - p.log_prob_of_logit(draw)
