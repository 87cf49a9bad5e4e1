"""Laplace's evidence against closed forms of linear-Gaussian models, and quadrature beside its known error.

y ~ N(Xw, s²I), w ~ N(0, τ²I), G = XᵀX/s²: m(λ) = (G + λ/τ²)⁻¹ Xᵀy/s², Σ(λ) = λ (G + λ/τ²)⁻¹, and
max_q 𝔏(λ) = λ log ∫ N(y; Xw, s²I)^{1/λ} p(w) dw.
"""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions.transforms import ExpTransform
from torch.func import jacrev

from pyro_nas import Evidence, Space, draw
from pyro_nas.inference import adam, laplace_approximation, svi
from pyro_nas.models import Model, guides, likelihoods, priors, structures
from pyro_nas.reading.posterior import mean_draw

N, D, NOISE, PRIOR = 60, 4, 0.7, 0.8


@pytest.fixture
def data():
    x = torch.randn(N, D) @ torch.randn(D, D)
    return x.double(), (x @ torch.randn(D, 1) + NOISE * torch.randn(N, 1)).double()


def build(complexity=1.0, weights=None, inputs=D, likelihood=None):
    space = Space({(0, 1): {"linear": partial(nn.Linear, inputs, 1, bias=False)}})
    likelihood = likelihood or likelihoods.gaussian(NOISE, learn=False)
    weights = weights or priors.normal(PRIOR)
    return Model(space, num_data=N, weights=weights, likelihood=likelihood, complexity=complexity).double()


def gaussian_evidence(x, y, prior=PRIOR, noise=NOISE):
    """Return log N(y; 0, s²I + τ²XXᵀ)."""
    covariance = noise**2 * torch.eye(len(y)).to(x) + prior**2 * x @ x.T
    return float(dist.MultivariateNormal(torch.zeros(len(y)).to(x), covariance).log_prob(y[:, 0]))


def generalised_evidence(x, y, complexity):
    """Return max_q 𝔏(λ): N(y; Xw, s²)^{1/λ} is N(y; Xw, λs²) times a constant."""
    constant = 0.5 * len(y) * math.log(2 * math.pi * complexity * NOISE**2)
    constant -= 0.5 * len(y) / complexity * math.log(2 * math.pi * NOISE**2)
    return complexity * (gaussian_evidence(x, y, noise=complexity**0.5 * NOISE) + constant)


def posterior(x, y, complexity):
    precision = x.T @ x / NOISE**2 + complexity / PRIOR**2 * torch.eye(D).double()
    return torch.linalg.solve(precision, x.T @ y / NOISE**2)[:, 0], precision


def check_linear(data, true_data, complexity, curvature="full"):
    found = laplace_approximation.fit(build(complexity), data, curvature=curvature)
    assert found.evidence == pytest.approx(generalised_evidence(*true_data, complexity), abs=1e-3)
    mean, precision = posterior(*true_data, complexity)
    law = found.posterior.get_posterior()
    assert torch.allclose(law.mean, mean, atol=1e-5)
    assert torch.allclose(law.covariance_matrix, complexity * torch.linalg.inv(precision), atol=1e-5)


@pytest.mark.parametrize("complexity", [0.1, 1.0, 10.0])
def test_the_evidence_and_the_posterior_of_a_linear_gaussian_model_are_exact(data, complexity):
    check_linear(data, data, complexity)


@pytest.mark.parametrize("complexity", [1.0, 10.0])
@pytest.mark.parametrize("wrong", ["diagonal", "sign", "labels", "curvature of the likelihood alone"])
def test_wrong_variants_are_not(data, complexity, wrong, monkeypatch):
    given = data
    if wrong == "sign":
        right = laplace_approximation._log_determinant
        monkeypatch.setattr(laplace_approximation, "_log_determinant", lambda *args: -right(*args))
    elif wrong == "labels":
        given = (data[0], data[1].roll(7, 0))
    elif wrong == "curvature of the likelihood alone":
        right_hessian = laplace_approximation._hessian
        prior = complexity / PRIOR**2 * torch.eye(D).double()
        monkeypatch.setattr(laplace_approximation, "_hessian", lambda *args: right_hessian(*args) - prior)
    with pytest.raises(AssertionError):
        check_linear(given, data, complexity, "diagonal" if wrong == "diagonal" else "full")


