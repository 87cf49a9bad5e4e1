"""Autoguides: the structure's draws from their base are those of their runs."""

import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal

from pyro_nas import choice_probabilities
from pyro_nas.evidence.sites import sample_sites
from pyro_nas.inference import svi
from pyro_nas.models import Model, guides
from pyro_nas.reading import autoguides
from pyro_nas.reading.autoguides import structure_draws


def joined(model):
    whole = AutoGuideList(model)
    whole.append(AutoNormal(poutine.block(model, hide=["weights"])))
    whole.append(AutoLowRankMultivariateNormal(poutine.block(model, expose=["weights"])))
    return whole


GUIDES = {
    "normal": AutoNormal,
    "joint": AutoMultivariateNormal,
    "low rank": AutoLowRankMultivariateNormal,
    "list": joined,
}


RUNS = 200
ERROR = 4 * 0.5 * (1 / RUNS + 1 / 1000) ** 0.5  # four standard errors of a difference of shares


@pytest.mark.parametrize("name", GUIDES)
def test_the_share_of_draws_is_that_of_runs_of_the_guide(name, small_space, small_data):
    model = Model(small_space, num_data=40)
    guide = GUIDES[name](model)
    svi.fit(model, guide, small_data, epochs=2)
    runs = [sample_sites(guide, small_data)["structure"]["value"].detach() for _ in range(RUNS)]
    shares = torch.stack(runs).argmax(-1).float().mean(0)
    drawn = structure_draws(guide, sample_sites(guide, small_data), 4000)
    assert list(drawn) == ["structure"]
    gamma = drawn["structure"]
    assert gamma.shape == (4000, 2, 2)
    assert torch.allclose(gamma.sum(-1), torch.ones(4000, 2), atol=1e-5)
    assert torch.allclose(gamma.argmax(-1).float().mean(0), shares, atol=ERROR)
    assert torch.allclose(choice_probabilities(guide, *small_data)["structure"][:, 1], shares, atol=ERROR)


def test_a_large_joint_latent_is_drawn_fewer_times(small_space, small_data, monkeypatch):
    model = Model(small_space, num_data=40)
    guide = AutoMultivariateNormal(model)
    run = sample_sites(guide, small_data)
    monkeypatch.setattr(autoguides, "NUMBERS", 20 * guide.latent_dim)
    assert structure_draws(guide, run, 100)["structure"].shape == (20, 2, 2)
    monkeypatch.setattr(autoguides, "NUMBERS", 1)
    assert structure_draws(guide, run, 100)["structure"].shape == (10, 2, 2)


def test_other_guides_have_no_base(small_space):
    guide = guides.MeanField(Model(small_space, num_data=40))
    assert structure_draws(guide, sample_sites(guide, ()), 10) == {}
