"""Enumeration: the discrete structures of a space, one by one, by chance, and next to each other.

A structure maps each site to a vertex γ, (edge, choice): one-hot rows on the simplex, zeros and ones on the cube.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import one_hot

from pyro_nas.graph.space import Choices, Restriction, Space, on_simplex

__all__ = [
    "StructureKey",
    "Vertex",
    "all_structures",
    "count_structures",
    "digits_of",
    "hard_choices",
    "key_of_structure",
    "neighbours",
    "random_structure",
    "structure_of",
]

Vertex = dict[str, torch.Tensor]
StructureKey = tuple[tuple[str, tuple[int, ...]], ...]


def digits_of(choices: Choices) -> list[int]:
    """Return how many values each free digit of a site's γ has: K, for each edge on the simplex; 2, each γ on the cube.

    Digits run through the edges and, on the cube, through the choices of each. Their values are independent, so that
    structures are counted by the product, and the 2^K vertices of an edge on the cube are never listed.
    """
    edges, size = choices.shape
    return [size] * edges if choices.on_simplex else [2] * (edges * size)


def structure_of(space: Space, digits: Sequence[int]) -> Vertex:
    """Return the structure with these values of its digits, those of one site after those of the other."""
    structure, start = {}, 0
    for site, choices in space.choices().items():
        end = start + len(digits_of(choices))
        values = torch.tensor(digits[start:end])
        gamma = one_hot(values, choices.shape[1]) if choices.on_simplex else values.view(choices.shape)
        structure[site], start = gamma.to(torch.get_default_dtype()), end
    return structure


def count_structures(space: Space) -> int:
    """Return the number of discrete structures: Π K on the simplex, Π 2^K on the cube."""
    return math.prod(math.prod(digits_of(choices)) for choices in space.choices().values())


def all_structures(space: Space) -> Iterator[Vertex]:
    """Yield every discrete structure once, each when it is asked for."""
    sizes = [size for choices in space.choices().values() for size in digits_of(choices)]
    for digits in itertools.product(*map(range, sizes)):
        yield structure_of(space, digits)


def random_structure(space: Space, generator: torch.Generator | None = None) -> Vertex:
    """Draw a discrete structure uniformly."""
    digits: list[int] = []
    for choices in space.choices().values():
        sizes = digits_of(choices)
        digits += torch.randint(sizes[0], (len(sizes),), generator=generator).tolist()
    return structure_of(space, digits)


def neighbours(space: Space, structure: Vertex) -> Iterator[Vertex]:
    """Yield the structures that differ in one edge's choice; on the cube, in one primitive."""
    for site, choices in space.choices().items():
        for edge, choice in itertools.product(*map(range, choices.shape)):
            if choices.on_simplex and structure[site][edge, choice] == 1:
                continue
            table = structure[site].clone()
            if choices.on_simplex:
                table[edge] = 0
            table[edge, choice] = 1 - structure[site][edge, choice]
            yield {**structure, site: table}


def key_of_structure(structure: Vertex) -> StructureKey:
    """Return what tells one discrete structure from another, to be a key of dictionaries."""
    return tuple((site, tuple(structure[site].round().int().flatten().tolist())) for site in sorted(structure))


def hard_choices(gamma: torch.Tensor, restriction: Restriction) -> torch.Tensor:
    """Return the vertex nearest to γ, (…, edge, choice): argmax on the simplex, γ > ½ on the cube."""
    if on_simplex(restriction):
        return one_hot(gamma.argmax(-1), gamma.shape[-1]).to(torch.get_default_dtype())
    return (gamma > 0.5).to(torch.get_default_dtype())
