"""Seals: files are read as they were written, or not at all."""

import hashlib
import json
import random
import re

import pytest
import safetensors.torch
import torch

from pyro_nas.files import (
    digest,
    load_state,
    read_sealed,
    read_tensors,
    state_of,
    write_json,
    write_sealed,
    write_tensors,
)
from pyro_nas.models import Model, guides, priors


def build(space, seed=0):
    torch.manual_seed(seed)
    model = Model(space, num_data=40, weights=priors.normal(0.5))
    return model, guides.MeanField(model)


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "row.json"
    write_sealed(path, {"name": "λ", "values": [1.5, -2]}, of="run/row.json")
    assert read_sealed(path, "name", "values", of="run/row.json") == {"name": "λ", "values": [1.5, -2]}
    content = path.read_bytes()
    zeros = re.sub(rb"sha256:[0-9a-f]{64}", b"sha256:" + b"0" * 64, content)
    assert json.loads(content)["seal"] == f"sha256:{hashlib.sha256(zeros).hexdigest()} of run/row.json"
    with pytest.raises(ValueError, match=r"row.json: expected a JSON object with \['seed'\]"):
        read_sealed(path, "seed", of="run/row.json")
    with pytest.raises(ValueError, match=r"row.json: expected 'other/row.json', got 'run/row.json': the file of ano"):
        read_sealed(path, of="other/row.json")
    with pytest.raises(ValueError, match="Out of range float"):
        write_sealed(path, {"value": float("nan")})
    assert path.read_bytes() == content
    write_json(path, {"name": "λ"})
    assert json.loads(path.read_bytes()) == {"name": "λ"}
    with pytest.raises(ValueError, match=r"row\.json: expected a file with its sha256 in it, got none"):
        read_sealed(path)


def damaged(content, generator):
    """Content with one bit flipped, or cut off."""
    flipped = bytearray(content)
    place = generator.randrange(8 * len(content))
    flipped[place // 8] ^= 1 << place % 8
    return [bytes(flipped), content[: generator.randrange(len(content))]]


def test_every_flipped_bit_and_every_truncation_is_found_and_named(small_space, tmp_path):
    model, guide = build(small_space)
    weights, row = tmp_path / "weights.safetensors", tmp_path / "row.json"
    write_tensors(weights, state_of(model, guide), of="run")
    write_sealed(row, {"accuracy": 0.5, "choices": ["a", "b"]}, of="run")
    before = {name: value.clone() for name, value in state_of(model, guide).items()}
    generator = random.Random(0)
    for path, read in ((weights, lambda path: load_state(path, model, guide)), (row, lambda path: read_sealed(path))):
        content = path.read_bytes()
        for _ in range(60):
            for changed in damaged(content, generator):
                path.write_bytes(changed)
                with pytest.raises(ValueError, match=rf"{path.name}: expected .*truncated or changed. Remove it"):
                    read(path)
    assert all(torch.equal(value, before[name]) for name, value in state_of(model, guide).items())


def test_tensors_are_read_as_they_were_written(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    tensors = {"transposed": whole.T, "part": whole[:, 1:], "gradient": torch.ones(2, requires_grad=True)}
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, tensors, of="run")
    for found in (read_tensors(path, of="run"), read_tensors(path), safetensors.torch.load(path.read_bytes())):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], value) for name, value in tensors.items())
    first = path.read_bytes()
    write_tensors(path, tensors, of="run")
    assert path.read_bytes() == first
    with pytest.raises(ValueError, match=r"tensors.safetensors: expected 'other', got 'run'"):
        read_tensors(path, of="other")
    assert digest(first) == hashlib.sha256(first).hexdigest() != digest(first[:-1])
