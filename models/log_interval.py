"""A law on an interval above 0 that is even in log λ, or heavier at its ends: the prior of the complexity λ."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch.distributions import constraints, register_kl

from pyro_nas.models.distributions import NO_SHAPE, Shape

__all__ = ["LogInterval"]


class LogInterval(TorchDistribution):
    """λ on [low, high] with the quantile function log λ = log low + t log(high/low), t = (1−e) u + e sin²(πu/2).

    ``ends`` e = 0 is the log-uniform law, e = 1 the arcsine law of log λ. ``low`` and ``high``: scalars above 0.
    """

    arg_constraints = {"low": constraints.positive, "high": constraints.positive}  # noqa: RUF012
    has_rsample = True

    def __init__(self, low: torch.Tensor, high: torch.Tensor, ends: float = 0.0):
        self.low, self.high, self.ends = low, high, ends
        super().__init__(low.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The interval."""
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Shape, _instance: object = None) -> LogInterval:
        """Return the same law with another batch shape."""
        return type(self)(self.low.expand(batch_shape), self.high.expand(batch_shape), self.ends)

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> torch.Tensor:
        """Draw λ."""
        place = torch.rand(self._extended_shape(sample_shape), dtype=self.low.dtype, device=self.low.device)
        return self.icdf(place)

    def _place(self, u: torch.Tensor) -> torch.Tensor:
        return (1 - self.ends) * u + self.ends * torch.sin(0.5 * math.pi * u).square()

    def icdf(self, value: torch.Tensor) -> torch.Tensor:
        """Return the quantile."""
        return (self.low.log() + (self.high / self.low).log() * self._place(value)).exp()

    def cdf(self, value: torch.Tensor) -> torch.Tensor:
        """Return the probability of at most ``value``, by bisection."""
        place = ((value / self.low).log() / (self.high / self.low).log()).clamp(0, 1)
        low, high = torch.zeros_like(place), torch.ones_like(place)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self._place(middle) < place
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log-density; the arcsine law has it no higher than a step inside its ends."""
        u = self.cdf(value).clamp(1e-4, 1 - 1e-4)
        slope = (1 - self.ends) + self.ends * 0.5 * math.pi * torch.sin(math.pi * u)
        log_density = -slope.log() - ((self.high / self.low).log() * value).log()
        inside = (value >= self.low * (1 - 1e-6)) & (value <= self.high * (1 + 1e-6))
        return log_density.where(inside, -torch.inf)


@register_kl(LogInterval, LogInterval)
def _kl_log_interval(q: LogInterval, p: LogInterval) -> torch.Tensor:
    same = (torch.equal(*torch.broadcast_tensors(*ends)) for ends in ((q.low, p.low), (q.high, p.high)))
    if q.ends != p.ends or not all(same):
        raise NotImplementedError
    return torch.zeros_like(q.low)
