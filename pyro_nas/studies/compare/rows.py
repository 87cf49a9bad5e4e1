"""A row of the comparison: one method with one seed, from the search to what the retrained network does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pyro_nas import augmentation as augmentations
from pyro_nas.evidence.sites import is_structure
from pyro_nas.graph.costs import total_cost
from pyro_nas.graph.derivation import derive, with_optional_edges
from pyro_nas.graph.enumeration import hard_choices
from pyro_nas.graph.space import Space
from pyro_nas.reading.batch_normalization import recalibrated
from pyro_nas.reading.metrics import classification_metrics
from pyro_nas.reading.posterior import draw, each_draw, mean_draw, predict
from pyro_nas.reading.robustness import cell_edges, robustness_curves
from pyro_nas.reading.structure_posterior import by_edge, edge_entropies
from pyro_nas.studies.compare.methods import CALIBRATED, METHODS, discretised, first
from pyro_nas.studies.compare.task import Found, Task

POSTERIOR = "vardarts"  # the method whose retrained network keeps a posterior of its weights and of its edges
DRAWS = 10
ATTACKED = 2000  # test images that the robustness of a retrained network is measured on
ATTACKED_SEARCHED = 1000  # and of a searched one, all primitives of which may run
LATENCY_BATCH, LATENCY_ROUNDS = 64, 5
CERTAIN = 1 - 1e-6
EDGE_TEMPERATURE = 0.05  # of the presence of edges: near 0 or 1
FRACTIONS = (0.0, 0.1, 0.3, 0.5)
REPETITIONS = 5  # of deleting edges
FOUND = ("search", "choices", "derived", "structure", "entropy")  # what a row holds of its search
RETRAINED = ("retrain", "test", "cost")  # and of the network that was made of it


@dataclass(frozen=True)
class Size:
    """How large a comparison is.

    ``images``: the budget of a search, ``children``: the networks that random search trains with it. ``searched`` and
    ``retrained`` make the space from (inputs, outputs); both have the same sites, the latter is the larger.
    ``retrain_lr``: the highest learning rate, ``shifted``: pixels that a training image moves. ``presence``: the
    probability of each edge into a sum, in the cells of a network that is retrained with a posterior, at the end; it
    falls from 1 in a straight line (ScheduledDropPath, Zoph et al. 2018).
    """

    images: int
    retrain_epochs: int
    searched: Callable[[int, int], Space]
    retrained: Callable[[int, int], Space]
    batch_size: int = 128
    children: int = 8
    retrain_lr: float = 0.005
    shifted: int = 2
    mirrored: bool = True
    presence: float = 0.8

    def settings(self) -> dict[str, Any]:
        """Return this as JSON values, spaces by name and arguments."""
        return {name: _text(value) for name, value in vars(self).items()}


def row(task: Task, size: Size, method: str, discretise: str = "argmax") -> dict[str, Any]:
    """Search by a method, retrain what it found on all known data, and measure that on the test part."""
    searched = METHODS[method](task)
    found = discretised(task, searched, discretise)
    described = {**_described(task, searched, found), "searched": searched_robustness(task, searched)}
    return {**described, **retrained(task, size, architecture_of(task, size, described), method == POSTERIOR)}


def again(task: Task, size: Size, other: Mapping[str, Any], posterior: bool) -> dict[str, Any]:
    """Retrain what another row found, with a posterior or without, and measure that on the test part."""
    found = {name: other[name] for name in FOUND}
    return {**found, **retrained(task, size, architecture_of(task, size, other), posterior)}


def searched_robustness(task: Task, found: Found) -> dict[str, Any]:
    """Measure the network that a search trained, before its structure is discretised, on the test part.

    It is what the method left: mixtures or paths of a posterior's draws, a mixture by a point, or random search's best
    child. Means over draws, each a network by itself, with statistics of batch normalisation of its own.
    """
    curves = []
    for one in each_draw(found.draws):
        single = {site: value[None] for site, value in one.items()}
        with recalibrated(found.model, single, first(task, task.split.train, CALIBRATED)):
            curves.append(_robustness(task, found.model, single, ATTACKED_SEARCHED))
    return {
        "robustness": {
            part: {level: statistics.fmean(curve[part][level] for curve in curves) for level in levels}
            for part, levels in curves[0].items()
        }
    }


def latencies(task: Task, size: Size, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the microseconds an image of the retrained network of each row, the least of rounds in which all run.

    A median in one round tells of what else the machine did at that moment.
    """
    sample = first(task, task.split.test, LATENCY_BATCH)[0]
    networks = [architecture_of(task, size, row) for row in rows]
    rounds = [[total_cost(network, sample, "latency") for network in networks] for _ in range(LATENCY_ROUNDS)]
    return [round(min(values) / len(sample), 2) for values in zip(*rounds, strict=True)]


def architecture_of(task: Task, size: Size, row: Mapping[str, Any]) -> Space:
    """Return the network that a row retrained: its derived structure, or the plain network where nothing was."""
    inputs, outputs = task.split.train[0].shape[1], task.split.classes
    if "derived" not in row:
        plain: Space = zoo.convolutions(inputs, outputs)
        return plain
    return derive(size.retrained(inputs, outputs), {site: torch.tensor(t) for site, t in row["derived"].items()})


