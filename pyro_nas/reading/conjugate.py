"""Conjugate: everything exact about linear regression with normal weights and known noise.

y = Φ w + ε, ε ~ N(0, s²I), w ~ N(0, diag τ²): posterior, evidence, leave-one-out predictions, and the best mean-field
evidence. What approximate methods are held to. All in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, Normal

from pyro_nas import checks

__all__ = ["LinearRegression"]


@dataclass(frozen=True, eq=False)
class LinearRegression:
    """Data of a linear regression with its noise s and prior scales τ.

    ``design`` is Φ, (data, features), and ``y`` is (data,). ``noise`` is the standard deviation s, ``scale`` that of
    the weights, τ: one number or one a feature, (features,). A regression without data is the prior.

    Raises ValueError for other shapes, values that are not finite, and scales that are not above zero.
    """

    design: torch.Tensor
    y: torch.Tensor
    noise: float
    scale: float | torch.Tensor = 1.0

    def __post_init__(self) -> None:
        for name, axes in {"design": 2, "y": 1}.items():
            value = getattr(self, name)
            if not isinstance(value, torch.Tensor) or value.dim() != axes or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name}: expected a finite tensor of {axes} axes, got {checks.describe(value)}.")
            object.__setattr__(self, name, value.double())
        if len(self.y) != len(self.design):
            raise ValueError(f"y: expected as many data as design has rows, {len(self.design)}, got {len(self.y)}.")
        checks.number("noise", self.noise, low=0, open_low=True)
        scale = torch.as_tensor(self.scale, dtype=torch.double)
        if scale.shape not in {(), self.design.shape[1:]} or not bool(((scale > 0) & scale.isfinite()).all()):
            raise ValueError(
                f"scale: expected a number above 0, or one for each of {self.design.shape[1]} features, "
                f"got {checks.describe(self.scale)}."
            )
        object.__setattr__(self, "scale", scale.expand(self.design.shape[1]))

    @cached_property
    def posterior(self) -> MultivariateNormal:
        """p(w | y) = N(m, A⁻¹), A = ΦᵀΦ/s² + diag τ⁻², m = A⁻¹Φᵀy/s²."""
        precision = self.design.T @ self.design / self.noise**2 + torch.diag(torch.as_tensor(self.scale) ** -2)
        mean = torch.linalg.solve(precision, self.design.T @ self.y / self.noise**2)
        return MultivariateNormal(mean, precision_matrix=precision)

    @cached_property
    def log_evidence(self) -> float:
        """log p(y) = log N(y; 0, s²I + Φ diag τ² Φᵀ), in nats."""
        variance = torch.full_like(self.y, self.noise**2)
        law = LowRankMultivariateNormal(torch.zeros_like(self.y), self.design * self.scale, variance)
        return float(law.log_prob(self.y))

    def predictive(self, design: torch.Tensor) -> MultivariateNormal:
        """Return the law of new y together, given this y: N(Φ'm, s²I + Φ'A⁻¹Φ'ᵀ) for Φ' of shape (new, features).

        Raises ValueError for another shape.
        """
        if design.dim() != 2 or design.shape[1] != self.design.shape[1]:
            raise ValueError(f"design: expected shape (new, {self.design.shape[1]}), got {checks.describe(design)}.")
        design = design.double()
        noise = self.noise**2 * torch.eye(len(design), dtype=torch.double)
        return MultivariateNormal(
            design @ self.posterior.mean, noise + design @ self.posterior.covariance_matrix @ design.T
        )

    @cached_property
    def leave_one_out(self) -> Normal:
        """p(y_i | all other y) for each i, (data,), from one posterior.

        With the leverage h_i = φ_iᵀA⁻¹φ_i/s²: mean y_i − (y_i − φ_iᵀm)/(1 − h_i), variance s²/(1 − h_i) (Rasmussen and
        Williams 2006, §5.4.2).
        """
        leverage = (self.design @ self.posterior.covariance_matrix * self.design).sum(-1) / self.noise**2
        away = (self.y - self.design @ self.posterior.mean) / (1 - leverage)
        return Normal(self.y - away, self.noise / (1 - leverage).sqrt())

    @cached_property
    def mean_field(self) -> Normal:
        """The independent normal law nearest to the posterior in KL(q ‖ p), (features,): mean m, variance 1/A_jj."""
        return Normal(self.posterior.mean, self.posterior.precision_matrix.diagonal().rsqrt())

    @cached_property
    def mean_field_evidence(self) -> float:
        """The ELBO of ``mean_field``: log p(y) − ½ [Σ log A_jj − log det A], in nats."""
        precision = self.posterior.precision_matrix
        return self.log_evidence - 0.5 * float(precision.diagonal().log().sum() - precision.logdet())
