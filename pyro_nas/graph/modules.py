"""Modules: parts of primitives, by name, and those that torch lacks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["ACTIVATIONS", "NORMALIZATIONS", "FactorizedReduction", "Zero", "padded_convolution"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
NORMALIZATIONS: dict[str, Callable[..., nn.Module]] = {  # (channels, affine=True) → module
    "batch": nn.BatchNorm2d,
    "group": lambda channels, **options: nn.GroupNorm(math.gcd(8, channels), channels, **options),
}


class Zero(nn.Module):
    """The constant zero of the shape that a convolution of this stride would give."""

    def __init__(self, stride: int = 1):
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return zeros."""
        kept: torch.Tensor = x if self.stride == 1 else x[..., :: self.stride, :: self.stride]
        return kept * 0


class FactorizedReduction(nn.Module):
    """ReLU, two 1×1 convolutions of stride 2, on even and on odd pixels, side by side, normalisation."""

    def __init__(self, inputs: int, outputs: int, normalization: str):
        super().__init__()
        self.even = padded_convolution(inputs, outputs // 2, 1, 2)
        self.odd = padded_convolution(inputs, outputs - outputs // 2, 1, 2)
        self.normalization = NORMALIZATIONS[normalization](outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, inputs, h, w) → (batch, outputs, ⌈h/2⌉, ⌈w/2⌉)."""
        x = nn.functional.relu(x)
        odd = nn.functional.pad(x, (0, 1, 0, 1))[..., 1:, 1:]
        outputs: torch.Tensor = self.normalization(torch.cat([self.even(x), self.odd(odd)], 1))
        return outputs


def padded_convolution(
    inputs: int, outputs: int, kernel: int, stride: int, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias that keeps the size at stride 1; shapes as ``primitives.convolution``."""
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
