"""Enumeration: the discrete structures of a space, one by one, by chance, and next to each other.

A structure maps each site to a vertex γ, (edge, choice): one-hot rows on the simplex, zeros and ones on the cube.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch.nn.functional import one_hot

from pyro_nas.graph.space import Choices, Restriction, Space, on_simplex

__all__ = [
    "StructureKey",
    "Vertex",
    "all_structures",
    "count_structures",
    "hard_choices",
    "key_of_structure",
    "neighbours",
    "random_structure",
]

Vertex = dict[str, torch.Tensor]
StructureKey = tuple[tuple[str, tuple[int, ...]], ...]


def count_structures(space: Space) -> int:
    """Return the number of discrete structures: Π K on the simplex, Π 2^K on the cube."""
    return math.prod(len(_rows(choices)) ** choices.shape[0] for choices in space.choices().values())


def all_structures(space: Space) -> Iterator[Vertex]:
    """Yield every discrete structure once."""
    sites = space.choices()
    tables = [itertools.product(_rows(choices), repeat=choices.shape[0]) for choices in sites.values()]
    for rows in itertools.product(*tables):
        yield {site: torch.stack(row) for site, row in zip(sites, rows, strict=True)}


def random_structure(space: Space, generator: torch.Generator | None = None) -> Vertex:
    """Draw a discrete structure uniformly."""
    drawn = {}
    for site, choices in space.choices().items():
        rows = torch.stack(_rows(choices))
        drawn[site] = rows[torch.randint(len(rows), choices.shape[:1], generator=generator)]
    return drawn


def neighbours(space: Space, structure: Vertex) -> Iterator[Vertex]:
    """Yield the structures that differ in one edge's choice; on the cube, in one primitive."""
    for site, choices in space.choices().items():
        for edge, row in enumerate(structure[site]):
            for other in _rows(choices):
                different = int((other != row).sum())
                if different == 1 or (different and choices.on_simplex):
                    table = structure[site].clone()
                    table[edge] = other
                    yield {**structure, site: table}


def key_of_structure(structure: Vertex) -> StructureKey:
    """Return what tells one discrete structure from another, to be a key of dictionaries."""
    return tuple((site, tuple(structure[site].round().int().flatten().tolist())) for site in sorted(structure))


def hard_choices(gamma: torch.Tensor, restriction: Restriction) -> torch.Tensor:
    """Return the vertex nearest to γ, (…, edge, choice): argmax on the simplex, γ > ½ on the cube."""
    if on_simplex(restriction):
        return one_hot(gamma.argmax(-1), gamma.shape[-1]).to(torch.get_default_dtype())
    return (gamma > 0.5).to(torch.get_default_dtype())


def _rows(choices: Choices) -> list[torch.Tensor]:
    """Return the vertices that one edge may be at."""
    size = choices.shape[1]
    if choices.on_simplex:
        return list(torch.eye(size))
    return [torch.tensor(bits) for bits in itertools.product((0.0, 1.0), repeat=size)]
