"""Printing: what a space, a model, a guide, draws and chains look like, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Printed", "Table"]

ROWS = 20  # of a table that is printed


class Table(NamedTuple):
    """A title and rows of cells; the first cell of a row names it."""

    title: str
    rows: Sequence[tuple[str, ...]]


class Printed:
    """Abstract: something that prints as a table of at most ``ROWS`` rows, in a notebook as HTML."""

    def table(self) -> Table:
        """Return what is printed."""
        raise NotImplementedError  # abstract

    def __repr__(self) -> str:
        """Return the table as text."""
        title, rows = self._kept()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if len({*map(len, rows)}) == 1 else []
        lines = []
        for cells in rows:
            padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)] if widths else cells
            lines.append(("  " + "  ".join(padded)).rstrip())
        return "\n".join([title, *lines])

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        title, rows = self._kept()
        lines = (
            f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
            for name, *cells in rows
        )
        return f"<table><caption>{escape(title)}</caption>{''.join(lines)}</table>"

    def _kept(self) -> Table:
        title, rows = self.table()
        left_out = len(rows) - ROWS
        return Table(title, rows if left_out <= 0 else [*rows[:ROWS], (f"and {left_out} more",)])
