"""What a fit learned: a file of it restores the fit."""

import pytest
import torch

from pyro_nas.files import (
    load_state,
    state_of,
    write_tensors,
)
from pyro_nas.inference import adam, svi
from pyro_nas.models import Model, guides, priors


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