@pytest.mark.parametrize("complexity", [1.0, 10.0])
def test_the_diagonal_has_its_own_closed_form(data, complexity):
    """It lacks λ/2 [Σ log A_jj − log det A], A = G + λT, as the mean field does."""
    found = laplace_approximation.fit(build(complexity), data, curvature="diagonal")
    mean, precision = posterior(*data, complexity)
    gap = 0.5 * complexity * float(precision.diagonal().log().sum() - torch.logdet(precision))
    assert gap > 0.3
    assert found.evidence == pytest.approx(generalised_evidence(*data, complexity) - gap, abs=1e-3)
    law = found.posterior.get_posterior()
    assert torch.allclose(law.mean, mean, atol=1e-5)
    assert torch.allclose(law.variance, complexity / precision.diagonal(), atol=1e-5)


def test_single_precision_is_enough_for_a_model_of_good_condition(data):
    found = laplace_approximation.fit(build().float(), (data[0].float(), data[1].float()))
    assert found.evidence == pytest.approx(gaussian_evidence(*data), abs=1e-3)
    assert draw(found.posterior, num_samples=2)["weights"].dtype == torch.float


def test_the_evidence_of_the_guide_does_not_depend_on_its_draw(data):
    """With the posterior itself as guide every draw of log p(D, w) − log q(w) is log p(D)."""
    for curvature, exact in {"full": True, "diagonal": False}.items():
        model = build()
        found = laplace_approximation.fit(model, data, curvature=curvature)
        evidence = Evidence(model, found.posterior)
        draws = torch.stack([evidence(*data).evidence.detach() for _ in range(20)])
        assert bool(((draws - found.evidence).abs() < 1e-3).all()) == exact


def test_the_likelihood_is_that_of_the_mode(data):
    x, y = data
    mean, _ = posterior(x, y, 1.0)
    expected = float(dist.Normal((x @ mean)[:, None], NOISE).log_prob(y).sum())
    assert laplace_approximation.fit(build(), data).records[0]["log_likelihood"] == pytest.approx(expected, abs=1e-4)


# Logistic regression


def logistic_data(count):
    x = torch.randn(count, 2).double()
    return x, (x @ torch.tensor([[1.0], [-0.5]]).double() + 0.5 > torch.rand(count, 1).logit()).double()


def by_quadrature(log_joint, size=2, width=6.0, points=241):
    """Return log ∫ exp log_joint(w) dw on a grid; ``log_joint`` maps (points, size) to (points,)."""
    line = torch.linspace(-width, width, points).double()
    grid = torch.cartesian_prod(*[line] * size).view(-1, size)
    values = torch.cat([log_joint(part) for part in grid.split(10_000)])
    return float(values.logsumexp(0)) + size * math.log(line[1] - line[0])


def second_order(negative, mode):
    """Return what the next term of the expansion adds to log evidence (Shun and McCullagh 1995, eq. 2.3)."""
    derivatives = [negative]
    for _ in range(4):
        derivatives.append(jacrev(derivatives[-1]))
    second, third, fourth = (derivative(mode) for derivative in derivatives[2:])
    covariance = torch.linalg.inv(second)
    pairs = torch.einsum("ijk,lmn,ij,kl,mn->", third, third, *[covariance] * 3) / 8
    crossed = torch.einsum("ijk,lmn,il,jm,kn->", third, third, *[covariance] * 3) / 12
    return float(pairs + crossed - torch.einsum("ijkl,ij,kl->", fourth, covariance, covariance) / 8)


def check_logistic(count):
    """The error is that of the next term of the expansion, and not of its own size but for the terms after it."""
    x, y = logistic_data(count)
    model = build(weights=priors.normal(1.0), inputs=2, likelihood=likelihoods.bernoulli())
    model.num_data = count
    found = laplace_approximation.fit(model, (x, y))

    def log_joint(w):
        likelihood = dist.Bernoulli(logits=w @ x.T).log_prob(y[:, 0]).sum(-1)
        return likelihood + dist.Normal(0.0, 1.0).log_prob(w).sum(-1)

    exact = by_quadrature(log_joint)
    assert exact == pytest.approx(by_quadrature(log_joint, points=201), abs=1e-5)
    with pyro.validation_enabled(False):
        error = second_order(lambda w: -log_joint(w), found.posterior.loc.detach())
    assert 0.002 < abs(error) < 0.1  # an error there is
    assert found.evidence + error == pytest.approx(exact, abs=0.15 * abs(error))
    return exact - found.evidence


def test_logistic_regression_is_off_by_the_next_term_of_the_expansion():
    errors = [check_logistic(count) for count in (30, 300)]
    assert abs(errors[1]) < 0.3 * abs(errors[0])  # of order 1/N


