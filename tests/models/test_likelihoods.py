"""Likelihoods: the law of classes against torch's, a noise that is learned, by the data that were made with it."""

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_nas import Space
from pyro_nas.inference import adam, svi
from pyro_nas.models import Model, guides, likelihoods
from pyro_nas.models.likelihoods import ClassIndex


def test_class_index_is_categorical():
    logits, y = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    ours, theirs = ClassIndex(logits), dist.Categorical(logits=logits)
    assert torch.allclose(ours.log_prob(y), theirs.log_prob(y))
    assert torch.allclose(ours.log_prob(y.expand(4, 5)), theirs.log_prob(y.expand(4, 5)))
    assert torch.allclose(ours.probs, theirs.probs)
    assert torch.allclose(ours.entropy(), theirs.entropy())
    assert torch.allclose(ours.expand((2, 5)).log_prob(y), theirs.expand((2, 5)).log_prob(y))
    shares = torch.stack([(ours.sample((50_000,)) == k).float().mean(0) for k in range(3)], -1)
    assert torch.allclose(shares, theirs.probs, atol=0.02)


def test_gaussian_noise_is_learned(small_data):
    x = torch.randn(200, 2)
    y = x @ torch.tensor([[1.0], [-2.0]]) + 0.25 * torch.randn(200, 1)
    model = Model(
        Space({(0, 1): {"linear": partial(nn.Linear, 2, 1)}}), num_data=200, likelihood=likelihoods.gaussian(1.0)
    )
    svi.fit(model, guides.MeanField(model), (x, y), epochs=150, batch_size=50, optimizer=adam(0.05))
    assert model.likelihood.log_noise.exp().item() == pytest.approx(0.25, abs=0.06)


def test_laws_and_means_are_those_of_the_formulas():
    outputs, real = torch.randn(6, 3), torch.randn(6, 3)
    bits, classes = (real > 0).float(), torch.tensor([0, 2, 1, 1, 0, 2])
    gaussian, bernoulli, categorical = likelihoods.gaussian(0.5), likelihoods.bernoulli(), likelihoods.categorical()
    normal = (-0.5 * ((real - outputs) / 0.5).square() - torch.tensor(0.5 * (2 * torch.pi) ** 0.5).log()).sum(-1)
    assert torch.allclose(gaussian.distribution(outputs).log_prob(real), normal, atol=1e-5)
    share = outputs.sigmoid()
    coins = (bits * share.log() + (1 - bits) * (1 - share).log()).sum(-1)
    assert torch.allclose(bernoulli.distribution(outputs).log_prob(bits), coins, atol=1e-5)
    choice = outputs.log_softmax(-1)[torch.arange(6), classes]
    assert torch.allclose(categorical.distribution(outputs).log_prob(classes), choice, atol=1e-5)
    assert torch.equal(gaussian.mean(outputs), outputs)
    assert torch.allclose(bernoulli.mean(outputs), share)
    assert torch.allclose(categorical.mean(outputs), outputs.exp() / outputs.exp().sum(-1, keepdim=True))


def test_a_noise_that_is_not_learned_is_no_parameter():
    assert [p.requires_grad for p in likelihoods.gaussian(0.5).parameters()] == [True]
    assert [p.requires_grad for p in likelihoods.gaussian(0.5, learn=False).parameters()] == [False]
