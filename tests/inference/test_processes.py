"""Pairs as they are copied, pickled and sent to other processes: the same fits, bit for bit."""

import copy
import io
import pickle

import cloudpickle
import joblib
import pyro.distributions as dist
import pytest
import torch

from pyro_nas import Space
from pyro_nas.graph.families import superposition
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.inference import svi
from pyro_nas.models import Model, guides, hypernets, learned_priors, likelihoods, priors, structures


def small(restriction="simplex"):
    return Space(
        {(0, 1): {"tanh": dense(3, 3, "tanh"), "skip": skip()}, (1, 2): {"readout": dense(3, 2)}},
        restriction=restriction,
    )


def gamma(name, shape):
    return dist.Gamma(2.0, 2.0).expand(shape).to_event(len(shape))


def mean_field():
    model = Model(small(), num_data=40)
    return model, guides.MeanField(model)


def low_rank():
    model = Model(small(), num_data=40, weights=priors.laplace(0.5), structure=structures.dirichlet(0.3))
    return model, guides.LowRankNormal(model, rank=2)


def positive():
    model = Model(small(), num_data=40, weights=priors.each(gamma))
    return model, guides.MeanField(model)


def relevance():
    model = Model(
        small("cube"), num_data=40, weights=priors.relevance_determination(), structure=structures.relaxed_bernoulli()
    )
    return model, guides.MeanField(model)


def conditioned():
    model = Model(
        small(), num_data=40, weights=learned_priors.learned_normal(), structure=structures.straight_through()
    )
    return model, guides.StructureConditioned(model, rank=2)


def points():
    model = Model(small(), num_data=40, structure=structures.categorical())
    return model, guides.PointWeights(model)


def hypernetwork():
    model = Model(small(), num_data=40, complexity=priors.log_uniform(0.1, 10.0))
    return model, hypernets.Spline(guides.MeanField(model))


def formula():
    model = Model(superposition.superposition(3, 2), num_data=40, likelihood=likelihoods.gaussian(0.5))
    return model, guides.MeanField(model)


PAIRS = [mean_field, low_rank, positive, relevance, conditioned, points, hypernetwork, formula]


def data(make):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=generator)
    return x, x[:, :1].clone() if make is formula else (x[:, 0] > 0).long()


def fitted(pair, pair_data):
    """The evidence of each epoch and all parameters after a fit."""
    torch.set_num_threads(1)
    model, guide = pair
    fit = svi.fit(model, guide, pair_data, epochs=3, seed=2)
    values = [value.detach().clone() for part in pair for value in part.parameters()]
    return [record["evidence"] for record in fit.records], values


def same(outcome, other):
    return outcome[0] == other[0] and all(torch.equal(*pair) for pair in zip(outcome[1], other[1], strict=True))


def saved(pair):
    buffer = io.BytesIO()
    torch.save(pair, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "cloudpickle": lambda pair: pickle.loads(cloudpickle.dumps(pair)),
    "torch.save": saved,
}


@pytest.mark.parametrize("copied_by", COPIES)
@pytest.mark.parametrize("make", PAIRS)
def test_a_copied_pair_is_fitted_as_the_first(make, copied_by):
    pair = make()
    copied = COPIES[copied_by](pair)
    assert copied[0] is not pair[0]
    assert copied[1].model is copied[0]
    assert same(fitted(pair, data(make)), fitted(copied, data(make)))


@pytest.mark.slow
def test_fits_in_a_pool_of_processes_are_those_in_turns():
    pairs = [make() for make in PAIRS]
    jobs = [joblib.delayed(fitted)(pair, data(make)) for pair, make in zip(pairs, PAIRS, strict=True)]
    pooled = joblib.Parallel(n_jobs=2)(jobs)
    for pair, make, outcome in zip(pairs, PAIRS, pooled, strict=True):
        assert same(fitted(pair, data(make)), outcome)


def test_a_guide_that_was_copied_apart_from_its_model_is_refused():
    model, guide = mean_field()
    with pytest.raises(ValueError, match=r"^guide: expected one of this model, .* copy.deepcopy\(\(model, guide\)\)"):
        svi.fit(model, copy.deepcopy(guide), data(mean_field), epochs=1)
