"""Robustness of a posterior predictive: to a sign-gradient attack, to noise of the input, to deleted edges.

The attack is that of Goodfellow et al. 2015 (arXiv:1412.6572) on the predictive mean of draws; edges are deleted from
the graph of a cell at test time, as in the VarDARTS thesis talk. Nothing is trained again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TypeAlias

import torch
from pyro import poutine
from torch import nn

from pyro_nas import checks
from pyro_nas.data import check_classes
from pyro_nas.evidence.currencies import SpaceModel, Tensors
from pyro_nas.evidence.sites import run_at
from pyro_nas.graph.modules import Zero
from pyro_nas.graph.network import Network
from pyro_nas.graph.space import Edge
from pyro_nas.reading.posterior import accuracy, check_classifier, each_draw, evaluation_mode

__all__ = [
    "cell_edges",
    "deleted_edges",
    "gaussian_noise",
    "random_edges",
    "robustness_curves",
    "sign_gradient_attack",
]

CellEdge: TypeAlias = tuple[str, Edge]  # the name of a space and an edge of it
Curves: TypeAlias = dict[str, dict[float, float]]


def sign_gradient_attack(
    model: SpaceModel,
    draws: Tensors,
    x: torch.Tensor,
    y: torch.Tensor,
    epsilon: float,
    low: float = -1.0,
    high: float = 1.0,
    batch_size: int = 1024,
) -> torch.Tensor:
    """Return inputs moved against their classes, x + ε (high − low) sign ∇ₓ(−log mean_s p(y | x, wₛ, Γₛ)), clipped.

    ``draws`` are {site: (draw, …)} as ``predict`` takes; one draw attacks that one network. x: (data, …) in [low,
    high], y: class indices (data,). ε is a share of the range: .1 is .1 of pixels in [0, 1] and .2 of pixels in
    [−1, 1]. At ε = 0 the result is x. Goodfellow et al. 2015, §4.

    Raises ValueError where x leaves [low, high], y are not its class indices, or ε is below 0.
    """
    check_classes(x, y)
    return _moved("epsilon", x, epsilon, _loss_signs(model, draws, x, y, batch_size), low, high)


def gaussian_noise(x: torch.Tensor, sd: float, seed: int, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
    """Return x + sd (high − low) e with e ~ N(0, I), clipped to [low, high]; ``sd`` is a share of the range.

    One seed gives one e on every device and at every ``sd``. Raises ValueError where x leaves [low, high].
    """
    noise = torch.randn(x.shape, generator=_generator(seed), dtype=x.dtype).to(x.device)
    return _moved("sd", x, sd, noise, low, high)


def cell_edges(network: nn.Module) -> list[CellEdge]:
    """List the edges of the cells: (name, edge) of each space with a name in a network or model, shared cells once.

    Left out are spaces without a name, which hold what is the only path (stem, halving, readout); edges into a
    concatenation, which only collect; and edges whose primitives are all zero. Derived spaces keep their names, so
    that the edges of a searched and of a derived cell have the same ones. Filter the list for other rules.
    """
    return sorted(
        {
            (part.space.name, edge)
            for part in _networks(network)
            for edge, modules in _edges_of(part)
            if part.space.name
            and part.space.aggregations.get(edge[1]) != "concatenation"
            and not all(map(_gives_zero, modules))
        }
    )


def random_edges(edges: Sequence[CellEdge], fraction: float, seed: int) -> list[CellEdge]:
    """Return round(fraction · edges) of the edges at random; with one seed a larger fraction holds the smaller ones.

    Raises ValueError where there are no edges to draw from.
    """
    checks.number("fraction", fraction, low=0, high=1)
    if not edges:
        raise ValueError(
            "edges: expected an edge or more that may be deleted, got none. Only spaces with a name have such edges: "
            "give the cell one by Space(…, name=…), or ask for no fractions."
        )
    order = torch.randperm(len(edges), generator=_generator(seed)).tolist()
    return [edges[index] for index in order[: round(fraction * len(edges))]]


@contextmanager
def deleted_edges(network: nn.Module, edges: Collection[CellEdge]) -> Iterator[None]:
    """Make what these edges carry zero, while this context lasts, at every position of the spaces of that name.

    A deleted edge still enters means, products and concatenations, as a zero. Weights stay as they are; without edges
    the network is unchanged. Raises ValueError for edges that the network lacks, and where a module of a deleted edge
    also stands on an edge that stays.
    """
    placed = [((part.space.name, edge), modules) for part in _networks(network) for edge, modules in _edges_of(part)]
    unknown = sorted(set(edges) - {edge for edge, _ in placed})
    if unknown:
        raise ValueError(f"edges: expected (name, edge) among {sorted({e for e, _ in placed})}, got {unknown}.")
    kept = {id(module) for edge, modules in placed if edge not in edges for module in modules}
    with ExitStack() as hooks:
        for edge, modules in placed:
            for module in modules if edge in edges else ():
                if id(module) in kept:
                    raise ValueError(
                        f"edges: expected edges with modules of their own, got {edge}, whose {type(module).__name__} "
                        "also stands on an edge that stays. Delete both, or build a module for each."
                    )
                hooks.enter_context(module.register_forward_hook(lambda _module, _x, output: torch.zeros_like(output)))
        yield


def robustness_curves(
    model: SpaceModel,
    draws: Tensors,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    epsilons: Sequence[float] = (0.0, 0.1, 0.2, 0.3),
    fractions: Sequence[float] = (0.0, 0.1, 0.3, 0.5),
    noises: Sequence[float] = (0.0, 0.1, 0.2, 0.3),
    edges: Sequence[CellEdge] | None = None,
    low: float = -1.0,
    high: float = 1.0,
    repetitions: int = 5,
    seed: int = 0,
    batch_size: int = 1024,
) -> Curves:
    """Return accuracies, {"attack": {ε: …}, "deleted_edges": {fraction: …}, "noise": {sd: …}}, ready for JSON.

    Those of deleted edges are means over the seeds seed, …, seed + repetitions − 1, each deleting from ``edges``
    (those of ``cell_edges`` by default). A network without cells has no such curve: pass fractions=().

    Raises ValueError for repetitions below 1, and what ``sign_gradient_attack``, ``gaussian_noise``, ``random_edges``
    and ``deleted_edges`` raise.
    """
    checks.integer("repetitions", repetitions, low=1)
    check_classes(x, y)
    candidates = cell_edges(model) if edges is None else edges
    signs = _loss_signs(model, draws, x, y, batch_size)

    def accuracy_on(inputs: torch.Tensor) -> float:
        return accuracy(model, draws, inputs, y, batch_size=batch_size)

    @cache
    def accuracy_without(gone: frozenset[CellEdge]) -> float:
        with deleted_edges(model, gone):
            return accuracy_on(x)

    def mean_accuracy(fraction: float) -> float:
        gone = [frozenset(random_edges(candidates, fraction, seed + index)) for index in range(repetitions)]
        return sum(map(accuracy_without, gone)) / repetitions

    return {
        "attack": {eps: accuracy_on(_moved("epsilons", x, eps, signs, low, high)) for eps in epsilons},
        "deleted_edges": {fraction: mean_accuracy(fraction) for fraction in fractions},
        "noise": {sd: accuracy_on(gaussian_noise(x, sd, seed, low, high)) for sd in noises},
    }


def _loss_signs(model: SpaceModel, draws: Tensors, x: torch.Tensor, y: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Return sign ∇ₓ(−log Σₛ pₛ), one draw's graph at a time: ∇ log Σₛ pₛ = Σₛ πₛ ∇ log pₛ with π = softmax(log p)."""
    signs = []
    with evaluation_mode(model):
        for rows, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            logs, gradients = [], []
            for single in each_draw(draws):
                with torch.enable_grad(), poutine.block():
                    inputs = rows.detach().clone().requires_grad_()
                    outputs = run_at(model, single, (inputs, labels)).outputs
                    check_classifier(model.likelihood, outputs, labels)
                    log_p = model.likelihood.distribution(outputs).log_prob(labels)
                    gradients.append(torch.autograd.grad(log_p.sum(), inputs)[0])
                logs.append(log_p.detach())
            shares = torch.stack(logs).softmax(0)  # (draw, batch)
            signs.append(-torch.einsum("db,db...->b...", shares, torch.stack(gradients)).sign())
    return torch.cat(signs)


def _moved(name: str, x: torch.Tensor, size: float, step: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return x + size (high − low) step, clipped to [low, high]."""
    checks.number("low", low)
    checks.number("high", high, low=low, open_low=True)
    if not bool(((x >= low) & (x <= high)).all()):
        raise ValueError(
            f"x: expected values in [{low:g}, {high:g}], got some from {float(x.min()):g} to {float(x.max()):g}. "
            "Pass the range that inputs may have as low and high."
        )
    return (x + checks.number(name, size, low=0) * (high - low) * step).clamp(low, high)


def _networks(network: nn.Module) -> Iterator[Network]:
    return (part for part in network.modules() if isinstance(part, Network))


def _edges_of(network: Network) -> Iterator[tuple[Edge, list[nn.Module]]]:
    for edge, primitives in zip(network.space.edges, network.edges.values(), strict=True):
        yield edge, list(primitives.children())


def _gives_zero(module: nn.Module) -> bool:
    if not isinstance(module, Network):
        return isinstance(module, Zero)
    output = module.space.output
    last = [part for edge, modules in _edges_of(module) if edge[1] == output for part in modules]
    return str(output) not in module.aggregations and all(map(_gives_zero, last))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(checks.seed(seed))
