"""Locks: a folder that one process at a time, and one fit of it, writes to."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EAGAIN
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: there a folder is locked within the process alone
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "locked"]

LOCK = ".lock"  # the file in the folder that holds the process id
_held: dict[Path, int] = {}  # by which process: a forked one has a copy of this, and not the locks
_guard = threading.Lock()


@contextmanager
def locked(name: str, folder: Path) -> Iterator[None]:
    """Within the context no other process, thread or fit gets the folder; made where it is absent.

    The system lets go of the lock of a process that is gone, whose file is then taken over. Raises BlockingIOError,
    with the holder's process id, for a folder that is in use; ``name`` is that of the argument.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    with _guard:
        if _held.get(path) == os.getpid():
            raise _in_use(name, folder, str(os.getpid()))
        descriptor = _acquired(name, path)
        _held[path] = os.getpid()
    try:
        yield
    finally:
        with _guard:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            del _held[path]


def _acquired(name: str, path: Path) -> int:
    """Return the descriptor of a lock file that is ours and still the one of that name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (EACCES, EAGAIN):
                holder = os.read(descriptor, 32).decode(errors="replace")
                os.close(descriptor)
                raise _in_use(name, path.parent, holder or "of another machine") from None
            # else a file system without locks: the run goes on as it would without them
        try:
            ours = os.path.samestat(path.stat(), os.fstat(descriptor))
        except FileNotFoundError:  # its holder has just removed it
            ours = False
        if ours:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            return descriptor
        os.close(descriptor)


def _in_use(name: str, folder: Path, holder: str) -> BlockingIOError:
    return BlockingIOError(
        f"{name}: expected a folder that nothing else writes to, got {str(folder)!r}, in use by process {holder}. "
        "Wait for its end, or name another."
    )
