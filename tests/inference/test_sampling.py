"""NUTS against closed forms: moments of a posterior, and structures that the data say nothing about."""

import dataclasses
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_nas import Space, predict, to_arviz
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.inference import sampling, tempering
from pyro_nas.models import Model, learned_priors, likelihoods, priors, structures
from pyro_nas.reading.arviz_export import mean_error

N, D, NOISE, PRIOR = 20, 2, 0.7, 0.4


def by_hand(x, y):
    """A Pyro model that is none of ours."""
    w = pyro.sample("w", dist.Normal(0.0, PRIOR).expand([D]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y[:, 0])


def build(complexity=1.0, num_data=N):
    return Model(
        Space({(0, 1): {"linear": partial(nn.Linear, D, 1, bias=False)}}),
        num_data=num_data,
        weights=priors.normal(PRIOR),
        likelihood=likelihoods.gaussian(NOISE, learn=False),
        complexity=complexity,
    )


def check_moments(chains, site, mean, second):
    """Hold mean and mean square of each element to the truth within 4.5 Monte-Carlo standard errors."""
    stacked = torch.stack([chain[site] for chain in chains.chains]).double().flatten(2)  # (chain, draw, element)
    for power, truth in ((1, mean), (2, second)):
        for column, value in zip(stacked.pow(power).unbind(-1), truth.flatten().tolist(), strict=True):
            error = mean_error(column)
            assert abs(column.mean().item() - value) < 4.5 * error
            assert error < 0.2 * column.std().item()


def without_prior(monkeypatch):
    def log_joints(self, continuous, right=sampling.Target.log_joints):
        prior, likelihood = right(self, continuous)
        return torch.zeros_like(prior), likelihood

    monkeypatch.setattr(sampling.Target, "log_joints", log_joints)


def test_moments_of_a_posterior_meet_the_closed_form(regression, exact, monkeypatch):
    truth = exact.posterior.mean, exact.posterior.variance + exact.posterior.mean.square()
    chains = sampling.nuts(build(), regression, draws=300, warmup=150, chains=2)
    check_moments(chains, "weights", *truth)
    assert chains.divergences == [0, 0]
    assert (chains.r_hat["weights"] < 1.05).all()
    assert chains.draws["weights"].shape == (600, D)
    assert predict(build(), chains.draws, regression[0]).shape == (N, 1)
    without_prior(monkeypatch)
    with pytest.raises(AssertionError):
        check_moments(sampling.nuts(by_hand, regression, draws=150, warmup=50, chains=1), "w", *truth)


def indifferent(structure, weights=False):
    """A space whose choices all do the same: the posterior of the structure is its prior."""
    return Model(
        Space({(0, 1): {"a": skip(), "b": skip()}} | ({(1, 2): {"weight": dense(1, 1)}} if weights else {})),
        num_data=6,
        structure=structure,
        likelihood=likelihoods.gaussian(1.0, learn=False),
    )


# mean and mean square of Dirichlet(1.5, 4.5)
DIRICHLET = torch.tensor([0.25, 0.75]), torch.tensor([0.25, 0.75]).square() + 1.5 * 4.5 / (6**2 * 7)


def test_relaxed_structures_keep_their_prior_where_data_say_nothing():
    data = (torch.randn(6, 1), torch.randn(6, 1))
    size = {"draws": 160, "warmup": 40, "chains": 1}
    model = indifferent(structures.dirichlet(3.0, [0.25, 0.75]))  # Dirichlet(1.5, 4.5)
    chains = sampling.nuts(model, data, **size)
    model.space.check_structure(chains.draws)
    check_moments(chains, "structure", *DIRICHLET)
    relaxed = sampling.nuts(indifferent(structures.gumbel_softmax(0.7, [0.3, 0.7])), data, **size)
    hard = (relaxed.draws["structure"][:, 0, 0] > 0.5).double()
    assert abs(hard.mean().item() - 0.3) < 4.5 * mean_error(hard[None])


def test_without_the_jacobian_they_do_not(monkeypatch):
    stick_breaking = torch.distributions.transforms.StickBreakingTransform
    monkeypatch.setattr(stick_breaking, "log_abs_det_jacobian", lambda self, x, y: torch.zeros(x.shape[:-1]))

    def alone(x, y):
        pyro.sample("structure", dist.Dirichlet(torch.tensor([[1.5, 4.5]])).to_event(1))

    chains = sampling.nuts(alone, (torch.zeros(1), torch.zeros(1)), draws=160, warmup=40, chains=1)
    with pytest.raises(AssertionError):
        check_moments(chains, "structure", *DIRICHLET)


def test_chains_are_what_arviz_takes_and_start_at_the_seed(regression):
    model = indifferent(structures.categorical([0.3, 0.7]), weights=True)
    data = (torch.randn(6, 1), torch.randn(6, 1))
    before = torch.get_rng_state()
    first, again, other = (
        sampling.nuts(model, data, draws=8, warmup=4, chains=2, seed=seed) for seed in (1, 1, 2)
    )  # fmt: skip
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first.draws[site], again.draws[site]) for site in ("weights", "structure"))
    assert not torch.equal(first.draws["weights"], other.draws["weights"])
    exported = to_arviz(first.chains, model.space, weights=True).posterior
    assert exported["structure"].shape == (2, 8, 1, 2)
    assert exported["weights"].shape == (2, 8, 2)
    assert torch.allclose(first.probabilities.float(), torch.tensor([0.3, 0.7]).expand(2, 8, 2), atol=1e-5)
    (best, p), (_, rest) = first.structures
    assert best["structure"].tolist() == [[0.0, 1.0]]
    assert (p, rest) == (pytest.approx(0.7, abs=1e-5), pytest.approx(0.3, abs=1e-5))
    assert first.r_hat.keys() == {"weights"}


