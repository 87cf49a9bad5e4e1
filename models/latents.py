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


def _support_type(latent: Latent) -> type[constraints.Constraint]:
    """Return the type of a site's support: copies of a support are other objects, of the same type."""
    support = latent.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return type(support)


def is_real(latent: Latent) -> bool:
    """Whether a site's values are unconstrained."""
    return _support_type(latent) in (type(constraints.real), type(constraints.real_vector))


def is_positive(latent: Latent) -> bool:
    """Whether a site's values are positive, and nothing else constrains them."""
    return _support_type(latent) is type(constraints.positive)


def is_packed(latent: Latent) -> bool:
    """Whether a site is one vector of unconstrained values."""
    return is_real(latent) and latent.initial.dim() == 1


def unconstrained(latent: Latent) -> torch.Tensor:
    """Return the initial value in unconstrained coordinates, of its shape; a simplex has one less on the last axis."""
    value: torch.Tensor = biject_to(latent.support).inv(latent.initial)
    return value.clone()
