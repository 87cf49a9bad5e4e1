"""Runs: checkpoints that survive a kill, and the folder a run writes. Nothing here is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

POSITION = "checkpoint.json"


class CorruptCheckpoint(ValueError):
    """A checkpoint file that is not what was written."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it holds either what it held or all of ``content``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path, *keys: str) -> Any:
    """Read a JSON object with these keys; raise ValueError, which names the file, for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}. Remove the file to make it again.") from error
    if not isinstance(value, dict) or not set(keys) <= set(value):
        raise ValueError(f"{path}: expected a JSON object with {list(keys)}. Remove the file to make it again.")
    return value


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    write_atomically(path, _bytes(tensors))


def _bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def state_of(model: nn.Module, guide: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a fit learned, as named tensors: the guide's state, the model's point estimates and buffers."""
    parameters = dict(model.named_parameters())
    kept = {n: v for n, v in model.state_dict().items() if n not in parameters or parameters[n].requires_grad}
    return {**{f"model.{n}": v for n, v in kept.items()}, **{f"guide.{n}": v for n, v in guide.state_dict().items()}}


def load_state(path: str | os.PathLike[str], model: nn.Module, guide: nn.Module) -> None:
    """Set model and guide to what ``state_of`` returned of such a pair and ``write_tensors`` wrote."""
    saved, own = load(Path(path).read_bytes()), state_of(model, guide)
    if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in own.items()}:
        shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (saved, own)]
        different = sorted(n for n in saved.keys() | own.keys() if shapes[0].get(n) != shapes[1].get(n))
        raise ValueError(
            f"path: expected the tensors of this model and guide in {str(path)!r}, got others: {different}."
        )
    for name, value in own.items():
        value.copy_(saved[name])


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
        """Write a checkpoint in place of the last one."""
        content = _bytes(tensors)
        digest = _digest(content)
        name = f"checkpoint-{digest[:16]}.safetensors"
        write_atomically(self.folder / name, content)
        body = {"tensors": name, "sha256": digest, "position": position}
        whole = {**body, "checksum": _digest(json.dumps(body, sort_keys=True).encode())}
        write_atomically(self.folder / POSITION, json.dumps(whole, indent=1).encode())  # records may hold infinities
        for old in self.folder.glob("checkpoint-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return tensors and position; raise CorruptCheckpoint, which names the file and the reason."""
        path = self.folder / POSITION
        try:
            body = json.loads(path.read_bytes())
            checksum = body.pop("checksum")
            name, digest, position = body["tensors"], body["sha256"], body["position"]
        except (ValueError, KeyError, AttributeError, OSError) as error:
            raise CorruptCheckpoint(f"{path}: expected a checkpoint's JSON, got {error!r}. {_REMEDY}") from error
        if _digest(json.dumps(body, sort_keys=True).encode()) != checksum:
            raise CorruptCheckpoint(f"{path}: expected the checksum {checksum}, got another. {_REMEDY}")
        path = self.folder / Path(name).name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CorruptCheckpoint(f"{path}: expected the checkpoint's tensors, got {error!r}. {_REMEDY}") from error
        if _digest(content) != digest:
            raise CorruptCheckpoint(
                f"{path}: expected sha256 {digest}, got {_digest(content)} ({len(content)} bytes): "
                f"truncated or changed. {_REMEDY}"
            )
        try:
            return load(content), position
        except SafetensorError as error:
            raise CorruptCheckpoint(f"{path}: expected safetensors, got {error!r}. {_REMEDY}") from error


_REMEDY = "Remove the folder to start again, or restore the file from a copy."


class RunFolder:
    """The folder a run writes, with the configuration it was started with; files appear whole or not at all.

    Raises FileExistsError for a folder that is not empty, unless ``resume``; then the configuration must be the same.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any], resume: bool):
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

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        write_json(self.path / name, value)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        write_atomically(self.path / name, text.encode())

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a safetensors file."""
        write_tensors(self.path / name, tensors)

    def write_with(self, name: str, write: Callable[[Path], Any]) -> None:
        """Write a file by a function of its path."""
        temporary = self.path / f".{name.partition('.')[0]}.part.{name.rpartition('.')[2]}"
        write(temporary)
        temporary.replace(self.path / name)
