"""Checkpoint: the state of a fit in a folder, which survives a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from pyro_nas.files import digest as digest_of
from pyro_nas.files import tensor_bytes, write_atomically

__all__ = ["Checkpoint", "CorruptCheckpoint"]

POSITION = "checkpoint.json"
_REMEDY = "Remove the folder to start again, or restore the file from a copy."


class CorruptCheckpoint(ValueError):
    """A checkpoint file that is not what was written."""


class Checkpoint:
    """The latest checkpoint of a fit in a folder: ``checkpoint.json`` and the safetensors file that it names.

    The tensors are written first, under a new name, and the JSON, with the checksums of both, takes its place in one
    step: a kill at any moment leaves the one checkpoint or the other.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)

    def exists(self) -> bool:
        """Whether there is one."""
        return (self.folder / POSITION).exists()

    def save(self, tensors: Mapping[str, torch.Tensor], position: Mapping[str, Any]) -> None:
        """Write a checkpoint, {name: tensor} of any shapes and JSON values, in place of the last one."""
        content = tensor_bytes(tensors)
        digest = digest_of(content)
        name = f"checkpoint-{digest[:16]}.safetensors"
        write_atomically(self.folder / name, content)
        body = {"tensors": name, "sha256": digest, "position": position}
        whole = {**body, "checksum": digest_of(json.dumps(body, sort_keys=True).encode())}
        write_atomically(self.folder / POSITION, json.dumps(whole, indent=1).encode())  # records may hold infinities
        for old in self.folder.glob("checkpoint-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the tensors, {name: tensor} of the shapes that were saved, and the position.

        Raises CorruptCheckpoint, which names the file and the reason, where a file is missing or was changed.
        """
        path = self.folder / POSITION
        try:
            body = json.loads(path.read_bytes())
            checksum = body.pop("checksum")
            name, digest, position = body["tensors"], body["sha256"], body["position"]
        except (ValueError, KeyError, AttributeError, OSError) as error:
            raise CorruptCheckpoint(f"{path}: expected a checkpoint's JSON, got {error!r}. {_REMEDY}") from error
        if digest_of(json.dumps(body, sort_keys=True).encode()) != checksum:
            raise CorruptCheckpoint(f"{path}: expected the checksum {checksum}, got another. {_REMEDY}")
        path = self.folder / Path(name).name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CorruptCheckpoint(f"{path}: expected the checkpoint's tensors, got {error!r}. {_REMEDY}") from error
        if digest_of(content) != digest:
            raise CorruptCheckpoint(
                f"{path}: expected sha256 {digest}, got {digest_of(content)} ({len(content)} bytes): "
                f"truncated or changed. {_REMEDY}"
            )
        try:
            return load(content), position
        except SafetensorError as error:
            raise CorruptCheckpoint(f"{path}: expected safetensors, got {error!r}. {_REMEDY}") from error
