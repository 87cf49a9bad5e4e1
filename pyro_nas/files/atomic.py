"""Writing files: whole or not at all, in places that nobody foresees."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomically", "is_temporary", "remove_temporaries", "write_atomically", "write_json"]

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.partial")


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Yield where to write a file that then takes the place of ``path``: whole, or after an error not at all.

    It is written in a folder of its own beside ``path``, whose name cannot be foreseen, so that no link is followed.
    Raises OSError, which names ``path``, where the disk is full or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        try:
            folder.mkdir(mode=0o700)
            yield folder / path.name
            _synchronise(folder / path.name)
            (folder / path.name).replace(path)
            _synchronise(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno is None:  # from a library of C
            raise OSError(f"{path}: expected to write the file, got: {reason}") from error
        raise OSError(error.errno, reason, str(path)) from error


def _synchronise(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Whether a path is what a kill left of ``atomically``; a link is not."""
    return TEMPORARY.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def remove_temporaries(folder: Path) -> None:
    """Remove what a kill left of ``atomically`` in a folder that no other process writes to, and in those within."""
    for path in [path for path in folder.rglob(".*.partial") if is_temporary(path)]:
        shutil.rmtree(path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it holds what it held or all of ``content``; errors as ``atomically``."""
    with atomically(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; raise ValueError for NaN or infinity, TypeError for what JSON does not have."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
