"""Latents: what the support of a site says of it, also of copies, and its start in unconstrained coordinates."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_nas.evidence.packing import Packing
from pyro_nas.models import Model, guides, priors
from pyro_nas.models.latents import Latent, is_packed, is_positive, is_real, laid_out, unconstrained

VECTOR, MATRIX = torch.tensor([0.5, 2.0]), torch.full((3, 2), 0.5)
SITES = {  # value, support, (real, positive, packed)
    "real": (VECTOR, constraints.real, (True, False, True)),
    "a real vector": (VECTOR, constraints.real_vector, (True, False, True)),
    "joined": (VECTOR, constraints.independent(constraints.real, 1), (True, False, True)),
    "a tensor": (MATRIX, constraints.independent(constraints.real, 2), (True, False, False)),
    "positive": (VECTOR, constraints.positive, (False, True, False)),
    "joined positive": (VECTOR, constraints.independent(constraints.positive, 1), (False, True, False)),
    "above a number": (VECTOR, constraints.greater_than(0.1), (False, False, False)),
    "above numbers": (VECTOR, constraints.greater_than(torch.tensor([0.0, 0.1])), (False, False, False)),
    "above zero": (VECTOR, constraints.greater_than(torch.zeros(2)), (False, True, False)),
    "not negative": (VECTOR, constraints.nonnegative, (False, False, False)),
    "an interval": (MATRIX, constraints.unit_interval, (False, False, False)),
    "a simplex": (torch.tensor([0.2, 0.8]), constraints.simplex, (False, False, False)),
}


@pytest.mark.parametrize("copied", [lambda site: site, copy.deepcopy, lambda site: pickle.loads(pickle.dumps(site))])
@pytest.mark.parametrize("name", SITES)
def test_the_support_tells_and_so_does_that_of_a_copy(name, copied):
    """A deep copy has supports that are other objects than torch's."""
    value, support, expected = SITES[name]
    site = copied(Latent(value, support))
    assert (is_real(site), is_positive(site), is_packed(site)) == expected
    assert torch.equal(site.initial, value)


def test_supports_of_a_copy_are_not_torchs_own():
    """Without this the test above would pass for a comparison of objects."""
    site = copy.deepcopy(Latent(VECTOR, constraints.independent(constraints.positive, 1)))
    assert site.support.base_constraint is not constraints.positive


@pytest.mark.parametrize("name", SITES)
def test_unconstrained_coordinates_lead_back(name):
    value, support, _ = SITES[name]
    coordinates = unconstrained(Latent(value, support))
    assert torch.allclose(torch.distributions.biject_to(support)(coordinates), value, atol=1e-6)
    assert coordinates.data_ptr() != value.data_ptr()


def test_coordinates_of_a_positive_site_are_logarithms():
    assert torch.allclose(unconstrained(Latent(VECTOR, constraints.positive)), VECTOR.log())


def test_a_copied_guide_draws_from_the_same_laws(small_space):
    """As a hypernetwork copies it: a positive site that was not known as one would be drawn as another law."""

    def law(name, shape):
        return dist.Gamma(2.0, 2.0).expand(shape).to_event(len(shape))

    guide = guides.MeanField(Model(small_space, num_data=4, weights=priors.each(law)))
    draws = []
    for drawn in (guide, copy.deepcopy(guide)):
        torch.manual_seed(1)
        draws.append(drawn())
    assert all(torch.equal(draws[0][site], draws[1][site]) for site in draws[0])


LAYOUT = Packing({"a": torch.Size([2, 3]), "b": torch.Size([2])})


def frozen_rest(packing):
    return lambda: {name: pyro.sample(name, dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)) for name in ("a",)}


def renamed(packing):
    return lambda: {name + "s": value for name, value in priors.normal(1.0)(packing)().items()}


def transposed(packing):
    return lambda: {
        name: value.mT if value.dim() > 1 else value for name, value in priors.normal(1.0)(packing)().items()
    }


@pytest.mark.parametrize(
    ("prior", "kind", "message"),
    [
        (frozen_rest, ValueError, r"draws {'b': \(2,\)}, got {'b': None}. Draw every name of packing.shapes"),
        (renamed, ValueError, r"draws {'a': \(2, 3\), 'as': None, .*got {'a': None, 'as': \(2, 3\)"),
        (transposed, ValueError, r"draws {'a': \(2, 3\)}, got {'a': \(3, 2\)}"),
        (dist.Normal(0.0, 1.0), TypeError, r"a weight prior, .* got Normal.* Write priors.each"),
        (1.0, TypeError, "a weight prior, a function of a Packing"),
        (lambda packing: 3, TypeError, r"returns a function \(\) → {name: tensor}, got 3"),
        (lambda packing: lambda: [1], TypeError, r"draws {name: tensor}, got \[1\]"),
    ],
)
def test_a_prior_that_leaves_weights_out_or_draws_others_is_refused(prior, kind, message):
    with pytest.raises(kind, match=f"^weights: expected .*{message}"):
        laid_out(prior, LAYOUT)


def test_checking_a_prior_leaves_the_random_state():
    before = torch.get_rng_state()
    draw = laid_out(priors.normal(1.0), LAYOUT)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: value.shape for name, value in draw().items()} == LAYOUT.shapes


def test_a_network_without_weights_asks_no_prior():
    assert laid_out(priors.relevance_determination(), Packing({}))() == {}
