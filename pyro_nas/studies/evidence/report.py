"""Report of the evidence study: the posterior over models, and a table of all estimates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

import torch

from pyro_nas.studies.evidence.methods import BOUNDS
from pyro_nas.studies.tables import markdown_table


class Estimated(TypedDict):
    """An estimate in nats and its standard error, 0 where it is not random."""

    value: float
    standard_error: float


class LeftOut(Estimated):
    """Leave-one-out cross-validation, and the largest Pareto k̂ of a datum, None where it is infinite."""

    largest_pareto_k: float | None


class Row(TypedDict):
    """What is stored of a model, in nats; ``mean_field`` is the best ELBO of independent weights, where it is known.

    ``pareto_k`` is of the best restart's weights, ``r_hat`` over the restarts: modes that k̂ of one of them cannot see.
    """

    estimates: dict[str, Estimated]
    restarts: list[float]
    pareto_k: float | None
    r_hat: float | None
    cross_validation: Estimated
    leave_one_out: LeftOut
    exact: float
    mean_field: NotRequired[float]


Probabilities = dict[str, dict[str, float]]  # p(model | D) by the source of the evidence, and by model


def posterior(rows: Mapping[str, Row]) -> Probabilities:
    """Return p(model | D) ∝ p(D | model), models equally probable, by the exact evidence and by each estimate of it."""
    methods = next(iter(rows.values()))["estimates"]
    logs = {"exact": [row["exact"] for row in rows.values()]}
    logs |= {method: [row["estimates"][method]["value"] for row in rows.values()] for method in methods}
    tables = {source: torch.tensor(values, dtype=torch.double).softmax(0).tolist() for source, values in logs.items()}
    return {source: dict(zip(rows, values, strict=True)) for source, values in tables.items()}


def table(rows: Mapping[str, Row], probabilities: Probabilities) -> str:
    """Return the table as Markdown: nats, ± a standard error; a bound from below is marked by ≥.

    Leave-one-out by importance weights is not to be trusted where Pareto's k̂ is above 0.7.
    """
    first = next(iter(rows.values()))
    header = ["model", "exact", *(f"≥ {m}" if m in BOUNDS else m for m in first["estimates"])]
    header += ["best ELBO of a mean field"] if "mean_field" in first else []
    header += ["p(model given D)", "cross-validation", "leave-one-out (Pareto k̂)"]
    lines = []
    for name, row in rows.items():
        cells = [name, f"{row['exact']:.2f}", *map(_cell, row["estimates"].values())]
        cells += [f"{row['mean_field']:.2f}"] if "mean_field" in row else []
        left_out, k = row["leave_one_out"], row["leave_one_out"]["largest_pareto_k"]
        cells += [f"{probabilities['exact'][name]:.3f}", _cell(row["cross_validation"])]
        lines.append([*cells, f"{_cell(left_out)} ({'∞' if k is None else f'{k:.2f}'})"])
    return "\n".join(["Log evidence of each model, nats.", "", *markdown_table(header, lines)]) + "\n"


def _cell(estimate: Estimated) -> str:
    error = estimate["standard_error"]
    return f"{estimate['value']:.2f}" + (f" ± {error:.2f}" if error else "")
