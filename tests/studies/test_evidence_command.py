"""The command evidence: every way beside the exact value, bounds from below, continuation, errors before a step."""

import json

import pytest
import torch

from pyro_nas.__main__ import main
from pyro_nas.graph.families.polynomials import features
from pyro_nas.reading.conjugate import LinearRegression
from pyro_nas.studies.evidence import methods, problems
from pyro_nas.studies.evidence.examples import logistic_regression, polynomial_regression
from pyro_nas.studies.evidence.methods import BOUNDS, METHODS, elbo, laplace_full, quadrature
from pyro_nas.studies.evidence.problems import fit, restarts
from pyro_nas.studies.evidence.report import posterior


@pytest.fixture
def brief(monkeypatch):
    for module, name, value in (
        (problems, "RESTARTS", 2),
        (problems, "DRAWS", 400),
        (methods, "STARTS", 10),
        (methods, "PARTICLES", 20),
    ):
        monkeypatch.setattr(module, name, value)


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
        assert row["estimates"]["trajectory"]["value"] > row["exact"] - 3.0  # a bound, and not far below
    assert sum(summary["posterior"]["exact"].values()) == pytest.approx(1.0)
    assert (out / "evidence.png").stat().st_size > 1000
    (out / "rows" / "intercept.json").unlink()
    kept = (out / "rows" / "intercept-x1.json").stat().st_mtime_ns
    assert main([*flags, "--resume", "true"]) == 0
    assert (out / "rows" / "intercept-x1.json").stat().st_mtime_ns == kept
    assert json.loads((out / "summary.json").read_text()) == summary


def test_quadrature_is_exact_where_the_answer_is_known():
    family = polynomial_regression(20, 1.0, seed=0)
    for name in ("degree 0", "degree 1", "degree 2"):
        problem = family.problems[name]
        assert quadrature(problem) == pytest.approx(family.exact(name), abs=2e-3)  # Laplace's normal is the posterior
    logistic_problem = logistic_regression(20, 1.0, seed=0).problems["intercept, x1"]
    fine = quadrature(logistic_problem)
    assert laplace_full(fit(logistic_problem)).value != pytest.approx(fine, abs=2e-3)


def check_ways(fits, exact, mean_field):
    assert laplace_full(fits).value == pytest.approx(exact, abs=0.05)
    bound = elbo(fits)
    assert abs(bound.value - mean_field) < 0.3 + 4 * bound.standard_error
    for method in BOUNDS:
        estimate = METHODS[method](fits)
        assert estimate.value < exact + 4 * estimate.standard_error + 1e-3


@pytest.mark.parametrize("degree", [1, 4])
def test_every_way_on_a_polynomial(degree, brief):
    family = polynomial_regression(20, 1.0, seed=0)
    name = f"degree {degree}"
    fits = fit(family.problems[name])
    check_ways(fits, family.exact(name), family.mean_field(name))
    x, y = fits.problem.data
    wrong = LinearRegression(features(x, degree), y[:, 0], 0.6)  # of another noise
    with pytest.raises(AssertionError):
        check_ways(fits, wrong.log_evidence, wrong.mean_field_evidence)


def test_estimates_do_not_depend_on_what_else_was_asked_for(brief):
    state = torch.get_rng_state()
    alone, after = (logistic_regression(20, 1.0, seed=0).problems["intercept"] for _ in range(2))
    laplace_full(fit(after))
    assert elbo(fit(alone)) == restarts(after)[0].elbo
    assert torch.equal(state, torch.get_rng_state())


def test_the_best_restart_is_measured_again(brief, monkeypatch):
    """The highest of several noisy estimates is too high: the one that is reported took no part in the choice."""
    values = iter([3.0, 5.0, 1.0, 4.2])
    monkeypatch.setattr(problems, "RESTARTS", 3)
    monkeypatch.setattr(problems, "EPOCHS", 1)
    monkeypatch.setattr(problems, "evaluate", lambda *args, draws: {"evidence": next(values), "standard_error": 1.0})
    problem = logistic_regression(20, 1.0, seed=0).problems["intercept"]
    assert [restart.elbo.value for restart in restarts(problem)] == [4.2, 3.0, 1.0]


@pytest.mark.slow
def test_an_infinite_pareto_k_is_none_in_the_file(brief, tmp_path, capsys):
    flags = ["--example", "logistic", "--scale", "1e-6", "--methods", '["laplace"]', "--folds", "2"]
    assert main(["evidence", *flags, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert None in [row["pareto_k"] for row in summary["models"].values()]
    assert "(∞)" in capsys.readouterr().out


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
        (["--seed", str(2**63 - 2)], "seed"),
    ],
)
def test_errors_come_before_the_first_step(flags, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["evidence", *flags, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
