"""Report of the complexity study: the paper's tables 1 to 3, and mean and sd over runs of what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, cast

from pyro_nas.studies.complexity.measures import Row
from pyro_nas.studies.complexity.setting import COMPLEXITIES
from pyro_nas.studies.tables import Spread, markdown_table, plus_minus, spread

RowSummary: TypeAlias = dict[str, Any]  # as stored: "updates", "seconds", and by λ a MeasuredSummary


class MeasuredSummary(TypedDict):
    """Spreads over runs of what was measured at one λ."""

    evidence: Spread
    log_likelihood: Spread
    kl_weights: Spread
    kl_structure: Spread
    standard_error: Spread
    parametric_complexity: Spread
    pruning: list[Spread]
    accuracy: Spread
    mean_accuracy: Spread
    stability: Spread


def summarise(runs: Sequence[Mapping[str, Row]], rows: Sequence[str]) -> dict[str, RowSummary]:
    """Return mean and standard deviation over runs of every number of every row."""
    summary: dict[str, RowSummary] = {}
    for name in rows:
        entries = [run[name] for run in runs]
        summary[name] = {"updates": entries[0]["updates"], "seconds": spread([entry["seconds"] for entry in entries])}
        for complexity in entries[0]["complexities"]:
            measured = [cast(Mapping[str, object], entry["complexities"][complexity]) for entry in entries]
            summary[name][complexity] = {
                metric: _spread_of([values[metric] for values in measured]) for metric in measured[0]
            }
    return summary


def _spread_of(values: Sequence[object]) -> Spread | list[Spread]:
    """Return mean and sd of numbers, or of the numbers at each place of lists."""
    if isinstance(values[0], list):
        return [spread(level) for level in zip(*cast(Sequence[list[float]], values), strict=True)]
    return spread(cast(Sequence[float], values))


def largest_gap(summary: Mapping[str, RowSummary], name: str, other: str = "direct") -> dict[str, float]:
    """Return the largest distance, over pruning levels, between the mean pruning curves of two rows at each λ."""
    gaps = {}
    for complexity in (key for key in summary[name] if key not in ("updates", "seconds")):
        levels: list[Spread] = summary[name][complexity]["pruning"]
        others: list[Spread] = summary[other][complexity]["pruning"]
        gaps[complexity] = max(abs(a["mean"] - b["mean"]) for a, b in zip(levels, others, strict=True))
    return gaps


def pruning_curves(row: RowSummary) -> dict[float, list[dict[str, float]]]:
    """Return the pruning curve of a row at each λ, as ``plot_pruning`` takes it."""
    return {
        complexity: [{"mean": level["mean"], "sd": level["sd"]} for level in row[str(complexity)]["pruning"]]
        for complexity in COMPLEXITIES
    }


TABLES = {
    "mean_accuracy": ("Table 1. Accuracy, mean over pruning levels 0, 10, …, 90 %", 3),
    "stability": ("Table 2. Stability S = accuracy / accuracy after pruning 90 %", 2),
    "evidence": ("Table 3. Generalised evidence 𝔏(λ) of the training data, nats", 0),
    "accuracy": ("Accuracy, unpruned", 3),
}  # titles, and digits after the point


def tables(summary: Mapping[str, RowSummary], published: Mapping[str, RowSummary] | None = None) -> str:
    """Return the tables as Markdown, mean ± sd over runs.

    ``published``, {row: {"updates": …, metric: {λ: …}}}: numbers to print in brackets, those of
    notebooks/complexity_published.json; a metric that it lacks goes without.
    """
    lines = []
    for metric, (title, digits) in TABLES.items():
        header = ["row", *(f"λ = {complexity:g}" for complexity in COMPLEXITIES)]
        header += ["updates"] if metric == "mean_accuracy" else []
        body = [_cells(name, row, metric, digits, (published or {}).get(name, {})) for name, row in summary.items()]
        lines += [f"### {title}", "", *markdown_table(header, body), ""]
    return "\n".join(lines)


def _cells(name: str, row: RowSummary, metric: str, digits: int, published: RowSummary) -> list[str]:
    cells = [name]
    for complexity in COMPLEXITIES:
        cell = plus_minus(row[str(complexity)][metric], digits)
        if metric in published:
            cell += f" [{published[metric][str(complexity)]:.{digits}f}]"
        cells.append(cell)
    if metric == "mean_accuracy":
        cells.append(f"{row['updates']}" + (f" [{published['updates']}]" if published else ""))
    return cells
