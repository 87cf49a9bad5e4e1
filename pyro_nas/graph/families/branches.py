"""The structure-selection toy: a choice among branches of growing complexity, and data that the middle one makes."""

from __future__ import annotations

import torch
from torch import nn

from pyro_nas import checks
from pyro_nas.graph.primitives import Size, dense, primitive
from pyro_nas.graph.space import Space

__all__ = ["NOISE", "Constant", "Leading", "branches", "branches_data", "constant", "leading"]

NOISE = 0.5


class Constant(nn.Module):
    """x ↦ w, a constant of shape (outputs,) for every datum."""

    def __init__(self, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, …) → (batch, outputs)."""
        return self.weight.expand(len(x), -1)


class Leading(nn.Module):
    """x ↦ its first columns."""

    def __init__(self, columns: int):
        super().__init__()
        self.columns = columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, inputs) → (batch, columns)."""
        return x[:, : self.columns]


@primitive
def constant(outputs: Size = 1) -> nn.Module:
    """x ↦ w; shapes (batch, …) → (batch, outputs)."""
    return Constant(outputs)


@primitive
def leading(columns: Size = 1) -> nn.Module:
    """x ↦ its first columns; shapes (batch, inputs) → (batch, columns)."""
    return Leading(columns)


def branches(inputs: int = 11) -> Space:
    """Return f = γ0 w0 + γ1 tanh(w1 x0 + b1) + γ2 tanh(w2ᵀx + b2), of 1, 2 and ``inputs`` + 1 parameters.

    Bakhteev's thesis, structure selection; ``branches_data`` are its data. x: (batch, inputs) → (batch, 1).
    The prior is strong where λ is large, the likelihood where λ is small: 𝔏 / λ weighs it by 1/λ.

    Raises ValueError for fewer than two inputs.
    """
    checks.integer("inputs", inputs, low=2)
    simple = Space({(0, 1): {"first": leading()}, (1, 2): {"dense": dense(1, 1, "tanh")}})
    return Space({(0, 1): {"constant": constant(), "simple": simple, "complex": dense(inputs, 1, "tanh")}})


def branches_data(size: int = 50, inputs: int = 11, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw x ~ N(0, I), (size, inputs), and y = tanh x0 + ε, ε ~ N(0, ½²), (size, 1): "simple" is true.

    Raises ValueError for a size below 1 and fewer than two inputs.
    """
    checks.integer("size", size, low=1)
    checks.integer("inputs", inputs, low=2)
    generator = torch.Generator().manual_seed(checks.seed(seed))
    x = torch.randn(size, inputs, generator=generator)
    return x, x[:, :1].tanh() + NOISE * torch.randn(size, 1, generator=generator)
