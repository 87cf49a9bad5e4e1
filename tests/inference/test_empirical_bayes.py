"""Two-level inference: scales learned by maximum evidence against the maximisers of closed forms.

y ~ N(Xw, s²I), w ~ N(0, τ²): with a full covariance 𝔏 is log N(y; 0, s²I + τ²ᵀ), with a mean-field guide its best
mean-field value. With orthogonal columns, G = XᵀX/s² and z_j = (Xᵀy/s²)_j / √G, the best scale of a group of weights
is τ² = max(0, mean z² − 1) / G.
"""

import math
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy.optimize import minimize_scalar
from torch import nn

from pyro_nas import Space
from pyro_nas.evidence.packing import Packing
from pyro_nas.graph.primitives import skip
from pyro_nas.inference import adam, empirical_bayes, one_cycle, svi
from pyro_nas.models import Model, guides, likelihoods
from pyro_nas.models.learned_priors import learned_normal
from pyro_nas.reading.conjugate import LinearRegression

N, D, NOISE = 30, 6, 1.0
OPTIONS = {"batch_size": 60, "optimizer": adam(0.05, betas=(0.9, 0.99)), "scheduler": one_cycle(0.05, pct_start=0.1)}
GUIDES = {
    "mean field": (partial(guides.MeanField, initial_scale=0.3), {"local_reparameterization": True}),
    "full": (
        partial(guides.LowRankNormal, rank=D, initial_scale=0.3),
        {"particles": 6, "vectorize_particles": True},
    ),
}
KNOWN = {"mean field": "mean_field_evidence", "full": "log_evidence"}
PROCEDURES = {"alternating": empirical_bayes.fit, "gradient": svi.fit}


@pytest.fixture(scope="module")
def correlated():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(N, D, generator=generator) @ torch.randn(D, D, generator=generator) / D**0.5
    return x, x @ (0.8 * torch.randn(D, 1, generator=generator)) + NOISE * torch.randn(N, 1, generator=generator)


def linear(x, **prior):
    space = Space({(0, 1): {"linear": partial(nn.Linear, x.shape[1], 1, bias=False)}})
    likelihood = likelihoods.gaussian(NOISE, learn=False)
    return Model(space, num_data=len(x), weights=learned_normal(**prior), likelihood=likelihood)


def best_scale(x, y, value):
    """Return the maximiser over τ of a property of the exact regression."""

    def loss(log_scale):
        return -getattr(LinearRegression(x, y[:, 0], NOISE, math.exp(log_scale)), value)

    return math.exp(minimize_scalar(loss, bounds=(-4, 3), method="bounded").x)


def learned_scale(data, guide, procedure):
    model = linear(data[0])
    make, options = GUIDES[guide]
    PROCEDURES[procedure](model, make(model), data, epochs=400, **OPTIONS, **options)
    return model.weights.log_scale.detach().exp().item()


def check_scale(data, guide, procedure):
    assert learned_scale(data, guide, procedure) == pytest.approx(best_scale(*data, KNOWN[guide]), rel=0.03)


@pytest.mark.parametrize("procedure", PROCEDURES)
@pytest.mark.parametrize("guide", GUIDES)
def test_one_scale_is_the_maximiser_of_the_closed_form(correlated, guide, procedure):
    best = {name: best_scale(*correlated, value) for name, value in KNOWN.items()}
    assert abs(best["full"] / best["mean field"] - 1) > 0.1  # to be told apart
    check_scale(correlated, guide, procedure)


def test_an_update_without_the_variances_misses_it(correlated, monkeypatch):
    def means_only(prior, guide, args):
        return guide.loc["weights"].detach().square()

    monkeypatch.setattr(empirical_bayes, "_second_moment", means_only)
    with pytest.raises(AssertionError):
        check_scale(correlated, "mean field", "alternating")


def climb(x, y, prior, variances=True, updates=300):
    """Alternate the exact posterior and the update; return log evidence before each update."""
    path = []
    for _ in range(updates):
        exact = LinearRegression(x, y[:, 0], NOISE, torch.cat([s.flatten() for s in prior.scales().values()]))
        path.append(exact.log_evidence)
        prior.maximize(exact.posterior.mean.square() + variances * exact.posterior.variance)
    return path


