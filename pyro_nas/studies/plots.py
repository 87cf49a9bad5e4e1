"""Pictures of studies: accuracy over pruning and over attacks, ranks among all cells, evidence by several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_nas.reading.plots import COLOURS, grid
from pyro_nas.studies.compare.records import MethodSummary
from pyro_nas.studies.compare.report import row_name
from pyro_nas.studies.evidence.methods import BOUNDS
from pyro_nas.studies.evidence.report import Row

__all__ = ["plot_evidence", "plot_pruning", "plot_ranks", "plot_robustness"]

DOUBTFUL = 0.7  # Pareto's k̂ above which an estimate by importance weights is not to be trusted


def plot_pruning(curves: Mapping[str, Mapping[float, Sequence[Mapping[str, float]]]]) -> Figure:
    """Draw accuracy against the share of pruned weights, a panel per row, a line per λ: mean and sd over runs.

    ``curves``: {row: {λ: [{"mean": …, "sd": …} at 0, 10, …, 90 %]}} (hypernetwork paper, figure 1).
    """
    figure, axes = grid(len(curves), 2, 5.0, 3.4)
    for axis, (name, by_complexity) in zip(axes, curves.items(), strict=True):
        for index, (complexity, points) in enumerate(by_complexity.items()):
            levels = 100 * np.arange(len(points)) / len(points)
            mean, sd = (100 * np.array([point[part] for point in points]) for part in ("mean", "sd"))
            axis.plot(levels, mean, "o-", ms=3, color=COLOURS[index], label=f"λ = {complexity:g}")
            axis.fill_between(levels, mean - sd, mean + sd, color=COLOURS[index], alpha=0.2, lw=0)
        axis.set_title(name, fontsize=10)
        axis.set_ylim(0, 100)
        axis.legend(frameon=False, fontsize=8, loc="lower left")
    figure.supxlabel("weights pruned, %")
    figure.supylabel("test accuracy, %")
    return figure


def plot_robustness(summary: Mapping[str, MethodSummary]) -> Figure:
    """Draw the accuracy of retrained and of searched networks against attack, deleted edges and noise, mean and sd.

    ``summary``: that of ``pyro-nas compare``, {method: {"test": {use: {"robustness": {part: {level: spread}}}},
    "searched": {"robustness": …}}}.
    """
    parts = {
        "attack": "attack ε, share of the pixels' range",
        "deleted_edges": "deleted edges, share",
        "noise": "noise sd, share of the pixels' range",
    }
    figure, axes = plt.subplots(2, len(parts), figsize=(13, 7), sharey=True, sharex="col", layout="constrained")
    colours = {method: COLOURS[index % len(COLOURS)] for index, method in enumerate(summary)}
    retrained = [
        (method, use, test["robustness"]) for method, entry in summary.items() for use, test in entry["test"].items()
    ]
    searched = [
        (method, "", entry["searched"]["robustness"]) for method, entry in summary.items() if "searched" in entry
    ]
    for line, (kind, networks) in zip(axes, {"retrained": retrained, "searched": searched}.items(), strict=True):
        for axis, part in zip(line, parts, strict=True):
            for method, use, curves in networks:
                curve = curves[part]
                levels = np.array([float(level) for level in curve])
                mean, sd = 100 * np.array([(point["mean"], point["sd"]) for point in curve.values()]).T
                axis.errorbar(
                    levels, mean, sd, marker="o", ms=3, capsize=2, color=colours[method],
                    ls="--" if use == "point" and "posterior" in summary[method]["test"] else "-",
                    label=row_name(method, summary[method], use) if use else method,
                )  # fmt: skip
        line[0].set_ylabel(f"test accuracy of {kind} networks, %")
        line[-1].legend(frameon=False, fontsize=8, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    for axis, label in zip(axes[-1], parts.values(), strict=True):
        axis.set_xlabel(label)
    return figure


def plot_ranks(accuracies: Sequence[float], methods: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw the accuracy of all cells, best first, and on that curve what each method chose, a mark a seed."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    best_first = 100 * np.sort(accuracies)[::-1]
    axis.plot(range(1, len(accuracies) + 1), best_first, ".", color="grey", ms=4, label="all")
    for index, (method, entries) in enumerate(methods.items()):
        axis.plot(
            [entry["rank"] for entry in entries],
            [100 * entry["accuracy"] for entry in entries],
            "ovsD^<>Ph*"[index % 10],
            color=COLOURS[index % 10],
            label=method,
            ms=7,
            alpha=0.8,
        )
    axis.set(xlabel=f"rank among {len(accuracies)} cells", ylabel="test accuracy, mean over seeds, %", xscale="log")
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def plot_evidence(rows: Mapping[str, Row], probabilities: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the exact log evidence of every model, how far each method is from it, and the posterior over models.

    Beside the exact value stand cross-validation and leave-one-out; crosses mark leave-one-out estimates that are not
    to be trusted, those of Pareto's k̂ above 0.7. Differences, estimate − exact, have a linear axis within ± 1 nat and
    a logarithmic one beyond; bars are standard errors, triangles bounds from below, ≥ in the legend.

    ``rows`` and ``probabilities``: "models" and "posterior" of a summary of ``pyro-nas evidence``.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.0), layout="constrained")
    methods = list(next(iter(rows.values()))["estimates"])
    colours = {"exact": "black"} | {method: COLOURS[index % len(COLOURS)] for index, method in enumerate(methods)}
    _draw_exact(left, list(rows.values()))
    middle.set_yscale("symlog", linthresh=1.0, linscale=1.5)
    places, lines = np.arange(len(rows)), [middle.axhline(0.0, color="black", lw=1, label="exact")]
    for index, method in enumerate(methods):
        estimates = [(row["estimates"][method], row["exact"]) for row in rows.values()]
        lines += [middle.errorbar(
            places + 0.8 * ((index + 0.5) / len(methods) - 0.5),
            [estimate["value"] - exact for estimate, exact in estimates],
            [estimate["standard_error"] for estimate, _ in estimates],
            marker="^" if method in BOUNDS else "o", ms=5, lw=0, elinewidth=1.2, capsize=2, color=colours[method],
            label=("≥ " if method in BOUNDS else "") + method.replace("_", " "),
        )]  # fmt: skip
    low, high = middle.get_ylim()
    sizes = [0.5, *10.0 ** np.arange(7)]
    middle.set_yticks([0.0, *(tick for size in sizes for tick in (-size, size) if low <= tick <= high)])
    middle.yaxis.set_major_formatter("{x:g}")
    middle.set(title="estimate − exact", ylabel="nats", ylim=(low, high))
    width = 0.8 / len(probabilities)
    for index, (method, table) in enumerate(probabilities.items()):
        right.bar(places + width * (index + 0.5) - 0.4, list(table.values()), width, color=colours[method])
    right.set(title="posterior over models", ylabel="p(model | D)")
    figure.legend(handles=lines, loc="outside right upper", frameon=False, fontsize=8)
    for axis in (left, middle, right):
        axis.set_xticks(places, [name.removeprefix("degree ").replace(", ", ",\n") for name in rows])
        axis.set_xlabel("degree" if "degree 0" in rows else "model")
    return figure


def _draw_exact(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw the exact evidence, cross-validation and leave-one-out of every model, in nats."""
    axis.plot([row["exact"] for row in rows], "o-", color="black", lw=2, ms=4, label="log p(D), exact")
    left_out = [row["leave_one_out"]["value"] for row in rows]
    axis.plot([row["cross_validation"]["value"] for row in rows], "--", color="grey", label="cross-validation")
    axis.plot(left_out, ":", color="grey", label="leave-one-out")
    largest = [row["leave_one_out"]["largest_pareto_k"] for row in rows]
    doubtful = [place for place, k in enumerate(largest) if k is None or k > DOUBTFUL]
    if doubtful:
        values = [left_out[place] for place in doubtful]
        axis.plot(doubtful, values, "x", color="grey", label=f"the same, k̂ > {DOUBTFUL:g}")
    axis.set(title="log evidence, and held-out log density", ylabel="nats, all data")
    axis.legend(frameon=False, fontsize=8)
