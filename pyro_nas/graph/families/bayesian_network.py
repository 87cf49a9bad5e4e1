"""Bayesian networks whose parents are structure: linear-Gaussian nodes in a known order, each arrow on or off."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pyro_nas import checks
from pyro_nas.graph.space import Factory, Space

__all__ = ["Arrow", "arrows", "bayesian_network"]


class Arrow(nn.Module):
    """x ↦ w x_parent in the column of the child, zero in all others."""

    column: torch.Tensor

    def __init__(self, parent: int, child: int, nodes: int):
        super().__init__()
        self.parent = parent
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("column", torch.eye(nodes)[child], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, nodes) → (batch, nodes); raises ValueError for another number of nodes."""
        if x.shape[-1] != len(self.column):
            raise ValueError(f"x: expected shape (batch, {len(self.column)}), got {checks.describe(x)}.")
        return self.weight * x[:, self.parent, None] * self.column


def bayesian_network(nodes: int) -> Space:
    """Return the family x_k = Σ_{j<k} γ_jk w_jk x_j + ε_k of networks over nodes in a known order.

    One edge of the space carries all nodes (nodes − 1)/2 arrows "j→k", and its cube says which are there. The data are
    their own targets, ``model(x, x)`` with a Gaussian likelihood: x has a triangular map to ε, so that Π p(x_k | x_<k)
    is its density. x: (batch, nodes), means of the nodes given their parents: (batch, nodes). Give the model a
    structure prior on the cube, such as ``structures.bernoulli``; ``arrows`` reads γ.

    Raises ValueError for fewer than two nodes.
    """
    checks.integer("nodes", nodes, low=2)
    edges: dict[str, Factory] = {f"{j}→{k}": partial(Arrow, j, k, nodes) for k in range(1, nodes) for j in range(k)}
    return Space({(0, 1): edges}, restriction="cube")


def arrows(gamma: torch.Tensor) -> torch.Tensor:
    """Return γ or probabilities of ``bayesian_network``, (…, 1, arrow), as a matrix (…, parent, child).

    Raises ValueError where the last axis is not as long as a network has arrows.
    """
    nodes = round((1 + (1 + 8 * gamma.shape[-1]) ** 0.5) / 2)
    if gamma.shape[-2:] != (1, nodes * (nodes - 1) // 2):
        raise ValueError(
            f"gamma: expected shape (…, 1, the number of arrows, 1, 3, 6, 10, …), got {checks.describe(gamma)}. "
            "Pass the structure site of a bayesian_network."
        )
    child, parent = torch.tril_indices(nodes, nodes, -1)
    matrix = gamma.new_zeros(*gamma.shape[:-2], nodes, nodes)
    matrix[..., parent, child] = gamma.squeeze(-2)
    return matrix
