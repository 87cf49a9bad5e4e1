"""Modules: the parts that torch lacks against their formulas on small numbers."""

import pytest
import torch

from pyro_nas.graph.modules import ACTIVATIONS, NORMALIZATIONS, FactorizedReduction, Zero, padded_convolution


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_zero_has_the_shape_of_a_convolution_of_its_stride(stride):
    x = torch.randn(2, 3, 7, 8, requires_grad=True)
    zeros = Zero(stride)(x)
    assert zeros.shape == padded_convolution(3, 3, 3, stride)(x).shape
    assert not zeros.any()
    assert not torch.autograd.grad(zeros.sum(), x)[0].any()
    assert Zero()(torch.randn(4, 5)).shape == (4, 5)


@pytest.mark.parametrize("size", [6, 7])
def test_a_factorised_reduction_sees_even_and_odd_pixels_side_by_side(size):
    module = FactorizedReduction(1, 2, "batch").eval()  # whose first statistics are mean 0 and variance 1
    for convolution in (module.even, module.odd):
        torch.nn.init.ones_(convolution.weight)
    x = torch.randn(3, 1, size, size)
    outputs = module(x) * (1 + module.normalization.eps) ** 0.5
    even, odd = x.relu()[:, 0, ::2, ::2], x.relu()[:, 0, 1::2, 1::2]
    odd = torch.nn.functional.pad(odd, (0, size % 2, 0, size % 2))  # behind the border there is nothing
    assert outputs.shape == (3, 2, -(-size // 2), -(-size // 2))
    assert torch.allclose(outputs, torch.stack([even, odd], 1), atol=1e-6)
    assert not torch.allclose(outputs[:, 1], even, atol=0.1)


def test_an_odd_number_of_channels_is_shared_out():
    assert FactorizedReduction(2, 5, "group")(torch.randn(1, 2, 4, 4)).shape == (1, 5, 2, 2)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_padded_convolution_keeps_the_size_and_halves_it_rounding_up(kernel, dilation):
    x = torch.randn(1, 4, 7, 9)
    assert padded_convolution(4, 6, kernel, 1, dilation)(x).shape == (1, 6, 7, 9)
    assert padded_convolution(4, 6, kernel, 2, dilation, groups=2)(x).shape == (1, 6, 4, 5)
    assert padded_convolution(4, 6, kernel, 1).bias is None


def test_activations_are_named_as_in_torch():
    x = torch.randn(5)
    for name, module in ACTIVATIONS.items():
        expected = x if name == "identity" else getattr(torch.nn.functional, name)(x)
        assert torch.equal(module()(x), expected)


@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (16, 8), (7, 1)])
def test_normalisations_by_hand(channels, groups):
    """Over the batch and all pixels of a channel; over the pixels of a group of channels, of one image."""
    x = 3 * torch.randn(4, channels, 5, 5) + 1
    by_channel = x.transpose(0, 1).reshape(channels, -1)
    by_group = x.reshape(4, groups, -1)
    for kind, parts in (("batch", by_channel), ("group", by_group)):
        centred = parts - parts.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        found = NORMALIZATIONS[kind](channels)(x)
        found = found.transpose(0, 1) if kind == "batch" else found
        assert torch.allclose(found.reshape(parts.shape), expected, atol=1e-5)
