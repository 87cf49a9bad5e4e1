"""Distinct structures, one after another: each fit is repelled by the structures that earlier ones found.

The i-th fit ascends 𝔏 + Σ_{j<i} λ_struct · (share of edges on which Γ differs from Γ_j). That is the
structure-selection lecture's enumeration of structures with the sign that repels: it adds λ_struct KL(q ‖ q_j) to what
is maximised, or subtracts it from the loss; added to the loss, as printed there, it attracts. For a q_j that has Γ_j's
choice on each edge but for equally probable errors, KL(q ‖ q_j) is, up to constants, that share minus the entropy of q.
The entropy is left out: it would pay q for being certain, and without bound where q is relaxed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_nas import checks
from pyro_nas.data import Pair
from pyro_nas.evidence import Evidence
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.evidence.terms import COST
from pyro_nas.graph.costs import CostTable
from pyro_nas.graph.enumeration import StructureKey, Vertex, count_structures, hard_choices, key_of_structure
from pyro_nas.graph.space import Space
from pyro_nas.random_state import forked
from pyro_nas.reading.structure_posterior import choice_probabilities

__all__ = ["Found", "repulsion", "search"]


@dataclass(frozen=True)
class Found:
    """A structure, the (model, guide) pair that was fitted to find it, and 𝔏 of that pair without the repulsion."""

    structure: Vertex
    evidence: float
    model: PyroCallable
    guide: PyroCallable


def search(
    space: Space,
    build: Callable[[CostTable], tuple[PyroCallable, PyroCallable]],
    fit: Callable[[PyroCallable, PyroCallable], object],
    data: Pair,
    count: int,
    strength: float = 1.0,
    draws: int = 100,
) -> list[Found]:
    """Return ``count`` distinct structures with their fitted pairs, that of the highest evidence first.

    ``build`` makes a fresh (model, guide) from the table of what Γ pays, such as
    ``Model(space, cost=costs.additive(table, num_data), …)``, or any Pyro model with that ``pyro.factor`` at the site
    "cost": the table holds −λ_struct times the share of edges that differ, summed over the structures found. ``fit`` is
    any procedure of the pair. ``strength`` is λ_struct, in what ``build`` multiplies the table by: nats per datum where
    that is num_data; [0, 0, 0], [1, 0, 0], [1, 1, 0] are three rounds of strength 1. The structure of a fit is its most
    probable one. The evidence is on ``data``, the mean of so many ``draws``, in nats.

    Far structures come first, not neighbours: each edge that differs is paid for.

    Raises ValueError for a count above the number of structures, RuntimeError where a fit comes to a structure again.
    """
    checks.integer("count", count, low=1)
    checks.integer("draws", draws, low=1)
    checks.number("strength", strength, low=0, open_low=True, remedy="Below 0 structures would attract.")
    checks.is_callable("build", build, "a function from a table to a (model, guide) pair")
    checks.is_callable("fit", fit, "a procedure of a (model, guide) pair")
    if not space.choices():
        raise ValueError("space: expected one with open choices to search, got one without.")
    if count > count_structures(space):
        raise ValueError(f"count: expected at most the {count_structures(space)} structures of the space, got {count}.")
    entries: dict[StructureKey, Found] = {}
    for number in range(count):
        model, guide = build(repulsion(space, [entry.structure for entry in entries.values()], strength))
        fit(model, guide)
        tables = choice_probabilities(guide, *data)
        structure = {site: hard_choices(tables[site], group.restriction) for site, group in space.choices().items()}
        if key_of_structure(structure) in entries:
            raise RuntimeError(
                f"fit {number + 1} of {count}: expected a structure that no earlier one found, got {structure} again. "
                f"Raise strength, now {strength:g}, or fit for longer."
            )
        entries[key_of_structure(structure)] = Found(structure, _evidence(model, guide, data, draws), model, guide)
    return sorted(entries.values(), key=lambda entry: -entry.evidence)


def repulsion(space: Space, structures: list[Vertex], strength: float) -> CostTable:
    """Return −strength · Σ_j (share of edges where γ differs from Γ_j), linear in γ; on the cube, of their choices."""
    choices = space.choices()
    edges = sum(group.shape[0] for group in choices.values())
    tables = {site: torch.zeros(group.shape, dtype=torch.double) for site, group in choices.items()}
    fixed = 0.0
    for structure in structures:
        for site, group in choices.items():
            vertex = structure[site].double()
            if group.on_simplex:  # an edge differs by 1 − ⟨γ, Γ_j⟩
                tables[site] += strength / edges * vertex
                fixed -= strength / edges * group.shape[0]
            else:  # a choice by |γ − Γ_j|, an edge by their mean
                tables[site] += strength / edges / group.shape[1] * (2 * vertex - 1)
                fixed -= strength / edges / group.shape[1] * float(vertex.sum())
    return CostTable(fixed, tables, "repulsion")


def _evidence(model: PyroCallable, guide: PyroCallable, data: Pair, draws: int) -> float:
    """Return the mean of so many estimates of 𝔏 without what the cost adds."""
    evidence = Evidence(model, guide).eval()
    with torch.no_grad(), forked():
        estimates = [evidence(*data) for _ in range(draws)]
    return float(torch.stack([terms.evidence + terms.penalty.get(COST, 0.0) for terms in estimates]).mean())
