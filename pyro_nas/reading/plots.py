"""Pictures: the graph with its edge probabilities, the structure posterior over training, the terms of the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from pyro_nas.graph.space import Choices, Edge, Space

COLOURS = [plt.get_cmap("tab10")(index) for index in range(10)]


def save(figure: Figure, path: Path) -> None:
    """Write a picture to a file and close it."""
    figure.savefig(path, bbox_inches="tight")  # legends stand beside the axes
    plt.close(figure)


def plot_architecture(space: Space, probabilities: Mapping[str, torch.Tensor] | None = None) -> Figure:
    """Draw a space and its nested spaces, one panel each; lines are as strong as the probabilities of the choices.

    ``probabilities`` maps sites to (edge, choice), as ``choice_probabilities`` returns; a space without open choices
    needs none.
    """
    panels = _panels(space)
    heights = [_height(part) for part in panels.values()]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (title, part) in zip(axes[:, 0], panels.items(), strict=True):
        _draw_graph(axis, part, probabilities or {})
        axis.set_title(title, loc="left")
    return figure


def _panels(space: Space, title: str = "network") -> dict[str, Space]:
    found = {space.name or title: space}
    for where, child in space.children():
        for name, part in _panels(child, where).items():
            found.setdefault(name, part)
    return found


def _limits(space: Space) -> tuple[float, float, float]:
    """Return the right, lower and upper limit of a graph whose vertices lie at distance 1 from 0 on."""
    place = {vertex: i for i, vertex in enumerate(space.vertices)}
    reach = dict.fromkeys((True, False), 1.0)
    for j, k in space.edges:
        above = place[j] % 2 == 0
        reach[above] = max(reach[above], float(place[k] - place[j]))
    return len(place) - 0.7, -0.4 * reach[False], 0.4 * reach[True]


def _height(space: Space) -> float:
    """Return the height in inches at a width of about 7."""
    right, low, high = _limits(space)
    return 0.5 + 7 * (high - low) / (right + 0.3)


def _draw_graph(axis: Axes, space: Space, probabilities: Mapping[str, torch.Tensor]) -> None:
    """Draw vertices on a line, edges as bundles of arcs, those over two steps or more above or below the line."""
    place = {vertex: i for i, vertex in enumerate(space.vertices)}
    rows = {edge: (choices, row) for choices in space.own_choices() for row, edge in enumerate(choices.edges)}
    names = list(dict.fromkeys(name for edge in rows for name in space.edges[edge]))
    for edge, primitives in space.edges.items():
        strengths = [1.0] * len(primitives)
        if edge in rows and rows[edge][0].site in probabilities:
            strengths = probabilities[rows[edge][0].site][rows[edge][1]].tolist()
        start, end = place[edge[0]], place[edge[1]]
        middle = 0.0 if end - start == 1 else (-0.55 if start % 2 == 0 else 0.55)
        spread = (0.3 if end - start == 1 else 0.3 / (end - start)) if len(primitives) > 1 else 0.0
        for bend, name, strength in zip(
            np.linspace(middle - spread, middle + spread, len(primitives)), primitives, strengths, strict=True
        ):
            axis.add_patch(
                FancyArrowPatch(
                    (start, 0),
                    (end, 0),
                    connectionstyle=f"arc3,rad={bend:.3f}",
                    arrowstyle="-|>",
                    mutation_scale=12,
                    shrinkA=12,
                    shrinkB=12,
                    lw=0.5 + 4 * strength,
                    alpha=0.2 + 0.8 * strength,
                    color=COLOURS[names.index(name) % 10] if name in names else "black",
                )
            )
        best, probability = max(zip(primitives, strengths, strict=True), key=lambda line: line[1])
        apex = -(middle - spread) * (end - start) / 2  # a quadratic curve reaches half way to its control point
        apex = apex + 0.04 if middle <= 0 else -(middle + spread) * (end - start) / 2 - 0.04
        axis.text(
            (start + end) / 2,
            apex,
            f"{best} {probability:.2f}" if edge in rows else best,
            fontsize=9,
            ha="center",
            va="bottom" if middle <= 0 else "top",
        )
    for vertex, x in place.items():
        axis.plot(x, 0, "o", ms=20, mfc="white", mec="black", zorder=3)
        axis.text(x, 0, str(vertex), ha="center", va="center", zorder=4)
    if names:
        handles = [Line2D([], [], color=COLOURS[i % 10], lw=3, label=name) for i, name in enumerate(names)]
        axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)
    right, low, high = _limits(space)
    axis.set(xlim=(-0.3, right), ylim=(low, high), aspect="equal")
    axis.axis("off")


def grid(count: int, most: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and its first ``count`` panels of common axes, at most so many in a line."""
    columns = min(most, count)
    lines = -(-count // columns)
    size = (width * columns, height * lines)
    figure, axes = plt.subplots(
        lines, columns, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat[:count])


def plot_structure(history: Sequence[Mapping[str, Any]], space: Space) -> Figure:
    """Draw the probability of each choice over the epochs, one panel per edge with open choices."""
    panels: list[tuple[Choices, int, Edge]] = [
        (choices, row, edge) for choices in space.choices().values() for row, edge in enumerate(choices.edges)
    ]
    if not panels:
        raise ValueError("space: expected open choices to plot, got none.")
    figure, axes = grid(len(panels), 4, 3.4, 2.9)
    names = list(dict.fromkeys(name for choices, row, _ in panels for name in choices.primitives[row]))
    epochs = [record["epoch"] + 1 for record in history]
    for axis, (choices, row, edge) in zip(axes, panels, strict=True):
        curves = np.array([record["structure"][choices.site][row] for record in history])
        for k, name in enumerate(choices.primitives[row]):
            axis.plot(epochs, curves[:, k], color=COLOURS[names.index(name) % 10], label=name, lw=2)
        axis.set_title(f"{choices.site}  {edge[0]} → {edge[1]}", fontsize=10)
        axis.set_ylim(-0.03, 1.03)
        axis.legend(fontsize=8, frameon=False)
    figure.supxlabel("epoch")
    figure.supylabel("probability of the choice")
    return figure


def plot_history(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the evidence and its terms over the epochs, in nats: on training and, dashed, validation data."""
    terms = {
        "evidence": "generalised evidence 𝔏(λ)",
        "log_likelihood": "E log-likelihood",
        "kl_weights": "KL of the weights",
        "kl_structure": "KL of the structure",
    }
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
    epochs = [record["epoch"] + 1 for record in history]
    for axis, (name, title) in zip(axes, terms.items(), strict=True):
        axis.plot(epochs, [record[name] for record in history], color=COLOURS[0], label="training", lw=2)
        if f"valid_{name}" in history[0] and not name.startswith("kl"):
            values = [record[f"valid_{name}"] for record in history]
            axis.plot(epochs, values, "--", color=COLOURS[1], label="validation", lw=2)
            axis.legend(frameon=False, fontsize=9)
        axis.set_title(title.replace("𝔏", "L"), fontsize=10)
        axis.set_xlabel("epoch")
    axes[0].set_ylabel("nats, all training data")
    return figure
