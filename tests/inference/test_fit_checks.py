"""Checks of a fit: data that another number or batch normalisation would misread are refused before the first step."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_nas import Space
from pyro_nas.graph.primitives import convolution, dense, pooled_readout
from pyro_nas.inference import bilevel, svi
from pyro_nas.inference.batches import Batches
from pyro_nas.inference.fit_checks import check_batch_size, check_data, check_dealt, check_schedule, needs_two
from pyro_nas.models import Model, guides

CPU = torch.device("cpu")


def normalised():
    """A network whose batch normalisation sees one value a channel of each datum."""
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def of_vectors(num_data=9):
    return Model(Space({(0, 1): {"a": normalised, "b": dense(3, 2)}}), num_data=num_data)


def of_images(num_data=9):
    space = Space({(0, 1): {"a": convolution(1, 4)}, (1, 2): {"out": pooled_readout(4, 2)}})
    return Model(space, num_data=num_data)


def test_a_number_of_data_that_is_not_that_of_the_data_is_refused(small_space, small_data):
    model = Model(small_space, num_data=30)
    guide = guides.MeanField(model)
    loader = DataLoader(TensorDataset(*small_data), 10)
    for source in (small_data, TensorDataset(*small_data), loader):
        with pytest.raises(ValueError, match=r"^num_data: expected .* 40, got 30: .*num_data=40"):
            svi.fit(model, guide, source, epochs=1)
    x, y = small_data
    svi.fit(model, guide, (x[:20], y[:20]), (x[20:30], y[20:30]), epochs=1)  # all that it is given
    whole = DataLoader(TensorDataset(*small_data), 11, drop_last=True)
    check_data(Model(small_space, num_data=33), [Batches("train", whole, 1, CPU)])  # as many as an epoch has


def test_a_batch_size_beside_loaders_is_refused(small_data):
    loader = DataLoader(TensorDataset(*small_data), 10)
    with pytest.raises(
        ValueError, match=r"^batch_size: expected none beside a DataLoader, which has 10, got 32. Leave it out"
    ):
        check_batch_size(32, loader, None)
    with pytest.raises(ValueError, match=r"^batch_size: expected none"):
        check_batch_size(32, loader, loader)
    check_batch_size(32, loader, small_data)  # it is that of the validation data
    check_batch_size(None, loader, None)
    check_batch_size(10, loader, None)


def test_later_labels_of_a_loader_are_refused_and_change_nothing(small_space, small_data):
    """torch takes −100 for "leave this one out", and says nothing."""
    x, y = small_data
    for wrong, message in ((-100, "got values from -100 to 1"), (2, "got values from 0 to 2")):
        bad = y.clone()
        bad[-1], bad[-2:] = wrong, torch.tensor([y[-2], wrong])
        bad[-10:-1] = torch.tensor([0, 1] * 4 + [0])
        model = Model(small_space, num_data=40)
        guide = guides.MeanField(model)
        before = guide.loc["weights"].clone()
        with pytest.raises(ValueError, match=f"^y: expected class indices from 0 to 1, {message}"):
            svi.fit(model, guide, DataLoader(TensorDataset(x, bad), 10), epochs=1)
        assert torch.equal(guide.loc["weights"], before)


def test_batch_normalisation_of_one_value_a_channel_needs_two():
    x, y = torch.randn(9, 3), torch.arange(9) % 2
    assert needs_two(of_vectors(), (x, y))
    assert not needs_two(of_images(), (torch.randn(9, 1, 4, 4), y))  # one image has 16 values a channel
    assert not needs_two(Model(Space({(0, 1): {"a": dense(3, 2)}}), num_data=9), (x, y))
    model = of_vectors()
    before = [buffer.clone() for buffer in model.buffers()]
    needs_two(model, (x, y))
    assert all(map(torch.equal, model.buffers(), before))


@pytest.mark.parametrize("where", ["train", "valid"])
def test_a_leftover_batch_of_one_is_refused_before_the_first_step(where):
    x, y = torch.randn(9, 3), torch.arange(9) % 2
    model = of_vectors()
    guide = guides.MeanField(model)
    before = guide.loc["weights"].clone()
    loader = DataLoader(TensorDataset(x, y), 4)
    train, valid = (loader, (x, y)) if where == "train" else ((x, y), loader)
    with pytest.raises(ValueError, match=f"^{where}: expected two data in a batch or more"):
        bilevel.fit(model, guide, train, valid, epochs=1)
    assert torch.equal(guide.loc["weights"], before)
    with pytest.raises(ValueError, match=r"^train: expected two data in a batch or more"):
        svi.fit(model, guide, (x, y), epochs=1, batch_size=2)  # of nine, even parts are 2, 2, 2, 2 and 1


def test_leftovers_of_one_that_do_no_harm_are_trained_on():
    x, y = torch.randn(9, 3), torch.arange(9) % 2
    model = of_vectors()
    svi.fit(model, guides.MeanField(model), TensorDataset(x, y), epochs=1, batch_size=4)  # 3, 3 and 3
    svi.fit(model, guides.MeanField(model), DataLoader(TensorDataset(x, y), 4, drop_last=True), epochs=1)
    svi.fit(model, guides.MeanField(model), (x, y), DataLoader(TensorDataset(x, y), 4), epochs=1)  # only measured
    images = of_images()
    pictures = torch.randn(9, 1, 4, 4)
    svi.fit(images, guides.MeanField(images), DataLoader(TensorDataset(pictures, y), 4), epochs=1)


def test_options_that_the_pair_cannot_have_are_refused(small_space):
    model = Model(small_space, num_data=40)
    check_schedule(model, "temperature", lambda progress: 1.0 - 0.5 * progress)
    assert model.temperature == 1.0
    with pytest.raises(ValueError, match="temperature"):
        check_schedule(model, "temperature", lambda progress: 1.0 - progress)
    assert model.temperature == 1.0
    check_dealt(model, torch.zeros(4), 4)
    with pytest.raises(ValueError, match=r"^dealt: expected 4 data in a batch or more"):
        check_dealt(model, torch.zeros(3), 4)
    with pytest.raises(ValueError, match=r"^dealt: expected a network without batch normalisation"):
        check_dealt(of_vectors(), torch.zeros(4), 4)
    with pytest.raises(TypeError, match=r"^dealt: expected a Model"):
        check_dealt(partial(model), torch.zeros(4), 4)
