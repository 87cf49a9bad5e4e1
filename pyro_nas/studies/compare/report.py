"""Report of the comparison: accuracy and cost of each method over seeds, what it chose, and how robust that is."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from pyro_nas.studies.compare.records import (
    CellSummary,
    CostSummary,
    MethodSummary,
    RobustnessSummary,
    Row,
    SpentSummary,
    TestedSummary,
)
from pyro_nas.studies.tables import Spread, markdown_table, plus_minus, spread

Rows = Mapping[str, Sequence[Row]]  # method → a row per seed
Summary = Mapping[str, MethodSummary]
ROBUSTNESS = {
    "attack": "a sign-gradient attack of ε, a share of the pixels' range",
    "deleted_edges": "deleted edges of the cells, a share rounded to whole edges",
    "noise": "normal noise of a standard deviation, a share of the pixels' range",
}


def judged_by(row: Row) -> str:
    """Return by which of its ways a row is judged: draws of the posterior where it has one, else the point."""
    return "posterior" if "posterior" in row["test"] else "point"


def summarise(rows: Rows) -> dict[str, MethodSummary]:
    """Return mean and sd over seeds of every number of every method, and how its choices agree."""
    summary: dict[str, MethodSummary] = {}
    for method, made in rows.items():
        entry: MethodSummary = {
            "seeds": len(made),
            "test": {
                name: cast(TestedSummary, _spreads([row["test"][name] for row in made])) for name in made[0]["test"]
            },
            "retrain": cast(SpentSummary, _spreads([row["retrain"] for row in made])),
            "cost": cast(CostSummary, _spreads([row["cost"] for row in made])),
            "judged_by": judged_by(made[0]),
        }
        if "search" in made[0]:
            entry["search"] = cast(SpentSummary, _spreads([row["search"] for row in made]))
            entry["choices"] = collapse([row["choices"] for row in made])
        if all("searched" in row for row in made):
            entry["searched"] = cast(RobustnessSummary, _spreads([row["searched"] for row in made]))
        summary[method] = entry
    if "random" in summary:
        base = _accuracy(summary["random"])
        for entry in summary.values():
            entry["over_random"] = (_accuracy(entry) - base) / base
    return summary


def collapse(choices: Sequence[Mapping[str, str]]) -> dict[str, CellSummary]:
    """Return, by cell, the mean numbers of its skips, pools and zeros over seeds, and the agreement of the seeds.

    ``choices``: {"site j→k": primitive} per seed; cells of one site are one. Agreement is the share of edges with the
    same primitive, mean over all pairs of seeds; 1/K of chance.
    """
    cells: dict[str, CellSummary] = {}
    for site in dict.fromkeys(edge.partition(" ")[0] for edge in choices[0]):
        cell = [{edge: name for edge, name in chosen.items() if edge.partition(" ")[0] == site} for chosen in choices]
        same = [statistics.fmean(a[edge] == b[edge] for edge in a) for a, b in itertools.combinations(cell, 2)]
        cells[site] = {
            "edges": len(cell[0]),
            "skip": _mean_count(cell, "skip"),
            "pool": _mean_count(cell, "pool"),
            "zero": _mean_count(cell, "zero"),
            "agreement": statistics.fmean(same) if same else None,
        }
    return cells


def _mean_count(cell: Sequence[Mapping[str, str]], kind: str) -> float:
    """Return the number of edges whose primitive is of this kind, mean over seeds."""
    return statistics.fmean(sum(kind in name for name in chosen.values()) for chosen in cell)


def tables(summary: Summary) -> str:
    """Return the tables as Markdown, mean ± sd over seeds.

    Parameters, operations and latency are of one network; a prediction costs that times the networks it averages.
    """
    seeds = max(entry["seeds"] for entry in summary.values())
    lines = [f"### Test accuracy and cost, mean ± sd of {seeds} seeds", "", *_costs(summary)]
    lines += ["", "### What was chosen", "", *_choices(summary)]
    for part, title in ROBUSTNESS.items():
        lines += ["", f"### Accuracy in % on the first test images, under {title}", "", *_curves(summary, part)]
    return "\n".join(lines) + "\n"


def _costs(summary: Summary) -> list[str]:
    header = ["method", "accuracy, %", "over random, %", "calibration error", "search, s", "retraining, s",
              "search, images", "parameters", "multiply-accumulates", "latency, µs an image",
              "networks averaged"]  # fmt: skip
    lines = []
    for method, entry in summary.items():
        cost, search = entry["cost"], entry.get("search")
        for name, test in entry["test"].items():
            judged = "over_random" in entry and name == entry["judged_by"]
            lines.append([
                row_name(method, entry, name), plus_minus(test["accuracy"], 2, 100),
                f"{100 * entry['over_random']:+.2f}" if judged else "–",
                plus_minus(test["calibration_error"], 4),
                plus_minus(search["seconds"], 0) if search else "–", plus_minus(entry["retrain"]["seconds"], 0),
                plus_minus(search["images"], 0) if search else "–",
                plus_minus(cost["parameters"], 0),
                plus_minus(cost["multiply_accumulates"], 2, 1e-6) + " M", plus_minus(cost["latency"], 0),
                f"{cost['networks']['mean'] if name == 'posterior' else 1:.0f}",
            ])  # fmt: skip
    return markdown_table(header, lines)


def _choices(summary: Summary) -> list[str]:
    lines = []
    for method, entry in summary.items():
        for name, cell in entry.get("choices", {}).items():
            counts = [f"{count:.1f}" for count in (cell["skip"], cell["pool"], cell["zero"])]
            agreement = "–" if cell["agreement"] is None else f"{cell['agreement']:.2f}"
            lines.append([method, name, str(cell["edges"]), *counts, agreement])
    return markdown_table(["method", "cell", "edges", "skips", "pools", "zeros", "agreement of seeds"], lines)


def _curves(summary: Summary, part: str) -> list[str]:
    """Return the table of one part of robustness, of retrained networks and then of the searched ones."""
    curves = {label: robustness["robustness"][part] for label, robustness in _robustness(summary)}
    levels = max(map(list, curves.values()), key=len)
    lines = (
        [label, *(plus_minus(curve[level], 1, 100) if level in curve else "–" for level in levels)]
        for label, curve in curves.items()
    )
    return markdown_table(["method", *levels], lines)


def _robustness(summary: Summary) -> Iterator[tuple[str, RobustnessSummary]]:
    for method, entry in summary.items():
        for name, test in entry["test"].items():
            yield row_name(method, entry, name), test
    for method, entry in summary.items():
        if "searched" in entry:
            yield f"{method}, searched", entry["searched"]


def machines(rows: Sequence[Row]) -> str:
    """Return a remark on the seconds in the tables where the rows were not all made alike, else nothing."""
    different = list(dict.fromkeys(", ".join(f"{k} {v}" for k, v in row["machine"].items()) for row in rows))
    return f"\nThe seconds are not comparable: rows were made with {'; '.join(different)}.\n" if different[1:] else ""


def row_name(method: str, entry: MethodSummary, name: str) -> str:
    """Return a method with the way its network is used, where there are several: the posterior, or at its mean."""
    return method if len(entry["test"]) == 1 else f"{method}, {'mean' if name == 'point' else name}"


def _accuracy(entry: MethodSummary) -> float:
    return entry["test"][entry["judged_by"]]["accuracy"]["mean"]


def _spreads(values: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return mean and sd of each number of nested mappings; of those that one of them lacks, nothing.

    (A cell without a living edge has no curve of deleted ones.)
    """
    shared = [key for key in values[0] if all(key in value for value in values)]
    return {key: _spreads_or_spread([value[key] for value in values]) for key in shared}


def _spreads_or_spread(values: Sequence[object]) -> dict[str, object] | Spread:
    if isinstance(values[0], Mapping):
        return _spreads(cast(Sequence[Mapping[str, object]], values))
    return spread([float(cast(float, value)) for value in values])
