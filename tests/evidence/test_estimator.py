"""Evidence of guides that are not ours (unscaled, hierarchical, auxiliary), and uses of weights that defeat tricks."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import nn
from torch.nn import functional

from pyro_nas import Evidence, Space, choice_probabilities, predict
from pyro_nas.evidence.gaussian_tensor import GaussianTensor
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, schedules, svi
from pyro_nas.models import Model, guides

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


def space():
    return Space({(0, 1): {"tanh": dense(3, 4, "tanh"), "relu": dense(3, 4, "relu")}, (1, 2): {"out": dense(4, 2)}})


@pytest.mark.parametrize("auto", [AutoNormal, AutoLowRankMultivariateNormal])
def test_autoguides_get_the_models_complexity(auto):
    fits = {}
    for complexity in (1.0, 0.001):
        torch.manual_seed(0)
        model = Model(space(), num_data=40, complexity=complexity)
        guide = auto(model, init_scale=0.05)
        terms = Evidence(model, guide)(X, Y)
        for site, value in terms.divergence.items():
            assert torch.allclose(terms.penalty[site], complexity * value)
        history = svi.fit(model, guide, (X, Y), epochs=60, optimizer=adam(0.03)).records
        fits[complexity] = history[-1]["log_likelihood"]
    assert fits[0.001] > fits[1.0] + 2


A, B = torch.tensor([0.6, -0.2]), torch.tensor([[1.5, -0.7], [-1.0, 2.0]])
GAIN = torch.tensor([[0.3, -1.2], [0.8, -0.4]])


def chain_model():
    z = pyro.sample("structure.z", dist.OneHotCategorical(torch.tensor([0.5, 0.5])))
    w = pyro.sample("structure.w", dist.OneHotCategorical(torch.tensor([0.3, 0.7])))
    pyro.sample("y", dist.Normal(z @ GAIN @ w, 1.0), obs=torch.tensor(0.5))


class Chain(nn.Module):
    """q(z) q(w | z): the law of one discrete site depends on the draw of another."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(A.clone()), nn.Parameter(B.clone())

    def forward(self):
        z = pyro.sample("structure.z", dist.OneHotCategorical(logits=self.a))
        pyro.sample("structure.w", dist.OneHotCategorical(logits=z @ self.b))


def exact(a, b):
    total = 0.0
    for i in range(2):
        for j in range(2):
            log_q = a.log_softmax(0)[i] + b[i].log_softmax(0)[j]
            log_p = math.log(0.5) + math.log([0.3, 0.7][j]) + dist.Normal(GAIN[i, j], 1.0).log_prob(torch.tensor(0.5))
            total = total + log_q.exp() * (log_p - log_q)
    return total


def test_hierarchical_discrete_guides_are_exact_under_enumeration_and_unbiased_without():
    guide = Chain()
    truth = torch.autograd.grad(exact(guide.a, guide.b), (guide.a, guide.b))
    terms = Evidence(chain_model, guide, enumerate_discrete=True)()
    assert terms.evidence.item() == pytest.approx(exact(A, B).item(), abs=1e-5)
    for ours, theirs in zip(torch.autograd.grad(terms.surrogate, (guide.a, guide.b)), truth, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    evidence, draws = Evidence(chain_model, guide), []
    for _ in range(4000):
        draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(evidence().surrogate, (guide.a, guide.b))]))
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - torch.cat([g.flatten() for g in truth])).abs() < 4.5 * error + 1e-6).all()


def test_choice_probabilities_average_over_other_draws():
    table = choice_probabilities(Chain(), num_samples=4000)
    truth = A.softmax(0) @ B.softmax(1)
    assert torch.allclose(table["structure.w"], truth, atol=0.03)


def test_complexity_as_a_site_with_several_particles():
    """E λ KL, not E λ · E KL: λ and the divergence go together."""

    def model():
        scale = pyro.sample("complexity", dist.Uniform(0.5, 4.0))
        with poutine.scale(scale=scale):
            pyro.sample("weights", dist.Normal(0.0, 1.0))

    def guide():
        scale = pyro.sample("complexity", dist.Uniform(0.5, 4.0))
        with poutine.scale(scale=scale):
            pyro.sample("weights", dist.Normal(scale, 1.0))

    grid = torch.linspace(0.5, 4.0, 100_001)
    truth = -(grid * grid**2 / 2).mean().item()
    values = torch.stack([Evidence(model, guide, particles=20)().evidence for _ in range(300)])
    assert abs(values.mean().item() - truth) < 4.5 * values.std().item() / 300**0.5


