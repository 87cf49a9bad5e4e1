"""Evolution: a planted structure with few evaluations, a small space whole."""

import torch

from pyro_nas.graph.enumeration import key_of_structure
from pyro_nas.graph.families import cell_spaces
from pyro_nas.inference import evolution, random_search


def test_evolution_finds_a_planted_structure_with_few_evaluations():
    """On 15 625 cells, a score that counts agreements with a planted one; random search of as many is far behind."""
    space = cell_spaces.nas_bench_201(1, 2, channels=2, repeats=1)
    planted = random_search.distinct(space, 1, torch.Generator().manual_seed(5))[0]["structure.cell"]
    calls = []

    def score(structure):
        calls.append(key_of_structure(structure))
        return float((structure["structure.cell"] * planted).sum())

    scored = evolution.search(space, score, population=30, generations=10, parents=8, seed=1)
    assert len(calls) == len(set(calls)) == len(scored) == 300
    assert scored[0].score == 6
    found = sum(random_search.search(space, score, 300, seed)[0].score == 6 for seed in range(5))
    assert found <= 1
    wins = sum(evolution.search(space, score, population=30, generations=10, parents=8, seed=s)[0].score == 6
               for s in range(3))  # fmt: skip
    assert wins == 3


def test_evolution_searches_a_small_space_exhaustively_and_stops_when_converged(toy):
    space, score = toy
    assert len(evolution.search(space, score, population=3, generations=2)) == 6
    calls = evolution.search(space, score, population=2, generations=2, parents=1)
    assert 2 <= len(calls) <= 4
