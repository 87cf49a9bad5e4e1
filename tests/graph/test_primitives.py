"""Primitives: recipes whose arguments are checked by what the builder says of them, and by nothing else."""

from typing import Annotated

import pytest
import torch
from torch import nn

from pyro_nas.graph import primitives
from pyro_nas.graph.primitives import (
    Size,
    among,
    average_pool,
    convolution,
    dense,
    max_pool,
    normalized_pool,
    preactivated_convolution,
    preactivated_separable,
    primitive,
    separable_convolution,
    upsampling_convolution,
)


@primitive
def windowed(length: int, padding: int = 0, kind: str = "hann", activation: str = "my own") -> nn.Module:
    """Return a layer whose arguments only share their names with ours."""
    return nn.Linear(length + padding, len(kind) + len(activation))


@primitive
def limited(width: Size, taste: Annotated[str, among(["sweet", "sour"])] = "sweet") -> nn.Module:
    """Return a layer with checks of its own."""
    return nn.Linear(width, 1 + len(taste))


def test_arguments_of_ones_own_are_not_ours():
    assert windowed(3, padding=0, kind="hann")()(torch.randn(2, 3)).shape == (2, 10)
    assert windowed(0).arguments["length"] == 0


def test_checks_belong_to_the_primitive():
    assert limited(2, "sour")().out_features == 5
    for call, message in (
        (lambda: limited(0), r"limited\(width\): expected an integer of at least 1, got 0"),
        (lambda: limited(2, "sowr"), r"limited\(taste\): expected one of .* Did you mean 'sour'"),
        (lambda: dense(2, 2, "rellu"), r"dense\(activation\): expected one of .* Did you mean 'relu'"),
        (lambda: convolution(2, 2, kernel=0), r"convolution\(kernel\): expected an integer of at least 1"),
        (lambda: convolution(2, 2, normalization="layer"), r"convolution\(normalization\): expected one of"),
        (lambda: normalized_pool(2, "mean"), r"normalized_pool\(kind\): expected one of \['max', 'average'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_every_integer_of_a_primitive_is_checked():
    """The sizes of all builders here: 0 is refused by name, for each of them."""
    sizes = {"inputs": 2, "outputs": 2, "kernel": 3, "stride": 1, "dilation": 1, "repeats": 1, "channels": 2}
    for name in ("dense", "convolution", "separable_convolution", "preactivated_convolution", "preactivated_separable",
                 "normalized_pool", "factorized_reduction", "upsampling_convolution", "max_pool", "average_pool",
                 "pooled_readout", "zero"):  # fmt: skip
        builder = getattr(primitives, name)
        own = [argument for argument in builder.__wrapped__.__annotations__ if argument in sizes]
        assert own
        for argument in own:
            given = {other: sizes[other] for other in own} | {argument: 0}
            with pytest.raises(ValueError, match=rf"{name}\({argument}\): expected an integer"):
                builder(**given)


def conv(inputs, outputs, kernel, stride=1, dilation=1, groups=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)


FORMULAS = {
    "dense": (dense(6, 4), [nn.Linear(6, 4)]),
    "dense, all": (dense(6, 4, "tanh"), [nn.Linear(6, 4), nn.Tanh()]),
    "convolution": (convolution(2, 4), [conv(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]),
    "convolution, all": (
        convolution(2, 4, 5, 2, 2, "tanh", "group"), [conv(2, 4, 5, 2, 2), nn.GroupNorm(4, 4), nn.Tanh()],
    ),
    "separable": (
        separable_convolution(2, 4), [conv(2, 2, 3, groups=2), conv(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU()],
    ),
    "separable, all": (
        separable_convolution(2, 4, 5, 2, 2, "tanh"),
        [conv(2, 2, 5, 2, 2, groups=2), conv(2, 4, 1), nn.BatchNorm2d(4), nn.Tanh()],
    ),
    "preactivated": (preactivated_convolution(2, 4), [nn.ReLU(), conv(2, 4, 3), nn.BatchNorm2d(4)]),
    "preactivated, all": (
        preactivated_convolution(2, 4, 5, 2, 2, "group"), [nn.ReLU(), conv(2, 4, 5, 2, 2), nn.GroupNorm(4, 4)],
    ),
    "preactivated separable": (
        preactivated_separable(2, 4), [nn.ReLU(), conv(2, 2, 3, groups=2), conv(2, 4, 1), nn.BatchNorm2d(4)],
    ),
    "preactivated separable, all": (
        preactivated_separable(2, 4, 5, 2, 2, 2, "group"),
        [nn.ReLU(), conv(2, 2, 5, 2, 2, groups=2), conv(2, 2, 1), nn.GroupNorm(2, 2),
         nn.ReLU(), conv(2, 2, 5, 1, 2, groups=2), conv(2, 4, 1), nn.GroupNorm(4, 4)],
    ),
    "normalized pool": (normalized_pool(2), [nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(2, affine=False)]),
    "normalized pool, all": (
        normalized_pool(2, "average", 5, 2, "group"),
        [nn.AvgPool2d(5, 2, 2, count_include_pad=False), nn.GroupNorm(2, 2, affine=False)],
    ),
    "upsampling": (
        upsampling_convolution(2, 4, 5),
        [nn.Upsample(scale_factor=2, mode="nearest"), conv(2, 4, 5), nn.BatchNorm2d(4), nn.ReLU()],
    ),
    "max pool": (max_pool(), [nn.MaxPool2d(3, 1, 1)]),
    "max pool, all": (max_pool(5, 2), [nn.MaxPool2d(5, 2, 2)]),
    "average pool": (average_pool(), [nn.AvgPool2d(3, 1, 1, count_include_pad=False)]),
    "average pool, all": (average_pool(5, 2), [nn.AvgPool2d(5, 2, 2, count_include_pad=False)]),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMULAS)
def test_a_primitive_is_torchs_layers_with_the_options_asked_for(case):
    """Of the same weights, layer by layer; every option has another value than its default in one of the cases."""
    recipe, layers = FORMULAS[case]
    ours, theirs = recipe(), nn.Sequential(*layers)
    assert [value.shape for value in ours.state_dict().values()] == [v.shape for v in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(3, 2, 8, 6)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_a_recipe_prints_as_its_call():
    assert repr(dense(2, 3, "tanh")) == "dense(inputs=2, outputs=3, activation='tanh')"
