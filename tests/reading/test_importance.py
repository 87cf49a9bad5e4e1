"""Importance weighting against closed forms of linear-Gaussian models, and against enumeration over structures."""

import dataclasses
import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import nn

from pyro_nas import Space, choice_probabilities
from pyro_nas.graph.enumeration import all_structures, key_of_structure
from pyro_nas.inference import adam, sampling, svi
from pyro_nas.models import Model, guides, likelihoods, priors, structures
from pyro_nas.reading import importance
from pyro_nas.reading.arviz_export import mean_error, restarts_r_hat
from pyro_nas.reading.conjugate import LinearRegression
from pyro_nas.reading.importance import leave_one_out, structure_probabilities, weigh

N, D, NOISE, PRIOR, DRAWS = 30, 3, 0.7, 0.8, 2000


@pytest.fixture(scope="module")
def regression():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(N, D, generator=generator) @ torch.tensor([[1.0, 0.5, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    return x, x @ torch.randn(D, 1, generator=generator) + NOISE * torch.randn(N, 1, generator=generator)


@pytest.fixture(scope="module")
def exact(regression):
    return LinearRegression(regression[0], regression[1][:, 0], NOISE, PRIOR)


def build(num_data=N, complexity=1.0):
    return Model(
        Space({(0, 1): {"linear": partial(nn.Linear, D, 1, bias=False)}}),
        num_data=num_data,
        weights=priors.normal(PRIOR),
        likelihood=likelihoods.gaussian(NOISE, learn=False),
        complexity=complexity,
    )


def best_mean_field(model, exact):
    """The guide that a fit ends at: N(m, 1/A_jj)."""
    guide = guides.MeanField(model)
    guide.loc["weights"].data = exact.posterior.mean.float()
    guide.log_scale["weights"].data = -0.5 * exact.posterior.precision_matrix.diagonal().log().float()
    return guide


def wide(exact, factor):
    """A Pyro guide by hand: the posterior with its standard deviations multiplied."""
    law = dist.MultivariateNormal(
        exact.posterior.mean.float(), scale_tril=factor * exact.posterior.scale_tril.float(), validate_args=False
    )
    return lambda x, y: pyro.sample("weights", law)


@pytest.fixture(scope="module")
def weighted(regression, exact):
    model = build()
    return weigh(model, best_mean_field(model, exact), regression, draws=DRAWS)


def check_bounds(weighted, exact):
    precision = exact.posterior.precision_matrix
    gap = 0.5 * float(precision.diagonal().log().sum() - precision.logdet())
    assert gap > 0.2  # something for the bound to make up
    bounds = [weighted.bound(particles) for particles in (1, 4, 64)]
    assert abs(bounds[0].value - (exact.log_evidence - gap)) < 4 * bounds[0].standard_error  # the ELBO, in closed form
    for bound in bounds:
        assert bound.value - exact.log_evidence < 4 * bound.standard_error
    for lower, higher in itertools.pairwise(bounds):
        assert higher.value - lower.value > 4 * math.hypot(lower.standard_error, higher.standard_error) / 2
    assert exact.log_evidence - bounds[2].value < 0.05 + 4 * bounds[2].standard_error


def test_the_bound_rises_from_the_elbo_to_the_evidence(weighted, exact):
    check_bounds(weighted, exact)


def test_wrong_bounds_do_not(weighted, exact, monkeypatch):
    with pytest.raises(AssertionError):
        check_bounds(dataclasses.replace(weighted, log_weights=-weighted.log_weights), exact)
    monkeypatch.setattr(importance, "_log_mean", lambda values: values.mean(-1))  # the logarithm before the mean
    with pytest.raises(AssertionError):
        check_bounds(weighted, exact)


def test_k_cannot_see_a_mode_that_the_guide_misses_and_r_hat_of_restarts_can():
    """y = w² + ε of one datum, y = 4: two modes ±m, m² = 4 − s²/2, each the half of p(D)."""
    data, s = (torch.zeros(1, 1), torch.tensor([4.0])), 0.5
    mode = (4 - s**2 / 2) ** 0.5
    spread = 1.2 * s / (2 * mode)

    def model(x, y):
        w = pyro.sample("weights", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 1):
            pyro.sample("y", dist.Normal(w.square(), s), obs=y)

    def weighted(law, seed=0):
        return weigh(model, lambda x, y: pyro.sample("weights", law), data, draws=400, seed=seed)

    w = torch.linspace(-6, 6, 20_001, dtype=torch.double)
    density = dist.Normal(0.0, 1.0).log_prob(w) + dist.Normal(w.square(), s).log_prob(torch.tensor(4.0))
    exact = float(torch.trapezoid(density.exp(), w).log())
    left, right, again = (weighted(dist.Normal(at * mode, spread), seed) for at, seed in ((-1, 0), (1, 1), (1, 2)))
    for one in (left, right, again):
        assert one.pareto_k < 0.7  # nothing wrong with the draws that there are
        assert one.evidence.standard_error < 0.05
        assert one.evidence.value == pytest.approx(exact - math.log(2), abs=4 * one.evidence.standard_error)
    assert restarts_r_hat([right.draws, again.draws])["weights"] < 1.02
    assert restarts_r_hat([left.draws, right.draws])["weights"] > 1.5
    both = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-mode, mode]), torch.full((2,), spread))
    )
    check_evidence(weighted(both), exact)


