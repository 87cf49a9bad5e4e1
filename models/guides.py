"""Guides: variational families q(w, Γ) of a ``Model``, all of q(Γ) in the family of the structure prior.

Each guide keeps its parameters in itself and scales its latent sites by λ as the model does. Any other Pyro callable,
Pyro's autoguides among them, works in their place.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn
from torch.distributions import biject_to
from torch.nn.functional import normalize

from pyro_nas import checks
from pyro_nas.data import Inputs
from pyro_nas.models.latents import Latent, is_packed, is_positive, is_real, unconstrained
from pyro_nas.models.model import Model
from pyro_nas.models.normals import MeanFieldNormal
from pyro_nas.printing import Printed, Table

__all__ = [
    "Guide",
    "LowRankNormal",
    "MeanField",
    "PointMass",
    "PointWeights",
    "StructureConditioned",
    "key_of",
]


class Guide(Printed, nn.Module):
    """Abstract: draws λ where it is a site, then Γ, then w given Γ; called with the model's arguments.

    ``initial_scale`` is the standard deviation that each weight starts with, in unconstrained coordinates.

    Raises TypeError for a model that is no ``Model``, ValueError for an ``initial_scale`` not above 0.
    """

    model: Model

    def __init__(self, model: Model, initial_scale: float = 0.05):
        super().__init__()
        if not isinstance(model, Model):
            raise TypeError(
                f"model: expected a Model, got {checks.describe(model)}. "
                "For another Pyro callable use pyro.infer.autoguide or a guide of your own."
            )
        checks.number("initial_scale", initial_scale, low=0, open_low=True)
        self.__dict__["model"] = model  # not a submodule: the guide's state is its own
        self.latents = model.latent_weights()
        self.loc = _parameters({site: unconstrained(latent) for site, latent in self.latents.items()})
        self.log_scale = _parameters(
            {site: torch.full_like(value, initial_scale).log() for site, value in self._locations().items()}
        )
        self.structure = _parameters({site: model.structure_parameters(site).clone() for site in model.choices})

    def forward(
        self, x: Inputs | None = None, y: torch.Tensor | None = None, complexity: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Draw all latent sites, λ too where it is one and not given; the data are not used."""
        with poutine.scale(scale=self.model.draw_complexity() if complexity is None else complexity):
            structure = {site: self.draw_structure(site) for site in self.model.choices}
            return {**self.draw_weights(structure), **structure}

    def table(self) -> Table:
        """Return the parameters by name with their shapes."""
        size = sum(parameter.numel() for parameter in self.parameters())
        rows = [(name, str(tuple(parameter.shape))) for name, parameter in self.named_parameters()]
        return Table(f"{type(self).__name__} of {size} parameters, sites {[*self.latents, *self.model.choices]}", rows)

    def follow_prior(self) -> None:
        """Set q(Γ) to the model's prior of Γ."""
        with torch.no_grad():
            for site in self.model.choices:
                self.structure[key_of(site)].copy_(self.model.structure_parameters(site))

    def draw_structure(self, site: str) -> torch.Tensor:
        """Draw γ of one site, (edge, choice), from q(Γ) in the prior's family."""
        return pyro.sample(site, self.model.structure_law(site, self.structure[key_of(site)]))

    def draw_weights(self, structure: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Draw the weight sites, {site: tensor of the site's shape}, given Γ, {site: (…, edge, choice)}."""
        raise NotImplementedError  # abstract

    def _locations(self) -> dict[str, torch.Tensor]:
        return {site: self.loc[key_of(site)] for site in self.latents}


class MeanField(Guide):
    """q(w) = Π N(m_i, σ_i²), pushed through the support's bijection where a site is constrained."""

    def draw_weights(self, structure: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Draw each weight by itself."""
        return {
            site: pyro.sample(site, _normal(self.loc[key_of(site)], self.log_scale[key_of(site)], latent))
            for site, latent in self.latents.items()
        }


class LowRankNormal(Guide):
    """q(w) = N(m, W Wᵀ + diag σ²) for each real site, W of shape (size, rank); mean field for constrained sites.

    Of the variance that a weight starts with half is σ², half comes from W. Raises ValueError for a rank below 1.
    """

    def __init__(self, model: Model, rank: int = 4, initial_scale: float = 0.05):
        super().__init__(model, initial_scale)
        self.rank = checks.integer("rank", rank, low=1)
        packed = [site for site, latent in self.latents.items() if is_packed(latent)]
        rows = {site: torch.randn(*self.latents[site].initial.shape, rank) for site in packed}
        self.factor = _parameters(
            {site: (normalize(row, dim=-1) * initial_scale / 2**0.5).to(self.loc[key_of(site)])
             for site, row in rows.items()}
        )  # fmt: skip
        with torch.no_grad():
            for site in packed:
                self.log_scale[key_of(site)].sub_(0.5 * math.log(2))

    def draw_weights(self, structure: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Draw the weights of each site jointly."""
        draws = {}
        for site, latent in self.latents.items():
            key = key_of(site)
            law = _normal(self.loc[key], self.log_scale[key], latent)
            if key in self.factor:
                variance = (2 * self.log_scale[key]).exp()
                law = dist.LowRankMultivariateNormal(self.loc[key], self.factor[key], variance, validate_args=False)
            draws[site] = pyro.sample(site, law)
        return draws


class PointMass(Guide):
    """q = δ(w, Γ): maximum a posteriori weights and, where γ lies in an interior, structure.

    A structure prior on vertices keeps its own family for q(Γ): a one-hot point cannot be learned by gradients.
    """

    def __init__(self, model: Model):
        super().__init__(model)
        del self.log_scale

    def draw_structure(self, site: str) -> torch.Tensor:
        """Draw γ of one site: the point itself."""
        if not self.model.structure_prior.reparameterised:
            return super().draw_structure(site)
        law = self.model.structure_law(site, self.structure[key_of(site)])
        simplex = self.model.structure_prior.restriction == "simplex"
        parameters = self.structure[key_of(site)]
        return pyro.sample(site, dist.Delta(parameters.softmax(-1) if simplex else parameters.sigmoid()).to_event(
            law.event_dim))  # fmt: skip

    def draw_weights(self, structure: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Draw the weights: the points themselves."""
        return _draw_points(self)


class PointWeights(Guide):
    """q = δ(w) q(Γ): maximum a posteriori weights under a law of the structure (SNAS; SPOS; Dirichlet search).

    Weights that only the prior pulls at decay below 1e-38, with which a CPU is several times slower; call
    ``torch.set_flush_denormal(True)`` before a long fit, as the command line does.
    """

    def __init__(self, model: Model):
        super().__init__(model)
        del self.log_scale

    def draw_weights(self, structure: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Draw the weights: the points themselves."""
        return _draw_points(self)


class StructureConditioned(Guide):
    """q(w | Γ) = Π N(m_i(Γ), σ_i(Γ)²), m(Γ) = m + Bᵀ(A vec Γ), log σ(Γ) = log σ + Cᵀ(A vec Γ), times q(Γ).

    A is (rank, choices), B and C are (rank, size): a low-rank hypernetwork over the structure, so that weights may
    differ from structure to structure. With rank at least the number of choices every shift is free.

    Raises ValueError for a rank below 1.
    """

    def __init__(self, model: Model, rank: int = 8, initial_scale: float = 0.05):
        super().__init__(model, initial_scale)
        checks.integer("rank", rank, low=1)
        size = sum(choices.shape[0] * choices.shape[1] for choices in model.choices.values())
        code = torch.eye(rank, size) if rank >= size else torch.randn(rank, size) / size**0.5
        self.code = nn.Parameter(code.to(next(self.loc.parameters(), code).device))
        zeros = {site: value.new_zeros(rank, value.numel()) for site, value in self._locations().items()}
        self.loc_shift = _parameters({site: value.clone() for site, value in zeros.items()})
        self.log_scale_shift = _parameters(zeros)

    def draw_weights(self, structure: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Draw each weight by itself given Γ."""
        flat = [value.flatten(-2) for value in structure.values()]
        gamma = torch.cat(flat, -1) if flat else self.code.new_zeros(0)
        code = (self.code @ gamma.unsqueeze(-1)).mT  # (…, 1, rank)
        draws = {}
        for site, latent in self.latents.items():
            key, shape = key_of(site), latent.initial.shape
            shifts = [(code @ part[key]).squeeze(-2) for part in (self.loc_shift, self.log_scale_shift)]
            loc, log_scale = (
                part[key] + shift.view(*shift.shape[:-1], *shape)
                for part, shift in zip((self.loc, self.log_scale), shifts, strict=True)
            )
            draws[site] = pyro.sample(site, _normal(loc, log_scale, latent))
        return draws


def _draw_points(guide: Guide) -> dict[str, torch.Tensor]:
    """Draw each weight site as the point that its location stands for."""
    draws = {}
    for site, latent in guide.latents.items():
        point = biject_to(latent.support)(guide.loc[key_of(site)])
        draws[site] = pyro.sample(site, dist.Delta(point, validate_args=False).to_event(latent.initial.dim()))
    return draws


def _normal(loc: torch.Tensor, log_scale: torch.Tensor, latent: Latent) -> TorchDistribution:
    """Return the normal law, in the coordinates of the site's support."""
    law: TorchDistribution = MeanFieldNormal(loc, log_scale)
    if is_positive(latent):
        law = dist.LogNormal(loc, log_scale.exp(), validate_args=False)
    elif not is_real(latent):
        law = dist.TransformedDistribution(law, [biject_to(latent.support)], validate_args=False)
    joint: TorchDistribution = law.to_event(latent.initial.dim() - law.event_dim)
    return joint


def _parameters(tensors: dict[str, torch.Tensor]) -> nn.ParameterDict:
    return nn.ParameterDict({key_of(site): nn.Parameter(value) for site, value in tensors.items()})


def key_of(site: str) -> str:
    """Return a site's name as a key of a ParameterDict."""
    return site.replace(".", "/")
