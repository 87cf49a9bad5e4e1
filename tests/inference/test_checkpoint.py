"""Checkpoint: damaged, foreign and present ones are refused, a kill leaves a whole one, others' files stay."""

import json
import os
import random
import shutil

import pytest
import safetensors.torch
import torch

from pyro_nas.files import write_tensors
from pyro_nas.inference.checkpoint import NAME, Checkpoint, CorruptCheckpoint


@pytest.mark.parametrize("damage", ["truncated", "flipped", "record", "other tensors", "no safetensors", "empty"])
def test_a_damaged_checkpoint_is_refused(damage, small_data, tmp_path, build, fit, state, same):
    model, guide = build()
    fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    path = tmp_path / NAME
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "record":
        tensors = safetensors.torch.load(bytes(content))
        position = json.loads(tensors["position"].numpy().tobytes())
        position["history"][0]["evidence"] += 1.0
        tensors["position"] = torch.frombuffer(bytearray(json.dumps(position).encode()), dtype=torch.uint8)
        path.write_bytes(safetensors.torch.save(tensors))
    elif damage == "other tensors":
        write_tensors(path, {"a": torch.ones(2)})
    else:
        path.write_bytes(b"\x80\x04\x95junk" if damage == "no safetensors" else b"")
    before = state(model, guide)
    with pytest.raises(CorruptCheckpoint, match=NAME):
        fit(model, guide, small_data, "svi", checkpoint=tmp_path, resume=True, epochs=8)
    assert same(state(model, guide), before)


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path):
    checkpoint, generator = Checkpoint(tmp_path), random.Random(1)
    checkpoint.save({"a": torch.randn(5)}, {"epoch": 1, "best": float("inf")})
    path = tmp_path / NAME
    content = path.read_bytes()
    for place in generator.sample(range(8 * len(content)), 60):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        for damaged in (bytes(changed), content[: place // 8]):
            path.write_bytes(damaged)
            with pytest.raises(CorruptCheckpoint, match=rf"{NAME}: expected .*Remove the folder to start again"):
                checkpoint.load()


def test_a_checkpoint_is_not_overwritten(small_data, tmp_path, build, fit):
    model, guide = build()
    fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert list(files) == [NAME]
    with pytest.raises(FileExistsError, match="resume=True"):
        fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_the_newest_whole_checkpoint_survives_a_kill_while_the_next_is_written(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"a": torch.ones(2)}, {"epoch": 1})

    def kill(descriptor):  # the new one is written, but not in its place yet
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)  # nothing runs after a kill
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save({"a": torch.zeros(2)}, {"epoch": 2})
    assert len(os.listdir(tmp_path)) == 2
    tensors, position = checkpoint.load()
    assert torch.equal(tensors["a"], torch.ones(2))
    assert position == {"epoch": 1}
    with checkpoint.locked():
        checkpoint.save({"a": torch.zeros(2)}, {"epoch": 2})
    assert os.listdir(tmp_path) == [NAME]


def test_files_of_others_in_the_folder_stay(small_data, tmp_path, build, fit):
    others = {"checkpoint-0123456789abcdef.safetensors": b"another's", "checkpoint.json": b"{}", "notes.txt": b"mine"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    model, guide = build()
    fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != NAME} == others


def test_a_folder_takes_one_fit_at_a_time(small_data, tmp_path, build, fit, state, same):
    raised = []

    def second(record):
        with pytest.raises(BlockingIOError, match=rf"checkpoint: .*in use by process {os.getpid()}") as error:
            fit(*build(), small_data, "svi", checkpoint=tmp_path, resume=True)
        raised.append(error)

    model, guide = build()
    fit(model, guide, small_data, "svi")
    expected = state(model, guide)
    model, guide = build()
    fit(model, guide, small_data, "svi", checkpoint=tmp_path, callbacks=[second])
    assert len(raised) == 6
    assert same(state(model, guide), expected)
