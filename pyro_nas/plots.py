"""Pictures: the graph with its edge probabilities, the structure posterior over training, the terms of the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_nas.space import Choices, Edge, Space

COLOURS = plt.get_cmap("tab10").colors


def plot_architecture(space: Space, probabilities: Mapping[str, torch.Tensor] | None = None) -> Figure:
    """Draw a space and its nested spaces, one panel each; lines are as strong as the probabilities of the choices.

    ``probabilities`` maps sites to (edge, choice), as ``choice_probabilities`` returns; a space without open choices
    needs none.
    """
    panels = _panels(space)
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 5.2), squeeze=False, layout="constrained")
    for axis, (title, part) in zip(axes[0], panels.items(), strict=True):
        _draw_graph(axis, part, probabilities or {})
        axis.set_title(title)
    return figure


def _panels(space: Space, title: str = "network") -> dict[str, Space]:
    found = {space.name or title: space}
    for where, child in space.children():
        for name, part in _panels(child, where).items():
            found.setdefault(name, part)
    return found


def _draw_graph(axis: Axes, space: Space, probabilities: Mapping[str, torch.Tensor]) -> None:
    order = space.vertices
    position = {vertex: (0.55 * (i % 2) if len(order) > 3 else 0.0, -float(i)) for i, vertex in enumerate(order)}
    nx.draw_networkx_nodes(space.graph, position, ax=axis, node_color="white", edgecolors="black", node_size=500)
    nx.draw_networkx_labels(space.graph, position, ax=axis, font_size=10)
    rows = {edge: (c, row) for c in space.own_choices() for row, edge in enumerate(c.edges)}
    names = list(dict.fromkeys(name for edge in rows for name in space.edges[edge]))
    for edge, primitives in space.edges.items():
        if edge in rows and rows[edge][0].site in probabilities:
            choices, row = rows[edge]
            strengths = probabilities[choices.site][row].tolist()
        else:
            strengths = [1.0] * len(primitives)
        lines = [(name, s) for name, s in zip(primitives, strengths, strict=True)]
        for index, (name, strength) in enumerate(lines):
            bend = 0.0 if len(lines) == 1 else 0.34 * (index / (len(lines) - 1) - 0.5) * 2
            bend += 0.25 if order.index(edge[1]) - order.index(edge[0]) > 1 else 0.0
            nx.draw_networkx_edges(
                space.graph, position, [edge], ax=axis, width=0.4 + 4 * strength, alpha=0.15 + 0.85 * strength,
                edge_color=[COLOURS[names.index(name) % 10] if name in names else "black"],
                connectionstyle=f"arc3,rad={bend:.3f}", node_size=500, arrowsize=12,
            )  # fmt: skip
        best, probability = max(lines, key=lambda line: line[1])
        text = best if edge not in rows else f"{best} {probability:.2f}"
        far = order.index(edge[1]) - order.index(edge[0])
        (x0, y0), (x1, y1) = position[edge[0]], position[edge[1]]
        axis.text(
            (x0 + x1) / 2 + (0.28 * far if far > 1 else 0.06), (y0 + y1) / 2 + (0.12 if far > 1 else 0.0), text, fontsize=9,
            va="center", bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    if names:
        handles = [plt.Line2D([], [], color=COLOURS[i % 10], lw=3, label=name) for i, name in enumerate(names)]
        axis.legend(handles=handles, loc="upper right", fontsize=9, frameon=False)
    axis.margins(x=0.6, y=0.08)
    axis.axis("off")


def plot_structure(history: Sequence[Mapping[str, Any]], space: Space) -> Figure:
    """Draw the probability of each choice over the epochs, one panel per edge with open choices."""
    panels: list[tuple[Choices, int, Edge]] = [
        (choices, row, edge) for choices in space.choices().values() for row, edge in enumerate(choices.edges)
    ]
    if not panels:
        raise ValueError("space: expected open choices to plot, got none.")
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(3.4 * columns, 2.9 * lines),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    names = list(dict.fromkeys(name for choices, row, _ in panels for name in choices.primitives[row]))
    epochs = [record["epoch"] + 1 for record in history]
    for axis, (choices, row, edge) in zip(axes.flat, panels, strict=False):
        curves = np.array([record["structure"][choices.site][row] for record in history])
        for k, name in enumerate(choices.primitives[row]):
            axis.plot(epochs, curves[:, k], color=COLOURS[names.index(name) % 10], label=name, lw=2)
        axis.set_title(f"{choices.site}  {edge[0]} → {edge[1]}", fontsize=10)
        axis.set_ylim(-0.03, 1.03)
        axis.legend(fontsize=8, frameon=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.supxlabel("epoch")
    figure.supylabel("probability of the choice")
    return figure


def plot_history(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the evidence and its terms over the epochs, in nats: on the training data and, dashed, on validation data."""
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
