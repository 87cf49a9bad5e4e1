"""Selection: the search finds the operation the data came from; enumeration is matched by exact inference."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

from pyro_nas import Space, Terms, choice_probabilities
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.inference import adam, bilevel, delayed, one_cycle, svi
from pyro_nas.models import Model, guides, likelihoods, priors, structures


def found(operation, seed, shuffle=False):
    """Return the probability that a search gives the operation the data came from."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(100, 1, generator=generator) - 2
    y = (1.5 * x if operation == "linear" else torch.tanh(3 * x)) + 0.1 * torch.randn(100, 1, generator=generator)
    if shuffle:
        y = y[torch.randperm(100, generator=generator)]
    torch.manual_seed(seed)
    space = Space({(0, 1): {"linear": dense(1, 1), "tanh": dense(1, 1, "tanh")}})
    model = Model(
        space,
        num_data=60,
        weights=priors.normal(3.0),
        structure=structures.gumbel_softmax(0.5),
        likelihood=likelihoods.gaussian(0.3),
    )
    guide = guides.MeanField(model)
    bilevel.fit(
        model,
        guide,
        (x[:60], y[:60]),
        (x[60:], y[60:]),
        epochs=250,
        optimizer=adam(0.1),
        structure_optimizer=adam(0.1),
        structure_scheduler=delayed(0.4),
        local_reparameterization=True,
        seed=seed,
    )
    return choice_probabilities(guide)["structure"][0, ["linear", "tanh"].index(operation)].item()


def every_search_is_right(seeds, shuffle=False):
    found_by = {(op, seed): found(op, seed, shuffle) for op in ("linear", "tanh") for seed in seeds}
    wrong = {key: p for key, p in found_by.items() if p < 0.8}
    assert not wrong, wrong


@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(5, 20), marks=pytest.mark.slow)], ids=["5", "15 more"])
def test_the_search_picks_the_right_operation_on_every_seed(seeds):
    every_search_is_right(seeds)


@pytest.mark.parametrize("wrong", ["shuffled labels", "sign"])
def test_wrong_variants_do_not(wrong, monkeypatch):
    if wrong == "sign":
        monkeypatch.setattr(
            Terms,
            "evidence",
            property(lambda t: sum(t.penalty.values()) - t.log_likelihood),
        )
    with pytest.raises((AssertionError, FloatingPointError)):
        every_search_is_right(range(3), shuffle=wrong == "shuffled labels")


N, NOISE, PRIOR, PROBABILITIES = 40, 1.0, 1.0, [0.7, 0.3]


class Feature(nn.Module):
    """x ↦ w · x_i."""

    def __init__(self, index):
        super().__init__()
        self.index, self.weight = index, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x[:, self.index, None] * self.weight


@pytest.fixture(scope="module")
def regression():
    generator = torch.Generator().manual_seed(2)
    x, _ = torch.linalg.qr(torch.randn(N, 4, generator=generator))
    x = x * math.sqrt(N)  # orthogonal columns: the mean-field posterior is exact
    y = x @ torch.tensor([[0.33], [0.36], [0.05], [0.25]]) + NOISE * torch.randn(N, 1, generator=generator)
    return x, y


def enumerated(x, y):
    """p(Γ | D) of the four structures from the closed-form evidence of each."""
    scores = []
    for first, second in itertools.product(range(2), range(2)):
        design = x[:, [first, 2 + second]]
        law = torch.distributions.MultivariateNormal(
            torch.zeros(N), NOISE**2 * torch.eye(N) + PRIOR**2 * design @ design.T
        )
        scores.append(law.log_prob(y[:, 0]) + math.log(PROBABILITIES[first] * PROBABILITIES[second]))
    return torch.stack(scores).softmax(0).view(2, 2)


def fitted(x, y):
    space = Space(
        {
            (0, 1): {"x0": partial(Feature, 0), "x1": partial(Feature, 1)},
            (0, 2): {"x2": partial(Feature, 2), "x3": partial(Feature, 3)},
            (1, 2): {"skip": skip()},
        },
        restriction="simplex vertices",
    )
    model = Model(
        space, num_data=N, weights=priors.normal(PRIOR), structure=structures.categorical(PROBABILITIES),
        likelihood=likelihoods.gaussian(NOISE, learn=False),
    )  # fmt: skip
    guide = guides.StructureConditioned(model, rank=4, initial_scale=0.3)
    svi.fit(
        model, guide, (x, y), epochs=1500, batch_size=N, optimizer=adam(0.05, betas=(0.9, 0.99)),
        scheduler=one_cycle(0.05, pct_start=0.1), enumerate_discrete=True,
    )  # fmt: skip
    table = choice_probabilities(guide)["structure"]
    return table[0][:, None] * table[1][None]


def test_exact_inference_over_the_discrete_structure_meets_enumeration(regression):
    exact = enumerated(*regression)
    assert 0.15 < exact.max() < 0.85  # a posterior with something to get wrong
    assert torch.allclose(fitted(*regression), exact, atol=0.02)


@pytest.mark.parametrize("wrong", ["scale", "sign", "labels"])
def test_wrong_exact_inference_misses_enumeration(regression, wrong, monkeypatch):
    x, y = regression
    exact = enumerated(x, y)
    if wrong == "scale":  # a wrong weight of the divergence
        monkeypatch.setattr(Terms, "evidence", property(lambda t: t.log_likelihood - 0.3 * sum(t.divergence.values())))
    elif wrong == "sign":
        monkeypatch.setattr(Terms, "evidence", property(lambda t: t.log_likelihood + 0.5 * sum(t.divergence.values())))
    else:
        y = y.roll(5, 0)
    try:
        result = fitted(x, y)
    except FloatingPointError:
        return
    assert not torch.allclose(result, exact, atol=0.02)
