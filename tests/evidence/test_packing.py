"""Packing: the order of names, and normal weights, whose parts have the means and variances of the whole."""

import pytest
import torch

from pyro_nas.evidence.gaussian_tensor import GaussianTensor
from pyro_nas.evidence.packing import Packing

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([6.0, 7.0]), "scale": torch.tensor(8.0)}


def test_names_lie_in_the_order_in_which_they_came():
    packing = Packing.of(TENSORS)
    assert (packing.names, packing.sizes, packing.size) == (["weight", "bias", "scale"], [6, 2, 1], 9)
    assert torch.equal(packing.pack(TENSORS), torch.arange(9.0))
    assert torch.equal(packing.pack(dict(reversed(TENSORS.items()))), torch.arange(9.0))  # by the layout, not as given
    assert packing.unpack(torch.zeros(4, 1, 9))["weight"].shape == (4, 1, 2, 3)


def test_parts_of_a_normal_vector_are_normal():
    packing = Packing.of(TENSORS)
    mean, variance = torch.arange(9.0), torch.arange(9.0).square()
    parts = packing.unpack(GaussianTensor.of(mean, variance))
    for name, tensor in TENSORS.items():
        assert isinstance(parts[name], GaussianTensor)
        assert torch.equal(parts[name].mean_value, tensor)
        assert torch.equal(parts[name].variance, tensor.square())


def test_vectors_of_another_size_are_refused():
    for vector in (torch.zeros(8), torch.zeros(9, 1)):
        with pytest.raises(ValueError, match=r"vector: expected shape \(…, 9\)"):
            Packing.of(TENSORS).unpack(vector)
