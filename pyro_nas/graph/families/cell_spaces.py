"""Cell spaces of architecture search, as plain spaces sized by arguments: DARTS, NAS-Bench-201, convolutional fabrics.

Cells of one name share their structure; weights belong to the position. ``normalization``: "batch", or "group", which
keeps no running statistics, so that hypernetworks over λ and vectorised particles can run the network. All functions
raise ValueError for sizes that are too small and for unknown primitives and normalisations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pyro_nas.checks import integer, one_of
from pyro_nas.graph.modules import NORMALIZATIONS
from pyro_nas.graph.primitives import (
    Primitive,
    average_pool,
    convolution,
    factorized_reduction,
    normalized_pool,
    pooled_readout,
    preactivated_convolution,
    preactivated_separable,
    skip,
    upsampling_convolution,
    zero,
)
from pyro_nas.graph.space import Edge, Factory, Space

__all__ = [
    "DARTS",
    "NAS_BENCH_201",
    "PRIMITIVES",
    "darts",
    "darts_cell",
    "fabric",
    "nas_bench_201",
    "nas_bench_201_cell",
]

Maker = Callable[[int, int, str], Primitive]  # (channels, stride, normalization) → one that keeps the channels

PRIMITIVES: dict[str, Maker] = {
    "zero": lambda c, s, n: zero(s),
    "skip": lambda c, s, n: skip() if s == 1 else factorized_reduction(c, c, n),
    "max pool": lambda c, s, n: normalized_pool(c, "max", 3, s, n),
    "average pool": lambda c, s, n: normalized_pool(c, "average", 3, s, n),
    "plain average pool": lambda c, s, n: average_pool(3, s),
    "convolution 1": lambda c, s, n: preactivated_convolution(c, c, 1, s, normalization=n),
    "convolution 3": lambda c, s, n: preactivated_convolution(c, c, 3, s, normalization=n),
    "separable 3": lambda c, s, n: preactivated_separable(c, c, 3, s, repeats=2, normalization=n),
    "separable 5": lambda c, s, n: preactivated_separable(c, c, 5, s, repeats=2, normalization=n),
    "dilated 3": lambda c, s, n: preactivated_separable(c, c, 3, s, dilation=2, normalization=n),
    "dilated 5": lambda c, s, n: preactivated_separable(c, c, 5, s, dilation=2, normalization=n),
    "single separable 3": lambda c, s, n: preactivated_separable(c, c, 3, s, normalization=n),
    "single separable 5": lambda c, s, n: preactivated_separable(c, c, 5, s, normalization=n),
}
DARTS = ("max pool", "average pool", "skip", "separable 3", "separable 5", "dilated 3", "dilated 5")
NAS_BENCH_201 = ("zero", "skip", "convolution 1", "convolution 3", "plain average pool")


def _choice(names: Sequence[str], channels: int, stride: int, normalization: str) -> dict[str, Factory]:
    one_of("normalization", normalization, NORMALIZATIONS)
    return {one_of("primitives", name, PRIMITIVES): PRIMITIVES[name](channels, stride, normalization) for name in names}


def darts_cell(
    channels: int, nodes: int, primitives: Sequence[str], *, reduction: bool, normalization: str = "batch"
) -> Space:
    """Return a cell of two inputs: every node chooses a primitive on the edge from each earlier vertex, and sums.

    The output is the nodes side by side, ``nodes`` × ``channels``; in a reduction cell edges from the inputs have
    stride 2. Inputs have ``channels`` channels. DARTS, Liu, Simonyan and Yang 2019, §2.1.
    """
    edges: dict[Edge, dict[str, Factory]] = {}
    for node in range(2, nodes + 2):
        for earlier in range(node):
            edges[earlier, node] = _choice(primitives, channels, 2 if reduction and earlier < 2 else 1, normalization)
        edges[node, nodes + 2] = {"skip": skip()}
    return Space(edges, {nodes + 2: "concatenation"}, (0, 1), name="reduction" if reduction else "normal")


def darts(
    inputs: int,
    outputs: int,
    channels: int = 16,
    cells: int = 8,
    nodes: int = 4,
    primitives: Sequence[str] = DARTS,
    stem_channels: int | None = None,
    stem_stride: int = 1,
    normalization: str = "batch",
) -> Space:
    """Return DARTS' family: a stem, ``cells`` cells of two kinds, each fed by the two before it, a readout.

    Cells at a third and two thirds of the depth are reduction cells, which halve the side and double the channels;
    the others share the structure of the normal cell. The published space is ``primitives`` with "zero" added.
    x: (batch, inputs, h, w); ``stem_channels`` are three times ``channels`` by default.
    """
    integer("cells", cells, low=1)
    integer("nodes", nodes, low=1)
    width = stem_channels or 3 * channels
    edges: dict[Edge, dict[str, Factory]] = {
        (0, 1): {"stem": convolution(inputs, width, 3, stem_stride, 1, "identity", normalization)},
        (1, 2): {"skip": skip()},
    }
    aggregations: dict[int, str | Factory] = {}
    widths, halved = [width, width], False
    for index in range(cells):
        vertex, reduction = index + 3, index > 0 and index in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduction else 1
        older, newer = widths[-2:]
        match = partial(preactivated_convolution, kernel=1, normalization=normalization)
        reduced = factorized_reduction(older, channels, normalization) if halved else match(older, channels)
        edges[vertex - 2, vertex] = {"match": reduced}
        edges[vertex - 1, vertex] = {"match": match(newer, channels)}
        aggregations[vertex] = darts_cell(channels, nodes, primitives, reduction=reduction, normalization=normalization)
        widths.append(nodes * channels)
        halved = reduction
    edges[cells + 2, cells + 3] = {"readout": pooled_readout(widths[-1], outputs)}
    return Space(edges, aggregations)


def nas_bench_201_cell(
    channels: int, nodes: int = 4, primitives: Sequence[str] = NAS_BENCH_201, normalization: str = "batch"
) -> Space:
    """Return a cell of ``nodes`` vertices: every pair is joined by an edge that chooses, vertices sum.

    With 4 nodes and 5 primitives there are 5⁶ = 15 625 cells, each with 24 neighbours (Dong and Yang 2020).
    """
    edges = {(j, k): _choice(primitives, channels, 1, normalization) for k in range(1, nodes) for j in range(k)}
    return Space(edges, name="cell")


def nas_bench_201(
    inputs: int,
    outputs: int,
    channels: int = 16,
    repeats: int = 5,
    nodes: int = 4,
    primitives: Sequence[str] = NAS_BENCH_201,
    stages: int = 3,
    stem_stride: int = 1,
    normalization: str = "batch",
) -> Space:
    """Return NAS-Bench-201's family: a stem, ``stages`` stages of ``repeats`` equal cells, residual blocks between.

    A residual block halves the side and doubles the channels. x: (batch, inputs, h, w). Dong and Yang 2020, §2.1.
    """
    for name, value in {"repeats": repeats, "stages": stages}.items():
        integer(name, value, low=1)
    integer("nodes", nodes, low=2)
    stem = convolution(inputs, channels, 3, stem_stride, 1, "identity", normalization)
    edges: dict[Edge, dict[str, Factory]] = {(0, 1): {"stem": stem}}
    vertex = 1
    for stage in range(stages):
        if stage:
            edges[vertex, vertex + 1] = {"halving": _residual(channels, 2 * channels, normalization)}
            channels, vertex = 2 * channels, vertex + 1
        for _ in range(repeats):
            edges[vertex, vertex + 1] = {"cell": nas_bench_201_cell(channels, nodes, primitives, normalization)}
            vertex += 1
    edges[vertex, vertex + 1] = {"readout": pooled_readout(channels, outputs)}
    return Space(edges)


def _residual(inputs: int, outputs: int, normalization: str) -> Space:
    """Return a residual block of stride 2."""
    layer = partial(preactivated_convolution, normalization=normalization)
    return Space(
        {
            (0, 1): {"convolution": layer(inputs, outputs, 3, 2)},
            (1, 3): {"convolution": layer(outputs, outputs)},
            (0, 2): {"pool": average_pool(2, 2)},
            (2, 3): {"shortcut": layer(inputs, outputs, 1)},
        }
    )


def fabric(inputs: int, outputs: int, channels: int = 8, scales: int = 3, depth: int = 4) -> Space:
    """Return a convolutional fabric: a trellis of ``scales`` × ``depth`` vertices, each edge of it on or off.

    A vertex sums convolutions of the vertices of the layer before at its own scale and the two next to it; in the
    first and the last layer also of the next finer scale of the same layer. γ lives on the cube. The side of
    x, (batch, inputs, h, w), must divide by 2^(scales − 1). Saxena and Verbeek 2016; structure-selection lecture.
    """
    integer("scales", scales, low=1)
    integer("depth", depth, low=2)
    same, coarser = convolution(channels, channels), convolution(channels, channels, stride=2)
    finer = upsampling_convolution(channels, channels)
    last = scales * depth - 1
    edges: dict[Edge, dict[str, Factory]] = {}
    for layer in range(depth):
        for scale in range(scales):
            vertex = layer * scales + scale
            if layer in (0, depth - 1) and scale:
                edges[vertex - 1, vertex] = {"coarser": coarser}
            if layer:
                below = vertex - scales
                edges[below, vertex] = {"same": same}
                if scale:
                    edges[below - 1, vertex] = {"coarser": coarser}
                if scale < scales - 1:
                    edges[below + 1, vertex] = {"finer": finer}
    trellis = Space(edges, name="fabric", restriction="cube")
    assert trellis.output == last
    return Space(
        {
            (0, 1): {"stem": convolution(inputs, channels)},
            (1, 2): {"fabric": trellis},
            (2, 3): {"readout": pooled_readout(channels, outputs)},
        }
    )
