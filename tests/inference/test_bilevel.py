"""Selection: the search finds the operation the data came from; enumeration is matched by exact inference."""

import pytest
import torch

from pyro_nas import Space, Terms, choice_probabilities
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, bilevel, delayed
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
