"""Superpositions of elementary functions: formulas as trees whose vertices choose their function (symbolic regression).

Constants of a formula are weights, functions its structure; both are latent variables of one model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import nn

from pyro_nas import checks
from pyro_nas.graph.primitives import Size, among, dense, primitive, skip
from pyro_nas.graph.space import Edge, Factory, Space

__all__ = ["FUNCTIONS", "Elementary", "Product", "elementary", "product", "superposition"]

LARGEST_EXPONENT = 5.0  # "exp" is constant beyond it, so that a product of two from anywhere in the prior stays finite


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def _exp(x: torch.Tensor) -> torch.Tensor:
    return x.clamp_max(LARGEST_EXPONENT).exp()


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": _identity,
    "sin": torch.sin,
    "exp": _exp,
    "square": torch.square,
    "tanh": torch.tanh,
}


class Elementary(nn.Module):
    """x ↦ function(wᵀx + b)."""

    def __init__(self, inputs: int, function: str):
        super().__init__()
        self.affine, self.function = nn.Linear(inputs, 1), FUNCTIONS[function]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, inputs) → (batch, 1)."""
        return self.function(self.affine(x))


class Product(nn.Module):
    """x ↦ w Π x_i + b."""

    def __init__(self) -> None:
        super().__init__()
        self.affine = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, arguments) → (batch, 1)."""
        outputs: torch.Tensor = self.affine(x.prod(-1, keepdim=True))
        return outputs


@primitive
def elementary(inputs: Size, function: Annotated[str, among(FUNCTIONS)]) -> nn.Module:
    """x ↦ function(wᵀx + b), one of ``FUNCTIONS``; shapes (batch, inputs) → (batch, 1)."""
    return Elementary(inputs, function)


@primitive
def product() -> nn.Module:
    """x ↦ w Π x_i + b; shapes (batch, arguments) → (batch, 1)."""
    return Product()


def superposition(
    inputs: int = 1, depth: int = 1, functions: Sequence[str] = ("identity", "sin", "exp", "square", "tanh")
) -> Space:
    """Return the family of formulas that are binary trees: 2^depth leaves f(wᵀx + b), joined by "sum" or "product".

    Each leaf chooses f among ``functions``. A sum is w1 u + w2 v + b and a product w u v + b, so that all constants are
    weights. x: (batch, inputs) → (batch, 1).

    Raises ValueError for inputs or depth below 1, and for no functions, some twice or not among ``FUNCTIONS``.
    """
    checks.integer("inputs", inputs, low=1)
    checks.integer("depth", depth, low=1)
    for name in functions:
        checks.one_of("functions", name, FUNCTIONS)
    if not functions or len(set(functions)) < len(functions):
        raise ValueError(f"functions: expected distinct ones, one or more, got {list(functions)}.")
    leaves = range(1, 2**depth + 1)
    edges: dict[Edge, dict[str, Factory]] = {
        (0, leaf): {name: elementary(inputs, name) for name in functions} for leaf in leaves
    }
    joints, level = {}, list(leaves)
    while len(level) > 1:
        first = max(child for _, child in edges) + 1
        pairs = list(zip(level[::2], level[1::2], strict=True))
        level = []
        for number, pair in enumerate(pairs):
            joint = first + 2 * number  # of the two arguments, and after it the vertex of their sum or product
            edges.update({(child, joint): {"argument": skip()} for child in pair})
            edges[joint, joint + 1] = {"sum": dense(2, 1), "product": product()}
            joints[joint] = "concatenation"
            level.append(joint + 1)
    return Space(edges, aggregations=joints)
