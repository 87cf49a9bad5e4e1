"""Evolution: a population of structures, of which the best are crossed and mutated (SPOS, Guo et al. 2020, alg. 1)."""

from __future__ import annotations

import torch

from pyro_nas import checks
from pyro_nas.graph.enumeration import Vertex, count_structures, key_of_structure, random_structure
from pyro_nas.graph.space import Space
from pyro_nas.inference.random_search import Score, Scored, distinct, rank

__all__ = ["search"]

ATTEMPTS = 1000  # children that were scored before, in a row, after which the population has converged


def search(
    space: Space,
    score: Score,
    *,
    population: int = 50,
    generations: int = 20,
    parents: int = 10,
    mutation: float = 0.1,
    seed: int = 0,
) -> list[Scored]:
    """Score ``population`` structures in each of the generations, and return all that were scored, best first.

    The first are drawn uniformly. Later ones are children of the best ``parents`` so far: half crossed from two of
    them, each edge from either, half one of them with each edge drawn anew with probability ``mutation``. No structure
    is scored twice; a space of no more structures than that is searched exhaustively.

    Raises ValueError for a space without open choices, numbers out of range, and a score that is NaN or +∞; TypeError
    for a score that cannot be called.
    """
    checks.is_callable("score", score, "a function of a structure")
    for name, value in {"population": population, "generations": generations, "parents": parents}.items():
        checks.integer(name, value, low=1)
    checks.number("mutation", mutation, low=0, high=1, open_low=True)
    generator = torch.Generator().manual_seed(checks.seed(seed))
    everything = count_structures(space) if space.choices() else 0
    if 0 < everything <= population * generations:
        return rank(score, distinct(space, everything, generator))
    scored = rank(score, distinct(space, population, generator))
    seen = {key_of_structure(entry.structure) for entry in scored}
    for _ in range(generations - 1):
        best = [entry.structure for entry in scored[:parents]]
        children: list[Vertex] = []
        failed = 0
        while len(children) < population and failed < ATTEMPTS:
            cross = len(children) < population // 2 and len(best) > 1 and failed < ATTEMPTS // 2
            child = _crossed(best, generator) if cross else _mutated(space, best, mutation, generator)
            key = key_of_structure(child)
            failed = failed + 1 if key in seen else 0
            if key not in seen:
                seen.add(key)
                children.append(child)
        scored = sorted(scored + rank(score, children), key=lambda entry: -entry.score)
    return scored


def _crossed(best: list[Vertex], generator: torch.Generator) -> Vertex:
    """Return a child of two different parents."""
    mother, father = (best[index] for index in torch.randperm(len(best), generator=generator)[:2].tolist())
    return {site: torch.where(_edges(mother[site], 0.5, generator), mother[site], father[site]) for site in mother}


def _mutated(space: Space, best: list[Vertex], mutation: float, generator: torch.Generator) -> Vertex:
    """Return a parent with some edges drawn anew."""
    parent = best[int(torch.randint(len(best), (), generator=generator))]
    fresh = random_structure(space, generator)
    return {site: torch.where(_edges(parent[site], mutation, generator), fresh[site], parent[site]) for site in parent}


def _edges(table: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Draw which edges, (edge, 1)."""
    return torch.rand(len(table), 1, generator=generator) < probability
