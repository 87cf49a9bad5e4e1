"""Data: batches, and the splits of named sets and of files."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_nas.data import Batches, load


def test_batches_cover_everything_once():
    x = torch.arange(23.0)[:, None]
    batches = Batches("train", (x, torch.arange(23)), 5, torch.device("cpu"))
    seen = [y for _, y in batches]
    assert len(seen) == len(batches) == 5
    assert {len(y) for y in seen} == {4, 5}
    assert sorted(torch.cat(seen).tolist()) == list(range(23))
    assert all(torch.equal(part[:, 0].long(), y) for part, y in batches)


def test_splits_are_disjoint_stratified_and_standardised(tmp_path):
    split = load("digits")
    parts = [split.train, split.valid, split.test]
    assert sum(len(y) for _, y in parts) == 1797
    rows = [{tuple(row.tolist()) for row in x.flatten(1)} for x, _ in parts]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    assert all(torch.bincount(y, minlength=10).min() > 20 for _, y in parts)
    assert split.train[0].shape[1:] == (1, 8, 8)
    assert split.train[0].min() == -1
    assert split.train[0].max() == 1
    assert torch.equal(load("digits").test[1], split.test[1])
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(5, 3, (100, 4)), y=rng.integers(0, 3, 100))
    split = load(str(tmp_path / "d.npz"))
    assert torch.allclose(split.train[0].mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(split.train[0].std(0), torch.ones(4), atol=1e-4)
    assert len(split.test[1]) == 20


def test_broken_files_of_torchvision_are_named(tmp_path):
    """Bits flipped in the heads of files, and files cut off: those that still read as images have others' shapes."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        numbers = np.arange(30 * 4, dtype=np.uint8)
        heads = {"images-idx3": struct.pack(">4i", 0x803, 30, 2, 2), "labels-idx1": struct.pack(">2i", 0x801, 30)}
        for name, head in heads.items():
            body = numbers if name == "images-idx3" else numbers[:30] % 3
            (raw / f"{part}-{name}-ubyte").write_bytes(head + body.tobytes())
    split = load("mnist", str(tmp_path))
    assert split.test[0].flatten()[1].item() == pytest.approx((1 - 127.5) / 127.5)
    assert (split.mean.item(), split.sd.item(), split.names[3]) == (127.5, 127.5, "3 - three")
    for path in raw.iterdir():
        content = path.read_bytes()
        for place in range(0, 8 * 8, 5):
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            for damaged in (changed, content[: place // 4]):
                path.write_bytes(damaged)
                with pytest.raises(ValueError, match=r"^(root: expected torchvision's files in|data)"):
                    load("mnist", str(tmp_path))
        path.write_bytes(content)


def test_a_first_batch_leaves_every_random_state():
    x, y = torch.arange(12.0)[:, None], torch.arange(12)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), 4, shuffle=True, generator=generator)
    for source in ((x, y), TensorDataset(x, y), loader):
        before = torch.get_rng_state(), generator.get_state()
        first, labels = Batches("train", source, 4, torch.device("cpu")).first()
        assert first.shape == (4, 1)
        assert torch.equal(first[:, 0].long(), labels)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(generator.get_state(), before[1])


def test_several_inputs_are_cut_alike():
    x = torch.arange(10.0)
    batches = Batches("train", ((x[:, None], -x), torch.arange(10)), 3, torch.device("cpu"))
    for (first, second), y in batches:
        assert torch.equal(first[:, 0].long(), y)
        assert torch.equal(second.long(), -y)


def test_a_split_knows_its_data():
    split = load("digits")
    x, y = split.known
    assert len(x) == len(y) == len(split.train[1]) + len(split.valid[1])
    assert split.digest() == load("digits").digest()
    changed = split.test[0].clone()
    changed[0, 0, 0, 0] += 1
    assert replace(split, test=(changed, split.test[1])).digest() != split.digest()
