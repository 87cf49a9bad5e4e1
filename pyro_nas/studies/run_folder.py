"""Run folder: what a command writes, with the configuration that it was started with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from pyro_nas.files import read_json, write_atomically, write_json, write_tensors

Row = TypeVar("Row", bound=Mapping[str, object])


class RunFolder:
    """The folder a run writes, with the configuration it was started with; files appear whole or not at all.

    Raises FileExistsError for a folder that is not empty, unless ``resume``; then the configuration must be the same.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, object], *, resume: bool):
        self.path = Path(path)
        stored = self.path / "config.json"
        if resume and stored.exists():
            before = read_json(stored)
            different = sorted(name for name in {**before, **config} if before.get(name) != config.get(name))
            if different:
                changes = ", ".join(f"{name} {before.get(name)!r} → {config.get(name)!r}" for name in different)
                raise ValueError(f"resume: expected the options that {self.path} was started with, got {changes}.")
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(
                f"out: expected a new or empty folder, got {str(self.path)!r}. "
                "Name another, or resume the run that is there."
            )
        write_json(stored, config)

    def row(self, name: str, fields: Iterable[str], make: Callable[[], Row]) -> Row:
        """Return the row of a study that is stored as ``name``, a JSON object; make and store it where it is not.

        A row is what takes long: a run that was cut off makes only those that it lacks. Raises ValueError, which names
        the file, where what is stored lacks one of ``fields``.
        """
        path = self.path / name
        if not path.exists():
            write_json(path, make())
        stored: Row = read_json(path, *fields)
        return stored

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file."""
        write_json(self.path / name, value)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        write_atomically(self.path / name, text.encode())

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a safetensors file."""
        write_tensors(self.path / name, tensors)

    def write_with(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a file by a function of its path."""
        temporary = self.path / f".{name.partition('.')[0]}.part.{name.rpartition('.')[2]}"
        write(temporary)
        temporary.replace(self.path / name)
