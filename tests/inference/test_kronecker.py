"""Laplace's evidence by Kronecker factors against closed forms: run where laplace-torch is installed."""

import math
import sys
from functools import partial
from importlib.util import find_spec

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_nas import Evidence, Space, draw
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import kronecker, laplace_approximation
from pyro_nas.models import Model, likelihoods, priors

N, D, NOISE, PRIOR = 40, 3, 0.7, 0.8
installed = pytest.mark.skipif(find_spec("laplace") is None, reason="laplace-torch is an optional extra")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of its import


@pytest.fixture
def data():
    x = torch.randn(N, D) @ torch.randn(D, D)
    return x.double(), (x @ torch.randn(D, 1) + NOISE * torch.randn(N, 1)).double()


def build(complexity=1.0, outputs=1, likelihood=None, **options):
    space = Space({(0, 1): {"linear": partial(nn.Linear, D, outputs, bias=False)}})
    likelihood = likelihood or likelihoods.gaussian(NOISE, learn=False)
    options = {"num_data": N, "weights": priors.normal(PRIOR), **options}
    return Model(space, likelihood=likelihood, complexity=complexity, **options).double()


@installed
@pytest.mark.parametrize("complexity", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("num_data", [N, 4 * N])
def test_the_evidence_of_one_linear_output_is_exact(data, complexity, num_data):
    model = build(complexity, num_data=num_data)
    exact, found = laplace_approximation.fit(model, data), kronecker.fit(model, data)
    assert found.evidence == pytest.approx(exact.evidence, abs=1e-3)
    assert found.records[0]["log_likelihood"] == pytest.approx(exact.records[0]["log_likelihood"], abs=1e-4)
    law, other = exact.posterior.get_posterior(), kronecker.fit(build(2 * complexity), data).posterior.get_posterior()
    assert torch.allclose(found.posterior.get_posterior().variance, law.variance, rtol=1e-3)
    assert not torch.allclose(other.variance, law.variance, rtol=1e-2)  # of another λ
    assert laplace_approximation.fit(model, data, curvature="diagonal").evidence != pytest.approx(
        found.evidence, abs=0.01
    )
    if complexity == 1.0:
        closed = dist.MultivariateNormal(
            torch.zeros(N).double(), NOISE**2 * torch.eye(N).double() + PRIOR**2 * data[0] @ data[0].T
        ).log_prob(data[1][:, 0])
        assert (found.evidence == pytest.approx(float(closed), abs=1e-3)) == (num_data == N)


@installed
@pytest.mark.parametrize("complexity", [1.0, 5.0])
def test_the_factors_of_a_softmax_layer_are_their_closed_form(data, complexity):
    """K = mean(diag p − p pᵀ) ⊗ Σ x xᵀ, and the evidence has log det(K/λ + T)."""
    x, y = data[0], torch.randint(3, (N,))
    model = build(complexity, 3, likelihoods.categorical())
    found = kronecker.fit(model, (x, y))
    weights = found.posterior.median()["weights"].view(3, D)
    p = (x @ weights.T).softmax(-1)
    output = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)

    def precision(*factors):
        return torch.kron(*factors) / complexity + torch.eye(3 * D).double() / PRIOR**2

    def evidence(precision):
        volume = 0.5 * float(3 * D * math.log(2 * math.pi) - torch.logdet(precision))
        prior = float(dist.Normal(0.0, PRIOR).log_prob(weights).sum())
        return float(p[torch.arange(N), y].log().sum()) + complexity * (prior + volume)

    gram = x.T @ x
    dense_precision = found.posterior.get_posterior().precision.to_matrix()
    assert found.evidence == pytest.approx(evidence(precision(output, gram)), abs=1e-3)
    assert torch.allclose(dense_precision, precision(output, gram), rtol=1e-3, atol=1e-3)
    assert found.evidence != pytest.approx(evidence(precision(output, gram / N)), abs=0.01)  # means of both
    assert not torch.allclose(dense_precision, precision(gram, output), rtol=1e-2, atol=1e-2)  # the other way round
    assert found.evidence != pytest.approx(laplace_approximation.fit(model, (x, y)).evidence, abs=0.01)


