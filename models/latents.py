"""Latents: what is known of latent weights before they are fitted, and whether a prior draws all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import torch
from torch.distributions import biject_to, constraints

from pyro_nas import checks
from pyro_nas.evidence.packing import Packing
from pyro_nas.models.priors import Draw, WeightPrior
from pyro_nas.random_state import forked

__all__ = ["Latent", "is_packed", "is_positive", "is_real", "laid_out", "unconstrained"]


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


def laid_out(prior: WeightPrior, packing: Packing) -> Draw:
    """Return the draws that a prior makes of weights of this layout, checked by one.

    Raises TypeError for what is no weight prior, ValueError where a draw is not of these weights alone, each of its
    shape.
    """
    what = "a weight prior, a function of a Packing such as priors.normal(0.1)"
    if isinstance(prior, torch.distributions.Distribution):
        raise TypeError(f"weights: expected {what}, got {prior}. Write priors.each(lambda name, shape: …) for its law.")
    checks.is_callable("weights", prior, what)
    if not packing.size:
        return _nothing
    draw: Draw = prior(packing)
    with pyro.poutine.block(), forked(), torch.no_grad():
        values = checks.is_callable("weights", draw, "a prior that returns a function () → {name: tensor}")()
    if not isinstance(values, Mapping) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise TypeError(
            f"weights: expected draws {{name: tensor}}, got {checks.describe(values)}. Return packing.unpack(…)."
        )
    given, expected = ({n: tuple(s) for n, s in shapes.items()} for shapes in (_shapes(values), packing.shapes))
    different = sorted(name for name in given | expected if given.get(name) != expected.get(name))
    if different:
        raise ValueError(
            f"weights: expected a prior that draws { ({n: expected.get(n) for n in different}) }, "
            f"got { ({n: given.get(n) for n in different}) }. Draw every name of packing.shapes, and no other."
        )
    return draw


def _nothing() -> dict[str, torch.Tensor]:
    """Draw the weights of a network without any."""
    return {}


def _shapes(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in values.items()}
