"""Costs in a model: what the search pays for parameters, operations or latency, as probability.

``additive`` is a factor of the structure's prior, ``multiplicative`` a weight of the likelihood. A cost is called with
Γ inside λ's scale, and returns that weight; ``pyro_nas.graph.costs.measure`` gives its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import pyro
import torch
from torch import nn

from pyro_nas import checks
from pyro_nas.evidence.terms import COST
from pyro_nas.graph.costs import CostTable
from pyro_nas.graph.repulsion import Repulsion
from pyro_nas.graph.space import Choices, Structure

__all__ = ["Additive", "Cost", "Multiplicative", "additive", "multiplicative"]


class Cost(nn.Module):
    """Abstract: what C(Γ) does to the joint law; raises TypeError for a table of another kind."""

    kinds: tuple[type[CostTable | Repulsion], ...] = (CostTable, Repulsion)

    def __init__(self, table: CostTable | Repulsion):
        super().__init__()
        if not isinstance(table, self.kinds):
            raise TypeError(
                f"table: expected a {', or a '.join(kind.__name__ for kind in self.kinds)}, got "
                f"{checks.describe(table)}. Call pyro_nas.graph.costs.measure(space, x)."
            )
        self.table = table

    def forward(self, structure: Structure) -> float | torch.Tensor:
        """Return the weight of the likelihood given γ of shape (…, edge, choice), (…)."""
        raise NotImplementedError  # abstract

    def check(self, choices: Mapping[str, Choices]) -> None:
        """Raise ValueError where the table is not one of these choices."""
        expected = {site: group.shape for site, group in choices.items()}
        shapes = self.table.shapes
        if not expected or shapes != expected:
            raise ValueError(
                f"cost: expected a space with choices and a table of their shapes, {expected}, got one of {shapes}. "
                "Call pyro_nas.graph.costs.measure(space, x) with the model's space."
            )

    def of(self, structure: Structure) -> torch.Tensor:
        """Return C(Γ), (…), in the precision of γ."""
        return self.table(structure).to(next(iter(structure.values())).dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self.table = self.table.to(fn(torch.zeros(())).device)  # moved with the model, but never rounded
        super()._apply(fn, recurse)
        return self


class Additive(Cost):
    """The factor exp(−strength · C(Γ)), at the site "cost"; raises ValueError for a strength below 0."""

    def __init__(self, table: CostTable | Repulsion, strength: float):
        super().__init__(table)
        self.strength = checks.number("strength", strength, low=0, remedy="A higher cost is to be less probable.")

    def forward(self, structure: Structure) -> float | torch.Tensor:
        """Add −strength · C(Γ) to the log-density, the mean where each datum has a Γ; leave the likelihood as it is."""
        cost = self.of(structure)
        pyro.factor(COST, -self.strength * cost.mean(-1, keepdim=cost.dim() > 1))  # (), or of L particles (L, 1)
        return 1.0


class Multiplicative(Cost):
    """The likelihood to the power α log(C(Γ))^β; raises ValueError for α not above 0 or β below 0."""

    kinds = (CostTable,)  # a repulsion is 0 at most structures
    table: CostTable

    def __init__(self, table: CostTable, alpha: float, beta: float):
        super().__init__(table)
        self.alpha = checks.number("alpha", alpha, low=0, open_low=True)
        self.beta = checks.number("beta", beta, low=0)

    def forward(self, structure: Structure) -> float | torch.Tensor:
        """Return α log(C(Γ))^β."""
        return self.alpha * self.of(structure).log() ** self.beta

    def check(self, choices: Mapping[str, Choices]) -> None:
        """Raise ValueError also where the logarithm could be 0 or less: for the cheapest structure."""
        super().check(choices)
        least = self.table.fixed
        for site, table in self.table.tables.items():
            on_simplex = choices[site].on_simplex
            least += float(table.amin(-1).sum() if on_simplex else table.clamp_max(0).sum())
        if least <= 1:
            raise ValueError(
                f"cost: expected more than 1 {self.table.unit} for every structure, so that log(cost) is positive, got "
                f"{least:g} for the cheapest. Use a smaller unit, such as table.scaled(1000, 'nanoseconds')."
            )


def additive(table: CostTable | Repulsion, strength: float = 1.0) -> Cost:
    """p(Γ) ∝ p₀(Γ) exp(−strength · C(Γ)): the evidence is E log-lik − λ (KL(q ‖ p₀) + strength · E C(Γ)).

    ``strength`` is in nats per unit of the table, and inside λ's scale: λ weighs everything but the likelihood. Where
    λ has a prior, one hypernetwork q(w, Γ | λ) holds the front of accuracy against cost. The normaliser of p(Γ) is left
    out, a constant of the evidence. Reported as the term "cost", strength · E C(Γ), beside the divergences.

    Raises ValueError for a strength below 0 and, in the model, for a table of another space.
    """
    return Additive(table, strength)


def multiplicative(table: CostTable, alpha: float = 0.2, beta: float = 0.6) -> Cost:
    """FBNet's loss, cross-entropy · α log(C(Γ))^β: the log-likelihood times α log(C(Γ))^β, outside λ's scale.

    What is reported as log-likelihood has that weight. For likelihoods of probability at most 1, such as classes:
    where a log-density is positive, a higher cost would gain.

    Raises ValueError for α not above 0 or β below 0 and, in the model, where the logarithm could be 0 or less. Wu et
    al. 2019, eq. 2.
    """
    return Multiplicative(table, alpha, beta)
