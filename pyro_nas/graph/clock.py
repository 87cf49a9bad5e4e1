"""Clock: the time that modules take within a pass of their network, on its device."""

from __future__ import annotations

import time

import torch
from torch import nn

__all__ = ["laps"]

Moment = float | torch.Event


def laps(network: nn.Module, modules: list[nn.Module], batch: tuple[torch.Tensor, ...]) -> list[float]:
    """Return the microseconds that each module takes in one pass."""
    moments: dict[nn.Module, list[Moment]] = {module: [] for module in modules}

    def mark(module: nn.Module, *_: object) -> None:
        moments[module].append(_now(batch[0].device))

    hooks = [add(mark) for m in moments for add in (m.register_forward_pre_hook, m.register_forward_hook)]
    network(*batch)
    for hook in hooks:
        hook.remove()
    return [_between(*moments[module][-2:]) for module in modules]


def _now(device: torch.device) -> Moment:
    """Return a moment on the clock of a device."""
    if device.type == "cpu":
        return time.perf_counter()
    moment = torch.Event(device, enable_timing=True)
    moment.record()
    return moment


def _between(start: Moment, end: Moment) -> float:
    """Return the microseconds between two moments."""
    if isinstance(start, torch.Event) and isinstance(end, torch.Event):
        end.synchronize()
        return 1e3 * float(start.elapsed_time(end))
    assert isinstance(start, float)
    assert isinstance(end, float)
    return 1e6 * (end - start)
