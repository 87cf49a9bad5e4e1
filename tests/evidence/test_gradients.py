"""Gradients of the evidence are unbiased: z-tests of their means against quadrature, enumeration and closed forms."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from pyro_nas import Evidence, Space, Terms
from pyro_nas.evidence.effects import LocalReparameterization
from pyro_nas.models import Model, guides, likelihoods, priors, structures

NOISE, COMPLEXITY, DRAWS = 0.6, 3.0, 2500


class Affine(nn.Module):
    """x ↦ a x + b, without parameters."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        return self.a * x + self.b


X = torch.tensor([[-1.0], [0.3], [0.9]])
Y = torch.tensor([[0.2], [1.1], [0.4]])
G = torch.stack([1.5 * X[:, 0] + 0.1, -0.5 * X[:, 0] + 0.9])  # (choice, datum)


def structured(prior, restriction):
    edges = {(0, 1): {"up": partial(Affine, 1.5, 0.1), "down": partial(Affine, -0.5, 0.9)}}
    model = Model(
        Space(edges, restriction=restriction),
        num_data=len(X),
        structure=prior,
        likelihood=likelihoods.gaussian(NOISE, learn=False),
        complexity=COMPLEXITY,
    )
    guide = guides.MeanField(model)
    guide.structure["structure"].data = torch.tensor([[0.4, -0.5]])
    return model, guide


def log_likelihood(gamma):
    """log p(y | γ) for γ of shape (…, 2), double."""
    mean = gamma @ G.to(gamma.dtype)
    constant = len(X) * (math.log(NOISE) + 0.5 * math.log(2 * math.pi))
    return -0.5 * (Y[:, 0] - mean).square().sum(-1) / NOISE**2 - constant


def sampled(model, guide, parameter, x=X, y=Y, local=False, draws=DRAWS):
    evidence = Evidence(model, guide)
    result = []
    for _ in range(draws):
        if local:
            with LocalReparameterization():
                terms = evidence(x, y)
        else:
            terms = evidence(x, y)
        result.append(torch.autograd.grad(terms.surrogate, parameter)[0].flatten())
    return torch.stack(result).double()


def unbiased(draws, exact):
    error = draws.std(0) / math.sqrt(len(draws))
    return bool(((draws.mean(0) - exact.flatten()).abs() < 4.5 * error + 1e-6).all())


GRID = torch.linspace(-40, 40, 160_001, dtype=torch.double)
LOGISTIC = torch.nn.functional.logsigmoid(GRID) + torch.nn.functional.logsigmoid(-GRID)


def over_logistic(function):
    """E f(L), L standard logistic, by the trapezoidal rule."""
    return (LOGISTIC.exp() * function(GRID)).sum() * (GRID[1] - GRID[0])


def exact_gradient(model, expectation):
    """∇ (E log-likelihood − λ KL) with the exact expectation; tests of the divergence are elsewhere."""
    logits = torch.tensor([[0.4, -0.5]], dtype=torch.double, requires_grad=True)
    divergence = torch.distributions.kl_divergence(
        model.structure_law("structure", logits), model.structure_law("structure")
    )
    value = expectation(logits[0]) - COMPLEXITY * divergence.sum()
    return torch.autograd.grad(value, logits)[0]


def gumbel_softmax(logits):
    def at(u):
        first = torch.sigmoid((logits[0] - logits[1] + u) / 0.5)
        return log_likelihood(torch.stack([first, 1 - first], -1))

    return over_logistic(at)


def straight_through(logits):
    """The pathwise gradient of the hard draw by its definition: of the primitive that ran, through the soft draw."""
    soft = torch.sigmoid((logits[0] - logits[1] + GRID) / 0.5)
    soft = torch.stack([soft, 1 - soft], -1)
    hard = torch.nn.functional.one_hot(soft.argmax(-1), 2).double()
    slope = torch.func.vmap(torch.func.grad(log_likelihood))(hard) * hard
    return ((slope * soft).sum(-1) * LOGISTIC.exp()).sum() * (GRID[1] - GRID[0])


def dirichlet(logits):
    u = torch.linspace(-60, 60, 160_001, dtype=torch.double)  # γ = σ(u)
    log_gamma, log_rest = torch.nn.functional.logsigmoid(u), torch.nn.functional.logsigmoid(-u)
    a, b = logits.exp()
    log_density = a * log_gamma + b * log_rest - (torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b))
    gamma = torch.stack([log_gamma.exp(), log_rest.exp()], -1)
    return (log_density.exp() * log_likelihood(gamma)).sum() * (u[1] - u[0])


def categorical(logits):
    return (logits.softmax(-1) * log_likelihood(torch.eye(2).double())).sum()


def bernoulli(logits):
    bits = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0)).double()
    p = logits.sigmoid()
    return ((bits * p + (1 - bits) * (1 - p)).prod(-1) * log_likelihood(bits)).sum()


def relaxed_bernoulli(logits):
    grid = torch.linspace(-30, 30, 1501, dtype=torch.double)
    density = (torch.nn.functional.logsigmoid(grid) + torch.nn.functional.logsigmoid(-grid)).exp() * (grid[1] - grid[0])
    first, second = (torch.sigmoid((logit + grid) / 0.5) for logit in logits)
    gamma = torch.stack(torch.broadcast_tensors(first[:, None], second[None]), -1)
    return (density[:, None] * density[None] * log_likelihood(gamma)).sum()