def slope(x, y, prior, step=1e-3):
    """Return d log evidence / d log s of each group, by central differences."""
    slopes = []
    for group in range(len(prior.log_scale)):
        values = []
        for sign in (1, -1):
            log_scale = prior.log_scale.detach().double().clone()
            log_scale[group] += sign * step
            values.append(LinearRegression(x, y[:, 0], NOISE, log_scale.exp()[prior.group]).log_evidence)
        slopes.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(slopes)


@pytest.mark.parametrize("per", ["all", "tensor", "input", "weight"])
def test_updates_under_the_exact_posterior_climb_to_a_stationary_evidence(correlated, per):
    prior = linear(correlated[0], per=per).weights
    path = climb(*correlated, prior)
    assert all(later >= earlier - 1e-5 for earlier, later in pairwise(path))
    assert slope(*correlated, prior).abs().max() < 0.02
    wrong = linear(correlated[0], per=per).weights
    climb(*correlated, wrong, variances=False, updates=4)
    assert slope(*correlated, wrong).abs().max() > 0.1


@pytest.fixture(scope="module")
def planted():
    """Sixty points whose six inputs are orthogonal; the last three are irrelevant."""
    generator = torch.Generator().manual_seed(2)
    x = torch.linalg.qr(torch.randn(60, 6, generator=generator))[0] * 60**0.5
    w = torch.tensor([[2.0], [-1.5], [1.0], [0.0], [0.0], [0.0]])
    return x, x @ w + NOISE * torch.randn(60, 1, generator=generator)


def z_squares(x, y):
    return (x.T @ y)[:, 0].square() / (60 * NOISE**2)


def learned_scales(model, data, procedure):
    guide = guides.MeanField(model, initial_scale=0.3)
    PROCEDURES[procedure](model, guide, data, epochs=400, local_reparameterization=True, **OPTIONS)
    return torch.cat([scale.flatten() for scale in model.weights.scales().values()])


def check_scales(found, best):
    """Compare τ² in units of 1/G; towards 0 it goes as 1/updates, hence the absolute part."""
    information = 60 / NOISE**2
    assert torch.allclose(found.square() * information, best, rtol=0.08, atol=0.3)
    assert found[3:].max() < 0.3 * found[:3].min()


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_relevance_determination_finds_the_irrelevant_inputs(planted, procedure):
    found = learned_scales(linear(planted[0], per="weight"), planted, procedure)
    check_scales(found, (z_squares(*planted) - 1).clamp_min(0))


def test_relevance_determination_needs_the_right_labels(planted):
    x, y = planted
    found = learned_scales(linear(x, per="weight"), (x, y.roll(7, 0)), "alternating")
    with pytest.raises(AssertionError):
        check_scales(found, (z_squares(x, y) - 1).clamp_min(0))


class Columns(nn.Linear):
    """A linear map of three columns."""

    def __init__(self, start):
        super().__init__(3, 1, bias=False)
        self.start = start

    def forward(self, x):
        return super().forward(x[:, self.start : self.start + 3])


def two_primitives(per):
    edges = {
        (0, 1): {"needed": partial(Columns, 0)},
        (0, 2): {"not needed": partial(Columns, 3)},
        (1, 3): {"skip": skip()},
        (2, 3): {"skip": skip()},
    }
    likelihood = likelihoods.gaussian(NOISE, learn=False)
    return Model(Space(edges), num_data=60, weights=learned_normal(per=per), likelihood=likelihood)


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_a_primitive_that_the_data_do_not_need_gets_a_small_scale(planted, procedure):
    means = z_squares(*planted).view(2, 3).mean(1).repeat_interleave(3)
    check_scales(learned_scales(two_primitives("primitive"), planted, procedure), (means - 1).clamp_min(0))


def test_one_scale_for_all_primitives_tells_none_apart(planted):
    means = z_squares(*planted).view(2, 3).mean(1).repeat_interleave(3)
    with pytest.raises(AssertionError):
        check_scales(learned_scales(two_primitives("all"), planted, "alternating"), (means - 1).clamp_min(0))


