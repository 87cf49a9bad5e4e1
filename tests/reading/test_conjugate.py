"""Exact linear regression by independent routes: dense densities, sequential prediction, refitting, variation."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pyro_nas.reading.conjugate import LinearRegression

NOISE = 0.6


@pytest.fixture(params=["one scale", "a scale a feature", "more features than data"])
def regression(request):
    data, features = (6, 9) if request.param == "more features than data" else (25, 4)
    design = torch.randn(data, features) @ torch.randn(features, features) / 2  # correlated
    scale = torch.rand(features) + 0.5 if request.param == "a scale a feature" else 0.8
    y = design @ torch.randn(features) + NOISE * torch.randn(data)
    return LinearRegression(design, y, NOISE, scale)


def rows(regression, kept):
    return LinearRegression(regression.design[kept], regression.y[kept], regression.noise, regression.scale)


def dense_log_evidence(regression, noise=NOISE):
    covariance = (
        noise**2 * torch.eye(len(regression.y)).double()
        + (regression.design * regression.scale**2) @ regression.design.T
    )
    return float(MultivariateNormal(torch.zeros(len(regression.y)).double(), covariance).log_prob(regression.y))


def sequential_log_evidence(regression):
    """Σ log p(y_i | y_1 … y_{i−1})."""
    total = 0.0
    for index in range(len(regression.y)):
        next_one = rows(regression, slice(index)).predictive(regression.design[index : index + 1])
        total += float(next_one.log_prob(regression.y[index : index + 1]))
    return total


def elbo(regression, q):
    """E_q log p(y | w) − KL(q ‖ p), term by term, of an independent normal q."""
    residual = regression.y - regression.design @ q.loc
    spread = (regression.design.square() * q.scale**2).sum(-1)
    fit = -0.5 * ((residual**2 + spread) / NOISE**2 + math.log(2 * math.pi * NOISE**2)).sum()
    return float(fit - kl_divergence(q, Normal(torch.zeros_like(q.loc), regression.scale)).sum())


def test_log_evidence_by_three_routes(regression):
    assert regression.log_evidence == pytest.approx(dense_log_evidence(regression), abs=1e-8)
    assert regression.log_evidence == pytest.approx(sequential_log_evidence(regression), abs=1e-8)
    assert abs(regression.log_evidence - dense_log_evidence(regression, noise=NOISE**2)) > 0.1  # variance for sd


def test_posterior_by_conditioning_the_joint_law(regression):
    prior = torch.diag(regression.scale**2)
    gain = (
        prior
        @ regression.design.T
        @ torch.linalg.inv(
            NOISE**2 * torch.eye(len(regression.y)).double() + regression.design @ prior @ regression.design.T
        )
    )
    assert torch.allclose(regression.posterior.mean, gain @ regression.y)
    assert torch.allclose(regression.posterior.covariance_matrix, prior - gain @ regression.design @ prior)
    wrong = torch.linalg.inv(regression.design.T @ regression.design + torch.linalg.inv(prior))  # noise forgotten
    assert not torch.allclose(regression.posterior.covariance_matrix, wrong, rtol=0.1)


def test_leave_one_out_by_refitting(regression):
    found = regression.leave_one_out.log_prob(regression.y)
    refitted = torch.tensor(
        [
            float(rows(regression, kept).predictive(regression.design[~kept]).log_prob(regression.y[~kept]))
            for kept in ~torch.eye(len(regression.y), dtype=torch.bool)
        ]
    )
    assert torch.allclose(found, refitted.double(), atol=1e-5)
    together = regression.predictive(regression.design)  # y predicted by itself
    optimistic = Normal(together.mean, together.variance.sqrt()).log_prob(regression.y)
    assert optimistic.sum() > found.sum() + 0.5


def test_mean_field_is_the_best_independent_law(regression):
    q = regression.mean_field
    assert regression.mean_field_evidence == pytest.approx(elbo(regression, q), abs=1e-8)
    assert regression.mean_field_evidence < regression.log_evidence
    for loc, scale in ((0.1, 1.0), (-0.1, 1.0), (0.0, 1.1), (0.0, 0.9)):
        assert elbo(regression, Normal(q.loc + loc, q.scale * scale)) < regression.mean_field_evidence
    marginal = Normal(q.loc, regression.posterior.variance.sqrt())  # the posterior's own variances are too wide
    assert elbo(regression, marginal) < regression.mean_field_evidence - 0.1


def test_without_data_it_is_the_prior():
    nothing = LinearRegression(torch.zeros(0, 3), torch.zeros(0), NOISE, 0.7)
    assert nothing.log_evidence == 0
    assert torch.allclose(nothing.posterior.covariance_matrix, 0.49 * torch.eye(3).double())


X, Y = torch.ones(5, 2), torch.ones(5)
BAD = {
    "a vector": ((X[:, 0], Y, 1.0), "design: expected a finite tensor of 2 axes"),
    "a column": ((X, Y[:, None], 1.0), "y: expected a finite tensor of 1 axes"),
    "NaN": ((X, Y * math.nan, 1.0), "y: expected a finite"),
    "lengths": ((X, Y[:4], 1.0), "y: expected as many data as design has rows, 5, got 4"),
    "noise": ((X, Y, 0.0), "noise: expected a finite number in"),
    "scale": ((X, Y, 1.0, -1.0), "scale: expected a number above 0"),
    "scales": ((X, Y, 1.0, torch.ones(3)), "one for each of 2 features"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        LinearRegression(*arguments)
    with pytest.raises(ValueError, match=r"design: expected shape \(new, 2\)"):
        LinearRegression(torch.ones(3, 2), torch.ones(3), 1.0).predictive(torch.ones(4, 3))