def test_r_hat_and_divergences_see_a_bad_chain():
    draws = torch.randn(2, 500, 3)
    good = sampling.Chains([{"w": chain} for chain in draws], [0, 0], [{}], torch.ones(2, 500, 1))
    assert (good.r_hat["w"] < 1.02).all()
    apart = dataclasses.replace(good, chains=[{"w": draws[0]}, {"w": draws[1] + torch.tensor([0.0, 2.0, 0.0])}])
    assert (apart.r_hat["w"] > 1.1).tolist() == [False, True, False]

    def walled(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(w.abs() > 0.5, -1e5, 0.0))

    chains = sampling.nuts(walled, (torch.zeros(1), torch.zeros(1)), draws=40, warmup=10, chains=2)
    assert len(chains.divergences) == 2
    assert sum(chains.divergences) > 0


def test_errors_say_what_to_do(regression):
    x, y = regression
    with pytest.raises(ValueError, match="complexity: expected λ = 1"):
        sampling.nuts(build(complexity=2.0), regression)
    with pytest.raises(ValueError, match="data: expected all data, each counted once"):
        tempering.evidence(build(num_data=2 * N), regression)
    with pytest.raises(TypeError, match="model: expected a Pyro model"):
        sampling.nuts(None, regression)
    with pytest.raises(TypeError, match="data: expected a pair"):
        sampling.nuts(by_hand, x)
    with pytest.raises(ValueError, match="draws: expected an integer of at least 4"):
        sampling.nuts(by_hand, regression, draws=3)
    with pytest.raises(ValueError, match="powers: expected an integer of at least 1"):
        tempering.evidence(by_hand, regression, powers=0)
    with pytest.raises(ValueError, match=r"discrete ones of finite support.*structures\.categorical"):
        sampling.nuts(indifferent(structures.straight_through()), (x[:6, :1], y[:6]))

    def counts(x, y):
        pyro.sample("count", dist.Poisson(3.0))

    with pytest.raises(ValueError, match="discrete ones of finite support"):
        sampling.nuts(counts, regression)

    def mixture(x, y):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("component", dist.Categorical(torch.ones(2)))

    with pytest.raises(ValueError, match="at most 10000 values together, got 1048576"):
        sampling.nuts(mixture, regression)
    with pytest.raises(ValueError, match=r"expected a continuous site to sample, got \['component'\]"):
        sampling.nuts(lambda x, y: pyro.sample("component", dist.Categorical(torch.ones(2))), regression)

    def nowhere(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.factor("never", w * torch.nan)

    with pytest.raises(ValueError, match="finite log-densities at draws of the prior, got 0 of 1"):
        sampling.nuts(nowhere, regression)


def test_parameters_that_would_be_held_at_their_start_are_refused(regression):
    """Chains of a learned noise are at the noise that it starts with, of a learned scale at that scale."""

    space, known = Space({(0, 1): {"linear": partial(nn.Linear, D, 1)}}), likelihoods.gaussian(1.0, learn=False)
    noisy = Model(space, num_data=N, likelihood=likelihoods.gaussian(1.0))
    scaled = Model(space, num_data=N, weights=learned_priors.learned_normal(1.0), likelihood=known)

    def by_param(x, y):
        scale = pyro.param("scale", torch.tensor(1.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, scale).expand([len(y), 1]).to_event(2), obs=y)

    for model, name in ((noisy, "likelihood.log_noise"), (scaled, "weights.log_scale"), (by_param, "scale")):
        for sample in (sampling.nuts, tempering.evidence):
            with pytest.raises(ValueError, match=rf"^model: expected no .*\['model.{name}'\]. .*requires_grad_"):
                sample(model, regression)
    noisy.requires_grad_(False)
    chains = sampling.nuts(noisy, regression, draws=4, warmup=1, chains=1)
    assert list(chains.chains[0]) == ["weights"]