def test_enumeration_refuses_before_it_explodes():
    many = Space({(i, i + 1): {c: dense(2, 2) for c in "abcd"} for i in range(40)})
    from pyro_nas.models import structures

    model = Model(many, num_data=4, structure=structures.categorical())
    with pytest.raises(ValueError, match="at most 10000 structures"):
        svi.fit(model, guides.MeanField(model), (torch.ones(4, 2), torch.tensor([0, 1, 0, 1])), enumerate_discrete=True)
    relaxed = Model(space(), num_data=40)
    with pytest.raises(ValueError, match="discrete sites, got none"):
        svi.fit(relaxed, guides.MeanField(relaxed), (X, Y), enumerate_discrete=True)


def test_local_reparameterisation_refuses_what_would_share_noise():
    weight = GaussianTensor.of(torch.zeros(2, 2), torch.ones(2, 2))
    x = torch.ones(1, 2)
    functional.linear(x, weight)
    for again in (lambda: functional.linear(x, weight.view(2, 2)), lambda: weight.t() @ x.t(), lambda: weight + 1):
        with pytest.raises(RuntimeError, match="used twice"):
            again()
    weight = GaussianTensor.of(torch.zeros(2, 2), torch.ones(2, 2))
    assert torch.equal(weight + 0, weight.view(4).view(2, 2) + 0)  # one draw for all views
    assert torch.equal(weight[0] + 0, (weight + 0)[0])
    assert len(set((GaussianTensor.of(torch.zeros(1), torch.ones(1)).expand(4) + 0).tolist())) == 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_of_a_normal_weight_has_the_moments_of_its_output(memory_format):
    mean, variance = torch.randn(3, 2, 3, 3), torch.rand(3, 2, 3, 3)
    x = torch.randn(1, 2, 4, 4).to(memory_format=memory_format)
    draws = torch.cat([torch.conv2d(x, GaussianTensor.of(mean, variance)) for _ in range(4000)]).double()
    error = (torch.conv2d(x.square(), variance)[0] / 4000).sqrt()
    assert (((draws.mean(0) - torch.conv2d(x, mean)[0]).abs() / error) < 4.5).all()
    assert ((draws.var(0) / torch.conv2d(x.square(), variance)[0] - 1).abs() < 0.15).all()
    noise = (draws - draws.mean(0)).flatten(1)
    assert (torch.corrcoef(noise.T).fill_diagonal_(0).abs() < 0.09).all()  # every output has noise of its own


def test_several_inputs_are_predicted():
    two = Space({(0, 2): {"a": dense(3, 2)}, (1, 2): {"b": dense(3, 2)}}, inputs=(0, 1))
    model = Model(two, num_data=40)
    guide = guides.MeanField(model)
    svi.fit(model, guide, ((X, X), Y), epochs=1)
    from pyro_nas import draw

    draws = draw(guide, num_samples=3)
    assert torch.allclose(predict(model, draws, (X, X)), predict(model, draws, (X, X), batch_size=7), atol=1e-6)
    with pytest.raises(ValueError, match=r"missing \['weights'\]"):
        predict(model, {}, (X, X))


def test_a_finished_fit_resumes_at_its_last_temperature_and_complexity(tmp_path):
    options = {
        "temperature": schedules.geometric(1.0, 0.2),
        "complexity": schedules.warm_up(1.0),
        "checkpoint": tmp_path,
    }
    for resume in (False, True):
        model = Model(space(), num_data=40)
        svi.fit(model, guides.MeanField(model), (X, Y), epochs=2, resume=resume, **options)
        assert (model.temperature, model.complexity) == (pytest.approx(0.2), pytest.approx(1.0))


def test_early_stopping_compares_epochs_at_the_schedules_end():
    model = Model(space(), num_data=40)
    history = svi.fit(
        model, guides.MeanField(model), (X, Y), (X, Y), epochs=30, batch_size=8, patience=2, optimizer=adam(0.01),
        complexity=schedules.warm_up(1.0, 1.0),
    ).records  # fmt: skip
    assert len(history) > 5
    assert model.complexity == pytest.approx(1.0)


def test_schedulers_with_number_keys_and_loaders_with_generators_resume(tmp_path):
    from torch.utils.data import DataLoader, TensorDataset

    def build(folder):
        torch.manual_seed(0)
        model = Model(space(), num_data=40)
        guide = guides.MeanField(model)
        loader = DataLoader(TensorDataset(X, Y), 10, shuffle=True, generator=torch.Generator().manual_seed(3))
        options = {
            "epochs": 4,
            "scheduler": lambda optimizer, steps: torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 10]),
            "checkpoint": folder,
        }
        return model, guide, loader, options

    model, guide, loader, options = build(tmp_path / "whole")
    svi.fit(model, guide, loader, **options)
    expected = guide.loc["weights"].detach().clone()

    def crash(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    model, guide, loader, options = build(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        svi.fit(model, guide, loader, callbacks=[crash], **options)
    model, guide, loader, options = build(tmp_path / "parts")
    svi.fit(model, guide, loader, resume=True, **options)
    assert torch.equal(guide.loc["weights"], expected)
