"""Checkpoint: the state of a fit in a folder, which survives a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from pyro_nas.files import Json, read_tensors, remove_temporaries, write_tensors
from pyro_nas.files.locks import locked

__all__ = ["Checkpoint", "CorruptCheckpoint"]

NAME = "checkpoint.safetensors"
POSITION = "position"  # the tensor that holds JSON


class CorruptCheckpoint(ValueError):
    """A checkpoint file that is not what was written."""


class Checkpoint:
    """The latest checkpoint of a fit in a folder, one file: tensors, and the position, JSON values, with their digest.

    The file takes the place of the last one in one step: a kill at any moment leaves the one or the other, and nothing
    else in the folder is touched.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)

    def exists(self) -> bool:
        """Whether there is one."""
        return (self.folder / NAME).exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for a fit, without what a kill left there; raise BlockingIOError where it is in use."""
        with locked("checkpoint", self.folder):
            remove_temporaries(self.folder)
            yield

    def save(self, tensors: Mapping[str, torch.Tensor], position: Mapping[str, object]) -> None:
        """Write a checkpoint, {name: tensor} of any shapes and JSON values, in place of the last one."""
        content = bytearray(json.dumps(position).encode())  # records may hold infinities
        write_tensors(self.folder / NAME, {**tensors, POSITION: torch.frombuffer(content, dtype=torch.uint8)})

    def load(self) -> tuple[dict[str, torch.Tensor], Json]:
        """Return the tensors, {name: tensor} of the shapes that were saved, and the position.

        Raises CorruptCheckpoint, which names the file and the reason, where it is missing or was changed.
        """
        path = self.folder / NAME
        try:
            tensors = read_tensors(path, of="")
        except (ValueError, OSError) as error:
            raise CorruptCheckpoint(f"{error} Remove the folder to start again.") from error
        if POSITION not in tensors:
            raise CorruptCheckpoint(f"{path}: expected a checkpoint, got other tensors. Remove it to start again.")
        return tensors, json.loads(tensors.pop(POSITION).numpy().tobytes())