@pytest.mark.parametrize("wrong", ["sign", "half"])
def test_wrong_logistic_evidence_is_off_by_more(wrong, monkeypatch):
    right, factor = laplace_approximation._log_determinant, {"sign": -1.0, "half": 2.0}[wrong]
    monkeypatch.setattr(laplace_approximation, "_log_determinant", lambda *args: factor * right(*args))
    with pytest.raises(AssertionError):
        check_logistic(30)


# Any Pyro callable


def scale_model(x, y):
    """log y ~ N(log s + x, 0.3²), log s ~ N(0.2, 0.5²): linear-Gaussian in log s."""
    s = pyro.sample("s", dist.LogNormal(torch.tensor(0.2).double(), 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.LogNormal(s.log() + x, 0.3), obs=y)


def check_scale():
    x = torch.randn(12).double()
    y = (x + 0.7 + 0.3 * torch.randn(12).double()).exp()
    covariance = 0.3**2 * torch.eye(12).double() + 0.5**2
    exact = dist.MultivariateNormal(0.2 + x, covariance).log_prob(y.log()) - y.log().sum()
    found = laplace_approximation.fit(scale_model, (x, y))
    assert found.evidence == pytest.approx(float(exact), abs=1e-3)
    assert draw(found.posterior, x, y, num_samples=50)["s"].min() > 0


def test_a_positive_site_is_approximated_in_its_logarithm():
    check_scale()


def test_without_the_jacobian_it_is_another_number(monkeypatch):
    class Flat(ExpTransform):
        def log_abs_det_jacobian(self, x, y):
            return torch.zeros_like(x)

    monkeypatch.setattr(laplace_approximation, "biject_to", lambda support: Flat())
    with pytest.raises(AssertionError):
        check_scale()


def two_modes(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w.square(), 0.2), obs=y)


def test_the_start_chooses_the_mode_and_the_evidence_is_of_one_mode():
    x, y = torch.zeros(8).double(), 1.0 + 0.2 * torch.randn(8).double()
    exact = by_quadrature(
        lambda w: dist.Normal(w.square(), 0.2).log_prob(y).sum(-1) + dist.Normal(0.0, 1.0).log_prob(w)[:, 0], size=1
    )
    for sign in (1.0, -1.0):
        found = laplace_approximation.fit(two_modes, (x, y), start={"w": sign * torch.ones(1, 1).double()})
        assert sign * float(found.posterior.median()["w"]) > 0.8
        assert found.evidence + math.log(2) == pytest.approx(exact, abs=0.01)


def test_a_fitted_point_guide_gives_the_start():
    """The fit of a network lies below a mode, and in its reach; a start that was not fitted lies far below."""
    space = Space(
        {(0, 1): {"tanh": lambda: nn.Sequential(nn.Linear(1, 3), nn.Tanh())}, (1, 2): {"out": partial(nn.Linear, 3, 1)}}
    )
    model = Model(space, num_data=30, likelihood=likelihoods.gaussian(0.3, learn=False)).double()
    x = torch.linspace(-2, 2, 30).double()[:, None]
    y = x.sin() + 0.3 * torch.randn(30, 1).double()
    guide = guides.PointMass(model)
    svi.fit(model, guide, (x, y), epochs=400, batch_size=30, optimizer=adam(0.03))
    start = mean_draw(guide)
    found = laplace_approximation.fit(model, (x, y), start=start)

    def log_joint(weights):
        return float(poutine.trace(poutine.condition(model, {"weights": weights})).get_trace(x, y).log_prob_sum())

    mode = log_joint(found.posterior.median()["weights"])
    assert 0 <= mode - log_joint(start["weights"][0]) < 0.5
    assert mode - log_joint(mean_draw(guides.PointMass(model))["weights"][0]) > 5
    again = laplace_approximation.fit(model, (x, y), start={"weights": found.posterior.median()["weights"][None]})
    assert again.evidence == pytest.approx(found.evidence, abs=1e-5)


def test_a_laplace_prior_is_approximated_away_from_its_kink(data):
    x, y = data[0][:, :2], data[1]
    found = laplace_approximation.fit(build(weights=priors.laplace(1.0), inputs=2), (x, y))

    def log_joint(w):
        return dist.Normal(w @ x.T, NOISE).log_prob(y[:, 0]).sum(-1) + dist.Laplace(0.0, 1.0).log_prob(w).sum(-1)

    exact = by_quadrature(log_joint, width=4.0)
    assert found.evidence == pytest.approx(exact, abs=0.01)
    assert gaussian_evidence(x, y, prior=2**0.5) != pytest.approx(exact, abs=0.01)  # the normal prior of its variance


# Structure

