"""Every structure: fits of many structures in one computation, each as if it were alone."""

import pytest
import torch

from pyro_nas import Evidence, draw
from pyro_nas.graph.enumeration import all_structures
from pyro_nas.graph.families.superposition import superposition
from pyro_nas.models import Model, likelihoods, priors, structures
from pyro_nas.models.every_structure import EveryStructure

NOISE, SPACE = 0.05, superposition()


def build():
    return Model(
        SPACE, num_data=60, weights=priors.normal(2.0), structure=structures.dirichlet(),
        likelihood=likelihoods.gaussian(NOISE, learn=False),
    )  # fmt: skip


def test_each_structure_is_a_fit_of_its_own():
    """The joint evidence is the mean of the members', and so is its gradient: 1/L of each member's own."""
    x, y = torch.randn(60, 1), torch.randn(60, 1)
    torch.manual_seed(1)
    model = build()
    guide = EveryStructure(model, list(all_structures(SPACE))[:12], initial_scale=1e-6)  # nearly no noise
    together = Evidence(model, guide, particles=12, vectorize_particles=True)(x, y).evidence
    joint = torch.autograd.grad(together, guide.loc)[0]
    apart = [Evidence(model, guide.member(number))(x, y).evidence for number in range(12)]
    single = torch.stack([torch.autograd.grad(value, guide.loc)[0][n] for n, value in enumerate(apart)]) / 12
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), rel=1e-3)
    scale = joint.norm(dim=-1, keepdim=True)
    assert torch.allclose(joint / scale, single / scale, atol=1e-2)
    assert not torch.allclose(joint / scale, single.roll(1, 0) / scale, atol=1e-2)  # another's


def test_members_that_are_kept_stand_where_they_stood():
    guide = EveryStructure(build(), list(all_structures(SPACE))[:6])
    kept = guide.kept([4, 1])
    assert torch.equal(kept.loc, guide.loc[[4, 1]])
    assert kept.structures[0] is guide.structures[4]
    assert draw(kept.member(1), num_samples=3)["weights"].shape == (3, guide.loc.shape[1])


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="model: expected a Model"):
        EveryStructure(lambda x, y: None, [])
    with pytest.raises(ValueError, match="structures: expected one or more, got none"):
        EveryStructure(build(), [])
    with pytest.raises(ValueError, match="structures: expected the sites"):
        EveryStructure(build(), [{}])
    with pytest.raises(ValueError, match="initial_scale: expected a finite number"):
        EveryStructure(build(), [next(all_structures(SPACE))], 0.0)
    several = Model(SPACE, num_data=60, weights=priors.relevance_determination(), structure=structures.dirichlet())
    with pytest.raises(ValueError, match="model: expected one of the packed site 'weights'"):
        EveryStructure(several, [next(all_structures(SPACE))])