def check_evidence(weighted, truth, error=0.1):
    assert weighted.evidence.standard_error < error
    assert abs(weighted.evidence.value - truth) < 4 * weighted.evidence.standard_error
    assert weighted.pareto_k < 0.7


def test_the_evidence_is_exact_within_its_error(weighted, regression, exact):
    check_evidence(weighted, exact.log_evidence)
    model = build()
    check_evidence(weigh(model, wide(exact, 1.3), regression, draws=500), exact.log_evidence)
    law = dist.MultivariateNormal(exact.posterior.mean, scale_tril=1.3 * exact.posterior.scale_tril)
    unweighted = weigh(model, wide(exact, 1.3), regression, draws=500)
    without_q = unweighted.log_weights + law.log_prob(unweighted.draws["weights"].double())
    with pytest.raises(AssertionError):
        check_evidence(dataclasses.replace(unweighted, log_weights=without_q), exact.log_evidence)


def test_the_effective_sample_size_is_the_known_one():
    """Of draws of N(0, s²) for N(0, 1): √(2s² − 1)/s² of their number, and k̂ = 1 − s² where s² < 1 (both by hand)."""

    def model(x, y):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    def share(scale):
        draws = weigh(model, lambda x, y: pyro.sample("w", dist.Normal(0.0, scale)), (torch.zeros(4), y), draws=1200)
        return draws.effective_sample_size / 1200, draws

    y = torch.randn(4)
    found, weighted = share(2**0.5)
    assert found == pytest.approx(3**0.5 / 2, abs=0.03)
    assert share(2.0)[0] == pytest.approx(7**0.5 / 4, abs=0.03)
    assert found != pytest.approx(7**0.5 / 4, abs=0.03)
    check_evidence(weighted, float(dist.Normal(0, 1).log_prob(y).sum()))
    assert weighted.pareto_k < 0.5 < share(0.1)[1].pareto_k  # far too narrow: 0.99 by hand


