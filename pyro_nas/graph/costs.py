"""Costs: what a structure costs in parameters, in operations, or in time on this machine, as a linear function of Γ.

C(Γ) = fixed + Σ γ · c, where c is what one primitive at one position costs: the lookup table of FBNet (Wu et al. 2019,
eq. 3). ``pyro_nas.models.cost_factors`` puts such a cost into a model.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

import torch
from torch import nn

from pyro_nas import checks
from pyro_nas.data import Inputs
from pyro_nas.graph.clock import laps
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.memory import keep_heap
from pyro_nas.graph.network import Network
from pyro_nas.graph.operations import multiply_accumulates
from pyro_nas.graph.primitives import Primitive
from pyro_nas.graph.space import Factory, Space, Structure
from pyro_nas.random_state import forked

__all__ = ["UNITS", "Batch", "CostTable", "measure", "total_cost"]

Batch = tuple[torch.Tensor, ...]
Calls = Mapping[nn.Module, Batch]
Key = tuple[object, ...]
Place = tuple[str, int, int]  # site, edge, choice
Kind = Literal["parameters", "multiply_accumulates", "latency"]

UNITS: dict[Kind, str] = {
    "parameters": "parameters",
    "multiply_accumulates": "multiply-accumulates per datum",
    "latency": "microseconds per batch",
}


@dataclass(frozen=True)
class CostTable:
    """C(Γ) = fixed + Σ_sites Σ_{edge, choice} γ · c, in ``unit``s; linear, so that C(E Γ) is the expected cost.

    ``fixed`` is what every structure costs; ``tables`` maps each site of a space to c of shape (edge, choice), kept in
    double precision: counts outgrow single precision.

    Raises ValueError for tables that are not finite matrices.
    """

    fixed: float
    tables: Mapping[str, torch.Tensor]
    unit: str

    def __post_init__(self) -> None:
        checks.number("fixed", self.fixed)
        tables = {site: torch.as_tensor(table, dtype=torch.double) for site, table in self.tables.items()}
        for site, table in tables.items():
            if table.dim() != 2 or not bool(table.isfinite().all()):
                raise ValueError(
                    f"tables[{site!r}]: expected a finite number per edge and primitive, (edge, choice), got {table}."
                )
        object.__setattr__(self, "tables", tables)

    def __call__(self, structure: Structure) -> torch.Tensor:
        """Return C(Γ), (…), of γ or probabilities (…, edge, choice) at each site; raise ValueError for other shapes."""
        total = torch.tensor(self.fixed, dtype=torch.double)
        for site, table in self.tables.items():
            gamma = structure.get(site)
            if gamma is None or gamma.shape[-2:] != table.shape:
                raise ValueError(
                    f"structure[{site!r}]: expected shape (…, {table.shape[0]}, {table.shape[1]}), (edge, choice), got "
                    f"{checks.describe(gamma)}. Measure the table on the space that the structure is of."
                )
            total = total + (gamma * table.to(gamma.device)).sum((-2, -1))
        return total

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of each site's table, (edge, choice)."""
        return {site: (table.shape[0], table.shape[1]) for site, table in self.tables.items()}

    def to(self, device: torch.device) -> CostTable:
        """Return the same on another device."""
        return replace(self, tables={site: table.to(device) for site, table in self.tables.items()})

    def scaled(self, factor: float, unit: str) -> CostTable:
        """Return the same cost in another unit, ``factor`` > 0 of which make up one of this; ValueError for others."""
        factor = checks.number("factor", factor, low=0, open_low=True)
        return CostTable(factor * self.fixed, {site: factor * table for site, table in self.tables.items()}, unit)


def measure(space: Space, x: Inputs, kind: Kind = "latency", repeats: int = 20) -> CostTable:
    """Return the costs of every primitive at every position, on the device of ``x``, of shape (batch, …).

    ``kind``: "parameters"; "multiply_accumulates" of one datum in a forward pass, those of matrix products and
    convolutions (see ``pyro_nas.graph.operations``); or "latency", the microseconds that a forward pass of the batch
    takes, in evaluation mode, with as many threads as torch has now. A cell that is repeated costs the sum over its
    positions, since they share their structure. What involves no choice is ``fixed``.

    Latency is taken in passes of networks derived so that each edge has each of its primitives once: alone, a
    primitive finds its memory in the cache and takes as little as half. It is one median, over ``repeats`` passes of
    each, for equal primitives on inputs of equal shape; what a pass takes beyond its primitives is ``fixed``.

    On the simplex C(Γ) of a vertex is the number of parameters and of operations of the derived network, exactly (a
    module that several positions share counts at each). On the cube that holds where every edge keeps a primitive:
    ``derive`` drops vertices that lead nowhere, C does not.

    Raises ValueError where the network cannot run on ``x``, for operations whose count is not known, and where a cell
    with open choices is itself one of several primitives of an edge: its cost would be a product of γ, not linear.
    Wu et al. 2019, §3.2.
    """
    batch = _checked(x, kind, repeats)
    with torch.no_grad():
        parts = list(_parts(space, *_built(space, batch)))
        if kind == "latency":
            known, fixed = _latencies(space, batch, repeats)
        else:
            known, fixed = {part.key: _count(kind, part.module, part.inputs) for part in parts}, 0.0
    tables = {site: torch.zeros(choices.shape, dtype=torch.double) for site, choices in space.choices().items()}
    for part in parts:
        if part.place is None:
            fixed += known[part.key]
        else:
            tables[part.place[0]][part.place[1:]] += known[part.key]
    return CostTable(fixed, tables, UNITS[kind])


