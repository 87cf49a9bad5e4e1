"""Random search: distinct structures, each as often as any other, and scores that are numbers."""

import pytest

from pyro_nas.graph.enumeration import count_structures, key_of_structure
from pyro_nas.graph.families import cell_spaces
from pyro_nas.inference import evolution, random_search, reinforce


def test_random_search_draws_distinct_structures_uniformly():
    names = ("zero", "skip", "convolution 1")
    space = cell_spaces.nas_bench_201(1, 2, channels=2, repeats=1, nodes=3, primitives=names)
    counts = {}
    for seed in range(300):
        for entry in random_search.search(space, lambda _: 0.0, 9, seed):
            key = key_of_structure(entry.structure)
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == count_structures(space) == 27
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 54.1  # χ²₂₆, p = 0.001, and here it is smaller
    everything = random_search.search(space, lambda s: float(s["structure.cell"][0, 1]), 1000)
    assert len(everything) == 27
    assert [entry.score for entry in everything] == [1.0] * 9 + [0.0] * 18


def test_a_score_that_is_no_number_is_refused(toy):
    space, _ = toy
    for find in (
        lambda score: random_search.search(space, score, 3),
        lambda score: evolution.search(space, score, population=2, generations=2),
        lambda score: reinforce.search(space, score, 3),
    ):
        for value in ("nan", "inf"):
            with pytest.raises(ValueError, match=f"score: expected a number of every structure, got {value}"):
                find(lambda _, value=value: float(value))
