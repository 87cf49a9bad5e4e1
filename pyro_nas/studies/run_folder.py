"""Run folder: what a command writes, with the configuration that it was started with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar, cast

import torch

from pyro_nas.files import (
    Json,
    atomically,
    is_temporary,
    read_sealed,
    remove_temporaries,
    write_atomically,
    write_json,
    write_sealed,
    write_tensors,
)
from pyro_nas.files.identity import differences, identity_digest, versions
from pyro_nas.files.locks import LOCK, locked

__all__ = ["CONFIG", "RunFolder", "owner", "stored_config"]

CONFIG = "config.json"
Row = TypeVar("Row", bound=Mapping[str, object])


def owner(config: Mapping[str, object], name: str) -> str:
    """Return what the seal of a file of a run says that it belongs to: the run, by a digest of its config, and name."""
    return f"{identity_digest(config)}/{name}"


def stored_config(folder: Path) -> Json:
    """Return the configuration of the run in a folder; raise ValueError where it has none, or one that was changed."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"folder: expected a run, with a {CONFIG}, got {str(folder)!r}, which has none.")
    return read_sealed(path, of=CONFIG)


class RunFolder(AbstractContextManager["RunFolder"]):
    """The folder a run writes, with the configuration it was started with; files appear whole or not at all.

    Within the context it is this run's alone. Raises, on entering, BlockingIOError where another process writes there,
    FileExistsError for a folder that is not empty, unless ``resume``; then ValueError, with a list, where the
    configuration, or a version of a library, is another.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, object], *, resume: bool):
        self.path, self.resume = Path(path), resume
        self.config: Json = json.loads(json.dumps({**config, "versions": versions()}))
        self._stack = ExitStack()

    def __enter__(self) -> RunFolder:
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"out: expected a folder, got the file {str(self.path)!r}. Name another.")
        with ExitStack() as stack:
            stack.enter_context(locked("out", self.path))
            self._begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        """Compare with the run that is there, or begin one."""
        stored = self.path / CONFIG
        found = [path for path in self.path.iterdir() if path.name != LOCK and not is_temporary(path)]
        if self.resume and stored.exists():
            different = differences(stored_config(self.path), self.config)
            if different:
                raise ValueError(
                    f"resume: expected the options that {self.path} was started with, got {', '.join(different)}. "
                    "Resume with the same, or name another folder."
                )
        elif found:
            remedy = "Name another" if self.resume or not stored.exists() else "Name another, or resume the run there"
            raise FileExistsError(f"out: expected a new or empty folder, got {str(self.path)!r}. {remedy}.")
        remove_temporaries(self.path)
        if not stored.exists():
            write_sealed(stored, self.config, CONFIG)

    def row(self, name: str, fields: Iterable[str], make: Callable[[], Row]) -> Row:
        """Return the row of a study that is stored as ``name``, a JSON object; make and store it where it is not.

        A row is what takes long: a run that was cut off makes only those that it lacks. Raises ValueError, which names
        the file, where what is stored was changed, is of another run or row, or lacks one of ``fields``.
        """
        path, of = self.path / name, owner(self.config, name)
        if not path.exists():
            write_sealed(path, make(), of)
        return cast(Row, read_sealed(path, *fields, of=of))

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file."""
        write_json(self.path / name, value)

    def write_sealed(self, name: str, value: Mapping[str, object]) -> None:
        """Write a JSON file that is read again, with its digest."""
        write_sealed(self.path / name, value, owner(self.config, name))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        write_atomically(self.path / name, text.encode())

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a safetensors file, with its digest."""
        write_tensors(self.path / name, tensors, owner(self.config, name))

    def write_with(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a file by a function of its path."""
        with atomically(self.path / name) as temporary:
            write(temporary)
