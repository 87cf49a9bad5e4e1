"""Recalibrated batch normalisation against statistics worked out by hand, and against the network in training mode."""

import copy

import pytest
import torch
from pyro import poutine
from torch import nn
from torch.nn.functional import conv2d

from pyro_nas import Space
from pyro_nas.graph.families import zoo
from pyro_nas.graph.primitives import convolution, dense, flatten, skip
from pyro_nas.inference.batches import Batches
from pyro_nas.models import Model, guides, structures
from pyro_nas.reading.batch_normalization import recalibrate, recalibrated
from pyro_nas.reading.posterior import draw


def layers(model):
    return [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]


def statistics(model):
    return [buffer.clone() for layer in layers(model) for buffer in layer.buffers()]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture
def chain():
    """Two convolutions, linear but for their batch normalisation, and images whose mean is far from 0."""
    space = Space({(0, 1): {"a": convolution(1, 3, activation="identity")}, (1, 2): {"b": convolution(3, 2)}})
    model = Model(Space({**space.edges, (2, 3): {"flatten": flatten()}}), num_data=20)
    return model, draw(guides.MeanField(model), num_samples=3), torch.randn(20, 1, 4, 4) * 2 + 3


def by_hand(model, weights, batches):
    """The mean and the unbiased variance of both layers' inputs, averaged over data, batch by batch, and weights."""
    moments = []
    for vector in weights:
        first, second = model.packing.unpack(vector).values()
        for x in batches:
            a = conv2d(x, first, padding=1)
            mean, variance = a.mean((0, 2, 3)), a.var((0, 2, 3))
            biased = a.var((0, 2, 3), correction=0)
            normal = (a - mean[:, None, None]) / (biased[:, None, None] + 1e-5).sqrt()
            b = conv2d(normal, second, padding=1)
            moments.append(torch.cat([mean, variance, b.mean((0, 2, 3)), b.var((0, 2, 3))]))
    sizes = torch.tensor([len(x) for x in batches]).repeat(len(weights))
    return (torch.stack(moments) * (sizes / sizes.sum())[:, None]).sum(0)


def found(model):
    return torch.cat([value for layer in layers(model) for value in (layer.running_mean, layer.running_var)])


@pytest.mark.parametrize("count", [1, 3])
def test_statistics_are_those_worked_out_by_hand(chain, count):
    model, draws, x = chain
    draws = {site: value[:count] for site, value in draws.items()}
    batches = [(part, torch.zeros(len(part))) for part in x.split(8)]  # of 8, 8 and 4
    expected = by_hand(model, draws["weights"], x.split(8))
    for source in (batches, iter(batches)):
        recalibrate(model, draws, source)
        assert torch.allclose(found(model), expected, atol=1e-5)
        assert [int(layer.num_batches_tracked) for layer in layers(model)] == [3 * count] * 2
    assert not torch.allclose(by_hand(model, draws["weights"], [x]), expected, atol=1e-3)
    one = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    vectors = Model(Space({(0, 1): {"a": lambda: one}}), num_data=3)
    with pytest.raises(ValueError, match=r"^batches: expected two data or more in each"):
        recalibrate(vectors, draw(guides.MeanField(vectors), num_samples=1), (torch.ones(1, 3), torch.zeros(1)))
    wrong = copy.deepcopy(model).train()  # with its usual momentum
    for layer in layers(wrong):
        layer.reset_running_stats()
    for part, _ in batches:
        run(wrong, draws, part)
    assert not torch.allclose(found(wrong), expected, atol=0.1)


def run(model, draws, x):
    """The outputs of the first draw's network, in the mode that the model is in."""
    with torch.no_grad(), poutine.block():
        return poutine.condition(model, data={site: value[0] for site, value in draws.items()})(x)


def test_outputs_are_those_of_training_mode_up_to_the_bias_of_the_variance():
    model = Model(zoo.cells(1, 3, channels=4), num_data=24, structure=structures.categorical())
    one = draw(guides.MeanField(model), num_samples=1)
    x, y = torch.randn(24, 1, 8, 8) * 2 + 1, torch.zeros(24)
    stale = run(model.eval(), one, x)
    counts = {}
    hooks = [
        layer.register_forward_pre_hook(lambda part, args: counts.update({part: args[0].numel() / args[0].shape[1]}))
        for layer in layers(model)
    ]
    with recalibrated(model, one, (x, y)):
        evaluated = run(model, one, x)
        for layer, count in counts.items():
            layer.running_var.mul_((count - 1) / count)  # what training mode divides by
        unbiased = run(model, one, x)
    trained = run(copy.deepcopy(model).train(), one, x)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(unbiased, trained, atol=1e-5)
    assert not torch.allclose(evaluated, trained, atol=1e-5)
    assert torch.allclose(evaluated, trained, atol=0.05)
    assert (stale - trained).abs().max() > 0.5  # the network that is not recalibrated
    assert torch.equal(run(model, one, x), stale)


