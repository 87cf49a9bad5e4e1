"""Posterior: predictions as means over draws, and one draw at the means."""

import contextlib
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.distributions import biject_to, constraints

from pyro_nas import Space, accuracy, draw, predict
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import svi
from pyro_nas.models import Model, guides, likelihoods, priors
from pyro_nas.reading.posterior import each_draw, evaluation_mode, mean_draw


def test_predictions_average_over_weights_and_structures(small_data, build):
    model, guide = build()
    draws, x = draw(guide, num_samples=7), small_data[0]
    parts = [predict(model, {name: value[i : i + 1] for name, value in draws.items()}, x) for i in range(7)]
    assert torch.allclose(predict(model, draws, x), torch.stack(parts).mean(0), atol=1e-6)
    assert torch.allclose(predict(model, draws, x, batch_size=3), torch.stack(parts).mean(0), atol=1e-6)
    assert not torch.allclose(parts[0], parts[1])


def test_several_inputs_are_predicted(small_data):
    x, y = small_data
    two = Space({(0, 2): {"a": dense(3, 2)}, (1, 2): {"b": dense(3, 2)}}, inputs=(0, 1))
    model = Model(two, num_data=40)
    guide = guides.MeanField(model)
    svi.fit(model, guide, ((x, x), y), epochs=1)
    draws = draw(guide, num_samples=3)
    assert torch.allclose(predict(model, draws, (x, x)), predict(model, draws, (x, x), batch_size=7), atol=1e-6)
    with pytest.raises(ValueError, match=r"missing \['weights'\]"):
        predict(model, {}, (x, x))


def test_weights_given_a_structure_are_read_at_the_most_probable_one(small_space):
    """A wrong variant, the means given any drawn structure, changes from call to call."""
    model = Model(small_space, num_data=40, weights=priors.normal(0.5))
    guide = guides.StructureConditioned(model)
    with torch.no_grad():
        guide.loc_shift["weights"].normal_()
    guide.structure["structure"].data = torch.tensor([[1.0, -0.5], [0.2, 0.9]])
    best = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(mean_draw(guide)["structure"][0], best)
    expected = guide.loc["weights"] + guide.code @ best.flatten() @ guide.loc_shift["weights"]
    for _ in range(3):
        assert torch.allclose(mean_draw(guide)["weights"][0], expected, atol=1e-6)
    other = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    given = mean_draw(poutine.condition(guide, data={"structure": other}))
    expected = guide.loc["weights"] + guide.code @ other.flatten() @ guide.loc_shift["weights"]
    assert torch.allclose(given["weights"][0], expected, atol=1e-6)


def test_sites_computed_from_auxiliary_ones_are_read_at_their_means(small_space, small_data):
    model = Model(small_space, num_data=40, weights=priors.normal(0.5))
    guide = AutoNormal(poutine.block(model, hide=["structure"]))
    guide(*small_data)
    assert torch.equal(mean_draw(guide, *small_data)["weights"][0], guide.median()["weights"])

    def skewed():
        law = dist.TransformedDistribution(
            dist.Normal(torch.tensor([0.5]), 2.0), [biject_to(constraints.interval(0, 1))]
        )
        pyro.sample("w", law.to_event(1))

    assert mean_draw(skewed)["w"].item() == pytest.approx(torch.tensor(0.5).sigmoid().item())

    class Meanless(dist.TorchDistribution):
        arg_constraints = {}  # noqa: RUF012
        has_rsample = True

        def rsample(self, sample_shape=()):
            return torch.zeros(sample_shape)

    zeros = torch.zeros(3)
    for law in (Meanless(validate_args=False), dist.Cauchy(zeros, 1.0).to_event(1), dist.HalfCauchy(zeros + 1)):
        with pytest.raises(ValueError, match="guide: expected laws with a finite mean, got"):
            mean_draw(lambda law=law: pyro.sample("w", law))


