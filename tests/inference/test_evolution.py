"""Evolution: a planted structure with few evaluations, a small space whole, children of parents as asked for."""

import pytest
import torch

from pyro_nas import Space
from pyro_nas.graph.enumeration import key_of_structure
from pyro_nas.graph.families import cell_spaces
from pyro_nas.graph.primitives import skip
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


SITE = "structure"


def chain(edges, choices):
    """A space of so many edges in a row."""
    return Space({(edge, edge + 1): {f"p{k}": skip() for k in range(choices)} for edge in range(edges)})


def generations(population, **options):
    """The structures that a search of two generations scores, in the order of scoring: first choices count."""
    order = []

    def score(structure):
        order.append(structure[SITE].argmax(-1))
        return float((structure[SITE][:, 0] * torch.arange(1.0, len(structure[SITE]) + 1)).sum())

    evolution.search(chain(30, 4), score, population=population, generations=2, **options)
    first, second = order[:population], order[population:]
    first.sort(key=lambda chosen: -float(((chosen == 0) * torch.arange(1.0, 31)).sum()))
    return first, second


@pytest.mark.parametrize("mutation", [0.3, 0.8])
def test_an_edge_is_drawn_anew_with_the_probability_that_is_asked_for(mutation):
    """Of one parent: among 4 choices a quarter of what is drawn anew is as before. 400 children of 30 edges."""
    first, children = generations(400, parents=1, mutation=mutation, seed=2)
    assert len(children) == 400
    changed = torch.stack(children).ne(first[0]).double().mean().item()
    expected = 0.75 * mutation / (1 - (1 - 0.75 * mutation) ** 30)  # a child is not its parent
    assert abs(changed - expected) < 4 * (expected * (1 - expected) / (400 * 30)) ** 0.5


def test_without_mutation_a_single_parent_has_no_children():
    first, children = generations(20, parents=1, mutation=1e-12)
    assert (len(first), len(children)) == (20, 0)


@pytest.mark.parametrize("parents", [2, 3, 5])
def test_children_are_crossed_from_the_best_of_as_many_as_are_asked_for(parents):
    """Each edge is one of theirs, about as often of each; with the probability of mutation near 0 nothing else is."""
    first, children = generations(60, parents=parents, mutation=1e-12)
    assert len(children) == 30  # the other half are mutants, which would be their parents
    best = torch.stack(first[:parents])  # (parent, edge)
    taken = torch.stack(children)[:, None] == best  # (child, parent, edge)
    assert taken.any(1).all()
    alone = best[:, None].eq(best).sum(1) == 1  # (parent, edge): a choice that no other parent has
    shares = [taken[:, parent, alone[parent]].double().mean().item() for parent in range(parents)]
    error = [(1 / parents / (30 * int(alone[parent].sum()))) ** 0.5 for parent in range(parents)]
    assert all(share > 1 / parents - 0.15 - 4 * e for share, e in zip(shares, error, strict=True))
    assert all(share < 1 / parents + 0.15 + 4 * e for share, e in zip(shares, error, strict=True))
