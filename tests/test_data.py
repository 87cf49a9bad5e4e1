"""Data: what pairs and labels must be, and the splits of named sets and of files."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_nas.data import check_classes, check_labels, check_number, check_pair, check_tensors, load


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


def test_a_split_knows_its_data():
    split = load("digits")
    x, y = split.known
    assert len(x) == len(y) == len(split.train[1]) + len(split.valid[1])
    assert split.digest() == load("digits").digest()
    changed = split.test[0].clone()
    changed[0, 0, 0, 0] += 1
    assert replace(split, test=(changed, split.test[1])).digest() != split.digest()


LABELS = {
    "column": (torch.tensor([[0], [1]]), r"shape \(batch,\), got .* Call y.squeeze\(1\)\.$"),
    "one-hot": (torch.eye(3), r"shape \(batch,\), got .* Call y.argmax\(1\) on a one-hot form\.$"),
    "float": (torch.tensor([0.0, 1.0]), r"integer class indices, got .* Call y.long\(\)\.$"),
    "bool": (torch.tensor([True, False]), r"integer class indices, got .* Call y.long\(\)\.$"),
    "from 1": (torch.tensor([1, 2, 3]), r"from 0 to 2, got values from 1 to 3\. They count from 1: subtract 1\.$"),
    "none as -1": (torch.tensor([-1, 2]), r"from 0 to 2, got values from -1 to 2\. Leave out the data without a class"),
    "huge": (torch.tensor([0, 10**9]), r"from 0 to 2, got values from 0 to 1000000000\. Number them from 0"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_will_not_do_come_with_a_remedy(name):
    y, message = LABELS[name]
    with pytest.raises((TypeError, ValueError), match=f"^y: expected (class indices )?(of )?{message}"):
        check_labels("y", y, 3)
    check_labels("y", torch.tensor([0, 2]), 3)


def test_what_is_no_tensor_says_how_it_becomes_one():
    class Frame:
        def to_numpy(self):
            return np.ones(3)

    x = torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"^train x: expected a tensor, got .* Call torch.as_tensor on it\.$"):
        check_pair("train", (x.numpy(), x))
    with pytest.raises(TypeError, match=r"^train y: .* torch.as_tensor\(numpy.unique\(y, return_inverse=True\)\[1\]\)"):
        check_pair("train", (x, ["cat", "dog"]))
    with pytest.raises(TypeError, match=r"^x: .* Call torch.as_tensor on its to_numpy\(\)\.$"):
        check_tensors("x", Frame())
    with pytest.raises(TypeError, match=r"^x: .* Call torch.as_tensor on it"):
        check_classes(x.numpy(), torch.tensor([0, 1]))


def test_a_model_counts_the_data_that_it_is_fitted_to():
    class Counting:
        num_data = 60

    check_number(Counting(), 60)
    check_number(Counting(), 40, 60)  # so many data, of which an epoch draws more
    check_number(object(), 40)
    with pytest.raises(ValueError, match=r"^num_data: expected .* 40, got 60: .* 1.5 times. .*num_data=40;"):
        check_number(Counting(), 40)


def test_classes_without_data_or_not_from_0_are_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 4))
    for y, message in (
        (np.arange(30) % 3 + 1, "They count from 1: subtract 1"),
        (np.arange(30) % 3 - 1, "Leave out the data without a class"),
        (np.arange(30) % 3 * 10**9, "Number them from 0"),
    ):
        np.savez(tmp_path / "d.npz", x=x, y=y)
        with pytest.raises(ValueError, match=f"^data y: expected class indices from 0 to 2, .*{message}"):
            load(str(tmp_path / "d.npz"))


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