EDGES = {(0, 1): {"all": partial(nn.Linear, 2, 1, bias=False), "half": partial(nn.Linear, 2, 1, bias=False)}}


def test_conditioned_structures_count_with_their_probability(data):
    """Σ_Γ p(D, Γ) over one-hot and all other vertices of a space is log p(D)."""
    x, y = data[0][:, :2], data[1]
    space = Space(EDGES, restriction="cube vertices")
    model = Model(
        space,
        num_data=N,
        weights=priors.normal(PRIOR),
        structure=structures.bernoulli([0.3, 0.6]),
        likelihood=likelihoods.gaussian(NOISE, learn=False),
    ).double()
    for on in itertools.product((0.0, 1.0), repeat=2):
        gamma = torch.tensor([on]).double()
        found = laplace_approximation.fit(poutine.condition(model, {"structure": gamma}), (x, y))
        probability = math.prod(p if one else 1 - p for p, one in zip((0.3, 0.6), on, strict=True))
        exact = gaussian_evidence(x, y, prior=PRIOR * sum(on) ** 0.5)
        assert found.evidence == pytest.approx(exact + math.log(probability), abs=1e-3)
        assert found.evidence != pytest.approx(exact, abs=0.1)


# Errors


def scaled_apart(x, y):
    with poutine.scale(scale=2.0):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a + b, 1.0).expand(y.shape).to_event(2), obs=y)


def discrete(x, y):
    a = pyro.sample("a", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(a, 1.0).expand(y.shape).to_event(2), obs=y)


def saddle(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(w.prod(), 0.1).expand(y.shape).to_event(2), obs=torch.ones_like(y))


def infinite(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("nothing", w * math.inf)


def test_bad_input_is_named(data):
    choice = Space({(0, 1): {"a": partial(nn.Linear, D, 1), "b": partial(nn.Linear, D, 1)}})
    searched = Model(choice, num_data=N, likelihood=likelihoods.gaussian(NOISE)).double()
    complexity = build(priors.log_uniform(0.1, 1.0))
    no_information = (torch.zeros_like(data[0]), torch.zeros_like(data[1]))
    calls = {
        r"model: expected real latent sites.*\['structure'\].*Derive": lambda: laplace_approximation.fit(
            searched, data
        ),
        r"model: expected real latent sites.*\['complexity'\].*number": lambda: laplace_approximation.fit(
            complexity, data
        ),
        r"model: expected real latent sites.*\['a'\]": lambda: laplace_approximation.fit(discrete, data),
        r"model: expected real latent sites alone, got \[\]": lambda: laplace_approximation.fit(
            lambda x, y: None, data
        ),
        r"model: expected latent sites of one λ, got scales \[1.0, 2.0\]": lambda: laplace_approximation.fit(
            scaled_apart, data
        ),
        "model: expected a finite": lambda: laplace_approximation.fit(infinite, data),
        "model: expected a Pyro model": lambda: laplace_approximation.fit(1, data),
        "curvature: expected one of.*Did you mean 'full'": lambda: laplace_approximation.fit(
            build(), data, curvature="fulll"
        ),
        "curvature: expected a positive definite.*from -": lambda: laplace_approximation.fit(
            saddle, data, start={"w": torch.zeros(1, 2).double()}
        ),
        "steps: expected an integer": lambda: laplace_approximation.fit(build(), data, steps=0),
        "steps: expected a mode after them, got a point": lambda: laplace_approximation.fit(build(), data, steps=1),
        "steps: expected a mode.*smooth": lambda: laplace_approximation.fit(
            build(weights=priors.laplace(1e-3)), (data[0], data[1].roll(9, 0)), steps=50
        ),
        "start: expected one draw": lambda: laplace_approximation.fit(build(), data, start={"w": torch.zeros(1, D)}),
        r"start: expected one draw.*\(2, 4\)": lambda: laplace_approximation.fit(
            build(), data, start={"weights": torch.zeros(2, D)}
        ),
        "train x: expected finite": lambda: laplace_approximation.fit(build(), (data[0] / 0, data[1])),
        "y: expected shape": lambda: laplace_approximation.fit(build(), (data[0], data[1].expand(-1, 2))),
        "seed: expected": lambda: laplace_approximation.fit(build(), data, seed=-1),
    }
    laplace_approximation.fit(build(), no_information)  # the prior alone
    for message, call in calls.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_the_random_state_and_the_mode_of_the_model_are_left_alone(data):
    model, before = build().train(), torch.get_rng_state()
    one, other = (laplace_approximation.fit(model, data, seed=seed).evidence for seed in (0, 0))
    assert one == other
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