def total_cost(space: Space, x: Inputs, kind: Kind = "latency", repeats: int = 20) -> float:
    """Return the cost of a derived network, as a whole, as ``measure`` does; raise ValueError for open choices."""
    if sites := list(space.choices()):
        raise ValueError(
            f"space: expected nothing left to choose, got the sites {sites}. Call derive(space, structure)."
        )
    batch = _checked(x, kind, repeats)
    with torch.no_grad():
        network, _ = _built(space, batch)
        if kind == "latency":
            return statistics.median(laps(network, [network], batch)[0] for _ in range(repeats))
        return _count(kind, network, batch)


class _Part(NamedTuple):
    """A module whose cost is known by itself: a primitive, or an aggregation."""

    place: Place | None  # None where nothing is chosen
    key: Key  # its recipe and the shapes of its inputs: parts of one key have one cost
    module: nn.Module
    inputs: Batch


def _parts(factory: Factory, module: nn.Module, calls: Calls, place: Place | None = None) -> Iterator[_Part]:
    """Yield the parts of an open space's network, or of one derived from it; any other module is one part."""
    if not (isinstance(factory, Space) and factory.choices()):
        recipe = repr(factory) if isinstance(factory, Primitive) else id(factory)
        yield _Part(place, (recipe, *(value.shape for value in calls[module])), module, calls[module])
        return
    if place is not None:
        raise ValueError(
            f"space: expected cells with open choices on edges of one primitive, got {factory.name!r} as choice "
            f"{place[2]} at {place[0]!r}: its cost is not linear in γ. Derive that cell first, or give it its own edge."
        )
    places = {edge: (group.site, row) for group in factory.own_choices() for row, edge in enumerate(group.edges)}
    network = cast(Network, module)
    for (edge, kept), modules in zip(network.space.edges.items(), network.edges.values(), strict=True):
        for name, primitive in zip(kept, cast(nn.ModuleDict, modules).values(), strict=True):
            where = (*places[edge], list(factory.edges[edge]).index(name)) if edge in places else None
            yield from _parts(factory.edges[edge][name], primitive, calls, where)
    for vertex, aggregation in factory.aggregations.items():
        if not isinstance(aggregation, str):
            yield from _parts(aggregation, network.aggregations[str(vertex)], calls)


def _count(kind: Kind, module: nn.Module, inputs: Batch) -> float:
    if kind == "parameters":
        return float(sum(parameter.numel() for parameter in module.parameters()))
    return multiply_accumulates(module, inputs)


def _latencies(space: Space, batch: Batch, repeats: int) -> tuple[dict[Key, float], float]:
    """Return the microseconds of each part by its key, and those that a pass takes beyond its parts."""
    choices = space.choices()
    taken: dict[Key, list[float]] = {}
    beyond: list[float] = []
    for shift in range(max((group.shape[1] for group in choices.values()), default=1)):
        rows = {site: (torch.arange(group.shape[0]) + shift) % group.shape[1] for site, group in choices.items()}
        structure = {site: torch.eye(group.shape[1])[rows[site]] for site, group in choices.items()}
        network, calls = _built(derive(space, structure), batch)
        parts = list(_parts(space, network, calls))
        differences = []
        for _ in range(repeats):
            times = laps(network, [part.module for part in parts], batch)
            differences.append(laps(network, [network], batch)[0] - sum(times))  # without the time that hooks take
            for part, lap in zip(parts, times, strict=True):
                taken.setdefault(part.key, []).append(lap)
        beyond.append(statistics.median(differences))
    return {key: statistics.median(values) for key, values in taken.items()}, statistics.mean(beyond)


def _checked(x: Inputs, kind: Kind, repeats: int) -> Batch:
    """Return what a network is run on: the batch where time is measured, else one datum."""
    checks.one_of("kind", kind, UNITS)
    checks.integer("repeats", repeats, low=1)
    if kind == "latency":
        keep_heap()
    parts = x if isinstance(x, tuple) else (x,)
    if not all(isinstance(part, torch.Tensor) and part.dim() and len(part) for part in parts):
        raise ValueError(f"x: expected tensors of shape (batch, …), got {[checks.describe(part) for part in parts]}.")
    return parts if kind == "latency" else tuple(part[:1] for part in parts)


def _built(space: Space, batch: Batch) -> tuple[Network, dict[nn.Module, Batch]]:
    """Build the network, run every primitive once, and return what each module was called with, values left out."""
    with forked():  # initial weights are no draws of the caller's
        network = Network(space).to(batch[0].device).eval().requires_grad_(False)  # the counter asks who needs one
    calls: dict[nn.Module, Batch] = {}

    def keep(module: nn.Module, inputs: Batch, output: torch.Tensor) -> None:
        calls[module] = tuple(value.new_zeros(()).expand_as(value) for value in inputs)

    hooks = [module.register_forward_hook(keep) for module in network.modules()]
    try:
        network(*batch, structure={s: torch.full(choices.shape, 0.5) for s, choices in space.choices().items()})
    except RuntimeError as error:
        shapes = [tuple(part.shape) for part in batch]
        raise ValueError(f"x: the network cannot run on inputs of the shapes {shapes}: {error}") from error
    for hook in hooks:
        hook.remove()
    return network, calls
