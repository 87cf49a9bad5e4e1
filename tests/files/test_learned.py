"""What a fit learned: a file of it restores the fit."""

import pytest
import safetensors.torch
import torch
from torch import nn

from pyro_nas import Space, predict
from pyro_nas.evidence import evaluate
from pyro_nas.files import load_state, state_of, write_tensors
from pyro_nas.inference import adam, svi
from pyro_nas.models import Model, guides, likelihoods, priors
from pyro_nas.reading.posterior import mean_draw


def build(space, seed=0):
    torch.manual_seed(seed)
    model = Model(space, num_data=40, weights=priors.normal(0.5))
    return model, guides.MeanField(model)


def test_weights_files_restore_a_fit(small_space, small_data, tmp_path):
    model, guide = build(small_space)
    svi.fit(model, guide, small_data, epochs=6, batch_size=8, optimizer=adam(0.02))
    write_tensors(tmp_path / "weights.safetensors", state_of(model, guide))
    other = build(small_space, seed=3)
    load_state(tmp_path / "weights.safetensors", *other)
    saved, loaded = state_of(model, guide), state_of(*other)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    with pytest.raises(ValueError, match="expected the tensors of this model and guide"):
        load_state(tmp_path / "weights.safetensors", model, guides.LowRankNormal(model))


def test_a_weights_file_holds_learned_noise_and_the_statistics_of_batch_normalisation(tmp_path):
    """Without any one of them the pair that it is read into predicts something else."""
    x = 3 + torch.randn(60, 3)
    y = x @ torch.randn(3, 2) + 0.1 * torch.randn(60, 2)
    space = Space({(0, 1): {"a": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))}})

    def pair(seed):
        torch.manual_seed(seed)
        model = Model(space, num_data=60, likelihood=likelihoods.gaussian(1.0))
        return model, guides.PointMass(model)

    fitted, other = pair(0), pair(1)
    svi.fit(*fitted, (x, y), epochs=20, batch_size=20, optimizer=adam(0.05))
    write_tensors(tmp_path / "weights.safetensors", state_of(*fitted))
    names = set(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    normalisation = {
        f"model.network.edges.0-1.a.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    }
    assert {"guide.loc.weights", "model.likelihood.log_noise", *normalisation} <= names
    assert not {name for name in names if name.startswith("model.network.edges.0-1.a.0")}  # which the guide has
    load_state(tmp_path / "weights.safetensors", *other)
    assert torch.equal(predict(other[0], mean_draw(other[1]), x), predict(fitted[0], mean_draw(fitted[1]), x))
    assert evaluate(*other, (x, y)) == evaluate(*fitted, (x, y))