CASES = {
    "gumbel_softmax": (structures.gumbel_softmax(0.5, [0.3, 0.7]), gumbel_softmax),
    "straight_through": (structures.straight_through(0.5, [0.3, 0.7]), straight_through),
    "dirichlet": (structures.dirichlet(1.0, [0.3, 0.7]), dirichlet),
    "categorical": (structures.categorical([0.3, 0.7]), categorical),
    "relaxed_bernoulli": (structures.relaxed_bernoulli(0.5, [0.3, 0.7]), relaxed_bernoulli),
    "bernoulli": (structures.bernoulli([0.3, 0.7]), bernoulli),
}


LATER = ("bernoulli", "dirichlet", "straight_through")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LATER)) for n in CASES])
def test_structure_gradients_are_unbiased(name, monkeypatch):
    prior, expectation = CASES[name]
    model, guide = structured(prior, "cube" if "cube" in prior.restriction else "simplex")
    exact = exact_gradient(model, expectation)
    parameter = guide.structure["structure"]
    assert unbiased(sampled(model, guide, parameter), exact)
    assert not unbiased(sampled(model, guide, parameter, y=Y.flip(0)), exact)  # shuffled labels
    with monkeypatch.context() as patch:  # the weight λ missing
        patch.setattr(Terms, "evidence", property(lambda t: t.log_likelihood - sum(t.divergence.values())))
        assert not unbiased(sampled(model, guide, parameter), exact)
    monkeypatch.setattr(Terms, "evidence", property(lambda t: t.log_likelihood + sum(t.penalty.values())))  # a sign
    assert not unbiased(sampled(model, guide, parameter), exact)


@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_enumeration_is_exact(name):
    prior, expectation = CASES[name]
    model, guide = structured(prior, "cube" if "cube" in prior.restriction else "simplex")
    terms = Evidence(model, guide, enumerate_discrete=True)(X, Y)
    (gradient,) = torch.autograd.grad(terms.surrogate, guide.structure["structure"])
    assert torch.allclose(gradient.double(), exact_gradient(model, expectation), atol=1e-4)


def test_straight_through_is_biased_for_the_discrete_evidence_and_categorical_is_not():
    """Why there are both: exact numbers, no sampling."""
    model, _ = structured(CASES["straight_through"][0], "simplex")
    by_definition = exact_gradient(model, straight_through)
    discrete = exact_gradient(model, categorical)
    assert (by_definition - discrete).abs().max() > 0.1


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("wrong", [None, "labels", "scale", "sign"])
def test_weight_gradients_are_unbiased(local, wrong, monkeypatch):
    x, y = torch.randn(6, 2), torch.randn(6, 1)
    model = Model(
        Space({(0, 1): {"linear": partial(nn.Linear, 2, 1)}}),
        num_data=6,
        weights=priors.normal(0.8),
        likelihood=likelihoods.gaussian(NOISE, learn=False),
        complexity=COMPLEXITY,
    )
    guide = guides.MeanField(model, initial_scale=0.4)
    loc, log_scale = (p["weights"].detach().double().requires_grad_() for p in (guide.loc, guide.log_scale))
    design = torch.cat([x, torch.ones(6, 1)], 1).double()
    residual = (y.double() - design @ loc[:, None]).square().sum() + (design.square() @ (2 * log_scale).exp()).sum()
    kl = (0.5 * ((2 * log_scale).exp() + loc**2) / 0.64 - log_scale).sum()
    exact = torch.cat(torch.autograd.grad(-0.5 * residual / NOISE**2 - COMPLEXITY * kl, (loc, log_scale)))
    if wrong == "scale":
        monkeypatch.setattr(Terms, "evidence", property(lambda t: t.log_likelihood - sum(t.divergence.values())))
    if wrong == "sign":
        monkeypatch.setattr(Terms, "evidence", property(lambda t: t.log_likelihood + sum(t.penalty.values())))
    if wrong == "labels":
        y = y.roll(1, 0)
    evidence, result = Evidence(model, guide), []
    for _ in range(2500):
        if local:
            with LocalReparameterization():
                terms = evidence(x, y)
        else:
            terms = evidence(x, y)
        result.append(
            torch.cat(torch.autograd.grad(terms.surrogate, (guide.loc["weights"], guide.log_scale["weights"])))
        )
    assert unbiased(torch.stack(result).double(), exact) == (wrong is None)


def test_local_reparameterization_lowers_the_variance_of_the_gradient():
    x, y = torch.randn(64, 10), torch.randn(64, 1)
    model = Model(
        Space({(0, 1): {"linear": partial(nn.Linear, 10, 1)}}),
        num_data=64,
        likelihood=likelihoods.gaussian(NOISE, learn=False),
    )
    guide = guides.MeanField(model, initial_scale=0.5)
    plain, local = (
        sampled(model, guide, guide.loc["weights"], x, y, local=flag, draws=300).var(0).sum() for flag in (False, True)
    )
    assert local < 0.3 * plain
