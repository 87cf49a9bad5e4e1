"""Repulsion: what Γ pays for being one of some discrete structures, and these alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from pyro_nas import checks
from pyro_nas.graph.enumeration import Vertex
from pyro_nas.graph.space import Choices, Structure

__all__ = ["Repulsion"]


@dataclass(frozen=True)
class Repulsion:
    """C(Γ) = Σ_j strength_j · Π_edges ⟨γ, Γ_j⟩: strength_j at the structure Γ_j, 0 at all that are not listed.

    On the cube ⟨γ, Γ_j⟩ is the product of γ over the choices that Γ_j has and of 1 − γ over those that it lacks. C is
    linear in the γ of each edge, so that C(E Γ) is the expected cost of independent edges, Σ_j strength_j · P(Γ = Γ_j).
    A function that is linear in all γ together cannot do it: above 0 at some structures, it is so at some between.

    ``choices`` are those of the space, {site: Choices}. Raises ValueError for structures of other sites or shapes, and
    for strengths that are not one finite number for each.
    """

    choices: Mapping[str, Choices]
    structures: Sequence[Vertex]
    strengths: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.strengths) != len(self.structures):
            raise ValueError(f"strengths: expected {len(self.structures)}, one a structure, got {len(self.strengths)}.")
        for index, (structure, strength) in enumerate(zip(self.structures, self.strengths, strict=True)):
            checks.number(f"strengths[{index}]", strength)
            shapes = {site: tuple(gamma.shape) for site, gamma in structure.items()}
            if shapes != self.shapes:
                raise ValueError(f"structures[{index}]: expected γ of the shapes {self.shapes}, got {shapes}.")

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of γ at each site, (edge, choice)."""
        return {site: choices.shape for site, choices in self.choices.items()}

    def __call__(self, structure: Structure) -> torch.Tensor:
        """Return C(Γ), (…), of γ or probabilities (…, edge, choice) at each site."""
        first = next(iter(structure.values()))
        total = first.new_zeros(first.shape[:-2])
        for vertex, strength in zip(self.structures, self.strengths, strict=True):
            likeness = torch.ones_like(total)
            for site, choices in self.choices.items():
                gamma, there = structure[site], vertex[site].to(structure[site])
                same = (gamma * there).sum(-1) if choices.on_simplex else (1 - (gamma - there).abs()).prod(-1)
                likeness = likeness * same.prod(-1)
            total = total + strength * likeness
        return total

    def to(self, device: torch.device) -> Self:
        """Return the same on another device."""
        moved = [{site: gamma.to(device) for site, gamma in vertex.items()} for vertex in self.structures]
        return replace(self, structures=moved)
