"""A row of the comparison: one method with one seed, from the search to what the retrained network does."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch

from pyro_nas.graph.costs import total_cost
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.enumeration import hard_choices
from pyro_nas.graph.families import zoo
from pyro_nas.graph.space import Space
from pyro_nas.models import Model
from pyro_nas.reading.batch_normalization import recalibrated
from pyro_nas.reading.metrics import classification_metrics
from pyro_nas.reading.posterior import each_draw, predict
from pyro_nas.reading.robustness import cell_edges, robustness_curves
from pyro_nas.reading.structure_posterior import by_edge, edge_entropies, number_by_edge
from pyro_nas.studies.compare.methods import CALIBRATED, METHODS, discretised, first
from pyro_nas.studies.compare.records import Curves, Described, Retrained, Robustness, Row, Table, Tested
from pyro_nas.studies.compare.retraining import DRAWS, retrain, ways_of
from pyro_nas.studies.compare.sizes import Size
from pyro_nas.studies.compare.task import SearchResult, Task

POSTERIOR = "vardarts"  # the method whose retrained network keeps a posterior of its weights and of its edges
ATTACKED = 2000  # test images that the robustness of a retrained network is measured on
ATTACKED_SEARCHED = 1000  # and of a searched one, all primitives of which may run
LATENCY_BATCH, LATENCY_ROUNDS = 64, 5
FRACTIONS = (0.0, 0.1, 0.3, 0.5)
REPETITIONS = 5  # of deleting edges
DESCRIBED = tuple(Described.__annotations__)  # what a row holds of its search
RETRAINED = tuple(Retrained.__annotations__)  # and of the network that was made of it


def searched_row(task: Task, size: Size, method: str, discretise: str = "argmax") -> Row:
    """Search by a method, retrain what it found on all known data, and measure that on the test part."""
    searched = METHODS[method](task)
    description = described(task, searched, discretised(task, searched, discretise))
    robustness = searched_robustness(task, searched)
    architecture = architecture_of(task, size, description["derived"])
    made = retrained(task, size, architecture, posterior=method == POSTERIOR)
    return {**description, "searched": robustness, **made}


def retrained_row(task: Task, size: Size, other: Row, *, posterior: bool) -> Row:
    """Retrain what another row found, with a posterior or without, and measure that on the test part."""
    description: Described = {
        "search": other["search"],
        "choices": other["choices"],
        "derived": other["derived"],
        "structure": other["structure"],
        "entropy": other["entropy"],
    }
    architecture = architecture_of(task, size, description["derived"])
    return {**description, **retrained(task, size, architecture, posterior=posterior)}


def plain_row(task: Task, size: Size, other: Row) -> Row:
    """Train the plain network for as many epochs as fit into another row's search and retraining.

    Both networks are trained for an epoch here, one after the other: those seconds may be of a busier machine.
    """
    plain = architecture_of(task, size, None)
    derived = architecture_of(task, size, other["derived"])
    *_, derived_seconds = retrain(task, size, derived, posterior=True, epochs=1)
    *_, plain_seconds = retrain(task, size, plain, posterior=False, epochs=1)
    epochs = other["retrain"]["epochs"] * (1 + other["search"]["seconds"] / other["retrain"]["seconds"])
    epochs = max(1, round(epochs * derived_seconds / plain_seconds))
    return {**retrained(task, size, plain, posterior=False, epochs=epochs)}


def architecture_of(task: Task, size: Size, derived: Table | None) -> Space:
    """Return the network that a row retrains: its derived structure, or the plain network where nothing was."""
    inputs, outputs = task.split.train[0].shape[1], task.split.classes
    if derived is None:
        return zoo.convolutions(inputs, outputs)
    return derive(size.retrained(inputs, outputs), {site: torch.tensor(table) for site, table in derived.items()})


def searched_robustness(task: Task, result: SearchResult) -> Robustness:
    """Measure the network that a search trained, before its structure is discretised, on the test part.

    It is what the method left: mixtures or paths of a posterior's draws, a mixture by a point, or random search's best
    child. Means over draws, each a network by itself, with statistics of batch normalisation of its own.
    """
    curves = []
    for drawn in each_draw(result.draws):
        single = {site: value[None] for site, value in drawn.items()}
        with recalibrated(result.model, single, first(task, task.split.train, CALIBRATED)):
            curves.append(_robustness(task, result.model, single, ATTACKED_SEARCHED))
    return {
        "robustness": {
            part: {level: statistics.fmean(curve[part][level] for curve in curves) for level in levels}
            for part, levels in curves[0].items()
        }
    }


def retrained(task: Task, size: Size, architecture: Space, *, posterior: bool, epochs: int | None = None) -> Retrained:
    """Retrain a network with nothing left to choose, and measure it on the test part.

    A posterior is judged by its mean, "point", and by draws of its weights, "posterior", all edges present in both;
    batch normalisation keeps the statistics of the training, when edges were rarer.
    """
    epochs = epochs or size.retrain_epochs
    model, guide, seconds = retrain(task, size, architecture, posterior=posterior, epochs=epochs)
    x, y = task.split.test
    sample = x[:LATENCY_BATCH].to(task.device)
    tested: dict[str, Tested] = {}
    for name, draws in ways_of(guide, posterior=posterior).items():
        metrics = classification_metrics(predict(model, draws, x.to(task.device)).cpu(), y)
        tested[name] = {
            "accuracy": metrics["accuracy"],
            "calibration_error": metrics["calibration_error"],
            "log_likelihood": metrics["log_likelihood"],
            "robustness": _robustness(task, model, draws, ATTACKED),
        }
    return {
        "retrain": {"epochs": epochs, "images": epochs * len(task.split.known[1]), "seconds": round(seconds, 2)},
        "test": tested,
        "cost": {
            "networks": DRAWS if posterior else 1,  # that a prediction averages; what follows is of one
            "parameters": int(total_cost(architecture, sample, "parameters")),
            "multiply_accumulates": int(total_cost(architecture, sample, "multiply_accumulates")),
        },
    }


def latencies(task: Task, size: Size, rows: Sequence[Row]) -> list[float]:
    """Return the microseconds an image of the retrained network of each row, the least of rounds in which all run.

    A median in one round tells of what else the machine did at that moment.
    """
    sample = first(task, task.split.test, LATENCY_BATCH)[0]
    networks = [architecture_of(task, size, row.get("derived")) for row in rows]
    rounds = [[total_cost(network, sample, "latency") for network in networks] for _ in range(LATENCY_ROUNDS)]
    return [round(min(values) / len(sample), 2) for values in zip(*rounds, strict=True)]


def described(task: Task, searched: SearchResult, result: SearchResult) -> Described:
    """Return what a search left, as JSON values: its probabilities, and the structure that was made of them."""
    probabilities, derived = (
        {site: torch.as_tensor(table) for site, table in part.structure.items()} for part in (searched, result)
    )
    choices = {site: hard_choices(table, task.space.choices()[site].restriction) for site, table in derived.items()}
    named = by_edge(task.space, choices)
    return {
        "search": {"images": result.images, "seconds": round(result.seconds, 2)},
        "choices": {edge: max(table, key=lambda name: table[name]) for edge, table in named.items()},
        "derived": {site: table.tolist() for site, table in choices.items()},
        "structure": {site: table.tolist() for site, table in probabilities.items()},
        "entropy": number_by_edge(task.space, edge_entropies(task.space, probabilities)),
    }


def _robustness(task: Task, model: Model, draws: Mapping[str, torch.Tensor], count: int) -> Curves:
    """Return robustness curves on the first test images, as JSON values."""
    low, high = (float(bound) for bound in torch.cat([task.split.test[0], task.split.known[0]]).aminmax())
    curves = robustness_curves(
        model, draws, *first(task, task.split.test, count), fractions=FRACTIONS if cell_edges(model) else (),
        low=low, high=high, repetitions=REPETITIONS, seed=REPETITIONS * task.seed % 2**62,
    )  # fmt: skip
    return {part: {str(level): value for level, value in curve.items()} for part, curve in curves.items()}
