"""The command evidence: every way beside the exact value, bounds from below, continuation, errors before a step."""

import json

import pytest
import torch

import pyro_nas.evidence_methods as ways
from pyro_nas import inference, models
from pyro_nas.__main__ import main
from pyro_nas.conjugate import LinearRegression
from pyro_nas.evidence_examples import logistic, polynomials
from pyro_nas.evidence_methods import BOUNDS, METHODS, quadrature
from pyro_nas.evidence_study import posterior


@pytest.fixture
def brief(monkeypatch):
    for name, value in {"RESTARTS": 2, "DRAWS": 400, "STARTS": 10, "PARTICLES": 20}.items():
        monkeypatch.setattr(ways, name, value)


def check_from_below(row, shift=0.0):
    for method in BOUNDS:
        estimate = row["estimates"][method]
        assert estimate["value"] + shift <= row["exact"] + 4 * estimate["standard_error"] + 1e-3, method


def test_logistic_regression_in_one_table(brief, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["evidence", "--example", "logistic", "--folds", "2", "--out", str(out)]
    assert main(flags) == 0
    assert "| intercept, x1, x2 |" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    rows = summary["models"]
    assert list(rows) == ["intercept", "intercept, x1", "intercept, x1, x2"]
    for row in rows.values():
        check_from_below(row)
        with pytest.raises(AssertionError):
            check_from_below(row, shift=1.0)  # as if the divergence were a nat too small
        assert row["estimates"]["laplace"]["value"] == pytest.approx(row["exact"], abs=0.1)
        assert row["estimates"]["importance_weighted"]["value"] == pytest.approx(row["exact"], abs=0.1)
    assert sum(summary["posterior"]["exact"].values()) == pytest.approx(1.0)
    assert (out / "evidence.png").stat().st_size > 1000
    (out / "rows" / "intercept.json").unlink()
    kept = (out / "rows" / "intercept-x1.json").stat().st_mtime_ns
    assert main([*flags, "--resume", "true"]) == 0
    assert (out / "rows" / "intercept-x1.json").stat().st_mtime_ns == kept
    assert json.loads((out / "summary.json").read_text()) == summary


def test_quadrature_is_exact_where_the_answer_is_known():
    family = polynomials(models, inference, 20, 1.0, seed=0)
    for name in ("degree 0", "degree 1", "degree 2"):
        problem = family.problems[name]
        assert quadrature(problem) == pytest.approx(family.exact(name), abs=2e-3)  # Laplace's normal is the posterior
    logistic_problem = logistic(models, inference, 20, 1.0, seed=0).problems["intercept, x1"]
    fine = quadrature(logistic_problem)
    assert ways.laplace(logistic_problem).value != pytest.approx(fine, abs=2e-3)


def check_ways(problem, exact, mean_field):
    assert ways.laplace(problem).value == pytest.approx(exact, abs=0.05)
    bound = ways.elbo(problem)
    assert abs(bound.value - mean_field) < 0.3 + 4 * bound.standard_error
    for method in BOUNDS:
        found = METHODS[method](problem)
        assert found.value < exact + 4 * found.standard_error + 1e-3


@pytest.mark.parametrize("degree", [1, 4])
def test_every_way_on_a_polynomial(degree, brief):
    family = polynomials(models, inference, 20, 1.0, seed=0)
    name = f"degree {degree}"
    problem = family.problems[name]
    check_ways(problem, family.exact(name), family.mean_field(name))
    x, y = problem.data
    wrong = LinearRegression(models.polynomials.features(x, degree), y[:, 0], 0.6)  # of another noise
    with pytest.raises(AssertionError):
        check_ways(problem, wrong.log_evidence, wrong.mean_field_evidence)


def test_models_are_equally_probable_before_the_data():
    rows = {
        name: {"exact": value, "estimates": {"elbo": {"value": value - 1.0}}}
        for name, value in {"a": -10.0, "b": -10.0 + torch.tensor(3.0).log().item()}.items()
    }
    for table in posterior(rows).values():
        assert table["b"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--example", "splines"], "example"),
        (["--methods", '["magic"]'], "methods"),
        (["--size", "3"], "size"),
        (["--scale", "0"], "scale"),
        (["--folds", "50"], "folds"),
    ],
)
def test_errors_come_before_the_first_step(flags, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["evidence", *flags, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
