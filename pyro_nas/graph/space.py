"""Space: a family of networks as a directed acyclic graph whose edges carry alternative primitives.

Vertex v computes f_v = agg_v({⟨γ^{jv}, g^{jv}⟩(f_j) : j parent of v}), and f of an input vertex is an input
(structure-selection lecture, eq. 1). γ^{jk} weighs the primitives g^{jk} of edge (j, k).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import networkx as nx
import torch
from torch import nn

from pyro_nas.checks import describe, one_of
from pyro_nas.printing import Printed, Table

__all__ = ["AGGREGATIONS", "Choices", "Edge", "Factory", "Restriction", "Space", "Structure", "on_simplex"]

Edge: TypeAlias = tuple[int, int]
Factory: TypeAlias = "Callable[[], nn.Module] | Space"
Structure: TypeAlias = Mapping[str, torch.Tensor]
Restriction: TypeAlias = Literal["simplex", "simplex vertices", "cube", "cube vertices"]

NESTED = 20  # Python calls, copies and pickles each within the other
RESTRICTIONS: tuple[Restriction, ...] = ("simplex", "simplex vertices", "cube", "cube vertices")
AGGREGATIONS: dict[str, Callable[[list[torch.Tensor]], torch.Tensor]] = {
    "sum": lambda values: sum(values[1:], values[0]),
    "mean": lambda values: sum(values[1:], values[0]) / len(values),
    "product": lambda values: torch.stack(values).prod(0),
    "concatenation": lambda values: torch.cat(values, 1),
}


def on_simplex(restriction: Restriction) -> bool:
    """Whether γ of an edge lies on the simplex, as one choice among all, or else in the cube, each choice by itself."""
    return restriction in ("simplex", "simplex vertices")


@dataclass(frozen=True)
class Choices:
    """The open choices that share a latent site: a matrix γ with axes (edge, choice)."""

    site: str
    edges: tuple[Edge, ...]
    primitives: tuple[tuple[str, ...], ...]
    restriction: Restriction

    @property
    def shape(self) -> tuple[int, int]:
        """Edges and choices per edge."""
        return len(self.edges), len(self.primitives[0])

    @property
    def on_simplex(self) -> bool:
        """Whether each γ lies on the simplex, or else in the cube."""
        return on_simplex(self.restriction)


@dataclass(frozen=True, repr=False)
class Space(Printed):
    """A family of networks.

    ``edges`` maps (j, k) to {name: factory}; a factory builds a fresh ``torch.nn.Module``, or is a Space.
    ``aggregations`` maps a vertex to "sum" (the default), "mean", "product", "concatenation" (on axis 1), or a factory
    of a module that takes one argument per parent, in the parents' order; a Space with that many inputs is a cell.
    ``inputs`` are the vertices that hold the network's arguments. ``name``: spaces of one name share their structure;
    weights belong to the position. ``restriction`` says where γ^{jk} lives.

    Raises ValueError for a cycle, an unreachable vertex, an edge without primitives, several outputs, deep nesting.
    """

    edges: Mapping[Edge, Mapping[str, Factory]]
    aggregations: Mapping[int, str | Factory] = field(default_factory=dict)
    inputs: tuple[int, ...] = (0,)
    name: str = ""
    restriction: Restriction = "simplex"
    _depth: int = field(default=1, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", dict(sorted((edge, dict(ops)) for edge, ops in _checked_edges(self.edges))))
        object.__setattr__(self, "aggregations", dict(self.aggregations))
        object.__setattr__(self, "inputs", tuple(self.inputs))
        one_of("restriction", self.restriction, RESTRICTIONS)
        if not re.fullmatch(r"([^\W\d]\w*)?", self.name):
            raise ValueError(f"name: expected a letter, then letters, digits and underscores, got {self.name!r}.")
        _check_graph(self)
        object.__setattr__(self, "_depth", 1 + max((child._depth for _, child in self.children()), default=0))
        if self._depth > NESTED:
            raise ValueError(
                f"edges: expected spaces nested at most {NESTED} deep, got {self._depth}. Join some of them."
            )
        _check_cells(self)

    def table(self) -> Table:
        """Return a row an edge: its primitives, and the structure site that chooses among them."""
        sites = {edge: choices.site for choices in self.own_choices() for edge in choices.edges}
        rows = []
        for (j, k), primitives in self.edges.items():
            names = " | ".join(f"{name} (a space)" if isinstance(f, Space) else name for name, f in primitives.items())
            rows.append((f"{j}→{k}", names, sites.get((j, k), "")))
        for vertex, how in self.aggregations.items():
            text = how if isinstance(how, str) else f"space {how.name!r}" if isinstance(how, Space) else "a module"
            rows.append((f"at {vertex}", text, ""))
        name = f"Space {self.name!r}" if self.name else "Space"
        return Table(f"{name} of {len(self.edges)} edges, structure sites {list(self.choices())}", rows)

    @property
    def graph(self) -> nx.DiGraph:
        """The graph without its primitives."""
        return nx.DiGraph(list(self.edges))

    @property
    def vertices(self) -> list[int]:
        """Vertices in an order that follows the edges, smallest first among equals."""
        return list(nx.lexicographical_topological_sort(self.graph))

    @property
    def output(self) -> int:
        """The one vertex without an outgoing edge."""
        return next(int(vertex) for vertex, degree in self.graph.out_degree() if degree == 0)

    def parents(self, vertex: int) -> list[int]:
        """The parents of a vertex, in increasing order."""
        return sorted(self.graph.predecessors(vertex))

    def children(self) -> Iterator[tuple[str, Space]]:
        """Yield each nested space with a text that says where it stands."""
        for edge, primitives in self.edges.items():
            yield from ((f"edge {edge}, {name!r}", f) for name, f in primitives.items() if isinstance(f, Space))
        yield from ((f"vertex {v}", f) for v, f in self.aggregations.items() if isinstance(f, Space))

    def own_choices(self) -> list[Choices]:
        """List this space's own open choices, without those of nested spaces; one entry per number of primitives."""
        groups: dict[int, list[Edge]] = {}
        for edge, primitives in self.edges.items():
            if len(primitives) > 1 or not on_simplex(self.restriction):
                groups.setdefault(len(primitives), []).append(edge)
        base = f"structure.{self.name}" if self.name else "structure"
        return [
            Choices(
                base if len(groups) == 1 else f"{base}.{size}",
                tuple(edges),
                tuple(tuple(self.edges[edge]) for edge in edges),
                self.restriction,
            )
            for size, edges in sorted(groups.items())
        ]

    def choices(self) -> dict[str, Choices]:
        """List all open choices by latent site, nested spaces included, each shared cell once."""
        choices = {group.site: group for group in self.own_choices()}
        for _, child in self.children():
            choices.update(child.choices())
        return choices

    def check_structure(self, structure: Structure, name: str = "structure") -> None:
        """Raise ValueError where ``structure`` lacks γ, (…, edge, choice); TypeError for no mapping."""
        if not isinstance(structure, Mapping):
            raise TypeError(f"{name}: expected {{site: γ}}, got {describe(structure)}. Pass mean_draw(guide).")
        for site, choices in self.choices().items():
            if site not in structure:
                raise ValueError(f"{name}: expected the sites {list(self.choices())}, got {list(structure)}.")
            gamma = torch.as_tensor(structure[site])
            if gamma.shape[-2:] != choices.shape:
                raise ValueError(
                    f"{name}[{site!r}]: expected shape {choices.shape}, (edges, choices), got {describe(gamma)}."
                )
            if choices.on_simplex:
                good = (gamma >= 0).all() and torch.allclose(gamma.sum(-1), torch.ones_like(gamma[..., 0]), atol=1e-3)
            else:
                good = ((gamma >= 0) & (gamma <= 1)).all()
            if not bool(good):
                shape = choices.restriction.split()[0]
                raise ValueError(f"{name}[{site!r}]: expected rows in the {shape}, got {gamma.tolist()}.")


