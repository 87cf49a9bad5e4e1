"""Enumeration: all structures counted by hand, neighbours and nearest vertices by brute force, draws by shares."""

import itertools
import math

import pytest
import torch

from pyro_nas import Space
from pyro_nas.graph.enumeration import (
    all_structures,
    count_structures,
    hard_choices,
    key_of_structure,
    least_sums,
    neighbours,
    random_structure,
)
from pyro_nas.graph.families import cell_spaces
from pyro_nas.graph.primitives import skip

NAMES = {(0, 1): "ab", (0, 2): "abc", (1, 2): "abc"}
COUNTS = {"simplex": 2 * 3 * 3, "cube": 2**2 * 2**3 * 2**3}


def space_of(restriction):
    return Space({edge: {name: skip() for name in names} for edge, names in NAMES.items()}, restriction=restriction)


@pytest.mark.parametrize("restriction", COUNTS)
def test_all_structures_are_as_many_as_counted_and_distinct(restriction):
    space = space_of(restriction)
    every = list(all_structures(space))
    assert len({key_of_structure(structure) for structure in every}) == len(every) == COUNTS[restriction]
    assert count_structures(space) == COUNTS[restriction]
    for structure in every:
        space.check_structure(structure)


@pytest.mark.parametrize("restriction", COUNTS)
def test_neighbours_are_the_structures_at_distance_one(restriction):
    """On the simplex a step changes two numbers of γ, on the cube one of them."""
    space = space_of(restriction)
    every = list(all_structures(space))
    numbers = torch.stack([torch.cat([table.flatten() for table in structure.values()]) for structure in every])
    distances = torch.cdist(numbers, numbers, p=1).round()
    for structure, row in zip(every, distances, strict=True):
        around = [key_of_structure(other) for other in neighbours(space, structure)]
        near = (row == (2 if restriction == "simplex" else 1)).nonzero()[:, 0]
        assert sorted(around) == sorted(key_of_structure(every[index]) for index in near.tolist())


def test_neighbours_on_the_cube_differ_in_one_primitive():
    space = cell_spaces.fabric(1, 2, channels=2, scales=1, depth=4)
    assert count_structures(space) == 2**3
    structure = next(all_structures(space))
    assert len(list(neighbours(space, structure))) == 3


def test_random_structures_are_uniform_and_those_of_the_generator():
    space, generator = space_of("simplex"), torch.Generator().manual_seed(0)
    counts = dict.fromkeys(map(key_of_structure, all_structures(space)), 0)
    for _ in range(1800):
        counts[key_of_structure(random_structure(space, generator))] += 1
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 40.8  # χ²₁₇, p = 0.001
    first, same, other = (random_structure(space, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert key_of_structure(first) == key_of_structure(same) != key_of_structure(other)


def test_a_wide_edge_on_the_cube_is_never_listed():
    """Of 2^200 vertices an edge, three edges: counted by formula, and walked through one by one."""
    space = Space({edge: {f"p{k}": skip() for k in range(200)} for edge in NAMES}, restriction="cube")
    assert count_structures(space) == 2**600
    first, second = itertools.islice(all_structures(space), 2)
    assert not first["structure"].any()
    assert second["structure"].nonzero().tolist() == [[2, 199]]  # the last digit moves first
    drawn = random_structure(space, torch.Generator().manual_seed(0))
    space.check_structure(drawn)
    assert abs(float(drawn["structure"].sum()) - 300) < 4 * 150**0.5
    assert len(list(neighbours(space, drawn))) == 600


def test_random_structures_on_the_cube_are_uniform():
    space, generator = space_of("cube"), torch.Generator().manual_seed(0)
    counts = dict.fromkeys(map(key_of_structure, all_structures(space)), 0)
    for _ in range(10 * len(counts)):
        counts[key_of_structure(random_structure(space, generator))] += 1
    assert sum((count - 10) ** 2 / 10 for count in counts.values()) < 330.5  # χ²₂₅₅, p = 0.001


@pytest.mark.parametrize("rows", [[], [[0.0]], [[0.0, 1.0, 1.5], [0.0], [0.0, 0.25], [0.0, 0.0, math.inf], [0.0, 7.0]]])
def test_least_sums_are_all_sums_in_order(rows):
    found = list(least_sums(rows))
    assert [value for value, _ in found] == sorted(map(sum, itertools.product(*rows)))
    assert [value for value, _ in found] == [sum(rows[row][rank] for row, rank in ranks.items()) for _, ranks in found]
    assert len({tuple(sorted(ranks.items())) for _, ranks in found}) == math.prod(map(len, rows))
    assert all(ranks.values() for _, ranks in found if ranks)


@pytest.mark.parametrize("restriction", COUNTS)
def test_hard_choices_are_the_nearest_vertex(restriction):
    gamma = torch.rand(5, 4, 3)  # (draw, edge, choice)
    if restriction == "simplex":
        vertices, gamma = torch.eye(3), gamma / gamma.sum(-1, keepdim=True)
    else:
        vertices = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    nearest = vertices[torch.cdist(gamma, vertices).argmin(-1)]
    assert torch.equal(hard_choices(gamma, restriction), nearest)
    assert torch.equal(hard_choices(gamma, f"{restriction} vertices"), nearest)
