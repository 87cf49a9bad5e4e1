"""Command line: ``pyro-nas search``, ``compare``, ``rank``, ``complexity``, ``evidence``, a table of commands."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from jsonargparse import auto_cli

from pyro_nas.inference import NonFiniteLoss
from pyro_nas.studies.compare.command import compare
from pyro_nas.studies.complexity.command import complexity
from pyro_nas.studies.configurations import bound_loader
from pyro_nas.studies.evidence.command import evidence
from pyro_nas.studies.rank import rank
from pyro_nas.studies.search.command import search

RESUME = ("--resume", "true")


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end, SIGINT or SIGTERM; ``number`` is its own."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def main(args: list[str] | None = None) -> int:
    """Run the command line; return 2 after an error of the user's, 128 and the signal's number after one to end.

    Numbers below 1e-38 count as 0: point weights that only the prior pulls at get there, and with them a CPU is several
    times slower. (Threads inherit the mode where they start, hence here.)
    """
    torch.set_flush_denormal(True)
    bound_loader()
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files: a window that cannot open must not end a run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # nor a character that the terminal lacks, "→" in cp1252
            stream.reconfigure(errors="replace")
    try:
        with _stopping():
            auto_cli(
                {"search": search, "compare": compare, "rank": rank, "complexity": complexity, "evidence": evidence},
                args=args,
                as_positional=False,
            )
    except (ValueError, TypeError, OSError, RecursionError, NonFiniteLoss) as error:
        print(f"pyro-nas: error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        name, command = signal.Signals(stopped.number).name, continued(sys.argv[1:] if args is None else args)
        print(f"pyro-nas: stopped by {name}. To continue: {command}", file=sys.stderr)
        return 128 + stopped.number
    return 0


def continued(arguments: Sequence[str]) -> str:
    """Return the command, as for a shell, that goes on with the run of these arguments."""
    given = tuple(arguments[-2:]) == RESUME
    return shlex.join(["pyro-nas", *arguments, *(() if given else RESUME)])


@contextmanager
def _stopping() -> Iterator[None]:
    """Within the context SIGINT and SIGTERM raise Stopped; in a thread of a larger program they stay what they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # as under nohup
    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


if __name__ == "__main__":
    sys.exit(main())
