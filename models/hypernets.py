"""Hypernetworks: guides q(w, Γ | λ), whose parameters are functions of the complexity λ.

A hypernetwork takes any guide of ``guides`` for a model in which λ has a prior, and puts a function θ(λ) in the place
of each of its parameters θ: locations, scales, structure. ``poutine.condition(hypernet, {"complexity": λ})`` is
the posterior at one λ, ``at(λ)`` the plain pair there, to be read or tuned further.
"""

from __future__ import annotations

import copy
import math
from contextlib import suppress

import torch
from pyro import poutine
from torch import nn
from torch.func import functional_call

from pyro_nas import checks
from pyro_nas.data import Inputs
from pyro_nas.evidence.sites import device_of, same_law, sample_sites
from pyro_nas.models.guides import Guide, key_of
from pyro_nas.models.latents import is_real
from pyro_nas.models.model import Model
from pyro_nas.models.splines import Shrinkage, b_splines
from pyro_nas.random_state import forked, seeded

__all__ = ["Hypernetwork", "Linear", "LowRank", "Spline", "combine"]


class Hypernetwork(nn.Module):
    """Abstract: draws λ, then what its guide draws with the parameters θ(λ); called with the model's arguments.

    Raises ValueError for a model without a prior of λ, or with batch normalisation: all λ would share its running mean;
    TypeError for a guide that is none of ``guides``.
    """

    model: Model
    guide: Guide

    def __init__(self, guide: Guide):
        super().__init__()
        if not isinstance(guide, Guide):
            raise TypeError(f"guide: expected one of models.guides, got {checks.describe(guide)}.")
        if isinstance(guide.model.complexity, float):
            raise ValueError(
                f"guide: expected one of a model in which λ has a prior, got complexity={guide.model.complexity}. "
                "Pass Model(complexity=priors.log_uniform(0.1, 100.0))."
            )
        if guide.model.network.keeps_statistics():
            raise ValueError(
                "guide: expected a network without batch normalisation, whose running mean all λ would share, got one "
                "with it. Use torch.nn.GroupNorm in your primitives."
            )
        self.__dict__.update(model=guide.model, guide=guide)  # not submodules: only what follows is learned
        self._names = {key_of(name): name for name, _ in guide.named_parameters()}

    def parameters_at(self, complexity: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return θ(λ) by the guide's names, (…, *shape), for λ of shape (…)."""
        raise NotImplementedError  # abstract

    def forward(self, x: Inputs | None = None, y: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Draw λ, then Γ and w given λ; raise ValueError for λ not above 0."""
        complexity = torch.as_tensor(self.model.draw_complexity()).to(next(self.parameters()).dtype)
        if not bool((complexity > 0).all()):
            raise ValueError(f"complexity: expected λ above 0, got {complexity.flatten().tolist()}.")
        drawn: dict[str, torch.Tensor] = functional_call(self.guide, self.parameters_at(complexity), (x, y, complexity))
        return drawn

    def at(self, complexity: float) -> tuple[Model, Guide]:
        """Return the plain pair at one λ: a copy of the model with that λ, and its guide with the parameters θ(λ).

        Raises ValueError for λ not above 0.
        """
        checks.number("complexity", complexity, low=0, open_low=True)
        model = copy.deepcopy(self.model)
        model.complexity = float(complexity)
        guide = copy.deepcopy(self.guide, {id(self.model): model, id(self.guide.latents): self.guide.latents})
        with torch.no_grad():
            values = self.parameters_at(next(self.parameters()).new_tensor(complexity))
            for name, value in values.items():
                guide.get_parameter(name).copy_(value)
        return model, guide

    def _initial(self) -> dict[str, torch.Tensor]:
        return {key: self.guide.get_parameter(name).detach() for key, name in self._names.items()}

    def _values(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {self._names[key]: value for key, value in values.items()}


class Linear(Hypernetwork):
    """θ(λ) = b₃ + b₂ λ / unit (hypernetwork paper, eq. 7; unit 100); raises ValueError for a unit not above 0."""

    def __init__(self, guide: Guide, unit: float = 100.0):
        super().__init__(guide)
        self.unit = checks.number("unit", unit, low=0, open_low=True)
        self.coefficients = nn.ParameterDict(
            {key: nn.Parameter(torch.stack([value, torch.zeros_like(value)])) for key, value in self._initial().items()}
        )

    def parameters_at(self, complexity: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return b₃ + b₂ λ / unit."""
        basis = torch.stack([torch.ones_like(complexity), complexity / self.unit], -1)
        return self._values({key: combine(basis, value) for key, value in self.coefficients.items()})


class LowRank(Hypernetwork):
    """θ(λ) = B₁ + (h U₁ + c₁)ᵀ (h U₂ + c₂) for each matrix, B₁ + h U + c for each vector, h = ReLU(a λ / unit + b).

    Every tensor of weights has its own h, of ``hidden`` units (hypernetwork paper, eq. 6; 50 units, unit 100).

    Raises ValueError for fewer than one hidden unit, or a unit not above 0.
    """

    def __init__(self, guide: Guide, hidden: int = 50, unit: float = 100.0):
        super().__init__(guide)
        checks.integer("hidden", hidden, low=1)
        self.unit = checks.number("unit", unit, low=0, open_low=True)
        shapes = list(self.model.packing.shapes.values())
        self.base = nn.ParameterDict({key: nn.Parameter(value.clone()) for key, value in self._initial().items()})
        self._shapes = {
            key: shapes if self._names[key].endswith(".weights") and value.shape == (self.model.packing.size,)
            else [value.shape] for key, value in self.base.items()
        }  # fmt: skip
        self.factors = nn.ModuleDict(
            {key: nn.ModuleList(_Factors(shape, hidden) for shape in parts) for key, parts in self._shapes.items()}
        )

    def parameters_at(self, complexity: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return B₁ + the low-rank part."""
        scaled = (complexity / self.unit).unsqueeze(-1)
        values = {}
        for key, base in self.base.items():
            pieces = [factors(scaled) for factors in self.factors[key].children()]
            values[key] = base + torch.cat(pieces, -1).view(*complexity.shape, *base.shape)
        return self._values(values)


class _Factors(nn.Module):
    """The part of eq. (6) that depends on λ, for one tensor: (…, 1) → (…, size)."""

    def __init__(self, shape: torch.Size, hidden: int):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(1, hidden), nn.ReLU())
        sizes = (shape[0], shape[1:].numel()) if len(shape) > 1 else (shape.numel(),)
        self.maps = nn.ModuleList(nn.Linear(hidden, size) for size in sizes)

    def forward(self, scaled: torch.Tensor) -> torch.Tensor:
        h = self.hidden(scaled)
        factors: list[torch.Tensor] = [factor(h) for factor in self.maps]
        if len(factors) == 1:
            return factors[0]
        return (factors[0].unsqueeze(-1) * factors[1].unsqueeze(-2)).flatten(-2)


class Spline(Hypernetwork):
    """θ(λ) a quadratic spline in log λ; weights shrink as the linear-Gaussian optimum does, and their means with them.

    A standard deviation σ is that of σ² = λ / (g(λ) + λ/τ²), log g a combination of ``scale_bases`` B-splines, τ² the
    prior's variance: v_j(λ) = λ / (G_jj + λ/τ_j²) is the optimum of a linear-Gaussian model, where g does not depend
    on λ. A location is m = a(λ) √(1 − σ²/τ²): a weight that the data do not tell of has σ = τ and m = 0. (The power
    was chosen on validation data, among 0, ¼, ½ and 1; of ¼ one run was also seen on the test part.) a, and all else
    of the guide, is a combination of ``bases`` B-splines of degree 2, their knots evenly spaced in log λ over its
    prior's range. (Where τ depends on other sites or is learned, or the prior's mean is not 0, m and log σ are.) A
    B-spline is above 0 on one to three of the intervals between knots: small λ and large λ share few parameters, and
    inside the range d𝔏/dλ has no jumps. In the middle of the range it starts as its guide, but with σ at most 0.95 τ.

    Raises ValueError for fewer than 3 bases, and for a prior of λ that is not of an interval above 0.
    """

    def __init__(self, guide: Guide, bases: int = 7, scale_bases: int | None = None):
        super().__init__(guide)
        scale_bases = bases if scale_bases is None else scale_bases
        checks.integer("bases", bases, low=3)
        checks.integer("scale_bases", scale_bases, low=3)
        low, high = _range(self.model)
        self.log_low, self.log_high = math.log(low), math.log(high)
        middle = math.exp(0.5 * (self.log_low + self.log_high))
        initial, self._shrinking = self._initial(), []
        for site, precision in self._precisions(guide).items():
            loc, log_scale = f"loc/{site}", f"log_scale/{site}"
            taken = (precision * (2 * initial[log_scale]).exp()).clamp_max(0.9)  # σ²/τ²
            initial[loc] = initial[loc] / (1 - taken).sqrt()
            initial[log_scale] = (middle * precision * (1 - taken) / taken).log()
            self.register_buffer(f"precision/{site}", precision, persistent=False)
            self._shrinking.append((loc, log_scale, f"precision/{site}"))
        scales = [log_scale for _, log_scale, _ in self._shrinking]
        counts = {key: scale_bases if key in scales else bases for key in initial}
        self.coefficients = nn.ParameterDict(
            {key: nn.Parameter(value.expand(counts[key], *value.shape).clone()) for key, value in initial.items()}
        )

    def parameters_at(self, complexity: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return θ(λ); outside the range of the prior a, g and all else are the nearest end's."""
        log_complexity = complexity.log()
        place = (log_complexity - self.log_low) / (self.log_high - self.log_low)
        inside = (place - 0.5).abs() <= 0.5 + 1e-6  # the ends too, where the derivative of clamp is 0
        place = torch.where(inside, place, place.detach().clamp(0, 1))
        values = {}
        for key, coefficients in self.coefficients.items():
            values[key] = combine(b_splines(place, len(coefficients)), coefficients)
        for loc, log_scale, precision in self._shrinking:
            level = log_complexity.reshape(complexity.shape + (1,) * (values[loc].dim() - complexity.dim()))
            values[loc], values[log_scale] = Shrinkage.apply(
                values[loc], values[log_scale] - level, self.get_buffer(precision)
            )
        return self._values(values)

    def _precisions(self, guide: Guide) -> dict[str, torch.Tensor]:
        """Return the precision 1/τ² of a guide's real sites that have a scale, where τ is fixed, the mean 0, by key."""
        prior = self.model.weights
        if isinstance(prior, nn.Module) and any(parameter.requires_grad for parameter in prior.parameters()):
            return {}
        with torch.no_grad(), forked(), poutine.block():
            runs = [sample_sites(self.model.weights, ()) for _ in range(2)]
        precisions = {}
        for site, latent in guide.latents.items():
            if f"log_scale/{key_of(site)}" not in self._names or not is_real(latent):
                continue
            law, other = (run[site]["fn"] for run in runs)  # differ where the prior is hierarchical
            variance = law.variance
            if same_law(law, other) and bool(variance.isfinite().all()) and not bool(law.mean.any()):
                precisions[key_of(site)] = (1 / variance).expand(latent.initial.shape).clone()
        return precisions


def _range(model: Model) -> tuple[float, float]:
    """Return the ends of λ's prior: its quantiles 0 and 1, or 1e-4 and 1 − 1e-4, or the extremes of 10 000 draws.

    The first of these that it knows and that are above 0 and finite; the same for the same prior.

    Raises ValueError where λ may be 0 or less, or has one value only.
    """
    law = model.complexity
    assert not isinstance(law, float)
    with seeded(0):
        candidates = [torch.stack(law.sample((10_000,)).aminmax())]
    for tail in (1e-4, 0.0):
        with suppress(NotImplementedError):
            candidates.insert(0, law.icdf(torch.tensor([tail, 1 - tail], device=device_of(law))))
    ends = next((pair for pair in candidates if bool(((pair > 0) & pair.isfinite()).all())), candidates[-1])
    if not 0 < float(ends[0]) < float(ends[1]):
        raise ValueError(
            f"complexity: expected a prior on an interval above 0, got one from {ends[0]:g} to {ends[1]:g}."
        )
    return float(ends[0]), float(ends[1])


def combine(basis: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Return Σ_k basis_k · coefficients_k: (…, K) and (K, *shape) → (…, *shape)."""
    values: torch.Tensor = (basis @ coefficients.flatten(1)).view(*basis.shape[:-1], *coefficients.shape[1:])
    return values
