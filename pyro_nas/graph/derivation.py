"""Derivation: from a structure to a space with nothing left to choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from pyro_nas import checks
from pyro_nas.graph.enumeration import hard_choices
from pyro_nas.graph.modules import Zero
from pyro_nas.graph.primitives import Primitive, skip, zero
from pyro_nas.graph.space import Choices, Edge, Factory, Space, Structure
from pyro_nas.random_state import forked

__all__ = ["derive", "gives_zero", "parallel", "with_optional_edges"]

F = TypeVar("F")
ZEROS = ("zero", "none")  # what NAS-Bench-201 and DARTS call it


def derive(space: Space, structure: Structure, threshold: float = 0.5, parents: int | None = None) -> Space:
    """Return the space with nothing left to choose that a structure stands for.

    ``structure`` maps each site to γ of shape (…, edge, choice): one structure, choice probabilities, or draws,
    whose leading axes are averaged over their hard choices. On the simplex each edge keeps its most probable
    primitive; on the cube each primitive whose probability exceeds ``threshold``, several in parallel, and an edge
    with none goes. ``parents``, on the simplex: a vertex keeps that many of its edges of each site, those whose
    best primitive is most probable, where none that ``gives_zero`` is ever the best (DARTS, §2.4: 2). ``space`` may be
    larger than the one that was searched, with more cells or channels: sites and their shapes are what counts.

    Raises TypeError for a structure that is no mapping, ValueError for one of other sites or shapes, or off the simplex
    or the cube, for parents below 1 or of a cube, and where nothing is left on the edges into the output or out of an
    input.
    """
    space.check_structure(structure)
    if parents is not None:
        checks.integer("parents", parents, low=1)
        if space.choices() and not any(choices.on_simplex for choices in space.choices().values()):
            raise ValueError(f"parents: expected choices on the simplex, got a cube, with {parents}. Use threshold.")
    kept: dict[tuple[str, Edge], list[str]] = {}
    zeros = set() if parents is None else _zeros(space)  # which may build modules to look at
    for site, choices in space.choices().items():
        gamma = torch.as_tensor(structure[site])
        if gamma.dim() > 2:
            gamma = hard_choices(gamma, choices.restriction).flatten(0, -3).mean(0)
        if parents is not None and choices.on_simplex:
            kept.update(_strongest(choices, gamma, parents, zeros))
            continue
        for edge, names, row in zip(choices.edges, choices.primitives, gamma, strict=True):
            if choices.on_simplex:
                kept[site, edge] = [names[int(row.argmax())]]
            else:
                kept[site, edge] = [
                    name for name, weight in zip(names, row.tolist(), strict=True) if weight > threshold
                ]
    return _derived(space, kept)


def _strongest(
    choices: Choices, gamma: torch.Tensor, parents: int, zeros: set[tuple[str, Edge, str]]
) -> dict[tuple[str, Edge], list[str]]:
    """Keep the best primitive but zeros on the ``parents`` strongest edges into each vertex, nothing on the others."""
    site = choices.site
    best: dict[Edge, tuple[float, str]] = {}
    for edge, names, row in zip(choices.edges, choices.primitives, gamma.tolist(), strict=True):
        pairs = [(weight, name) for weight, name in zip(row, names, strict=True) if (site, edge, name) not in zeros]
        if not pairs:
            raise ValueError(f"parents: expected a primitive that is no zero on every edge, got {names} on {edge}.")
        best[edge] = max(pairs, key=lambda pair: pair[0])  # among equals the first, as argmax
    ranked = sorted(best, key=lambda edge: -best[edge][0])
    kept: dict[tuple[str, Edge], list[str]] = {}
    for edge in ranked:
        taken = sum(bool(names) and other[1] == edge[1] for (_, other), names in kept.items())
        kept[site, edge] = [best[edge][1]] if taken < parents else []
    return kept


def gives_zero(name: str, factory: Factory) -> bool:
    """Whether a primitive is the constant zero: by its name, "zero" or "none", or as one that builds a ``Zero``."""
    if name in ZEROS or isinstance(factory, (Primitive, Space)):
        return name in ZEROS or (isinstance(factory, Primitive) and factory.name == "zero")
    if isinstance(factory, type):
        return issubclass(factory, Zero)
    with forked():  # its parameters are of no use
        return isinstance(factory(), Zero)


def _zeros(space: Space) -> set[tuple[str, Edge, str]]:
    """Return the choices that are the constant zero, (site, edge, primitive), those of nested spaces among them."""
    children = {id(child): child for _, child in space.children()}
    found = {entry for child in children.values() for entry in _zeros(child)}
    for choices in space.own_choices():
        for edge, names in zip(choices.edges, choices.primitives, strict=True):
            found |= {(choices.site, edge, name) for name in names if gives_zero(name, space.edges[edge][name])}
    return found


def _derived(space: Space, kept: Mapping[tuple[str, Edge], list[str]]) -> Space:
    pairs = {(choices.site, edge) for choices in space.own_choices() for edge in choices.edges}
    site_of = {edge: site for site, edge in pairs}
    edges: dict[Edge, dict[str, Factory]] = {}
    for edge, primitives in space.edges.items():
        names = kept[site_of[edge], edge] if edge in site_of else list(primitives)
        chosen = {name: _derived_factory(primitives[name], kept) for name in names}
        if len(chosen) > 1:
            edges[edge] = {"+".join(chosen): parallel(chosen)}
        elif chosen:
            edges[edge] = chosen
    edges = _without_dead_ends(space, edges, kept)
    aggregations = {vertex: _derived_factory(cell, kept) for vertex, cell in space.aggregations.items()}
    alive = {vertex for _, vertex in edges}
    aggregations = {vertex: cell for vertex, cell in aggregations.items() if vertex in alive}
    return replace(space, edges=edges, aggregations=aggregations, restriction="simplex")


def _without_dead_ends(
    space: Space, derived: dict[Edge, dict[str, Factory]], kept: Mapping[tuple[str, Edge], list[str]]
) -> dict[Edge, dict[str, Factory]]:
    """Drop vertices that no longer reach the output; where a vertex needs a value that was dropped, keep a zero."""
    if not any(vertex == space.output for _, vertex in derived):
        raise ValueError(
            f"structure: no primitive is left on any edge into {space.output}, the output. Lower threshold."
        )
    edges: dict[Edge, dict[str, Factory]] = {}
    alive = {space.output}
    for vertex in reversed(space.vertices):
        if vertex not in alive or vertex in space.inputs:
            continue
        incoming = [(parent, vertex) for parent in space.parents(vertex)]
        sums = space.aggregations.get(vertex, "sum") == "sum"
        empty = not any(edge in derived for edge in incoming)
        for index, edge in enumerate(incoming):
            if edge in derived:
                edges[edge] = derived[edge]
            elif not sums or (empty and index == 0):
                edges[edge] = {"zero": _zeroed(_derived_factory(next(iter(space.edges[edge].values())), kept))}
        alive |= {parent for parent, child in edges if child == vertex}
    unused = sorted(set(space.inputs) - {parent for parent, _ in edges})
    if unused:
        raise ValueError(
            f"structure: nothing is left that uses the inputs {unused}. Lower threshold, or raise parents."
        )
    return edges


def _zeroed(factory: Factory) -> Space:
    """Return a space that gives zeros of the shape that a primitive gives."""
    return Space({(0, 1): {"shape": factory}, (1, 2): {"zero": zero()}})


def _derived_factory(factory: F, kept: Mapping[tuple[str, Edge], list[str]]) -> F | Space:
    return _derived(factory, kept) if isinstance(factory, Space) else factory


def with_optional_edges(space: Space) -> Space:
    """Return a space in whose cells each edge may be absent: on the cube, γ of shape (edge, 1), 1 for a present edge.

    Cells are the nested spaces with a name, on vertices or on edges; those of one name share their γ. For a derived
    space, whose edges have one primitive each, a Bernoulli structure, relaxed or not, is the random presence of its
    edges (drop path: Larsson et al. 2017, arXiv:1605.07648, §3; scheduled: Zoph et al. 2018, arXiv:1707.07012).

    Raises ValueError for a space without cells.
    """
    if not any(child.name for _, child in space.children()):
        raise ValueError("space: expected a cell, a nested space with a name, got none. Give it one: Space(…, name=…).")
    edges = {edge: {name: _optional(f) for name, f in primitives.items()} for edge, primitives in space.edges.items()}
    return replace(space, edges=edges, aggregations={v: _optional(cell) for v, cell in space.aggregations.items()})


def _optional(factory: F) -> F | Space:
    return replace(factory, restriction="cube") if isinstance(factory, Space) and factory.name else factory


def parallel(primitives: Mapping[str, Factory]) -> Space:
    """Return a space that runs all these primitives on one input and sums what they give."""
    last = len(primitives) + 1
    edges: dict[Edge, dict[str, Factory]] = {}
    for vertex, (name, factory) in enumerate(primitives.items(), start=1):
        edges[0, vertex] = {name: factory}
        edges[vertex, last] = {"skip": skip()}
    return Space(edges)
