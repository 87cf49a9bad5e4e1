"""Primitives: recipes whose arguments are checked by what the builder says of them, and by nothing else."""

from typing import Annotated

import pytest
import torch
from torch import nn

from pyro_nas.graph import primitives
from pyro_nas.graph.primitives import Size, among, convolution, dense, normalized_pool, primitive


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


def test_a_recipe_prints_as_its_call():
    assert repr(dense(2, 3, "tanh")) == "dense(inputs=2, outputs=3, activation='tanh')"
