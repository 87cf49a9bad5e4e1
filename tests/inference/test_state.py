"""The state of a fit: parameters of weights and of structure, in one order, and those of another model."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nas.inference.state import FitState, kept_buffers, named_parameters, split_parameters
from pyro_nas.models import Model, guides, likelihoods


def test_parameters_keep_their_order_in_every_process():
    """Optimisers, and so checkpoints, number what they keep of each by it; that of a set is another in each process."""
    named = {f"guide.{index}": torch.zeros((), requires_grad=True) for index in range(16)}

    def guide():
        for index, value in enumerate(named.values()):
            pyro.sample(f"{'structure' if index % 2 else 'weights'}.{index}", dist.Normal(value, 1.0))

    weights, structure = split_parameters(guide, (), named)
    assert list(weights) == list(named)[::2]
    assert list(structure) == list(named)[1::2]


def test_a_checkpoint_of_another_model_is_refused(small_data, tmp_path, build, fit):
    model, guide = build()
    fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    other = guides.LowRankNormal(model)
    with pytest.raises(ValueError, match=r"fit.guide.class '.*MeanField' → '.*LowRankNormal'"):
        fit(model, other, small_data, "svi", checkpoint=tmp_path, resume=True)
    named = {"guide.loc": torch.zeros(3)}
    with pytest.raises(ValueError, match="expected the tensors of this model and guide"):
        FitState(model, guide, named, {}, {}).restore({"guide.loc": torch.zeros(4)})


def test_all_parameters_are_found_once_and_those_that_are_held_still_are_not(small_space, small_data):
    """Of modules by their names, of plain functions those that they declare; shared ones count once."""
    model = Model(small_space, num_data=40, likelihood=likelihoods.gaussian(1.0))
    guide = guides.MeanField(model)
    guide.log_scale.requires_grad_(False)
    named = named_parameters(model, guide, (small_data[0], torch.randn(40, 2)))
    assert list(named) == ["model.likelihood.log_noise", "guide.loc.weights", "guide.structure.structure"]
    assert named["guide.loc.weights"] is guide.loc["weights"]
    scale = torch.nn.Parameter(torch.ones(()))

    def plain():
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(2)), pyro.param("scale", scale)).to_event(1))

    assert [tuple(value.shape) for value in named_parameters(plain, plain, ()).values()] == [(2,), ()]
    pyro.clear_param_store()


def test_buffers_that_arguments_determine_are_no_state(small_space):
    """The prior's scales and probabilities are made from the arguments; statistics of batch normalisation are not."""
    assert list(kept_buffers(Model(small_space, num_data=40))) == []
    names = [name for name, _ in kept_buffers(torch.nn.BatchNorm1d(3))]
    assert names == ["running_mean", "running_var", "num_batches_tracked"]