def _checked_edges(edges: Mapping[Edge, Mapping[str, Factory]]) -> Iterator[tuple[Edge, Mapping[str, Factory]]]:
    if not isinstance(edges, Mapping) or not edges:
        raise ValueError(f"edges: expected a mapping (j, k) → {{name: factory}} with an edge or more, got {edges!r}.")
    for edge, primitives in edges.items():
        if not (isinstance(edge, tuple) and len(edge) == 2 and all(type(vertex) is int for vertex in edge)):
            raise ValueError(f"edges: expected keys (j, k) of two integers, got {edge!r}.")
        if not isinstance(primitives, Mapping) or not primitives:
            raise ValueError(
                f"edges[{edge}]: expected a mapping {{name: factory}} with a primitive or more, got {primitives!r}. "
                "Leave the edge out if nothing should run there."
            )
        for name, factory in primitives.items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"edges[{edge}]: expected primitives with names, got {name!r}.")
            if isinstance(factory, nn.Module):
                raise TypeError(
                    f"edges[{edge}][{name!r}]: expected a factory of modules, got the module {describe(factory)}. "
                    "Pass a callable that builds a fresh one, such as functools.partial(nn.Linear, 3, 3)."
                )
            if not isinstance(factory, Space) and not callable(factory):
                raise TypeError(f"edges[{edge}][{name!r}]: expected a factory or a Space, got {describe(factory)}.")
            if isinstance(factory, Space) and len(factory.inputs) != 1:
                raise ValueError(f"edges[{edge}][{name!r}]: expected a Space of one input, got {len(factory.inputs)}.")
        yield edge, primitives


