"""Pictures: the graph with its edge probabilities, the structure posterior over training, the terms of the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from pyro_nas.graph.space import Choices, Edge, Space
from pyro_nas.reading.structure_posterior import edge_entropies

__all__ = ["COLOURS", "colours_of", "grid", "plot_architecture", "plot_history", "plot_structure", "save"]

Colour: TypeAlias = tuple[float, float, float, float]
EpochRecord: TypeAlias = Mapping[str, Any]  # one of ``fit.records``

COLOURS: list[Colour] = [plt.get_cmap("tab10")(index) for index in range(10)]
COLOURS += [plt.get_cmap("tab20")(2 * index + 1) for index in range(10)]  # the same, light
PANELS = 64  # more take minutes to lay out
BEND = 0.6  # of an arc over two steps or more, whose apex is at half of it for each step
SPREAD = 0.08  # from the middle of a bundle of arcs to its outermost, steps


def save(figure: Figure, path: Path) -> None:
    """Write a picture to a file and close it."""
    figure.savefig(path, bbox_inches="tight")  # legends stand beside the axes
    plt.close(figure)


def colours_of(space: Space) -> dict[str, Colour]:
    """Return the colour of each primitive that is a choice somewhere in a space, {name: colour}; 20 differ."""
    edges = (names for choices in space.choices().values() for names in choices.primitives)
    primitives = dict.fromkeys(name for names in edges for name in names)
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(primitives)}


def plot_architecture(
    space: Space, probabilities: Mapping[str, torch.Tensor] | None = None, searched: Space | None = None
) -> Figure:
    """Draw a space and its nested spaces, one panel each; lines are as strong as the probabilities of the choices.

    A label names the most probable primitive of an edge and stands at its arc. ``probabilities`` maps sites to
    (edge, choice), as ``choice_probabilities`` returns; a space without open choices needs none. ``searched``: the
    space that ``space`` was derived from; primitives then keep the colours that they have in it.
    """
    colours = colours_of(searched or space)
    panels = _panels(space)
    drawn = {name for part in panels.values() for primitives in part.edges.values() for name in primitives}
    named = {name: colour for name, colour in colours.items() if name in drawn}
    steps = {title: _step(part) for title, part in panels.items()}  # inches
    width = max(steps[title] * (len(part.vertices) - 0.4) for title, part in panels.items())
    limits = {title: _limits(part) for title, part in panels.items()}
    heights = [0.4 + steps[title] * (high - low) for title, (low, high) in limits.items()]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(width + 0.5 + 0.09 * max(map(len, named), default=0), sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, part) in zip(axes[:, 0], panels.items(), strict=True):
        _draw_graph(axis, part, probabilities or {}, colours)
        axis.set(xlim=(-0.3, width / steps[title] - 0.3), ylim=limits[title], aspect="equal")
        axis.set_title(title, loc="left")
        axis.axis("off")
    _legend(figure, named)
    return figure


def _legend(figure: Figure, colours: Mapping[str, Colour]) -> None:
    """Name the primitives once, beside all panels."""
    handles = [Line2D([], [], color=colour, lw=3, label=name) for name, colour in colours.items()]
    if handles:
        figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False)


def _panels(space: Space, title: str = "network") -> dict[str, Space]:
    panels = {space.name or title: space}
    for where, child in space.children():
        for name, part in _panels(child, where).items():
            panels.setdefault(name, part)
    return panels


def _step(space: Space) -> float:
    """Return the distance of neighbouring vertices in inches: as wide as the longest label of an edge."""
    return 0.42 + 0.068 * max(
        len(name) + 5 * (len(primitives) > 1) for primitives in space.edges.values() for name in primitives
    )


def _limits(space: Space) -> tuple[float, float]:
    """Return the lower and the upper limit of a graph in steps, with room for labels."""
    place = {vertex: i for i, vertex in enumerate(space.vertices)}
    reach = dict.fromkeys((True, False), 0.3)
    for j, k in space.edges:
        above = place[j] % 2 == 0 or place[k] - place[j] == 1
        reach[above] = max(reach[above], BEND / 2 * (place[k] - place[j]) + SPREAD + 0.2)
    return -reach[False], reach[True]


def _draw_graph(
    axis: Axes, space: Space, probabilities: Mapping[str, torch.Tensor], colours: Mapping[str, Colour]
) -> None:
    """Draw vertices on a line, edges as bundles of arcs, those over two steps or more above or below the line."""
    place = {vertex: i for i, vertex in enumerate(space.vertices)}
    tables = {
        edge: table
        for choices in space.own_choices()
        if choices.site in probabilities
        for edge, table in zip(choices.edges, probabilities[choices.site].tolist(), strict=True)
    }
    for edge, primitives in space.edges.items():
        start, end = place[edge[0]], place[edge[1]]
        strengths = tables.get(edge, [1.0] * len(primitives))
        apexes = _apexes(start, end, len(primitives))
        for apex, name, strength in zip(apexes, primitives, strengths, strict=True):
            _draw_arc(axis, start, end, apex, strength, colours.get(name, (0.0, 0.0, 0.0, 1.0)))
        best, probability, apex = max(zip(primitives, strengths, apexes, strict=True), key=lambda arc: arc[1])
        label = best if len(primitives) == 1 else f"{len(primitives)} choices"
        above = start % 2 == 0 or end - start == 1
        axis.annotate(
            f"{best} {probability:.2f}" if edge in tables else label,
            ((start + end) / 2, apex),
            (0, 4 if above else -4),
            textcoords="offset points",
            fontsize=9,
            ha="center",
            va="bottom" if above else "top",
            bbox={"fc": "white", "ec": "none", "pad": 0.5, "alpha": 0.75},
            zorder=5,
        )
    for vertex, x in place.items():
        axis.plot(x, 0, "o", ms=20, mfc="white", mec="black", zorder=3)
        axis.text(x, 0, str(vertex), ha="center", va="center", zorder=4)


def _apexes(start: int, end: int, count: int) -> list[float]:
    """Return the heights of the arcs of an edge, in steps: about 0 for neighbours, above or below 0 for others."""
    middle = 0.0 if end - start == 1 else BEND / 2 * (end - start) * (1 if start % 2 == 0 else -1)
    spread = SPREAD if count > 1 else 0.0
    return [float(apex) for apex in np.linspace(middle + spread, middle - spread, count)]


def _draw_arc(axis: Axes, start: int, end: int, apex: float, strength: float, colour: Colour) -> None:
    """Draw an arrow along a quadratic curve, which reaches half way to its control point."""
    axis.add_patch(
        FancyArrowPatch(
            (start, 0),
            (end, 0),
            connectionstyle=f"arc3,rad={-2 * apex / (end - start):.4f}",
            arrowstyle="-|>",
            mutation_scale=12,
            shrinkA=12,
            shrinkB=12,
            lw=0.5 + 4 * strength,
            alpha=0.2 + 0.8 * strength,
            color=colour,
        )
    )


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


def plot_structure(records: Sequence[EpochRecord], space: Space) -> Figure:
    """Draw the probability of each choice over the epochs, one panel per edge with open choices.

    Of more than ``PANELS`` edges those that are least certain at the end. ``records`` are those of a fit. Raises
    ValueError for a space with nothing to choose.
    """
    panels: list[tuple[Choices, int, Edge]] = [
        (choices, place, edge) for choices in space.choices().values() for place, edge in enumerate(choices.edges)
    ]
    if not panels:
        raise ValueError("space: expected open choices to plot, got none.")
    if len(panels) > PANELS:
        last = {site: torch.tensor(table) for site, table in records[-1]["structure"].items()}
        entropies = torch.cat([edge_entropies(space, last)[site] for site in space.choices()])
        kept = entropies.argsort(descending=True, stable=True)[:PANELS].sort().values
        panels = [panels[index] for index in kept.tolist()]
    figure, axes = grid(len(panels), *((4, 3.4, 2.9) if len(panels) <= 8 else (7, 2.1, 1.8)))
    colours = colours_of(space)
    epochs = [record["epoch"] + 1 for record in records]
    for axis, (choices, place, edge) in zip(axes, panels, strict=True):
        curves = np.array([record["structure"][choices.site][place] for record in records])
        for name, curve in zip(choices.primitives[place], curves.T, strict=True):
            axis.plot(epochs, curve, color=colours[name], lw=2)
        axis.set_title(f"{choices.site}  {edge[0]} → {edge[1]}", fontsize=10 if len(panels) <= 8 else 8)
        axis.set_ylim(-0.03, 1.03)
    _legend(figure, colours)
    figure.supxlabel("epoch")
    figure.supylabel("probability of the choice")
    return figure


def plot_history(records: Sequence[EpochRecord]) -> Figure:
    """Draw the evidence and its terms over the epochs, in nats: on training and, dashed, validation data.

    ``records`` are those of a fit.
    """
    terms = {
        "evidence": "generalised evidence L(λ)",
        "log_likelihood": "E log-likelihood",
        "kl_weights": "KL of the weights",
        "kl_structure": "KL of the structure",
    }
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
    epochs = [record["epoch"] + 1 for record in records]
    for axis, (name, title) in zip(axes, terms.items(), strict=True):
        axis.plot(epochs, [record[name] for record in records], color=COLOURS[0], label="training", lw=2)
        if f"valid_{name}" in records[0] and not name.startswith("kl"):
            values = [record[f"valid_{name}"] for record in records]
            axis.plot(epochs, values, "--", color=COLOURS[1], label="validation", lw=2)
            axis.legend(frameon=False, fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="epoch", ylabel="nats" if name.startswith("kl") else "nats, all training data")
    return figure
