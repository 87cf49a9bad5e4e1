"""Export: the posterior predictive of a model as one ``torch.export`` program, which runs without this package."""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from torch import nn

from pyro_nas.checks import describe
from pyro_nas.data import Inputs
from pyro_nas.evidence.currencies import Expectation, PyroCallable, SpaceModel, Tensors
from pyro_nas.evidence.sites import check_draw, run
from pyro_nas.files import write_atomically
from pyro_nas.graph.network import Network, running
from pyro_nas.graph.space import AGGREGATIONS, Edge
from pyro_nas.reading.posterior import each_draw

__all__ = ["export", "load"]

Weighted = list[tuple[float, nn.Module]]
SUFFIX = ".pt2"  # torch.export.load warns of another


def export(model: SpaceModel, draws: Tensors, x: Inputs, path: str | PathLike[str]) -> None:
    """Write the posterior predictive mean x ↦ (1/S) Σ_s E[y | x, w_s, Γ_s] of a Model as a program of torch.export.

    ``draws``: {site: (draw, …)} of S draws; one gives the point network. Weights, structures and statistics of batch
    normalisation are baked in, and of each edge those primitives whose γ is not 0. ``x``: data whose shape, type and
    device those of later ones share; their number is free, and no value of theirs is stored. ``path`` ends in .pt2.
    The program maps x (the inputs one by one where x is a tuple) to what ``posterior.predict`` returns.

    Raises ValueError where ``draws`` lack a latent site, the network cannot run on x, or ``path`` has another ending,
    TypeError for another model or x, FileExistsError where ``path`` exists.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"path: expected a file name that ends in {SUFFIX}, got {str(path)!r}.")
    if path.exists():
        raise FileExistsError(f"path: expected a new file, got {str(path)!r}. Remove it, or name another.")
    if not isinstance(getattr(model, "network", None), Network):
        raise TypeError(f"model: expected a Model of pyro_nas.models, got {describe(model)}.")
    parts, count = x if isinstance(x, tuple) else (x,), len(model.space.inputs)
    if len(parts) != count or not all(isinstance(part, torch.Tensor) for part in parts):
        raise TypeError(f"x: expected a tensor for each of {count} inputs of the space, got {describe(x)}.")
    example = tuple(part.new_zeros(2, *part.shape[1:]) for part in parts)  # torch takes a batch of 1 for a constant
    batch = torch.export.Dim("batch")
    networks = [_point_network(model, draw) for draw in each_draw(draws)]
    predictive = _Predictive(model.likelihood, networks).eval()
    with torch.no_grad():
        with running(predictive, parts):
            predictive(*example)
        program = torch.export.export(predictive, example, dynamic_shapes=(tuple({0: batch} for _ in parts),))
    content = io.BytesIO()
    torch.export.save(program, content)
    write_atomically(path, content.getvalue())


def load(path: str | PathLike[str]) -> Callable[..., torch.Tensor]:
    """Return the program that ``export`` wrote, a function of x.

    Load only files that you trust: ``torch.export.load`` unpickles, and evaluates expressions of, what the file holds,
    so that a crafted file runs any code. Where this package is not installed, ``torch.export.load(path).module()`` does
    the same.

    Raises ValueError for another file.
    """
    content = Path(path).read_bytes()
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError(f"path: expected a whole file that export wrote, got {str(path)!r}. Export the model again.")
    return torch.export.load(io.BytesIO(content)).module()


class _Predictive(nn.Module):
    """The mean of a likelihood's expectation over networks."""

    likelihood: Expectation

    def __init__(self, likelihood: Expectation, networks: list[_Fixed]):
        super().__init__()
        self.likelihood, self.networks = copy.deepcopy(likelihood), nn.ModuleList(networks)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        inputs = tuple(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)
        return torch.stack([self.likelihood.mean(network(*inputs)) for network in self.networks]).mean(0)


class _Fixed(nn.Module):
    """A network at one structure: of each edge the primitives with γ ≠ 0, in the order in which they run.

    Unlike ``Network`` it asks for no value and no shape of a tensor, which a traced one does not have.
    """

    def __init__(self, network: Network, structure: Mapping[str, torch.Tensor]):
        super().__init__()
        space = self.space = network.space
        gamma = {edge: structure[c.site][row].tolist() for c in space.own_choices() for row, edge in enumerate(c.edges)}
        built: dict[Edge, Any] = dict(zip(space.edges, network.edges.values(), strict=True))
        self.running: dict[int, dict[int, Weighted]] = {}  # vertex → parent → (γ, primitive) of what runs
        for vertex in (vertex for vertex in space.vertices if vertex not in space.inputs):
            edges = {parent: (parent, vertex) for parent in space.parents(vertex)}
            weighted = {p: [*zip(gamma.get(e, [1.0]), built[e].values(), strict=True)] for p, e in edges.items()}
            running = {parent: [pair for pair in pairs if pair[0] != 0.0] for parent, pairs in weighted.items()}
            if space.aggregations.get(vertex, "sum") == "sum":  # it may leave zeros out, unless nothing is left
                running = {parent: pairs for parent, pairs in running.items() if pairs} or dict([*running.items()][:1])
            self.running[vertex] = {
                parent: [(weight, _fixed(part, structure)) for weight, part in pairs or weighted[parent][:1]]
                for parent, pairs in running.items()
            }
        self.primitives = nn.ModuleList(
            part for parents in self.running.values() for pairs in parents.values() for _, part in pairs
        )
        self.aggregations = nn.ModuleDict({v: _fixed(part, structure) for v, part in network.aggregations.items()})

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        values = dict(zip(self.space.inputs, inputs, strict=True))
        for vertex, parents in self.running.items():
            incoming = [_weighted_sum(pairs, values[parent]) for parent, pairs in parents.items()]
            name = self.space.aggregations.get(vertex, "sum")
            if isinstance(name, str):
                values[vertex] = AGGREGATIONS[name](incoming)
            else:
                values[vertex] = self.aggregations[str(vertex)](*incoming)
        return values[self.space.output]


def _weighted_sum(pairs: Weighted, x: torch.Tensor) -> torch.Tensor:
    return AGGREGATIONS["sum"]([part(x) if weight == 1.0 else part(x) * weight for weight, part in pairs])


def _fixed(module: nn.Module, structure: Mapping[str, torch.Tensor]) -> nn.Module:
    return _Fixed(module, structure) if isinstance(module, Network) else module


def _point_network(model: SpaceModel, draw: Mapping[str, torch.Tensor]) -> _Fixed:
    """Return a copy of what of a model's network runs at one draw of weights and structure, {site: tensor}."""
    prior: PyroCallable = model.weights
    with poutine.block():
        weights, sites = run(poutine.condition(prior, data=dict(draw)), ())
    check_draw(draw, [*sites, *model.choices])
    network = copy.deepcopy(model.network).requires_grad_(False)
    network.load_state_dict(weights, strict=False)
    return _Fixed(network, draw)