def test_an_autoguide_and_a_constrained_site():
    """Pyro's autoguides draw unconstrained: the Jacobian counts. The evidence is that of data without weights."""

    def model(x, y):
        pyro.sample("scale", dist.LogNormal(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    data = (torch.zeros(4), torch.randn(4))
    guide = AutoNormal(model, init_loc_fn=init_to_value(values={"scale": torch.tensor(2.7)}), init_scale=1.4)
    weighted = weigh(model, guide, data, draws=600)
    truth = float(dist.Normal(0, 1).log_prob(data[1]).sum())
    check_evidence(weighted, truth)
    assert list(weighted.draws) == ["scale"]
    without = dataclasses.replace(weighted, log_weights=weighted.log_weights - weighted.draws["scale"].log().double())
    with pytest.raises(AssertionError):
        check_evidence(without, truth)


def check_leave_one_out(weighted, exact):
    """Hold the estimate to the closed form, within six standard errors; eight parts of the draws give them."""
    found, truth = leave_one_out(weighted), exact.leave_one_out.log_prob(exact.y)
    parts = [
        importance.WeightedDraws({}, weights, terms)
        for weights, terms in zip(weighted.log_weights.chunk(8), weighted.log_likelihoods.chunk(8), strict=True)
    ]
    error = torch.stack([leave_one_out(part).pointwise for part in parts]).std(0) / 8**0.5
    assert (found.pareto_k < 0.7).all()
    assert ((found.pointwise - truth).abs() < 6 * error + 1e-3).all()
    assert found.total.value == pytest.approx(truth.sum().item(), abs=0.1)
    assert found.total.standard_error == pytest.approx((truth.std() * N**0.5).item(), abs=0.1)


@pytest.fixture(scope="module")
def overdispersed(regression, exact):
    return weigh(build(), wide(exact, 1.5), regression, draws=DRAWS)


def test_leave_one_out_is_exact_for_draws_of_another_law(overdispersed, exact):
    check_leave_one_out(overdispersed, exact)


def test_leave_one_out_of_the_posterior_would_be_wrong_for_them(overdispersed, exact):
    naive = dataclasses.replace(overdispersed, log_weights=torch.zeros(DRAWS, dtype=torch.double))  # as if q were p
    with pytest.raises(AssertionError):
        check_leave_one_out(naive, exact)
    assert abs(leave_one_out(naive).total.value - exact.leave_one_out.log_prob(exact.y).sum().item()) > 0.5
    forgotten = dataclasses.replace(overdispersed, log_likelihoods=torch.zeros_like(overdispersed.log_likelihoods))
    with pytest.raises(AssertionError):
        check_leave_one_out(forgotten, exact)


COUPLED, PROBABILITIES = 20, [0.6, 0.4]


class Column(nn.Module):
    """x ↦ x_i."""

    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, x):
        return x[:, self.index, None]


def coupled_space():
    """Two edges that choose a column each, and a weight for each: y ≈ a x_i + b x_j."""
    return Space(
        {
            (0, 1): {"x0": partial(Column, 0), "x1": partial(Column, 1)},
            (0, 2): {"x2": partial(Column, 2), "x3": partial(Column, 3)},
            (1, 3): {"weight": partial(nn.Linear, 1, 1, bias=False)},
            (2, 3): {"weight": partial(nn.Linear, 1, 1, bias=False)},
        }
    )


def coupled_model(structure):
    return Model(
        coupled_space(), num_data=COUPLED, structure=structure, likelihood=likelihoods.gaussian(0.5, learn=False)
    )  # fmt: skip


@pytest.fixture(scope="module")
def coupled():
    """Data that x0 + x2 and x1 + x3, which are equal, explain alike, but not x0 + x3 or x1 + x2."""
    generator = torch.Generator().manual_seed(0)
    s, t, away, noise = (torch.randn(COUPLED, generator=generator) for _ in range(4))
    x = torch.stack([s, s + 0.4 * away, t, t - 0.4 * away], 1)
    return x, (s + t + 0.5 * noise)[:, None]


def regression_of(structure, x, y):
    chosen = structure["structure"].argmax(-1)
    return LinearRegression(x[:, [chosen[0], 2 + chosen[1]]], y[:, 0], 0.5)


def log_prior(structure, probabilities=PROBABILITIES):
    return float((structure["structure"] @ torch.tensor(probabilities)).log().sum())


@pytest.fixture(scope="module")
def enumerated(coupled):
    """p(Γ | D) of the four structures, from the closed-form evidence of each."""
    structures = list(all_structures(coupled_space()))
    scores = [regression_of(one, *coupled).log_evidence + log_prior(one) for one in structures]
    table = torch.tensor(scores).softmax(0).tolist()
    assert 0.2 < max(table) < 0.8  # a posterior with something to get wrong
    return {key_of_structure(one): p for one, p in zip(structures, table, strict=True)}


def distance(found, enumerated):
    """The largest difference of a structure's probability."""
    return max(abs(found.get(key, 0.0) - p) for key, p in enumerated.items())


def guide_by_structure(x, y):
    """Γ uniform; w given Γ its posterior in closed form, wider by a third."""
    law = dist.OneHotCategorical(torch.ones(2, 2)).to_event(1)
    structure = {"structure": pyro.sample("structure", law)}
    posterior = regression_of(structure, x, y).posterior
    pyro.sample(
        "weights", dist.MultivariateNormal(posterior.mean.float(), (1.3**2 * posterior.covariance_matrix).float())
    )


def test_importance_sampling_of_each_structure_meets_enumeration(coupled, enumerated):
    """Conditioned on Γ, model and guide give log p(D, Γ)."""
    model = coupled_model(structures.categorical(PROBABILITIES))
    everything = list(all_structures(coupled_space()))
    runs = [
        weigh(poutine.condition(model, data=one), poutine.condition(guide_by_structure, data=one), coupled, draws=150)
        for one in everything
    ]
    keys = [key_of_structure(one) for one in everything]

    def posterior(scores):
        return dict(zip(keys, torch.tensor(scores).softmax(0).tolist(), strict=True))

    scores = [run.evidence.value for run in runs]
    assert distance(posterior(scores), enumerated) < 0.02
    without_prior = [score - log_prior(one) for score, one in zip(scores, everything, strict=True)]
    assert distance(posterior(without_prior), enumerated) > 0.02


def check_weighted_structures(weighted, enumerated, within):
    found = {key_of_structure(one): p for one, p in structure_probabilities(weighted)}
    assert sum(found.values()) == pytest.approx(1.0)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert distance(found, enumerated) < within


def test_weighted_structures_meet_enumeration(coupled, enumerated):
    weighted = weigh(coupled_model(structures.categorical(PROBABILITIES)), guide_by_structure, coupled, draws=1000)
    error = 0.5 / weighted.effective_sample_size**0.5
    check_weighted_structures(weighted, enumerated, 4 * error)
    with pytest.raises(AssertionError):  # the guide's own shares
        check_weighted_structures(dataclasses.replace(weighted, log_weights=torch.zeros(1000)), enumerated, 4 * error)


def check_chains(chains, enumerated, within):
    found = {key_of_structure(one): p for one, p in chains.structures}
    assert distance(found, enumerated) < within


def test_nuts_with_structures_summed_out_meets_enumeration(coupled, enumerated):
    model = coupled_model(structures.categorical(PROBABILITIES))
    chains = sampling.nuts(model, coupled, draws=80, warmup=40, chains=1)
    error = max(mean_error(column) for column in chains.probabilities.unbind(-1))
    assert error < 0.04
    check_chains(chains, enumerated, 4 * error)
    for index, one in enumerate(chains.values):  # draws of Γ follow p(Γ | w, D)
        share = (chains.draws["structure"] == one["structure"]).all(-1).all(-1).double().mean().item()
        assert share == pytest.approx(chains.probabilities[..., index].mean().item(), abs=4 * 0.5 / 80**0.5)
    flat = dataclasses.replace(chains, probabilities=torch.full_like(chains.probabilities, 0.25))
    with pytest.raises(AssertionError):
        check_chains(flat, enumerated, 4 * error)


@pytest.mark.slow
def test_importance_sampling_meets_enumeration_within_two_hundredths(coupled, enumerated):
    model = coupled_model(structures.categorical(PROBABILITIES))
    check_weighted_structures(weigh(model, guide_by_structure, coupled, draws=15_000), enumerated, 0.02)


@pytest.mark.slow
def test_nuts_meets_enumeration_within_two_hundredths(coupled, enumerated):
    model = coupled_model(structures.categorical(PROBABILITIES))
    check_chains(sampling.nuts(model, coupled, draws=700, warmup=150, chains=2), enumerated, 0.02)
    other = coupled_model(structures.categorical([0.4, 0.6]))  # another prior
    with pytest.raises(AssertionError):
        check_chains(sampling.nuts(other, coupled, draws=100, warmup=50, chains=1), enumerated, 0.02)


def test_the_factorised_relaxed_posterior_is_another_one(coupled, enumerated):
    """q(Γ) of independent edges cannot have the coupling, and a relaxed Γ mixes columns: the error is large."""
    model = coupled_model(structures.gumbel_softmax(0.5, PROBABILITIES))
    guide = guides.MeanField(model)
    svi.fit(model, guide, coupled, epochs=300, batch_size=COUPLED, optimizer=adam(0.05))
    first, second = choice_probabilities(guide)["structure"]
    found = {
        key_of_structure(one): float((one["structure"][0] @ first) * (one["structure"][1] @ second))
        for one in all_structures(coupled_space())
    }
    error = distance(found, enumerated)
    print("largest error of the factorised relaxed p(Γ | D):", round(error, 3))
    assert error > 0.1


def test_errors_say_what_to_do(regression, exact, coupled):
    x, y = regression
    model = build()
    guide = guides.MeanField(model)
    tempered = build(complexity=0.5)
    with pytest.raises(ValueError, match="complexity: expected λ = 1"):
        weigh(tempered, guides.MeanField(tempered), regression)
    with pytest.raises(ValueError, match="data: expected all data, each counted once"):
        weigh(build(num_data=60), guide, regression)
    with pytest.raises(ValueError, match=r"laws with a density, got points at \['weights'\]"):
        weigh(model, guides.PointMass(model), regression, draws=3)
    with pytest.raises(ValueError, match="guide: expected the model's latent sites"):
        weigh(model, lambda x, y: None, regression)
    with pytest.raises(ValueError, match="draws: expected an integer of at least 2"):
        weigh(model, guide, regression, draws=1)
    impossible = torch.zeros(4, N)
    impossible[0, 2] = -torch.inf
    with pytest.raises(ValueError, match=r"weighted: expected draws with p\(y_i"):
        leave_one_out(importance.WeightedDraws({}, impossible.sum(1), impossible))
    with pytest.raises(TypeError, match="guide: expected a Pyro guide"):
        weigh(model, None, regression)
    with pytest.raises(ValueError, match="y: expected shape"):
        weigh(model, guide, (x, y[:, 0]))
    nowhere = dist.Delta(torch.tensor(torch.nan)).expand([D]).to_event(1)
    with pytest.raises(ValueError, match="some have a density under the model"):
        weigh(model, lambda x, y: pyro.sample("weights", nowhere), regression, draws=3)
    few = weigh(model, wide(exact, 1.0), regression, draws=10)
    with pytest.raises(ValueError, match="particles: expected at most half of the 10 draws, got 6"):
        few.bound(6)
    with pytest.raises(ValueError, match="structure sites at vertices"):
        structure_probabilities(few)
    relaxed = coupled_model(structures.gumbel_softmax())
    with pytest.raises(ValueError, match="structure sites at vertices"):
        structure_probabilities(weigh(relaxed, guides.MeanField(relaxed), coupled, draws=3))

    def together(x, y):
        w = pyro.sample("weights", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y[:, 0])

    with pytest.raises(ValueError, match="one log-probability a datum"):
        leave_one_out(weigh(together, wide(exact, 1.0), regression, draws=10))
