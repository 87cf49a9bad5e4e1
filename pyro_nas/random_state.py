"""Random state: what is fitted or sampled has a random state of its own, one at a time in a process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from pyro_nas import checks

__all__ = ["check_thread", "forked", "generators", "seeded"]

WAIT = 0.05  # seconds between two looks at whether another thread is ready
_turn = threading.RLock()
_seeded: list[int] = []  # the seeds of the contexts that the thread which has the turn is in


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the context torch's random state starts at ``seed``, and afterwards it is what it was.

    It may be entered within itself; errors as ``check_thread``, and ValueError for a seed that is none.
    """
    checks.seed(seed)
    with forked():
        _seeded.append(seed)
        try:
            torch.manual_seed(seed)
            yield
        finally:
            _seeded.pop()


@contextmanager
def forked() -> Iterator[None]:
    """Within the context torch's random state may change, and afterwards it is what it was; errors as ``check_thread``.

    Several threads enter one after the other.
    """
    check_thread()
    while not _turn.acquire(timeout=WAIT):
        check_thread()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        _turn.release()


def check_thread() -> None:
    """Raise RuntimeError where another thread of the process is within ``seeded``: fits, samplers and the like.

    Torch's random state and Pyro's handlers are of the whole process: each would change the numbers of the other.
    """
    if not _seeded:
        return
    if not _turn.acquire(blocking=False):
        raise RuntimeError(
            "threads: expected no fit in another thread of this process, got one: both would share the random state "
            "and Pyro's handlers. Run them in processes, such as those of joblib.Parallel, or one after the other."
        )
    _turn.release()


def generators(owners: Mapping[str, object]) -> dict[str, torch.Generator]:
    """Return the random generators that objects have as attributes, each once, by "OWNER.ATTRIBUTE"."""
    every = {
        f"{owner}.{name}": value
        for owner, part in sorted(owners.items())
        for name, value in sorted(getattr(part, "__dict__", {}).items())
        if isinstance(value, torch.Generator)
    }
    once = {id(value): name for name, value in reversed(every.items())}
    return {name: value for name, value in every.items() if once[id(value)] == name}
