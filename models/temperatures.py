"""Temperatures of relaxed laws: numbers, or tensors that may be learned."""

from __future__ import annotations

import math

import torch

__all__ = ["Temperature", "log_temperature", "same_temperature"]

Temperature = float | torch.Tensor


def log_temperature(temperature: Temperature) -> Temperature:
    """Return log τ, of a tensor with its gradient; raise ValueError for one of another shape than ()."""
    if not isinstance(temperature, torch.Tensor):
        return math.log(temperature)
    if temperature.dim():
        raise ValueError(
            f"temperature: expected a number or a tensor of shape (), got the shape {tuple(temperature.shape)}. "
            "Use a law for each temperature."
        )
    return temperature.log()


def same_temperature(q: Temperature, p: Temperature) -> bool:
    """Whether two laws share τ, which their divergence then does not depend on, as it does on one learned alone."""
    return q is p or (not any(getattr(t, "requires_grad", False) for t in (q, p)) and bool(q == p))
