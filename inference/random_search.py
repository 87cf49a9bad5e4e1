"""Random search: distinct structures drawn uniformly, each scored, best first.

The score is any function of a structure, such as the validation accuracy of a network that was trained for it; with as
many draws as there are structures this is exhaustive search.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_nas import checks
from pyro_nas.graph.enumeration import (
    StructureKey,
    Vertex,
    all_structures,
    count_structures,
    key_of_structure,
    random_structure,
)
from pyro_nas.graph.space import Space

__all__ = ["Score", "Scored", "distinct", "evaluated", "rank", "search"]

Score = Callable[[Vertex], float]


@dataclass(frozen=True)
class Scored:
    """A discrete structure, which on the simplex ``derive`` accepts, and its score: higher is better."""

    structure: Vertex
    score: float


def search(space: Space, score: Score, count: int, seed: int = 0) -> list[Scored]:
    """Score ``count`` distinct structures, drawn uniformly without replacement, and return them, best first.

    Raises ValueError where the space has no open choices, and for a score that is NaN or +∞. Li and Talwalkar 2019.
    """
    checks.is_callable("score", score, "a function of a structure")
    checks.integer("count", count, low=1)
    checks.seed(seed)
    return rank(score, distinct(space, count, torch.Generator().manual_seed(seed)))


def distinct(space: Space, count: int, generator: torch.Generator) -> list[Vertex]:
    """Draw that many distinct structures uniformly, or all where there are no more; raise ValueError for no choices."""
    if not space.choices():
        raise ValueError("space: expected one with open choices to search, got one without.")
    if count >= count_structures(space):
        return list(all_structures(space))
    structures: dict[StructureKey, Vertex] = {}
    while len(structures) < count:
        structure = random_structure(space, generator)
        structures.setdefault(key_of_structure(structure), structure)
    return list(structures.values())


def rank(score: Score, structures: list[Vertex]) -> list[Scored]:
    """Score structures and return them, best first; raise ValueError for a score that is NaN or +∞."""
    return sorted((evaluated(score, structure) for structure in structures), key=lambda entry: -entry.score)


def evaluated(score: Score, structure: Vertex) -> Scored:
    """Return a structure with its score; raise ValueError for one that is NaN or +∞."""
    value = float(score(structure))
    if math.isnan(value) or value == math.inf:
        raise ValueError(
            f"score: expected a number of every structure, got {value}. Return −∞ for one that cannot be scored."
        )
    return Scored(structure, value)