def test_a_supernet_has_statistics_for_each_structure():
    """The check of single path one-shot: what one path does to the next layer's inputs, another does not."""
    edges = {(0, 1): {"a": convolution(1, 2), "b": convolution(1, 2, activation="tanh"), "c": skip()}}
    space = Space({**edges, (1, 2): {"last": convolution(2, 2)}, (2, 3): {"flatten": flatten()}})
    model = Model(space, num_data=8, structure=structures.categorical())
    x, weights = torch.randn(8, 1, 4, 4) + 2, draw(guides.MeanField(model), num_samples=1)["weights"]
    batches = Batches("train", (x, torch.zeros(8)), 4, torch.device("cpu"))
    first, second, last = layers(model)
    second.running_mean.fill_(7.0)
    results = []
    for choice in (0, 1):
        gamma = torch.eye(3)[choice][None, None]
        recalibrate(model, {"weights": weights, "structure": gamma}, batches)
        results.append(last.running_mean.clone())
        assert (second.running_mean == 7.0).all() == (choice == 0)  # a primitive that does not run keeps what it has
    assert not torch.allclose(results[0], results[1], atol=0.05)
    both = torch.eye(3)[:2, None]
    whole = (x, torch.zeros(8))
    recalibrate(model, {"weights": weights.expand(2, -1), "structure": both}, whole)
    assert [int(layer.num_batches_tracked) for layer in layers(model)] == [1, 1, 2]
    assert torch.allclose(first.running_mean, conv2d(x, model.packing.unpack(weights[0])[model.packing.names[0]],
                                                     padding=1).mean((0, 2, 3)), atol=1e-5)  # fmt: skip


def test_everything_else_is_as_it_was(chain):
    model, draws, x = chain
    model.train()
    layers(model)[0].eval()
    layers(model)[1].momentum = 0.3
    modes = [part.training for part in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    parameters = [parameter.clone() for parameter in model.parameters()]
    buffers = list(model.buffers())
    state = torch.get_rng_state()
    before = statistics(model)
    shuffled = Batches("train", (x, torch.zeros(20)), 8, torch.device("cpu"))

    def unchanged():
        return (
            modes == [part.training for part in model.modules()]
            and [layer.momentum for layer in layers(model)] == [0.1, 0.3]
            and gradients == [parameter.requires_grad for parameter in model.parameters()]
            and same(parameters, list(model.parameters()))
            and all(mine is theirs for mine, theirs in zip(buffers, model.buffers(), strict=True))
            and torch.equal(state, torch.get_rng_state())
        )

    with recalibrated(model, draws, shuffled):
        assert unchanged()
        assert not same(before, statistics(model))
    assert unchanged()
    assert same(before, statistics(model))
    with pytest.raises(KeyboardInterrupt), recalibrated(model, draws, shuffled):
        raise KeyboardInterrupt
    assert unchanged()
    assert same(before, statistics(model))

    def broken():
        yield x[:8], None
        raise OSError("the disk")

    with pytest.raises(OSError, match="disk"):
        recalibrate(model, draws, broken())
    assert unchanged()
    assert same(before, statistics(model))
    recalibrate(model, draws, shuffled)
    assert unchanged()
    assert not same(before, statistics(model))


def test_dropout_is_off_while_statistics_are_taken():
    def noisy():
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3))

    model = Model(Space({(0, 1): {"noisy": noisy}}), num_data=10).train()
    one = draw(guides.MeanField(model), num_samples=1)
    x = torch.randn(10, 3) + 1
    recalibrate(model, one, (x, None))
    mean = (x @ one["weights"][0].view(3, 3).T).mean(0)
    assert torch.allclose(model.network.edges["0-1"]["noisy"][2].running_mean, mean, atol=1e-6)


def test_a_network_without_batch_normalisation_is_left_alone():
    model = Model(Space({(0, 1): {"a": dense(3, 2)}}), num_data=4)
    recalibrate(model, draw(guides.MeanField(model), num_samples=1), [])


def test_bad_input(chain):
    model, draws, x = chain
    before = statistics(model)
    batch = (x, torch.zeros(20))
    for arguments, error, message in (
        ((lambda x: x, draws, batch), TypeError, "model: .*Module"),
        ((model, {}, batch), ValueError, r"draws: .*missing \['weights'\]"),
        ((model, {site: value[:0] for site, value in draws.items()}, batch), ValueError, "draws: .*above 0"),
        ((model, {**draws, "other": torch.ones(2, 1)}, batch), ValueError, "draws: .*one number of draws.*'other': 2"),
        ((model, draws, []), ValueError, "batches: .*got none"),
    ):
        with pytest.raises(error, match=message):
            recalibrate(*arguments)
        assert same(before, statistics(model))
