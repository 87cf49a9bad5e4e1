"""Batches: what an epoch of a source is, and sums over it; loaders that cannot be trained on are refused."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from pyro_nas.inference.batches import Batches, EvenParts

CPU = torch.device("cpu")
X, Y = torch.arange(23.0)[:, None], torch.arange(23)


def loader(batch_size, **options):
    return DataLoader(TensorDataset(X, Y), batch_size, **options)


class Recorded(Dataset):
    """Data by index, which remember what was loaded of them."""

    def __init__(self):
        self.loaded = []

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.loaded.append(index)
        return X[index], Y[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(X[0], Y[0])] * 5)


class SizedStream(Stream):
    def __len__(self):
        return 5


def test_batches_cover_everything_once():
    x = torch.arange(23.0)[:, None]
    batches = Batches("train", (x, torch.arange(23)), 5, torch.device("cpu"))
    seen = [y for _, y in batches]
    assert len(seen) == len(batches) == 5
    assert {len(y) for y in seen} == {4, 5}
    assert sorted(torch.cat(seen).tolist()) == list(range(23))
    assert all(torch.equal(part[:, 0].long(), y) for part, y in batches)


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


def test_data_by_index_are_cut_as_tensors_are():
    batches = Batches("train", TensorDataset(X, Y), 22, CPU)
    sizes = [len(y) for _, y in batches]
    assert sizes == [12, 11]  # as a loader cuts them, 22 and 1
    assert batches.smallest == 11
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == list(range(23))
    assert [len(part) for part in EvenParts(7, 3)] == [3, 2, 2]


SOURCES = {
    "tensors": lambda: (X, Y),
    "dataset": lambda: TensorDataset(X, Y),
    "leftover in fixed order": lambda: loader(5),
    "leftover at random": lambda: loader(5, shuffle=True),
    "by what is in it": lambda: DataLoader(TensorDataset(X, Y), batch_sampler=[[0], [1, 2, 3], [*range(4, 23)]]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_weighted_estimates_of_an_epoch_have_the_mean_of_all_data(name):
    """(1/K) Σ_k w_k (N/n_k) Σ_{i in k} v_i = Σ_i v_i; without weights a leftover counts too much."""
    values = torch.randn(23).double()
    batches = Batches("train", SOURCES[name](), 5, CPU)
    parts = [(batches.weight(y), 23 / len(y) * values[y].sum()) for _, y in batches]
    mean = sum(weight * estimate for weight, estimate in parts) / len(batches)
    assert mean.item() == pytest.approx(values.sum().item(), abs=1e-9)
    assert sum(weight for weight, _ in parts) == pytest.approx(len(batches))
    plain = sum(estimate for _, estimate in parts) / len(batches)
    assert abs(plain - values.sum()) > 0.01


def test_an_epoch_is_what_a_sampler_draws():
    samplers = {
        "all": ({}, 23, 3),
        "whole batches": ({"drop_last": True}, 20, 5),
        "some": ({"sampler": WeightedRandomSampler(torch.ones(23), 11)}, 11, 1),
    }
    for options, drawn, smallest in samplers.values():
        batches = Batches("train", loader(5, **options), 7, CPU)
        assert (batches.size, batches.drawn, batches.smallest) == (23, drawn, smallest)
    mine = DataLoader(TensorDataset(X, Y), batch_sampler=_Halves(range(23), 4, drop_last=False))
    assert Batches("train", mine, 7, CPU).smallest is None
    stream = Batches("train", SizedStream(), 2, CPU)
    assert (stream.size, len(stream), [len(y) for _, y in stream]) == (5, 3, [2, 2, 1])


class _Halves(BatchSampler):
    pass


def test_a_first_batch_is_loaded_once():
    data = Recorded()
    batches = Batches("train", DataLoader(data, 2), 7, CPU)
    for _ in range(3):
        batches.first()
    assert data.loaded == [0, 1]


def test_batches_that_were_taken_are_not_loaded_again():
    data = Recorded()
    batches = Batches("train", DataLoader(data, 2), 7, CPU)
    assert [y.tolist() for _, y in batches.after(2)] == [[4, 5]]
    assert data.loaded == [4, 5]
    assert [y.tolist() for _, y in batches.after(0)] == [[0, 1], [2, 3], [4, 5]]
    assert len(list(Batches("train", SizedStream(), 2, CPU).after(1))) == 2
    assert len(list(Batches("train", (X, Y), 5, CPU).after(2))) == 3


BAD = {
    "empty dataset": (TensorDataset(X[:0], Y[:0]), ValueError, "data in batches, got 0 data in 0 batches"),
    "no whole batch": (loader(50, drop_last=True), ValueError, "got 23 data in 0 batches. Is drop_last on"),
    "stream": (Stream(), ValueError, "data of known length.*__len__"),
    "loader of a stream": (DataLoader(Stream(), 2), ValueError, "data of known length.*__len__"),
    "dictionaries": (
        DataLoader([{"x": X[0], "y": 1}] * 3, 2), TypeError, r"pairs \(x, y\) of tensors, got a dict of \['x', 'y'\]"),
    "weights": (
        DataLoader(TensorDataset(X, Y, X), 2), TypeError,
        r"got a list of \['Tensor', 'Tensor', 'Tensor'\]. Give the loader a collate_fn"),
    "x alone": (DataLoader(X, 2), TypeError, r"pairs .* got a torch.float32 tensor of shape \(2, 1\)"),
    "names": (DataLoader([(X[0], "cat")] * 3, 2), TypeError, r"got a list of \['Tensor', 'tuple'\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_sources_that_are_no_batches_are_refused_at_the_first(name):
    source, kind, message = BAD[name]
    with pytest.raises(kind, match=f"^train: expected .*{message}"):
        Batches("train", source, 2, CPU).first()


def test_y_of_later_batches_are_looked_at():
    seen = []
    batches = Batches("train", loader(10), 7, CPU)
    batches.check_y = lambda y: seen.append(y.tolist())
    list(batches)
    assert [len(y) for y in seen] == [10, 10, 3]


def test_batches_of_one_are_refused_where_two_are_needed():
    message = "^train: expected two data in a batch or more, .* Pass drop_last=True"
    with pytest.raises(ValueError, match=message):
        Batches("train", loader(11), 7, CPU).require_two()
    Batches("train", loader(11, drop_last=True), 7, CPU).require_two()
    unknown = Batches("train", DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [2]]), 7, CPU)
    unknown.require_two()
    with pytest.raises(ValueError, match=message):
        list(unknown)
