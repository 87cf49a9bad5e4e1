"""What tests of fits share: a small pair, short fits of it and their state; a space whose structures have scores."""

import pytest
import torch

from pyro_nas import Space
from pyro_nas.files import state_of
from pyro_nas.graph.enumeration import all_structures, key_of_structure
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, bilevel, delayed, svi
from pyro_nas.models import Model, guides, priors
from pyro_nas.reading.conjugate import LinearRegression


@pytest.fixture
def build(small_space):
    """A function: model and mean-field guide of the small space, which start at a seed."""

    def pair(structure=None, seed=0, **options):
        torch.manual_seed(seed)
        model = Model(small_space, num_data=40, weights=priors.normal(0.5), structure=structure, **options)
        return model, guides.MeanField(model)

    return pair


@pytest.fixture
def fit():
    """A function: the records of a fit of six epochs of a pair, by "svi" or "bilevel"."""

    def records(model, guide, data, procedure, **options):
        x, y = data
        options = {"epochs": 6, "batch_size": 8, "optimizer": adam(0.02), **options}
        if procedure == "svi":
            return svi.fit(model, guide, (x, y), (x[:8], y[:8]), **options).records
        return bilevel.fit(
            model, guide, (x[:24], y[:24]), (x[24:], y[24:]), structure_scheduler=delayed(), **options
        ).records

    return records


@pytest.fixture
def state():
    """A function: a copy of all that a fit changes in a pair."""
    return lambda model, guide: {name: value.clone() for name, value in state_of(model, guide).items()}


@pytest.fixture
def same():
    """A function: whether two states are the same, bit for bit."""

    def equal(left, right):
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

    return equal


@pytest.fixture
def toy():
    """A space of six structures and a score of them, between 10 and 11."""
    space = Space({(0, 1): {n: dense(2, 2) for n in "abc"}, (1, 2): {n: dense(2, 2) for n in "de"}})
    rewards = {}
    generator = torch.Generator().manual_seed(3)
    for structure in all_structures(space):
        rewards[key_of_structure(structure)] = 10.0 + float(torch.rand((), generator=generator))
    return space, lambda structure: rewards[key_of_structure(structure)]


N, D, NOISE, PRIOR = 20, 2, 0.7, 0.4  # of the linear regression


@pytest.fixture(scope="module")
def regression():
    """A linear regression of two features that correlate."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=generator) @ torch.tensor([[1.0, 0.4], [0.0, 1.0]])
    return x, x @ torch.tensor([[0.9], [-0.6]]) + NOISE * torch.randn(N, 1, generator=generator)


@pytest.fixture(scope="module")
def exact(regression):
    """Its posterior and evidence in closed form."""
    return LinearRegression(regression[0], regression[1][:, 0], NOISE, PRIOR)
