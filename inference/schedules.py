"""Schedules: functions of progress, from 0 at the first step to 1 at the last, that return a value."""

from __future__ import annotations

import math
from collections.abc import Callable

from pyro_nas import checks

__all__ = ["Schedule", "constant", "geometric", "linear", "warm_up"]

Schedule = Callable[[float], float]


def constant(value: float) -> Schedule:
    """Stay at a value; raise ValueError for one that is not finite."""
    checks.number("value", value)
    return lambda progress: value


def linear(start: float, end: float) -> Schedule:
    """Go from start to end in a straight line; raise ValueError for ends that are not finite."""
    checks.number("start", start)
    checks.number("end", end)
    return lambda progress: start + (end - start) * progress


def geometric(start: float, end: float) -> Schedule:
    """Go from start to end by a constant factor a step; raise ValueError for ends that are not above 0 and finite."""
    checks.number("start", start, low=0, open_low=True)
    checks.number("end", end, low=0, open_low=True)
    return lambda progress: math.exp(math.log(start) + (math.log(end) - math.log(start)) * progress)


def warm_up(end: float, fraction: float = 0.3) -> Schedule:
    """Rise from a thousandth of ``end`` to it in a straight line over a fraction of the steps, then stay.

    Raises ValueError for an end not above 0, and a fraction outside (0, 1].
    """
    checks.number("end", end, low=0, open_low=True)
    checks.number("fraction", fraction, low=0, high=1, open_low=True)
    return lambda progress: end * max(1e-3, min(1.0, progress / fraction))
