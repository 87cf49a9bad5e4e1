"""Families of networks, sized by arguments: plain spaces. Those of the literature on cells are in ``cell_spaces``."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_nas.checks import integer
from pyro_nas.graph.primitives import convolution, dense, flatten, max_pool, pooled_readout, separable_convolution, skip
from pyro_nas.graph.space import Edge, Factory, Space

__all__ = ["ACTIVATIONS", "cell", "cells", "convolutions", "layers"]

ACTIVATIONS = ("tanh", "relu", "sigmoid")


def layers(inputs: int, outputs: int, width: int = 64, depth: int = 1) -> Space:
    """Return a family of fully connected networks whose hidden layers choose their activation.

    Each hidden layer chooses one of the generalised-linear functions tanh, relu, sigmoid, and those after the first
    may be skipped; then a linear readout (structure-selection lecture, "one-layer network"). x: (batch, …).

    Raises ValueError for sizes below 1.
    """
    integer("depth", depth, low=1)
    edges: dict[Edge, dict[str, Factory]] = {(0, 1): {"flatten": flatten()}}
    for layer in range(1, depth + 1):
        sizes = (inputs if layer == 1 else width, width)
        edges[layer, layer + 1] = {name: dense(*sizes, name) for name in ACTIVATIONS}
        if layer > 1:
            edges[layer, layer + 1]["skip"] = skip()
    edges[depth + 1, depth + 2] = {"readout": dense(width, outputs)}
    return Space(edges)


def cell(channels: int, nodes: int = 2) -> Space:
    """Return a cell: every pair of its vertices is joined, each edge chooses among four primitives, vertices sum.

    Vertex 0 is the input and vertex ``nodes`` the output. Shapes (batch, channels, h, w) are kept.

    Raises ValueError for sizes below 1.
    """
    integer("nodes", nodes, low=1)
    edges: dict[Edge, dict[str, Factory]] = {
        (j, k): {
            "convolution": convolution(channels, channels),
            "separable": separable_convolution(channels, channels),
            "pool": max_pool(),
            "skip": skip(),
        }
        for k in range(1, nodes + 1)
        for j in range(k)
    }
    return Space(edges, name="cell")


def cells(inputs: int, outputs: int, channels: int = 16, nodes: int = 2, stem_stride: int = 1) -> Space:
    """Return a family of convolutional networks: stem, cell, halving, the same cell with twice the channels, readout.

    Both cells have one structure, and weights of their own. x: (batch, inputs, h, w). Cells see h / ``stem_stride``
    pixels a side.

    Raises ValueError for sizes below 1.
    """
    return Space(
        {
            (0, 1): {"stem": convolution(inputs, channels, stride=stem_stride)},
            (1, 2): {"cell": cell(channels, nodes)},
            (2, 3): {"halving": convolution(channels, 2 * channels, stride=2)},
            (3, 4): {"cell": cell(2 * channels, nodes)},
            (4, 5): {"readout": pooled_readout(2 * channels, outputs)},
        }
    )


def convolutions(inputs: int, outputs: int, channels: Sequence[int] = (32, 64, 128, 128)) -> Space:
    """Return a plain network, nothing to choose: 3×3 convolutions with these channels, halving after each but the last.

    What a user would take without a search. x: (batch, inputs, h, w).

    Raises ValueError for sizes below 1.
    """
    edges: dict[Edge, dict[str, Factory]] = {}
    vertex = 0
    for index, width in enumerate(channels):
        if index:
            edges[vertex, vertex + 1] = {"pool": max_pool(2, 2)}
            vertex += 1
        edges[vertex, vertex + 1] = {"convolution": convolution(inputs, width)}
        inputs, vertex = width, vertex + 1
    edges[vertex, vertex + 1] = {"readout": pooled_readout(inputs, outputs)}
    return Space(edges)
