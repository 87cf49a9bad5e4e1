"""Latents: what is known of a latent weight site before it is fitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributions import biject_to, constraints

__all__ = ["Latent", "is_packed", "is_positive", "is_real", "unconstrained"]


@dataclass(frozen=True)
class Latent:
    """A latent weight site: its initial value and where its values live."""

    initial: torch.Tensor
    support: torch.distributions.constraints.Constraint


def _unjoined(support: constraints.Constraint) -> constraints.Constraint:
    """Return a support without what joins its axes; to be told by its type, since copies are other objects."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_real(latent: Latent) -> bool:
    """Whether a site's values are unconstrained."""
    return isinstance(_unjoined(latent.support), type(constraints.real))


def is_positive(latent: Latent) -> bool:
    """Whether a site's values are positive, and nothing else constrains them."""
    support = _unjoined(latent.support)
    # Other bounds than zero are of the same type.
    return isinstance(support, constraints.greater_than) and not bool(torch.as_tensor(support.lower_bound).any())


def is_packed(latent: Latent) -> bool:
    """Whether a site is one vector of unconstrained values."""
    return is_real(latent) and latent.initial.dim() == 1


def unconstrained(latent: Latent) -> torch.Tensor:
    """Return the initial value in unconstrained coordinates, of its shape; a simplex has one less on the last axis."""
    value: torch.Tensor = biject_to(latent.support).inv(latent.initial)
    return value.clone()