def test_accuracy_is_the_share_of_right_predictions(small_data, build):
    model, guide = build()
    draws, (x, y) = draw(guide, num_samples=7), small_data
    right = [int(row.argmax()) == label for row, label in zip(predict(model, draws, x), y.tolist(), strict=True)]
    assert accuracy(model, draws, x, y) == sum(right) / 40
    assert accuracy(model, draws, x, 1 - y) == 1 - sum(right) / 40
    torch.manual_seed(1)
    of_guide = accuracy(model, guide, x, y, num_samples=7)
    torch.manual_seed(1)
    assert of_guide == accuracy(model, draw(guide, num_samples=7), x, y)


def test_draws_come_apart_and_their_numbers_must_agree():
    parts = each_draw({"a": torch.arange(6.0).view(3, 2), "b": torch.arange(3.0)})
    assert [(part["a"].tolist(), part["b"].item()) for part in parts] == [([0, 1], 0), ([2, 3], 1), ([4, 5], 2)]
    assert each_draw({}) == [{}]
    for wrong in ({"a": torch.zeros(3), "b": torch.zeros(2)}, {"a": torch.zeros(0)}):
        with pytest.raises(ValueError, match=r"draws: expected .* with one number of draws above 0"):
            each_draw(wrong)


def test_modes_are_back_after_an_evaluation():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(1, 1)).train()
    module[0].eval()
    with contextlib.suppress(KeyError), evaluation_mode(module, lambda: None):
        assert not any(part.training for part in module.modules())
        raise KeyError
    assert [part.training for part in module.modules()] == [True, False, True]


def test_predictions_take_the_memory_of_one(build, small_data, monkeypatch):
    """The outputs of no two draws live at once, beside their sum."""
    model, guide = build()
    alive, most = weakref.WeakSet(), []

    class Kept(torch.Tensor):
        __hash__ = object.__hash__

    mean = model.likelihood.mean

    def watched(outputs):
        value = mean(outputs).as_subclass(Kept)
        alive.add(value)
        most.append(sum(1 for _ in alive))
        return value

    monkeypatch.setattr(model.likelihood, "mean", watched)
    predict(model, guide, small_data[0], num_samples=20)
    assert max(most) <= 3


def test_what_predictions_cannot_be_made_of_comes_with_a_remedy(small_space, small_data, build):
    x = small_data[0]
    model, guide = build()
    for bad, kind, message in (
        (x.numpy(), TypeError, r"^x: expected a tensor, got .* Call torch.as_tensor on it"),
        (x.double(), ValueError, r"^x: .* x is torch.float64: call x.to\(torch.float32\)"),
        (x[:, :2], ValueError, r"^x: the network cannot run on inputs of shape \(40, 2\)"),
    ):
        with pytest.raises(kind, match=message):
            predict(model, guide, bad)
    with pytest.raises(TypeError, match=r"^posterior: expected a guide that runs without data, .*draw\(guide, x, y\)"):
        predict(model, AutoNormal(model), x)
    fit = svi.fit(model, guide, small_data, epochs=1)
    with pytest.raises(TypeError, match=r"^posterior: expected a guide, such as fit.posterior, or draws"):
        predict(model, fit, x)


def test_an_accuracy_is_of_classes(small_data):
    """A Gaussian model has none: its outputs' largest feature is no class."""
    x, y = small_data
    for likelihood in (likelihoods.gaussian(1.0), likelihoods.bernoulli()):
        model = Model(Space({(0, 1): {"a": dense(3, 2)}}), num_data=40, likelihood=likelihood)
        with pytest.raises(ValueError, match=r"^model: expected a likelihood of classes, .* Score predict"):
            accuracy(model, guides.MeanField(model), x, y)
    model = Model(Space({(0, 1): {"a": dense(3, 2)}}), num_data=40)
    assert 0 <= accuracy(model, guides.MeanField(model), x, y) <= 1
    with pytest.raises(ValueError, match=r"from 0 to 1, got values from 1 to 2. They count from 1"):
        accuracy(model, guides.MeanField(model), x, y + 1)