@installed
def test_the_law_is_the_normal_law_of_its_dense_precision(data):
    space = Space({(0, 1): {"tanh": dense(D, 4, "tanh")}, (1, 2): {"readout": dense(4, 2)}})
    model = Model(space, num_data=N, weights=priors.normal(priors.fan_in())).double()
    found = kronecker.fit(model, (data[0], (data[1][:, 0] > 0).long()), batch_size=15)
    law = found.posterior.get_posterior()
    true = dist.MultivariateNormal(law.mean, precision_matrix=law.precision.to_matrix())
    values = law.mean + 0.3 * torch.randn(5, model.packing.size).double()
    assert torch.allclose(law.log_prob(values), true.log_prob(values))
    assert not torch.allclose(dist.Normal(law.mean, law.stddev).to_event(1).log_prob(values), true.log_prob(values))
    assert torch.allclose(law.variance, true.variance)
    white = torch.linalg.solve_triangular(true.scale_tril, (law.rsample((4000,)) - law.mean).T, upper=False)
    error = (white @ white.T / 4000 - torch.eye(len(white)).double()).abs().max()
    assert error < 5.5 * math.sqrt(2 / 4000)  # of the largest of 26² entries
    scaled = white / law.stddev[:, None]
    assert (scaled @ scaled.T / 4000 - torch.eye(len(white)).double()).abs().max() > 5.5 * math.sqrt(2 / 4000)
    assert draw(found.posterior, *data, num_samples=3)["weights"].shape == (3, 26)


@installed
def test_the_guide_is_a_guide(data):
    """The exact posterior: every draw of log p(D, w) − log q(w) is the evidence."""
    model = build()
    found = kronecker.fit(model, data)
    evidence = Evidence(model, found.posterior)
    for _ in range(5):
        assert float(evidence(*data).evidence.detach()) == pytest.approx(found.evidence, abs=1e-2)


@installed
def test_bad_input_is_named(data):
    linear = {"linear": partial(nn.Linear, D, 1, bias=False)}
    two_inputs = Model(
        Space({(0, 2): linear, (1, 2): linear}, inputs=(0, 1)),
        num_data=N,
        likelihood=likelihoods.gaussian(NOISE, learn=False),
    ).double()
    layer = nn.Linear(D, D, bias=False)
    shared = {(0, 1): {"a": lambda: layer}, (1, 2): {"b": lambda: layer}, (2, 3): linear}
    calls = {
        r"weights of one layer each, got shared ones: \['edges.1-2.b.weight'\]": lambda: kronecker.fit(
            Model(Space(shared), num_data=N, likelihood=likelihoods.gaussian(NOISE, learn=False)).double(), data
        ),
        "model: expected a Model with a centred normal prior": lambda: kronecker.fit(
            build(weights=priors.laplace(3.0)), data
        ),
        "model: expected a Gaussian likelihood": lambda: kronecker.fit(
            build(likelihood=likelihoods.bernoulli()), (data[0], (data[1] > 0).double())
        ),
        r"without a prior: \['edges.0-1.linear.bias'\]": lambda: kronecker.fit(
            Model(
                Space({(0, 1): {"linear": partial(nn.Linear, D, 1)}}),
                num_data=N,
                likelihood=likelihoods.gaussian(NOISE, learn=False),
                point_estimates=["*.bias"],
            ).double(),
            data,
        ),
        "train x: expected one tensor": lambda: kronecker.fit(two_inputs, ((data[0], data[0]), data[1])),
        "steps: expected a mode": lambda: kronecker.fit(build(), data, steps=1),
        "batch_size: expected": lambda: kronecker.fit(build(), data, batch_size=0),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_without_the_package_the_remedy_is_named(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", None)
    with pytest.raises(ImportError, match=r"laplace-torch, got none. pip install 'pyro-nas\[laplace\]'"):
        kronecker.fit(build(), data)
