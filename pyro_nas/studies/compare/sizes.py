"""Sizes of a comparison: budgets by name, and the spaces that are searched and retrained within them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pyro_nas.graph.families import cell_spaces
from pyro_nas.graph.space import Space

PRIMITIVES = (
    "max pool",
    "average pool",
    "skip",
    "convolution 1",
    "convolution 3",
    "single separable 3",
    "single separable 5",
)


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
    mirrored: bool = field(default=True, kw_only=True)
    presence: float = 0.8

    def settings(self) -> dict[str, object]:
        """Return this as JSON values, spaces by name and arguments."""
        return {name: _text(value) for name, value in vars(self).items()}


def _text(value: object) -> object:
    if isinstance(value, partial):
        arguments = ", ".join(f"{name}={argument!r}" for name, argument in value.keywords.items())
        return f"{value.func.__name__}({arguments})"
    return getattr(value, "__name__", value)


_small = partial(cell_spaces.darts, primitives=PRIMITIVES, nodes=2, cells=2, stem_channels=8)
_short = partial(cell_spaces.darts, primitives=PRIMITIVES, nodes=2, cells=3, stem_stride=2)
_long = partial(cell_spaces.nas_bench_201, nodes=3, repeats=1)
_full = cell_spaces.darts  # as DARTS was searched: 8 cells of 4 nodes, 7 primitives, 50 epochs
SIZES = {
    "small": Size(
        60_000, 60, partial(_small, channels=8), partial(_small, channels=16), batch_size=64, shifted=1, mirrored=False
    ),
    "short": Size(
        120_000, 6, partial(_short, channels=8, stem_channels=16), partial(_short, channels=16, stem_channels=32),
        children=4,
    ),
    "long": Size(240_000, 24, partial(_long, channels=8), partial(_long, channels=16), presence=1.0),
    "full": Size(3_000_000, 100, partial(_full, channels=16), partial(_full, channels=36), batch_size=64),
}  # fmt: skip
