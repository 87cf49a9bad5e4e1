"""Data: batches, and the splits of named sets and of files."""

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


@pytest.mark.parametrize("shape", [(2,), (2, 2, 2)], ids=["features", "images"])
@pytest.mark.parametrize(("fraction", "shares"), [(0.2, (0.64, 0.16, 0.2)), (0.5, (0.4, 0.4, 0.2))])
def test_every_part_is_stratified_and_standardised_by_the_training_part_alone(shape, fraction, shares, tmp_path):
    """One map for all three parts keeps the order of all values, by which each row is found again as it was stored."""
    counts = [300, 150, 50]
    y = np.repeat(np.arange(3), counts)
    x = np.random.default_rng(0).lognormal(1.0, 1.5, size=(500, *shape)).astype(np.float32)
    np.savez(tmp_path / "skewed.npz", x=x, y=y)
    split = load(str(tmp_path / "skewed.npz"), valid_fraction=fraction)
    parts = (split.train, split.valid, split.test)
    for (_, labels), share in zip(parts, shares, strict=True):
        assert torch.bincount(labels).tolist() == [round(share * count) for count in counts]
    first = torch.cat([part.flatten(1)[:, 0] for part, _ in parts])
    rows = torch.empty(500, dtype=torch.long)
    rows[first.argsort()] = torch.as_tensor(x).flatten(1)[:, 0].argsort()
    stored = torch.as_tensor(x)[rows].split([len(labels) for _, labels in parts])
    axes = [0, *range(2, x.ndim)]  # of a channel over all its pixels
    sd, mean = torch.std_mean(stored[0], axes, keepdim=True)
    for (part, labels), raw, index in zip(parts, stored, rows.split([len(raw) for raw in stored]), strict=True):
        assert torch.allclose(part, (raw - mean) / sd, atol=1e-4)
        assert torch.equal(labels, torch.as_tensor(y)[index])
