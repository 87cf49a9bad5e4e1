"""``pyro-nas evidence``: several independent ways to the evidence of models, beside its exact value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from pyro_nas import checks
from pyro_nas.files import read_json
from pyro_nas.reading.importance import Estimate, leave_one_out
from pyro_nas.reading.plots import save
from pyro_nas.studies import plots
from pyro_nas.studies.evidence.examples import EXAMPLES
from pyro_nas.studies.evidence.methods import BOUNDS, METHODS, RESTARTS, Problem, cross_validated
from pyro_nas.studies.run_folder import RunFolder
from pyro_nas.studies.tables import table_row

FAST = ("laplace", "laplace_diagonal", "elbo", "importance_weighted", "trajectory")


def evidence_study(models: Any, inference: Any) -> Callable[..., None]:
    """Return the command, made with the rooms ``models`` and ``inference``."""

    def evidence(
        example: str = "polynomials",
        methods: Sequence[str] = FAST,
        size: int = 40,
        scale: float = 1.0,
        folds: int = 10,
        seed: int = 0,
        out: str = "runs/evidence",
        resume: bool = False,
    ) -> None:
        """Estimate the evidence of each model of a family in several ways, beside the exact value and cross-validation.

        Prints and writes a table, the posterior over models, and a picture.

        Args:
            example: "polynomials" of degree 0 to 8, or "logistic" regression on one to three columns.
            methods: of "laplace", "laplace_diagonal", "elbo", "importance_weighted", "trajectory", and "tempered",
                which takes minutes a model.
            size: made-up data.
            scale: standard deviation of the normal prior of the weights.
            folds: parts of the data that cross-validation holds out one after another.
            seed: of data and methods.
            out: run folder, new or empty.
            resume: continue the study in that folder.
        """
        build = EXAMPLES[checks.one_of("example", example, EXAMPLES)]
        methods = list(dict.fromkeys(methods))
        for method in methods:
            checks.one_of("methods", method, METHODS)
        checks.integer("size", size, low=10)
        checks.number("scale", scale, low=0, open_low=True)
        if checks.integer("folds", folds, low=2) > size:
            raise ValueError(f"folds: expected at most size, {size}, got {folds}.")
        checks.seed(checks.seed(seed) + RESTARTS)
        config = {"example": example, "methods": methods, "size": size, "scale": scale, "folds": folds, "seed": seed}
        family = build(size, scale, seed)
        folder = RunFolder(out, config, resume)
        rows: dict[str, dict[str, Any]] = {}
        for name, problem in family.problems.items():
            path = folder.path / "rows" / f"{name.replace(', ', '-').replace(' ', '_')}.json"
            if not path.exists():
                try:
                    row = _row(problem, methods, folds) | {"exact": family.exact(name)}
                except ValueError as error:
                    raise ValueError(
                        f"{name}, size {size}, scale {scale:g}: {error} Or change size or scale."
                    ) from error
                if family.mean_field is not None:
                    row["mean_field"] = family.mean_field(name)
                folder.write_json(f"rows/{path.name}", row)
            rows[name] = read_json(path, "exact")
            print(f"{name}: log p(D) = {rows[name]['exact']:.3f}", flush=True)
        probabilities = posterior(rows)
        folder.write_json(
            "summary.json",
            {"command": "pyro-nas evidence", "config": config, "planted": family.planted, "models": rows,
             "posterior": probabilities},
        )  # fmt: skip
        text = table(rows, probabilities)
        folder.write_text("table.md", text)
        folder.write_with("evidence.png", partial(save, plots.plot_evidence(rows, probabilities)))
        print(text)
        print(f"run folder: {folder.path}")

    return evidence


def _row(problem: Problem, methods: Sequence[str], folds: int) -> dict[str, Any]:
    """Return every estimate of one model, as JSON values."""
    found: dict[str, Estimate] = {method: METHODS[method](problem) for method in methods}
    left_out = leave_one_out(problem.weighted)
    return {
        "estimates": {method: estimate._asdict() for method, estimate in found.items()},
        "restarts": [estimate.value for estimate, _ in problem.restarts],
        "pareto_k": _finite(problem.weighted.pareto_k),
        "cross_validation": cross_validated(problem, folds)._asdict(),
        "leave_one_out": left_out.total._asdict() | {"largest_pareto_k": _finite(float(left_out.pareto_k.max()))},
    }


def posterior(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return p(model | D) ∝ p(D | model), models equally probable, by the exact evidence and by each estimate of it."""
    methods = next(iter(rows.values()))["estimates"]
    logs = {"exact": [row["exact"] for row in rows.values()]}
    logs |= {method: [row["estimates"][method]["value"] for row in rows.values()] for method in methods}
    tables = {way: torch.tensor(values, dtype=torch.double).softmax(0).tolist() for way, values in logs.items()}
    return {way: dict(zip(rows, values, strict=True)) for way, values in tables.items()}


def table(rows: Mapping[str, Mapping[str, Any]], probabilities: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table as Markdown: nats, ± a standard error; a bound from below is marked by ≥.

    Leave-one-out by importance weights is not to be trusted where Pareto's k̂ is above 0.7.
    """
    first = next(iter(rows.values()))
    header = ["model", "exact", *(f"≥ {m}" if m in BOUNDS else m for m in first["estimates"])]
    header += ["best ELBO of a mean field"] if "mean_field" in first else []
    header += ["p(model given D)", "cross-validation", "leave-one-out (Pareto k̂)"]
    lines = ["Log evidence of each model, nats.", "", table_row(header), "|---" * len(header) + "|"]
    for name, row in rows.items():
        cells = [name, f"{row['exact']:.2f}", *map(_cell, row["estimates"].values())]
        cells += [f"{row['mean_field']:.2f}"] if "mean_field" in row else []
        loo, k = row["leave_one_out"], row["leave_one_out"]["largest_pareto_k"]
        cells += [f"{probabilities['exact'][name]:.3f}", _cell(row["cross_validation"])]
        lines.append(table_row([*cells, f"{_cell(loo)} ({'∞' if k is None else f'{k:.2f}'})"]))
    return "\n".join(lines) + "\n"


def _finite(value: float) -> float | None:
    """Return a number as JSON can hold it: None where it is infinite."""
    return value if math.isfinite(value) else None


def _cell(estimate: Mapping[str, float]) -> str:
    error = estimate["standard_error"]
    return f"{estimate['value']:.2f}" + (f" ± {error:.2f}" if error else "")