def _check_graph(space: Space) -> None:
    graph, inputs = space.graph, set(space.inputs)
    if not nx.is_directed_acyclic_graph(graph):
        raise ValueError(f"edges: expected a graph without cycles, got the cycle {nx.find_cycle(graph)}.")
    if not inputs or not inputs <= set(graph) or len(inputs) != len(space.inputs):
        raise ValueError(f"inputs: expected distinct vertices of the graph {sorted(graph)}, got {space.inputs}.")
    fed = [vertex for vertex in space.inputs if graph.in_degree(vertex)]
    if fed:
        raise ValueError(f"inputs: expected vertices without incoming edges, got {fed}, which have some.")
    unreachable = sorted(v for v, degree in graph.in_degree() if degree == 0 and v not in inputs)
    if unreachable:
        raise ValueError(
            f"edges: expected every vertex to be reachable from the inputs {space.inputs}, "
            f"got {unreachable} without incoming edges. Add edges to them or name them in inputs."
        )
    sinks = sorted(vertex for vertex, degree in graph.out_degree() if degree == 0)
    if len(sinks) != 1:
        raise ValueError(f"edges: expected one vertex without outgoing edges, the output, got {sinks}.")
    for vertex, aggregation in space.aggregations.items():
        if vertex not in graph or vertex in inputs:
            raise ValueError(f"aggregations: expected vertices with incoming edges, got {vertex!r}.")
        degree = graph.in_degree(vertex)
        if isinstance(aggregation, str):
            one_of(f"aggregations[{vertex}]", aggregation, AGGREGATIONS)
        elif isinstance(aggregation, Space):
            if len(aggregation.inputs) != degree:
                raise ValueError(
                    f"aggregations[{vertex}]: expected a Space of {degree} inputs, one per parent, "
                    f"got {len(aggregation.inputs)}."
                )
        elif isinstance(aggregation, nn.Module) or not callable(aggregation):
            raise TypeError(f"aggregations[{vertex}]: expected a name or a factory, got {describe(aggregation)}.")


def _check_cells(space: Space) -> None:
    """Nested spaces with open choices need a name, and spaces of one name the same choices."""
    seen: dict[str, tuple[str, list[Choices]]] = {space.name: ("the space itself", space.own_choices())}
    stack = list(space.children())
    while stack:
        where, child = stack.pop(0)
        stack += child.children()
        declared = child.own_choices()
        if not declared:
            continue
        if not child.name:
            raise ValueError(f"{where}: expected a name on a nested space with open choices. Pass Space(…, name=…).")
        first, choices = seen.setdefault(child.name, (where, declared))
        if choices != declared:
            raise ValueError(
                f"{where}: expected the edges and primitives of the other space named {child.name!r} ({first}), "
                "got different ones. Spaces of one name share their structure: give one of them another name."
            )
