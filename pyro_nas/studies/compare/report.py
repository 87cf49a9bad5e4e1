"""Report of the comparison: accuracy and cost of each method over seeds, what it chose, and how robust that is."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyro_nas.studies.tables import spread, table_row

Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # method → a row per seed


def way(row: Mapping[str, Any]) -> str:
    """Return by which of its ways a row is judged: draws of the posterior where it has one, else the point."""
    return "posterior" if "posterior" in row["test"] else "point"


def summarise(rows: Rows) -> dict[str, Any]:
    """Return mean and sd over seeds of every number of every method, and how its choices agree."""
    summary = {}
    for method, found in rows.items():
        entry: dict[str, Any] = {
            "seeds": len(found),
            "test": {name: _spreads([row["test"][name] for row in found]) for name in found[0]["test"]},
            "retrain": _spreads([row["retrain"] for row in found]),
            "cost": _spreads([row["cost"] for row in found]),
            "judged_by": way(found[0]),
        }
        if "search" in found[0]:
            entry["search"] = _spreads([row["search"] for row in found])
            entry["choices"] = collapse([row["choices"] for row in found])
        if all("searched" in row for row in found):
            entry["searched"] = _spreads([row["searched"] for row in found])
        summary[method] = entry
    if "random" in summary:
        base = _accuracy(summary["random"])
        for entry in summary.values():
            entry["over_random"] = (_accuracy(entry) - base) / base
    return summary


def collapse(choices: Sequence[Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Return, by cell, the mean numbers of its skips, pools and zeros over seeds, and the agreement of the seeds.

    ``choices``: {"site j→k": primitive} per seed; cells of one site are one. Agreement is the share of edges with the
    same primitive, mean over all pairs of seeds; 1/K of chance.
    """
    cells = {}
    for site in dict.fromkeys(edge.partition(" ")[0] for edge in choices[0]):
        own = [{edge: name for edge, name in one.items() if edge.partition(" ")[0] == site} for one in choices]
        pairs = list(itertools.combinations(own, 2))
        same = [statistics.fmean(a[edge] == b[edge] for edge in a) for a, b in pairs]
        counts = {
            kind: statistics.fmean(sum(kind in name for name in one.values()) for one in own)
            for kind in ("skip", "pool", "zero")
        }
        cells[site] = {"edges": len(own[0]), **counts, "agreement": statistics.fmean(same) if same else None}
    return cells


def tables(summary: Mapping[str, Any]) -> str:
    """Return the tables as Markdown, mean ± sd over seeds.

    Parameters, operations and latency are of one network; a prediction costs that times the networks it averages.
    """
    first = ["method", "accuracy, %", "over random, %", "calibration error", "search, s", "retraining, s",
             "search, images", "parameters", "multiply-accumulates", "latency, µs an image",
             "networks averaged"]  # fmt: skip
    seeds = max(entry["seeds"] for entry in summary.values())
    lines = [f"### Test accuracy and cost, mean ± sd of {seeds} seeds", "", table_row(first), "|---" * len(first) + "|"]
    for method, entry in summary.items():
        cost, search = entry["cost"], entry.get("search")
        for name, test in entry["test"].items():
            lines.append(table_row([
                row_name(method, entry, name), _pm(test["accuracy"], 100, 2),
                f"{100 * entry['over_random']:+.2f}" if "over_random" in entry and name == entry["judged_by"] else "–",
                _pm(test["calibration_error"], 1, 4),
                _pm(search["seconds"], 1, 0) if search else "–", _pm(entry["retrain"]["seconds"], 1, 0),
                _pm(search["images"], 1, 0) if search else "–",
                _pm(cost["parameters"], 1, 0),
                _pm(cost["multiply_accumulates"], 1e-6, 2) + " M", _pm(cost["latency"], 1, 0),
                f"{cost['networks']['mean'] if name == 'posterior' else 1:.0f}",
            ]))  # fmt: skip
    second = ["method", "cell", "edges", "skips", "pools", "zeros", "agreement of seeds"]
    lines += [
        "",
        "### What was chosen",
        "",
        table_row(second),
        "|---" * len(second) + "|",
    ]
    for method, entry in summary.items():
        if "choices" not in entry:
            continue
        for cell, found in entry["choices"].items():
            counts = [f"{found[kind]:.1f}" for kind in ("skip", "pool", "zero")]
            agreement = "–" if found["agreement"] is None else f"{found['agreement']:.2f}"
            lines.append(table_row([method, cell, str(found["edges"]), *counts, agreement]))
    for part, title in (("attack", "a sign-gradient attack of ε, a share of the pixels' range"),
                        ("deleted_edges", "deleted edges of the cells, a share rounded to whole edges"),
                        ("noise", "normal noise of a standard deviation, a share of the pixels' range")):  # fmt: skip
        curves = {label: curve[part] for label, curve in _robustness(summary)}
        levels = max(map(list, curves.values()), key=len)
        header = ["method", *levels]
        lines += ["", f"### Accuracy in % on the first test images, under {title}", "", table_row(header)]
        lines.append("|---" * len(header) + "|")
        for label, curve in curves.items():
            values = (_pm(curve[level], 100, 1) if level in curve else "–" for level in levels)
            lines.append(table_row([label, *values]))
    return "\n".join(lines) + "\n"


def machines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a remark on the seconds in the tables where the rows were not all made alike, else nothing."""
    different = list(dict.fromkeys(", ".join(f"{k} {v}" for k, v in row["machine"].items()) for row in rows))
    return f"\nThe seconds are not comparable: rows were made with {'; '.join(different)}.\n" if different[1:] else ""


def _robustness(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield labels and robustness curves, of retrained networks and then of the searched ones."""
    for method, entry in summary.items():
        for name, test in entry["test"].items():
            yield row_name(method, entry, name), test["robustness"]
    for method, entry in summary.items():
        if "searched" in entry:
            yield f"{method}, searched", entry["searched"]["robustness"]


def row_name(method: str, entry: Mapping[str, Any], name: str) -> str:
    """Return a method with the way its network is used, where there are several: the posterior, or at its mean."""
    return method if len(entry["test"]) == 1 else f"{method}, {'mean' if name == 'point' else name}"


def _accuracy(entry: Mapping[str, Any]) -> float:
    return entry["test"][entry["judged_by"]]["accuracy"]["mean"]


def _spreads(values: Sequence[Any]) -> Any:
    """Return mean and sd of each number of nested mappings; of those that one of them lacks, nothing.

    (A cell without a living edge has no curve of deleted ones.)
    """
    if isinstance(values[0], Mapping):
        shared = [key for key in values[0] if all(key in value for value in values)]
        return {key: _spreads([value[key] for value in values]) for key in shared}
    return spread([float(value) for value in values])


def _pm(found: Mapping[str, float], factor: float, digits: int) -> str:
    return f"{factor * found['mean']:.{digits}f} ± {factor * found['sd']:.{digits}f}"
