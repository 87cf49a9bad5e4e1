"""Tables: what the reports of all studies share."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TypedDict


class Spread(TypedDict):
    """Mean and standard deviation of a number over runs."""

    mean: float
    sd: float


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation (0 of a single value)."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def plus_minus(value: Spread, digits: int, factor: float = 1.0) -> str:
    """Return "mean ± sd", both times ``factor``, with so many digits after the point."""
    return f"{factor * value['mean']:.{digits}f} ± {factor * value['sd']:.{digits}f}"


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, cells in the order of the header."""
    return [_line(header), "|---" * len(header) + "|", *map(_line, lines)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
