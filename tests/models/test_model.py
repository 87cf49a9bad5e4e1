"""Model: what it draws and observes, with weights that are tied, without a prior, or scaled by a λ that is drawn."""

from functools import partial

import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_nas import Evidence, Space
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, schedules, svi
from pyro_nas.models import Model, guides, likelihoods, priors, structures


def test_tied_weights_are_one_weight(small_data):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    model = Model(Space({(0, 1): {"tied": Tied}}), num_data=40)
    assert model.packing.size == 9
    x = small_data[0]
    with poutine.block(), poutine.condition(data={"weights": torch.eye(3).flatten()}):
        assert torch.allclose(model(x), torch.tanh(x))


def test_priors_that_match_nothing_are_refused(small_space, small_data):
    with pytest.raises(ValueError, match="point_estimates"):
        Model(small_space, num_data=3, point_estimates=["*.bais"])
    model = Model(small_space, num_data=40, complexity=priors.log_uniform(0.1, 1.0))
    with pytest.raises(ValueError, match="complexity: expected a model with a number"):
        svi.fit(model, guides.MeanField(model), small_data, complexity=schedules.constant(1.0))
    plain = Model(small_space, num_data=40)
    with pytest.raises(ValueError, match="temperature"):
        svi.fit(plain, guides.MeanField(plain), small_data, temperature=schedules.linear(7.0, 0.0))
    assert plain.temperature == 1.0


def test_outputs_of_more_axes_count_their_data():
    x, y = torch.randn(10, 6, 3), torch.randn(10, 6, 4)
    model = Model(
        Space({(0, 1): {"a": partial(nn.Linear, 3, 4)}}),
        num_data=20,
        likelihood=likelihoods.gaussian(1.0, learn=False),
    )
    guide = guides.PointMass(model)
    mean = nn.functional.linear(x, *model.packing.unpack(guide.loc["weights"].detach()).values())
    expected = 2 * torch.distributions.Normal(mean, 1.0).log_prob(y).sum()
    assert torch.allclose(Evidence(model, guide)(x, y).log_likelihood, expected)


def test_batch_normalisation_and_point_estimates_stay_deterministic(small_data):
    def normalised():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    space = Space({(0, 1): {"a": normalised, "b": dense(3, 4)}, (1, 2): {"head": partial(nn.Linear, 4, 2)}})
    model = Model(space, num_data=40, weights=priors.normal(0.5), point_estimates=["edges.1-2.head.*"])
    guide = guides.MeanField(model)
    assert model.packing.names == [
        "edges.0-1.a.0.weight",
        "edges.0-1.a.0.bias",
        "edges.0-1.b.weight",
        "edges.0-1.b.bias",
    ]
    head, batch_norm = model.network.edges["1-2"]["head"], model.network.edges["0-1"]["a"][1]
    before = head.weight.detach().clone(), batch_norm.weight.detach().clone(), batch_norm.running_mean.clone()
    svi.fit(model, guide, small_data, epochs=3, batch_size=10, local_reparameterization=True)
    assert batch_norm.num_batches_tracked == 12  # every step of three epochs, and no pass of a check
    assert not torch.equal(head.weight, before[0])
    assert not torch.equal(batch_norm.weight, before[1])
    assert not torch.equal(batch_norm.running_mean, before[2])
    assert not model.training
    running = batch_norm.running_mean.clone()
    model(small_data[0])
    assert torch.equal(batch_norm.running_mean, running)


def test_complexity_may_be_a_site(small_space, small_data):
    model = Model(small_space, num_data=40, weights=priors.normal(0.5), complexity=priors.log_uniform(0.1, 100.0))
    guide = guides.MeanField(model)
    history = svi.fit(model, guide, small_data, epochs=6, batch_size=8, optimizer=adam(0.02)).records
    assert torch.isfinite(torch.tensor(history[-1]["evidence"]))
    fixed = poutine.condition(guide, data={"complexity": torch.tensor(10.0)})
    trace = poutine.trace(fixed).get_trace()
    assert trace.nodes["weights"]["scale"] == 10.0
    terms = Evidence(model, fixed)(*small_data)
    assert torch.allclose(terms.penalty["weights"], 10.0 * terms.divergence["weights"])
    assert "complexity" not in terms.divergence
    assert terms.evidence < terms.log_likelihood


def test_the_joint_density_is_that_of_the_formula():
    """N/n Σ log N(y; Xw, s²) + λ Σ log N(w; 0, τ²), for n of N data."""
    x, y = torch.randn(5, 3), torch.randn(5, 1)
    space = Space({(0, 1): {"linear": partial(nn.Linear, 3, 1, bias=False)}})
    model = Model(
        space,
        num_data=20,
        weights=priors.normal(0.8),
        likelihood=likelihoods.gaussian(0.5, learn=False),
        complexity=3.0,
    )
    w = torch.randn(3)
    joint = poutine.trace(poutine.condition(model, data={"weights": w})).get_trace(x, y).log_prob_sum()
    likelihood = torch.distributions.Normal(x @ w, 0.5).log_prob(y[:, 0]).sum()
    prior = torch.distributions.Normal(0.0, 0.8).log_prob(w).sum()
    assert torch.allclose(joint, 4 * likelihood + 3 * prior, rtol=1e-5)
    assert not torch.allclose(joint, 4 * likelihood + prior, rtol=1e-2)
    assert not torch.allclose(joint, likelihood + 3 * prior, rtol=1e-2)


def test_parameters_that_come_frozen_are_constants(small_data):
    """Neither latent nor learned; a module that another model made latent is no such thing."""
    backbone = nn.Linear(3, 3).requires_grad_(False)
    head = nn.Linear(3, 2)
    space = Space({(0, 1): {"backbone": lambda: backbone}, (1, 2): {"head": lambda: head}})
    first, second = (Model(space, num_data=40, weights=priors.normal(0.5)) for _ in range(2))
    for model in (first, second):
        assert model.packing.names == ["edges.1-2.head.weight", "edges.1-2.head.bias"]
        assert list(model.point_parameters()) == []
    svi.fit(first, guides.MeanField(first), small_data, epochs=1)
    assert torch.equal(first.network.edges["0-1"]["backbone"].weight, backbone.weight)
    assert head.weight.requires_grad  # the user's module is as it was
    x = small_data[0]
    with poutine.block(), poutine.condition(data={"weights": torch.arange(8.0)}):
        expected = backbone(x) @ torch.arange(6.0).view(2, 3).T + torch.tensor([6.0, 7.0])
        assert torch.allclose(second(x), expected, atol=1e-5)


def test_x_that_the_network_cannot_take_come_with_a_remedy(small_space, small_data):
    x, y = small_data
    model = Model(small_space, num_data=40)
    message = (
        r"^x: the network cannot run on inputs of shape \(2, 3\): .* Its weights are torch.float32, x is torch.float64"
    )
    with pytest.raises(ValueError, match=message + r": call x.to\(torch.float32\)\."):
        model.check(x.double(), y)
    assert model.check(x, y).shape == (2, 2)


def test_arguments_that_were_not_called_are_refused(small_space):
    with pytest.raises(
        TypeError, match=r"^structure: expected .* such as gumbel_softmax\(\), got <function gumbel_softmax"
    ):
        Model(small_space, num_data=40, structure=structures.gumbel_softmax)
    with pytest.raises(TypeError, match=r"^likelihood: expected .* such as gaussian\(\), got <function gaussian"):
        Model(small_space, num_data=40, likelihood=likelihoods.gaussian)
