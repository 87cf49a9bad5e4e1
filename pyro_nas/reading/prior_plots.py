"""Pictures of structure priors: densities of γ on the simplex of three choices, draws of γ in the cube of three.

Towards temperature 0 a law goes to the vertices, towards infinity to the centre (structure-selection lecture, prior
distribution for the model structure).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation, UniformTriRefiner
from pyro.distributions.torch_distribution import TorchDistribution

from pyro_nas import checks
from pyro_nas.reading.plots import COLOURS, grid

__all__ = ["CORNERS", "plot_cube", "plot_simplex"]

CHOICES = 3
LABELS = ("$\\gamma_1$", "$\\gamma_2$", "$\\gamma_3$")
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])  # of the triangle, one a choice
CUBE = np.array([[1.0, 0.0], [0.0, 1.0], [0.42, 0.3]])  # an oblique projection of the axes
BACKGROUND = {"fc": "white", "ec": "none", "pad": 0.5, "alpha": 0.8}  # of a label
LARGEST = 4.0  # nats


def plot_simplex(laws: Mapping[str, TorchDistribution]) -> Figure:
    """Draw log p(γ) − log p_uniform(γ) in nats on the triangle of three choices, a panel a law, three in a line.

    ``laws`` maps titles to laws with densities on the simplex, of event shape (3,). Densities are taken in double
    precision at the centres of 4⁷ equal cells; colours end at ±4 nats. Red is denser than the uniform law.

    Raises TypeError for what is no distribution, ValueError for no laws and for those of another shape.
    """
    if not laws:
        raise ValueError("laws: expected {title: law}, got none. Pass one law at least.")
    for title, law in laws.items():
        if not isinstance(law, torch.distributions.Distribution):
            raise TypeError(f"laws[{title!r}]: expected a distribution, got {checks.describe(law)}.")
        if law.batch_shape or law.event_shape != (CHOICES,):
            raise ValueError(
                f"laws[{title!r}]: expected batch shape () and event shape ({CHOICES},), got "
                f"{tuple(law.batch_shape)} and {tuple(law.event_shape)}. Give its parameters the shape ({CHOICES},)."
            )
    cells = UniformTriRefiner(Triangulation([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])).refine_triangulation(subdiv=7)
    nodes = np.stack([cells.x, cells.y, 1 - cells.x - cells.y], -1)  # (node, 3)
    centres = torch.from_numpy(nodes[cells.triangles].mean(1))  # (cell, 3)
    x, y = (nodes @ CORNERS).T
    triangles = Triangulation(x, y, cells.triangles)
    figure, axes = grid(len(laws), 3, 3.0, 2.9)
    for axis, (title, law) in zip(axes, laws.items(), strict=True):
        with torch.no_grad():
            relative = law.log_prob(centres).double() - np.log(2.0)  # the simplex in (γ₁, γ₂) has area ½
        mesh = axis.tripcolor(triangles, relative.numpy(), cmap="RdBu_r", vmin=-LARGEST, vmax=LARGEST)
        mesh.set_rasterized(True)
        axis.plot(*CORNERS[[0, 1, 2, 0]].T, color="black", lw=1)
        for corner, label in zip(CORNERS, LABELS, strict=True):
            axis.annotate(label, corner + 0.13 * (corner - CORNERS.mean(0)), ha="center", va="center")
        axis.set(title=title, aspect="equal", xlim=(-0.15, 1.15), ylim=(-0.15, 1.05))
        axis.axis("off")
    figure.colorbar(mesh, ax=axes, extend="both", shrink=0.7, label="log density relative to uniform, nats")
    return figure


def plot_cube(draws: Mapping[str, torch.Tensor]) -> Figure:
    """Draw points γ in the cube of three choices, seen obliquely, a panel an entry, three in a line.

    ``draws`` maps titles to draws within [0, 1], (draw, 3); colours say how many choices are on, γ_k > ½.

    Raises ValueError for no entries, and for draws of another shape or outside the cube.
    """
    if not draws:
        raise ValueError("draws: expected {title: (draw, 3)}, got none. Pass draws of one law at least.")
    for title, points in draws.items():
        if points.dim() != 2 or points.shape[1] != CHOICES or not bool(((points >= 0) & (points <= 1)).all()):
            raise ValueError(
                f"draws[{title!r}]: expected numbers within [0, 1] of shape (draw, {CHOICES}), "
                f"got {checks.describe(points)}."
            )
    vertices = np.array(list(product((0.0, 1.0), repeat=CHOICES)))
    edges = [pair for pair in combinations(vertices, 2) if np.abs(pair[0] - pair[1]).sum() == 1]
    figure, axes = grid(len(draws), 3, 3.0, 2.9)
    for axis, (title, points) in zip(axes, draws.items(), strict=True):
        for edge in edges:
            hidden = any((end == (0.0, 0.0, 1.0)).all() for end in edge)  # behind
            axis.plot(*(np.stack(edge) @ CUBE).T, color="grey", lw=1, ls=":" if hidden else "-", zorder=1)
        for on in range(CHOICES + 1):
            x, y = (points[(points > 0.5).sum(-1) == on].detach().double().numpy() @ CUBE).T
            axis.scatter(x, y, s=6, color=COLOURS[on], alpha=0.5, lw=0, zorder=2, label=f"{on} on")
        for vertex, label in zip(np.eye(CHOICES), LABELS, strict=True):
            axis.annotate(label, 1.12 * vertex @ CUBE, ha="center", va="center", bbox=BACKGROUND)
        axis.set(title=title, aspect="equal", xlim=(-0.15, 1.55), ylim=(-0.15, 1.45))
        axis.axis("off")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), markerscale=2, frameon=False)
    return figure
