"""``pyro-nas evidence``: several independent ways to the evidence of models, beside its exact value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from pyro_nas import checks
from pyro_nas.random_state import forked
from pyro_nas.reading.arviz_export import restarts_r_hat
from pyro_nas.reading.importance import Estimate, leave_one_out
from pyro_nas.reading.posterior import draw
from pyro_nas.studies.evidence.examples import EXAMPLES, Example
from pyro_nas.studies.evidence.methods import METHODS, cross_validated
from pyro_nas.studies.evidence.problems import RESTARTS, Fits, fit
from pyro_nas.studies.evidence.report import Estimated, Row, posterior, table
from pyro_nas.studies.run_folder import RunFolder

FAST = ("laplace", "laplace_diagonal", "elbo", "importance_weighted", "trajectory")


def evidence(
    *,
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
    with RunFolder(out, config, resume=resume) as folder:
        rows = {}
        for name in family.problems:
            path = f"rows/{name.replace(', ', '-').replace(' ', '_')}.json"
            remark = f"{name}, size {size}, scale {scale:g}"
            rows[name] = folder.row(path, ("exact",), partial(_row, family, name, methods, folds, remark))
            print(f"{name}: log p(D) = {rows[name]['exact']:.3f}", flush=True)
        _report(folder, config, family.planted, rows)


def _row(family: Example, name: str, methods: Sequence[str], folds: int, remark: str) -> Row:
    """Return every estimate of one model beside the exact value; errors start with the remark."""
    try:
        row = _estimated(family, name, methods, folds)
    except ValueError as error:
        raise ValueError(f"{remark}: {error} Or change size or scale.") from error
    if family.mean_field is not None:
        row["mean_field"] = family.mean_field(name)
    return row


def _estimated(family: Example, name: str, methods: Sequence[str], folds: int) -> Row:
    problem = family.problems[name]
    fits = fit(problem)
    estimates = {method: _stored(METHODS[method](fits)) for method in methods}
    left_out = leave_one_out(fits.weighted)
    return {
        "estimates": estimates,
        "restarts": [restart.elbo.value for restart in fits.restarts],
        "pareto_k": _finite(fits.weighted.pareto_k),
        "r_hat": _finite(_restarts_r_hat(fits)),
        "cross_validation": _stored(cross_validated(problem, folds)),
        "leave_one_out": {**_stored(left_out.total), "largest_pareto_k": _finite(float(left_out.pareto_k.max()))},
        "exact": family.exact(name),
    }


def _restarts_r_hat(fits: Fits) -> float:
    """Return the largest r̂ over the restarts, and leave the random state as it was."""
    with forked():
        torch.manual_seed(fits.problem.seed)
        return max(restarts_r_hat([draw(restart.guide, num_samples=200) for restart in fits.restarts]).values())


def _report(folder: RunFolder, config: Mapping[str, object], planted: str, rows: Mapping[str, Row]) -> None:
    """Write and print the table, the posterior over models, and a picture."""
    from pyro_nas.reading.plots import save  # matplotlib is imported where it is used
    from pyro_nas.studies.plots import plot_evidence

    probabilities = posterior(rows)
    folder.write_json(
        "summary.json",
        {"command": "pyro-nas evidence", "config": config, "planted": planted, "models": rows,
         "posterior": probabilities},
    )  # fmt: skip
    text = table(rows, probabilities)
    folder.write_text("table.md", text)
    folder.write_with("evidence.png", partial(save, plot_evidence(rows, probabilities)))
    print(text)
    print(f"run folder: {folder.path}")


def _stored(estimate: Estimate) -> Estimated:
    return {"value": estimate.value, "standard_error": estimate.standard_error}


def _finite(value: float) -> float | None:
    """Return a number as JSON can hold it: None where it is infinite."""
    return value if math.isfinite(value) else None