class ByHand(nn.Module):
    """A model that a user might write, with a prior of ours in it."""

    def __init__(self, size):
        super().__init__()
        self.prior = learned_normal()(Packing({"w": torch.Size([1, size])}))

    def forward(self, x, y=None):
        mean = nn.functional.linear(x, self.prior()["w"])[:, 0]
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, NOISE), obs=None if y is None else y[:, 0])


class GuideByHand(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.full((size,), -1.0))

    def forward(self, x=None, y=None):
        return pyro.sample("weights", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))


def test_model_and_guide_by_hand(correlated):
    model = ByHand(D)
    empirical_bayes.fit(model, GuideByHand(D), correlated, epochs=400, local_reparameterization=True, **OPTIONS)
    best = best_scale(*correlated, KNOWN["mean field"])
    assert model.prior.log_scale.exp().item() == pytest.approx(best, rel=0.03)


def test_the_first_level_leaves_the_scales_alone(correlated):
    model = linear(correlated[0], scale=0.9)
    stops = [lambda record: record["epoch"] == 2]
    records = empirical_bayes.fit(
        model, guides.MeanField(model), correlated, epochs=4, every=4, callbacks=stops
    ).records
    assert len(records) == 3
    assert model.weights.log_scale.exp().item() == pytest.approx(0.9)
    empirical_bayes.fit(model, guides.MeanField(model), correlated, epochs=4, every=4)
    assert model.weights.log_scale.exp().item() != pytest.approx(0.9, rel=0.05)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_scales_move_after_every_so_many_epochs_to_their_best_value(correlated, every):
    model = linear(correlated[0], scale=0.9)
    guide, scales, best = guides.MeanField(model), [math.log(0.9)], []

    def look(record):
        scales.append(model.weights.log_scale.item())
        second = guide.loc["weights"].square() + (2 * guide.log_scale["weights"]).exp()
        best.append(0.5 * math.log(second.mean().item()))

    empirical_bayes.fit(model, guide, correlated, epochs=7, every=every, batch_size=10, callbacks=[look])
    for epoch in range(7):
        expected = best[epoch] if (epoch + 1) % every == 0 else scales[epoch]
        assert scales[epoch + 1] == pytest.approx(expected, abs=1e-5)


def test_a_resumed_fit_goes_on_with_its_scales(correlated, tmp_path):
    found = []
    for parts in ([6], [3, 6]):
        torch.manual_seed(0)
        for index, epochs in enumerate(parts):
            model = linear(correlated[0])
            folder = tmp_path / str(len(parts))
            options = {"epochs": epochs, "every": 1, "checkpoint": folder, "resume": index > 0}
            torch.manual_seed(0)
            empirical_bayes.fit(model, guides.MeanField(model), correlated, **options)
        found.append(model.weights.log_scale.item())
    assert found[0] == found[1] != 0.0


def fit(model, guide, **options):
    empirical_bayes.fit(model, guide(model), (torch.ones(4, 2), torch.ones(4, 1)), epochs=1, **options)


BAD = {
    "another prior": (
        lambda: fit(
            Model(Space({(0, 1): {"a": partial(nn.Linear, 2, 1)}}), num_data=4, likelihood=likelihoods.gaussian()),
            guides.MeanField,
        ),
        "model: expected a module with one learned prior, got 0",
    ),
    "a function": (lambda: fit(lambda x, y: None, lambda model: model), "model: expected a module with one learned"),
    "point mass": (lambda: fit(linear(torch.ones(4, 2)), guides.PointMass), "guide: expected a law of the weights"),
    "autoguide": (lambda: fit(linear(torch.ones(4, 2)), AutoNormal), "guide: expected a law of the weights"),
    "every": (lambda: fit(linear(torch.ones(4, 2)), guides.MeanField, every=0), "every: expected an integer"),
    "every above epochs": (
        lambda: fit(linear(torch.ones(4, 2)), guides.MeanField, every=4),
        "every: expected at most as many",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_autoguides_learn_the_scale_by_gradients(correlated):
    model = linear(correlated[0])
    svi.fit(model, AutoNormal(model), correlated, epochs=400, particles=2, **OPTIONS)
    best = best_scale(*correlated, KNOWN["mean field"])
    assert model.weights.log_scale.detach().exp().item() == pytest.approx(best, rel=0.06)
