"""Checkpoint: damaged, foreign and present ones are refused, a kill leaves a whole one."""

import json

import pytest
import torch

from pyro_nas.inference.checkpoint import Checkpoint, CorruptCheckpoint


@pytest.mark.parametrize("damage", ["truncated", "flipped", "json", "json value", "missing", "not json"])
def test_a_damaged_checkpoint_is_refused(damage, small_data, tmp_path, build, fit, state, same):
    model, guide = build()
    fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    tensors, position = next(tmp_path.glob("*.safetensors")), tmp_path / "checkpoint.json"
    content = bytearray(tensors.read_bytes())
    if damage == "truncated":
        tensors.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        tensors.write_bytes(content)
    elif damage == "missing":
        tensors.unlink()
    elif damage == "json":
        position.write_text(position.read_text()[:-40])
    elif damage == "json value":
        body = json.loads(position.read_text())
        body["position"]["history"][0]["evidence"] += 1.0
        position.write_text(json.dumps(body))
    else:
        position.write_bytes(b"\x80\x04\x95junk")
    name = "checkpoint.json" if "json" in damage else tensors.name
    before = state(model, guide)
    with pytest.raises(CorruptCheckpoint, match=name):
        fit(model, guide, small_data, "svi", checkpoint=tmp_path, resume=True, epochs=8)
    assert same(state(model, guide), before)


def test_a_checkpoint_is_not_overwritten(small_data, tmp_path, build, fit):
    model, guide = build()
    fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="resume=True"):
        fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_the_newest_whole_checkpoint_survives_a_kill_between_its_two_files(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"a": torch.ones(2)}, {"epoch": 1})
    (tmp_path / "checkpoint-0000000000000000.safetensors").write_bytes(b"half of the next one")
    tensors, position = checkpoint.load()
    assert torch.equal(tensors["a"], torch.ones(2))
    assert position == {"epoch": 1}
    checkpoint.save({"a": torch.zeros(2)}, {"epoch": 2})
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
