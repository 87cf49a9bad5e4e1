"""Model: what it draws and observes, with weights that are tied, without a prior, or scaled by a λ that is drawn."""

import copy
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_nas import Evidence, Space, derive, draw, predict
from pyro_nas.files import state_of
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, schedules, svi
from pyro_nas.models import Model, guides, likelihoods, priors, structures
from pyro_nas.reading.export import export


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


def shared_once():
    """One layer on both edges of a chain."""
    shared = nn.Linear(3, 3)
    return Space({(0, 1): {"first": lambda: shared}, (1, 2): {"second": lambda: shared}}), shared


def shared_choices():
    """One layer in two choices of an edge, the second behind a tanh."""
    shared = nn.Linear(3, 3)
    choices = {"plain": lambda: shared, "tanh": lambda: nn.Sequential(shared, nn.Tanh())}
    return Space({(0, 1): choices}), shared


def shared_within():
    """One layer twice within a primitive."""
    shared = nn.Linear(3, 3)
    return Space({(0, 1): {"twice": lambda: nn.Sequential(shared, nn.Tanh(), shared)}}), shared


SHARED = {
    shared_once: lambda x, layer: layer(layer(x)),
    shared_choices: lambda x, layer: 0.25 * layer(x) + 0.75 * layer(x).tanh(),
    shared_within: lambda x, layer: layer(layer(x).tanh()),
}
QUARTER = {"structure": torch.tensor([[0.25, 0.75]])}


@pytest.mark.parametrize("make", SHARED)
def test_no_pass_overwrites_a_shared_module(make, small_data, tmp_path):
    """Draws stand in for it at every place, and after passes, fits and readings it is what it was."""
    torch.manual_seed(0)
    (space, shared), (x, y) = make(), small_data
    before = shared.weight.detach().clone()
    model = Model(space, num_data=40, likelihood=likelihoods.gaussian(1.0, learn=False))
    assert model.packing.size == 12
    parameters = dict(model.network.named_parameters())
    guide = guides.MeanField(model)
    y = x.tanh()
    drawn = nn.Linear(3, 3)
    weights = dict(zip(model.packing.names, drawn.state_dict().values(), strict=True))
    vector, structure = model.packing.pack(weights), QUARTER if model.choices else {}
    with torch.no_grad(), poutine.block(), poutine.condition(data={"weights": vector, **structure}):
        torch.testing.assert_close(model(x), SHARED[make](x, drawn))

    def unharmed():
        now = dict(model.network.named_parameters())
        return all(now[n] is p for n, p in parameters.items()) and torch.equal(next(iter(now.values())), before)

    assert unharmed()
    passes = {
        "check": lambda: model.check(x, y),
        "evidence": lambda: Evidence(model, guide)(x, y),
        "batched particles": lambda: Evidence(model, guide, 3, vectorize_particles=True)(x, y),
        "fit": lambda: svi.fit(model, guide, (x, y), epochs=1),
        "predict": lambda: predict(model, guide, x),
        "export": lambda: export(model, draw(guide, num_samples=2), x, tmp_path / "network.pt2"),
        "deepcopy": lambda: copy.deepcopy(model)(x),
        "derive": lambda: Model(derive(space, structure), num_data=40).check(x, torch.zeros(40, dtype=torch.long)),
    }
    for name, run in passes.items():
        run()
        assert unharmed(), name
    initial = guides.MeanField(model).loc["weights"]
    torch.testing.assert_close(initial.detach(), torch.cat([before.flatten(), shared.bias]))  # of a second guide
    assert not [name for name in state_of(model, guide) if name.startswith("model.network")]  # the guide has them


@pytest.mark.parametrize("make", SHARED)
def test_particles_of_a_shared_module_are_those_of_single_passes(make, small_data):
    (space, _), x = make(), small_data[0]
    model = Model(space, num_data=40, likelihood=likelihoods.gaussian(1.0, learn=False))
    layers = [nn.Linear(3, 3) for _ in range(4)]
    vectors = torch.stack([torch.cat([layer.weight.flatten(), layer.bias]) for layer in layers])[:, None].detach()
    data = {"weights": vectors, **{site: gamma.expand(4, 1, 1, 2) for site, gamma in QUARTER.items() if model.choices}}
    with torch.no_grad(), poutine.block(), pyro.plate("particles", 4, dim=-2), poutine.condition(data=data):
        torch.testing.assert_close(model(x), torch.stack([SHARED[make](x, layer) for layer in layers]))


@pytest.mark.parametrize("make", [shared_once, shared_within])
def test_a_weight_used_twice_in_a_pass_is_not_drawn_at_its_outputs(make, small_data):
    space, _ = make()
    model = Model(space, num_data=40, likelihood=likelihoods.gaussian(1.0, learn=False))
    with pytest.raises(RuntimeError, match=r"^local_reparameterization: expected a network that uses each weight once"):
        svi.fit(model, guides.MeanField(model), (small_data[0], small_data[0]), epochs=1, local_reparameterization=True)


def test_any_name_of_a_shared_weight_makes_it_a_point():
    space, shared = shared_once()
    for pattern in ("edges.0-1.*", "edges.1-2.*"):
        model = Model(space, num_data=40, point_estimates=[pattern])
        assert model.packing.size == 0
        points = [*model.point_parameters()]
        assert len(points) == 2
        assert all(torch.equal(*pair) for pair in zip(points, [shared.weight, shared.bias], strict=True))
