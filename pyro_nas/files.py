"""Files: written whole or not at all, and never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

__all__ = [
    "digest",
    "load_state",
    "read_json",
    "state_of",
    "tensor_bytes",
    "write_atomically",
    "write_json",
    "write_tensors",
]


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
    """Write JSON atomically; raise ValueError for NaN or infinity, TypeError for what JSON does not have."""
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
    """Write tensors, {name: tensor} of any shapes, as safetensors, atomically."""
    write_atomically(path, tensor_bytes(tensors))


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return tensors, {name: tensor} of any shapes, as safetensors."""
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def digest(content: bytes) -> str:
    """Return the SHA-256 checksum."""
    return hashlib.sha256(content).hexdigest()


def state_of(model: nn.Module, guide: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a fit learned, as named tensors: the guide's state, the model's point estimates and buffers.

    {"guide.NAME" or "model.NAME": tensor}, each of the shape that it has there, and not copied.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = {n: v for n, v in model.state_dict().items() if n not in parameters or parameters[n].requires_grad}
    return {**{f"model.{n}": v for n, v in kept.items()}, **{f"guide.{n}": v for n, v in guide.state_dict().items()}}


def load_state(path: str | os.PathLike[str], model: nn.Module, guide: nn.Module) -> None:
    """Set model and guide to what ``state_of`` returned of such a pair and ``write_tensors`` wrote.

    Raises ValueError, and changes nothing, where names or shapes differ; SafetensorError for another kind of file.
    """
    saved, current = load(Path(path).read_bytes()), state_of(model, guide)
    if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in current.items()}:
        shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (saved, current)]
        different = sorted(n for n in saved.keys() | current.keys() if shapes[0].get(n) != shapes[1].get(n))
        raise ValueError(
            f"path: expected the tensors of this model and guide in {str(path)!r}, got others: {different}."
        )
    for name, value in current.items():
        value.copy_(saved[name])
