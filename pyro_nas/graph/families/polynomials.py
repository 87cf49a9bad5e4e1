"""Polynomials: the family of the evidence lecture's example, whose structure is the degree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import nn

from pyro_nas import checks
from pyro_nas.graph.primitives import Size, among, primitive
from pyro_nas.graph.space import Space

__all__ = ["Polynomial", "features", "polynomial", "polynomials"]

BASES = ("legendre", "power")
Basis = Annotated[str, among(BASES)]


def features(x: torch.Tensor, degree: int, basis: str = "legendre") -> torch.Tensor:
    """Return the polynomials φ_0 … φ_degree at x, (data, 1) → (data, degree + 1).

    "power": φ_k = x^k. "legendre": φ_k = √(2k + 1) P_k(x), orthonormal for x uniform on [−1, 1], so that the
    posterior of evenly spread data is nearly independent, and a prior scale means as much at every degree.

    Raises ValueError for x of another shape, a degree below 0, and another basis.
    """
    checks.one_of("basis", basis, BASES)
    if x.dim() != 2 or x.shape[1] != 1:
        raise ValueError(f"x: expected shape (data, 1), got {checks.describe(x)}. Pass x[:, None] or one column.")
    order = torch.arange(checks.integer("degree", degree) + 1, device=x.device)
    if basis == "power":
        values: torch.Tensor = x**order
    else:
        values = (2 * order + 1).sqrt() * torch.special.legendre_polynomial_p(x, order)
    return values


class Polynomial(nn.Linear):
    """x ↦ Σ_k w_k φ_k(x), (batch, 1) → (batch, 1)."""

    def __init__(self, terms: int, basis: str):
        super().__init__(terms, 1, bias=False)
        self.degree, self.basis = terms - 1, basis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the polynomial at x."""
        return super().forward(features(x, self.degree, self.basis))


@primitive
def polynomial(terms: Size, basis: Basis = "legendre") -> nn.Module:
    """Return the polynomial with this many terms, degree 0 … terms − 1; (batch, 1) → (batch, 1)."""
    return Polynomial(terms, basis)


def polynomials(degrees: Sequence[int] = range(9), basis: str = "legendre") -> Space:
    """Return the family of polynomials of these degrees: one edge that chooses among them, x of shape (batch, 1).

    With one degree there is nothing to choose. ``basis``: "legendre", orthonormal on [−1, 1], or "power" (evidence
    lecture, "polynomials").

    Raises ValueError for no degrees, some twice or below 0, and another basis.
    """
    checks.one_of("basis", basis, BASES)
    numbers = [checks.integer("degrees", degree) for degree in degrees]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"degrees: expected distinct degrees, one or more, got {numbers}.")
    return Space({(0, 1): {f"degree {degree}": polynomial(degree + 1, basis) for degree in numbers}})
