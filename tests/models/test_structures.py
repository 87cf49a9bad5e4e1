"""Structure priors: probabilities of a site, and the law that they make."""

from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch

from pyro_nas import Space
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.models import Model, structures


def test_dense_primitive_of_a_nested_law():
    """A prior over structures given per site."""
    space = Space({(0, 1): {"a": dense(2, 2), "b": skip()}})
    model = Model(space, num_data=3, structure=structures.dirichlet(2.0, {"structure": [0.25, 0.75]}))
    law = model.structure_law("structure")
    assert isinstance(law.base_dist, dist.Dirichlet)
    assert torch.allclose(law.base_dist.concentration, torch.tensor([[1.0, 3.0]]))
    model.temperature = 4.0
    assert torch.allclose(model.structure_law("structure").base_dist.concentration, torch.tensor([[2.0, 6.0]]))


FAMILIES = ["gumbel_softmax", "straight_through", "categorical", "dirichlet", "relaxed_bernoulli", "bernoulli"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prior_chooses_with_the_probabilities_that_it_was_given(family):
    """For the Dirichlet prior these are the means of γ, for all others the probabilities of the choices."""
    table = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    prior = getattr(structures, family)(probabilities=table)
    (choices,) = space_of(prior).choices().values()
    assert torch.equal(prior.prior_probabilities(choices), table)
    temperature = prior.temperature or 1.0
    law = prior.distribution(prior.parameters(table, temperature), temperature)
    assert torch.allclose(law.mean if family == "dirichlet" else law.probs, table, atol=1e-6)
    other = prior.distribution(prior.parameters(table.flip(-1), temperature), temperature)
    assert not torch.allclose(other.mean if family == "dirichlet" else other.probs, table, atol=0.05)


def space_of(prior):
    restriction = prior.restriction.partition(" ")[0]
    return Space({edge: {name: skip() for name in "abc"} for edge in ((0, 1), (1, 2))}, restriction=restriction)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prior_draws_within_its_restriction_and_accepts_no_other(family):
    prior = getattr(structures, family)()
    space = space_of(prior)
    model = Model(space, num_data=1, structure=prior)
    draws = model.structure_law("structure").sample((50,))
    space.check_structure({"structure": draws})
    at_vertices = bool(((draws == 0) | (draws == 1)).all())
    assert at_vertices is (not prior.reparameterised or family == "straight_through")
    (choices,) = space.choices().values()
    assert prior.accepts(choices)
    others = {"simplex": "cube", "cube": "simplex"}
    assert not prior.accepts(replace(choices, restriction=others[choices.restriction]))
    assert prior.accepts(replace(choices, restriction=f"{choices.restriction} vertices")) is at_vertices


def test_without_probabilities_all_choices_are_alike():
    for prior, expected in ((structures.categorical(), 1 / 3), (structures.bernoulli(), 1 / 2)):
        (choices,) = space_of(prior).choices().values()
        assert torch.allclose(prior.prior_probabilities(choices), torch.full((2, 3), expected))