def _robustness(task: Task, model: Any, draws: Mapping[str, torch.Tensor], count: int) -> dict[str, Any]:
    """Return robustness curves on the first test images, as JSON values."""
    low, high = (float(bound) for bound in torch.cat([task.split.test[0], task.split.known[0]]).aminmax())
    curves = robustness_curves(
        model, draws, *first(task, task.split.test, count), fractions=FRACTIONS if cell_edges(model) else (),
        low=low, high=high, repetitions=REPETITIONS, seed=REPETITIONS * task.seed % 2**62,
    )  # fmt: skip
    return {part: {str(level): value for level, value in curve.items()} for part, curve in curves.items()}


def retrained(
    task: Task, size: Size, architecture: Space, posterior: bool, epochs: int | None = None
) -> dict[str, Any]:
    """Retrain a network with nothing left to choose, and measure it on the test part.

    A posterior is judged by its mean, "point", and by draws of its weights, "posterior", all edges present in both;
    batch normalisation keeps the statistics of the training, when edges were rarer.
    """
    epochs = epochs or size.retrain_epochs
    model, guide, seconds = retrain(task, size, architecture, posterior, epochs)
    x, y = task.split.test
    sample = x[:LATENCY_BATCH].to(task.device)
    ways = {"point": mean_draw(guide)}
    if posterior:
        whole = {site: value.expand(DRAWS, -1, -1) for site, value in ways["point"].items() if is_structure(site)}
        ways["posterior"] = {**draw(guide, num_samples=DRAWS), **whole}
    tested = {}
    for name, draws in ways.items():
        metrics = classification_metrics(predict(model, draws, x.to(task.device)).cpu(), y)
        tested[name] = {**metrics, "robustness": _robustness(task, model, draws, ATTACKED)}
    return {
        "retrain": {"epochs": epochs, "images": epochs * len(task.split.known[1]), "seconds": round(seconds, 2)},
        "test": tested,
        "cost": {
            "networks": DRAWS if posterior else 1,  # that a prediction averages; what follows is of one
            "parameters": int(total_cost(architecture, sample, "parameters")),
            "multiply_accumulates": int(total_cost(architecture, sample, "multiply_accumulates")),
        },
    }


def retrain(
    task: Task, size: Size, architecture: Space, posterior: bool, epochs: int
) -> tuple[nn.Module, nn.Module, float]:
    """Fit a network with nothing left to choose to all known data, augmented; return the pair and the seconds.

    With a posterior, weights are Normal; where ``size.presence`` is below 1, each example then also sees its own cells,
    in which edges are present at random, by prior and posterior alike, fewer from epoch to epoch.
    """
    known, guides, inference = task.split.known, models.guides, task.inference
    full = replace(task, lr=size.retrain_lr, split=replace(task.split, train=known))
    optional, callbacks = posterior and size.presence < 1, []
    if optional:
        model = full.model(models.structures.relaxed_bernoulli(EDGE_TEMPERATURE), with_optional_edges(architecture))
    else:
        model = full.model(space=architecture)
    guide = guides.MeanField(model, task.initial_scale) if posterior else guides.PointWeights(model)
    if optional:
        guide.structure.requires_grad_(False)
        fall = inference.schedules.linear(1.0, size.presence)
        _set_presence(model, guide, fall(1 / epochs))
        callbacks.append(lambda record: _set_presence(model, guide, fall(min(1.0, (record["epoch"] + 2) / epochs))))
    guide.to(task.device)
    parts = [augmentations.shift(size.shifted, fill=float(known[0].min()))] if size.shifted else []
    parts += [augmentations.mirror()] if size.mirrored else []
    options = {
        **full.fit_options(epochs),
        "augmentation": augmentations.compose(*parts),
        "structure_per_example": optional,
        "callbacks": callbacks,
    }
    start = time.perf_counter()
    inference.svi.fit(model, guide, known, **options)
    return model, guide, time.perf_counter() - start


def _set_presence(model: Any, guide: Any, probability: float) -> None:
    """Set the probability of each edge of the cells, in prior and posterior; edges that only collect are certain."""
    for _, cell in model.space.children():
        for choices in cell.own_choices():
            collect = [cell.aggregations.get(vertex) == "concatenation" for _, vertex in choices.edges]
            table = [[CERTAIN if only else min(probability, CERTAIN)] for only in collect]
            model.structure_probabilities(choices.site).copy_(torch.tensor(table))
    guide.follow_prior()


def _described(task: Task, searched: Found, found: Found) -> dict[str, Any]:
    """Return what a search found, as JSON values: its probabilities, and the structure that was made of them."""
    probabilities, derived = (
        {site: torch.as_tensor(table) for site, table in one.structure.items()} for one in (searched, found)
    )
    choices = {site: hard_choices(table, task.space.choices()[site].restriction) for site, table in derived.items()}
    named: Mapping[str, Any] = by_edge(task.space, choices)
    return {
        "search": {"images": found.images, "seconds": round(found.seconds, 2)},
        "choices": {edge: max(table, key=table.get) for edge, table in named.items()},
        "derived": {site: table.tolist() for site, table in choices.items()},
        "structure": {site: table.tolist() for site, table in probabilities.items()},
        "entropy": by_edge(task.space, edge_entropies(task.space, probabilities)),
    }


def _text(value: Any) -> Any:
    if isinstance(value, partial):
        arguments = ", ".join(f"{name}={argument!r}" for name, argument in value.keywords.items())
        return f"{value.func.__name__}({arguments})"
    return value.__name__ if callable(value) else value
