"""Pictures of studies: curves and points over λ, over pruning, over attacks, and ranks among all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pyro_nas.reading.plots import COLOURS, grid
from pyro_nas.studies.compare.report import row_name


def plot_pruning(curves: Mapping[str, Mapping[float, Sequence[Mapping[str, float]]]]) -> Figure:
    """Draw accuracy against the share of pruned weights, a panel per row, a line per λ: mean and sd over runs.

    ``curves``: {row: {λ: [{"mean": …, "sd": …} at 0, 10, …, 90 %]}} (hypernetwork paper, figure 1).
    """
    figure, axes = grid(len(curves), 2, 5.0, 3.4)
    for axis, (name, by_complexity) in zip(axes, curves.items(), strict=True):
        for index, (complexity, points) in enumerate(by_complexity.items()):
            levels = 100 * np.arange(len(points)) / len(points)
            mean, sd = (np.array([point[part] for point in points]) for part in ("mean", "sd"))
            axis.plot(levels, mean, "o-", ms=3, color=COLOURS[index], label=f"λ = {complexity:g}")
            axis.fill_between(levels, mean - sd, mean + sd, color=COLOURS[index], alpha=0.2, lw=0)
        axis.set_title(name, fontsize=10)
        axis.set_ylim(0, 1)
        axis.legend(frameon=False, fontsize=8, loc="lower left")
    figure.supxlabel("weights pruned, %")
    figure.supylabel("test accuracy")
    return figure


def plot_complexity(panels: Mapping[str, Mapping[str, Mapping[float, float]]]) -> Figure:
    """Draw quantities against λ on a logarithmic axis: {panel: {line: {λ: value}}}; lines of few points are dots."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), squeeze=False, layout="constrained")
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        most = max(len(line) for line in lines.values())
        for index, (label, line) in enumerate(lines.items()):
            style = "-" if len(line) == most else "o"
            axis.plot(list(line), list(line.values()), style, color=COLOURS[index % 10], label=label, lw=2)
        axis.set_xscale("log")
        axis.set_xlabel("complexity λ")
        axis.set_title(title, fontsize=10)
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=8)
    return figure


def plot_robustness(summary: Mapping[str, Any]) -> Figure:
    """Draw the accuracy of retrained and of searched networks against attack, deleted edges and noise, mean and sd.

    ``summary``: that of ``pyro-nas compare``, {method: {"test": {way: {"robustness": {part: {level: spread}}}},
    "searched": {"robustness": …}}}.
    """
    parts = {"attack": "attack ε", "deleted_edges": "deleted share of edges", "noise": "noise sd"}
    figure, axes = plt.subplots(2, len(parts), figsize=(13, 7), sharey=True, sharex="col", layout="constrained")
    colours = {method: COLOURS[index % len(COLOURS)] for index, method in enumerate(summary)}
    retrained = [(method, way, test) for method, entry in summary.items() for way, test in entry["test"].items()]
    searched = [(method, "", entry["searched"]) for method, entry in summary.items() if "searched" in entry]
    for row, (kind, lines) in zip(axes, {"retrained": retrained, "searched": searched}.items(), strict=True):
        for axis, part in zip(row, parts, strict=True):
            for method, way, measured in lines:
                curve = measured["robustness"][part]
                levels = np.array([float(level) for level in curve])
                mean, sd = (np.array([point[key] for point in curve.values()]) for key in ("mean", "sd"))
                axis.errorbar(
                    levels, mean, sd, marker="o", ms=3, capsize=2, color=colours[method],
                    ls="--" if way == "point" and "posterior" in summary[method]["test"] else "-",
                    label=row_name(method, summary[method], way) if way else method,
                )  # fmt: skip
        row[0].set_ylabel(f"test accuracy, {kind} networks")
        row[-1].legend(frameon=False, fontsize=8, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    for axis, title in zip(axes[-1], parts.values(), strict=True):
        axis.set_xlabel(title)
    return figure


def plot_ranks(accuracies: Sequence[float], methods: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw the accuracy of all cells, best first, and on that curve what each method chose, a mark a seed."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    axis.plot(range(1, len(accuracies) + 1), sorted(accuracies, reverse=True), ".", color="grey", ms=4, label="all")
    for index, (method, entries) in enumerate(methods.items()):
        axis.plot(
            [entry["rank"] for entry in entries],
            [entry["accuracy"] for entry in entries],
            "ovsD^<>Ph*"[index % 10],
            color=COLOURS[index % 10],
            label=method,
            ms=7,
            alpha=0.8,
        )
    axis.set(xlabel="rank", ylabel="test accuracy, mean over seeds", xscale="log")
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def plot_points(across: Mapping[str, Sequence[float]], up: Mapping[str, Sequence[float]]) -> Figure:
    """Draw one quantity against another as points; each is {label: values}."""
    ((x_label, x),), ((y_label, y),) = across.items(), up.items()
    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    axis.plot(x, y, "o", color=COLOURS[0])
    axis.set(xlabel=x_label, ylabel=y_label)
    return figure


def plot_evidence(rows: Mapping[str, Mapping[str, Any]], probabilities: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw log evidence and cross-validation of every model, and the posterior over models: exact and by each method.

    Crosses mark leave-one-out estimates that are not to be trusted, those of Pareto's k̂ above 0.7.

    ``rows`` and ``probabilities``: "models" and "posterior" of a summary of ``pyro-nas evidence``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    places = np.arange(len(rows))
    left.plot(places, [row["exact"] for row in rows.values()], "k-", lw=2.5, label="exact")
    for index, method in enumerate(next(iter(rows.values()))["estimates"]):
        found = [row["estimates"][method] for row in rows.values()]
        values, errors = ([part[key] for part in found] for key in ("value", "standard_error"))
        style = {"marker": "ovsD^<"[index % 6], "ms": 4, "lw": 0, "elinewidth": 1, "color": COLOURS[index % 10]}
        left.errorbar(places + 0.08 * (index - 2), values, errors, label=method.replace("_", " "), **style)
    for index, (key, label) in enumerate(
        {"cross_validation": "cross-validation", "leave_one_out": "leave-one-out"}.items()
    ):
        left.plot(places, [row[key]["value"] for row in rows.values()], ("--", ":")[index], color="grey", label=label)
    largest = [row["leave_one_out"]["largest_pareto_k"] for row in rows.values()]
    doubtful = [place for place, k in enumerate(largest) if k is None or k > 0.7]
    if doubtful:
        values = [row["leave_one_out"]["value"] for row in rows.values()]
        left.plot(doubtful, [values[place] for place in doubtful], "x", color="grey", label="the same, k̂ > 0.7")
    left.set_ylabel("nats")
    left.legend(frameon=False, fontsize=8)
    width = 0.8 / len(probabilities)
    for index, (way, table) in enumerate(probabilities.items()):
        colour = "black" if way == "exact" else COLOURS[(index - 1) % 10]
        right.bar(places + width * index - 0.4, list(table.values()), width, color=colour, label=way.replace("_", " "))
    right.set_ylabel("p(model | D)")
    for axis in (left, right):
        axis.set_xticks(places, [name.removeprefix("degree ") for name in rows])
        axis.set_xlabel("degree" if "degree 0" in rows else "model")
    return figure
