"""Files: written whole or not at all, read back as they were."""

import hashlib
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from pyro_nas import Space, predict
from pyro_nas.evidence import evaluate
from pyro_nas.files import (
    digest,
    load_state,
    read_json,
    state_of,
    tensor_bytes,
    write_atomically,
    write_json,
    write_tensors,
)
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


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"first")

    def crash(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)  # the new content is written, but not in its place yet
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    write_atomically(path, b"second")
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == [("file", b"second")]


def test_json_is_read_as_it_was_written_and_other_files_are_named(tmp_path):
    path = tmp_path / "row.json"
    write_json(path, {"name": "λ", "values": [1.5, -2]})
    assert read_json(path, "name", "values") == {"name": "λ", "values": [1.5, -2]}
    with pytest.raises(ValueError, match=r"row.json: expected a JSON object with \['seed'\]"):
        read_json(path, "seed")
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"value": float("nan")})
    assert read_json(path)["name"] == "λ"
    for content in ("{", "[1]"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"row\.json: expected"):
            read_json(path)


def test_tensors_are_read_as_they_were_written(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    tensors = {"transposed": whole.T, "part": whole[:, 1:], "gradient": torch.ones(2, requires_grad=True)}
    write_tensors(tmp_path / "tensors.safetensors", tensors)
    content = (tmp_path / "tensors.safetensors").read_bytes()
    assert content == tensor_bytes(tensors)
    found = safetensors.torch.load(content)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert digest(content) == hashlib.sha256(content).hexdigest() != digest(content[:-1])
