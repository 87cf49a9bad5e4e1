"""Checks of arguments: each error names the argument, what was expected, what came, and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from operator import index
from typing import Any, SupportsIndex, TypeVar

import numpy as np
import torch

__all__ = [
    "describe",
    "device",
    "integer",
    "is_callable",
    "number",
    "one_of",
    "probabilities",
    "seed",
]

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


def describe(value: object) -> str:
    """Say briefly what a value is, for an error message."""
    if isinstance(value, torch.Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} ndarray of shape {value.shape}"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    remedy: str = "",
) -> float:
    """Return ``value`` as a finite float within [low, high], or (low, high] where ``open_low``.

    Raises ValueError, which ends with ``remedy``, for one outside, NaN, a truth value, and what is no real number.
    """
    interval = f"a finite number in {'(' if open_low else '['}{low:g}, {high:g}]"
    result = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(result) and low <= result <= high) or (open_low and result == low):
        raise ValueError(f"{name}: expected {interval}, got {describe(value)}. {remedy}".rstrip())
    return result


def integer(name: str, value: object, *, low: int = 0, high: float = math.inf, remedy: str = "") -> int:
    """Return ``value`` as an integer of at least ``low`` and at most ``high``.

    Raises ValueError, which ends with ``remedy``, for one outside, a truth value, and what is no integer: 2.0 too.
    """
    try:
        number = index(value) if isinstance(value, SupportsIndex) and not isinstance(value, bool) else None
    except TypeError:  # a tensor of another type has the method, and refuses
        number = None
    if number is None or not low <= number <= high:
        most = "" if high == math.inf else f" and at most {high:,}"
        text = f"{name}: expected an integer of at least {low}{most}, got {describe(value)}. {remedy}"
        raise ValueError(text.rstrip())
    return number


def seed(value: object) -> int:
    """Return ``value`` as a seed that torch takes; raise ValueError for no integer from 0 to 2⁶³ − 1."""
    number = integer("seed", value)
    if number >= 2**63:
        raise ValueError(f"seed: expected an integer below 2⁶³, got {value}.")
    return number


def one_of(name: str, value: T, accepted: Iterable[T]) -> T:
    """Return ``value`` where it is among ``accepted``; raise ValueError, which names the nearest match, where not."""
    options = list(accepted)
    if value in options:
        return value
    near = difflib.get_close_matches(str(value), [str(option) for option in options], n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}: expected one of {options}, got {value!r}.{hint}")


def is_callable(name: str, value: C, what: str) -> C:
    """Return ``value`` where it can be called; raise TypeError, with ``what`` it should be, where it cannot."""
    if not callable(value):
        raise TypeError(f"{name}: expected {what}, got {describe(value)}. Pass the callable itself.")
    return value


def device(name: str, value: str | torch.device) -> torch.device:
    """Return ``value`` as a device this machine has; raise ValueError for another."""
    try:
        result = torch.device(value)
        torch.empty(0, device=result)
    except (RuntimeError, AssertionError, TypeError) as error:
        have = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise ValueError(f"{name}: expected a device of this machine ({have}), got {value!r}. {error}") from None
    return result


def probabilities(name: str, value: Sequence[float] | torch.Tensor, length: int) -> torch.Tensor:
    """Return ``value`` as positive probabilities of shape (..., length) that sum to one on the last axis.

    Raises ValueError for another length, numbers that are not finite or not above 0, and other sums.
    """
    tensor = torch.as_tensor(value, dtype=torch.get_default_dtype())
    if tensor.dim() == 0 or tensor.shape[-1] != length:
        raise ValueError(f"{name}: expected {length} probabilities on the last axis, got {describe(tensor)}.")
    if not bool(torch.isfinite(tensor).all()) or not bool((tensor > 0).all()):
        raise ValueError(f"{name}: expected finite probabilities above zero, got {tensor.tolist()}.")
    if not torch.allclose(tensor.sum(-1), torch.ones_like(tensor.sum(-1)), atol=1e-4):
        raise ValueError(
            f"{name}: expected probabilities that sum to 1, got the sums {tensor.sum(-1).tolist()}. Divide by the sum."
        )
    return tensor
