"""Tempering: the rule on exact terms, and the evidence of linear-Gaussian models and of mixtures by NUTS."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_nas import Space
from pyro_nas.inference import sampling, tempering
from pyro_nas.models import Model, likelihoods, priors
from pyro_nas.reading.conjugate import LinearRegression

N, D, NOISE, PRIOR = 20, 2, 0.7, 0.4
WIDE = 1.0  # a wider prior: more to integrate over


@pytest.fixture(scope="module")
def line(regression):
    """The same with its first feature alone."""
    return regression[0][:, :1], regression[1]


@pytest.fixture(scope="module")
def vague(line):
    return LinearRegression(line[0], line[1][:, 0], NOISE, WIDE)


def by_hand(x, y, prior):
    """A Pyro model that is none of ours."""
    w = pyro.sample("w", dist.Normal(0.0, prior).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y[:, 0])


def build():
    return Model(
        Space({(0, 1): {"linear": partial(nn.Linear, D, 1, bias=False)}}),
        num_data=N,
        weights=priors.normal(PRIOR),
        likelihood=likelihoods.gaussian(NOISE, learn=False),
    )


def exact_terms(regression, powers, prior=WIDE):
    """E and variance of the log-likelihood over p(w) p(D | w)^t, which is normal, for each t."""
    x, y = (part.double() for part in regression)
    means, variances = [], []
    for power in powers.tolist():
        curvature = x.T @ x / NOISE**2
        covariance = torch.linalg.inv(power * curvature + torch.eye(x.shape[1]) / prior**2)
        residual = y - x @ covariance @ (power * x.T @ y / NOISE**2)
        gradient, spread = (x.T @ residual / NOISE**2)[:, 0], curvature @ covariance
        constant = -0.5 * N * math.log(2 * math.pi * NOISE**2)
        means.append(constant - 0.5 * residual.square().sum() / NOISE**2 - 0.5 * spread.trace())
        variances.append(gradient @ covariance @ gradient + 0.5 * (spread @ spread).trace())
    return torch.stack(means), torch.stack(variances)


def uniform(powers):
    return torch.linspace(0, 1, powers + 1, dtype=torch.double)


def test_the_corrected_rule_integrates_the_exact_terms(line, vague):
    def error(powers, corrected=True):
        of_mean, of_variance = tempering.coefficients(powers)
        means, variances = exact_terms(line, powers)
        return abs(float(of_mean @ means + corrected * of_variance @ variances) - vague.log_evidence)

    assert error(tempering.ladder(20)) < 0.01
    assert error(tempering.ladder(20)) < error(tempering.ladder(10)) / 2**3  # of fourth order
    assert error(tempering.ladder(10), corrected=False) > max(0.1, 5 * error(tempering.ladder(10)))
    assert error(tempering.ladder(20), corrected=False) > error(tempering.ladder(10), corrected=False) / 2**3
    assert error(uniform(5), corrected=False) > 1


def check_evidence(found, truth, error):
    assert abs(found.value - truth.log_evidence) < 4 * error


def check_terms(found, line, prior, error):
    """Hold the means at all powers together, as the integral weighs them, to the exact ones."""
    means, _ = exact_terms(line, found.powers, prior)
    assert abs(float(tempering.coefficients(found.powers)[0] @ (found.means - means))) < 4 * error


@pytest.fixture(scope="module")
def tempered(line):
    return tempering.evidence(partial(by_hand, prior=WIDE), line, powers=10, draws=110, warmup=30, chains=1)


def test_tempered_evidence_is_exact_within_its_error(tempered, line, vague):
    check_evidence(tempered, vague, tempered.standard_error)
    check_terms(tempered, line, WIDE, tempered.standard_error)
    assert tempered.standard_error < 0.2
    assert tempered.divergences == 0
    assert tempered.correction > 0.05  # what a plain trapezoidal rule would miss


@pytest.mark.slow
def test_tempered_evidence_of_our_model_at_the_defaults(regression, exact):
    found = tempering.evidence(build(), regression)
    check_evidence(found, exact, found.standard_error)
    check_terms(found, regression, PRIOR, found.standard_error)
    assert found.standard_error < 0.1


def test_wrong_tempering_misses_the_evidence(tempered, line, vague, monkeypatch):
    def found():
        return tempering.evidence(partial(by_hand, prior=WIDE), line, powers=5, draws=50, warmup=20, chains=1)

    with monkeypatch.context() as patch:
        patch.setattr(tempering, "ladder", uniform)
        patch.setattr(tempering, "coefficients", lambda t, right=tempering.coefficients: (right(t)[0], 0 * t))
        equally_spaced = found()
    with pytest.raises(AssertionError):
        check_evidence(equally_spaced, vague, tempered.standard_error)

    def prior_too(self, power, unconstrained, right=sampling.Target.potential):
        return power * right(self, 1.0, unconstrained)  # the prior tempered like the likelihood

    monkeypatch.setattr(sampling.Target, "potential", prior_too)
    with pytest.raises(AssertionError):
        check_terms(found(), line, WIDE, tempered.standard_error)


def test_a_likelihood_that_is_zero_on_part_of_the_prior_is_refused():
    """The path would start at the prior where the likelihood is not zero, and miss the share of the rest."""

    def model(x, y):
        width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Uniform(0.0, width, validate_args=False), obs=y)

    data = (torch.zeros(2, 1), torch.tensor([0.9, 1.0]))
    with pytest.raises(ValueError, match="model: expected a likelihood above 0 all over the prior"):
        tempering.evidence(model, data, powers=2, draws=10, warmup=5, chains=1)
    assert sampling.nuts(model, data, draws=10, warmup=5, chains=1).draws["width"].min() > 1.0  # a posterior it has


def test_tempered_evidence_sums_over_structures():
    """One of two columns, no weight but a bias: log Σ p(Γ) p(D | Γ), each in closed form."""
    x = torch.randn(8, 2)
    y = x[:, :1] + 0.5 * torch.randn(8, 1)

    def model(x, y):
        column = pyro.sample("structure", dist.OneHotCategorical(torch.tensor([0.3, 0.7])))
        bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ column + bias, 1.0), obs=y[:, 0])

    scores = [LinearRegression(torch.ones(8, 1), y[:, 0] - x[:, k], 1.0).log_evidence for k in range(2)]
    joint = torch.tensor(scores).double() + torch.tensor([0.3, 0.7]).double().log()
    found = tempering.evidence(model, (x, y), powers=6, draws=50, warmup=20, chains=1)
    assert abs(found.value - joint.logsumexp(0).item()) < 4 * found.standard_error
    assert abs(found.value - scores[1]) > 4 * found.standard_error  # the wrong structure alone
