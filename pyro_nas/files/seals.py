"""Seals: files with their digest in them, and what they belong to; nothing is read of one that was changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load, save

from pyro_nas.files.atomic import write_atomically

__all__ = ["Json", "digest", "read_sealed", "read_tensors", "write_sealed", "write_tensors"]

Json: TypeAlias = dict[str, Any]  # an object, as it is read
SEAL = re.compile(rb'sha256:([0-9a-f]{64}) of ([^"]*)"')
ZEROS = "0" * 64  # stands in the seal while the digest is taken
REMEDY = "Remove it to make it again, or restore it from a copy."


def digest(content: bytes) -> str:
    """Return the SHA-256 checksum."""
    return hashlib.sha256(content).hexdigest()


def write_sealed(path: Path, value: Mapping[str, object], of: str = "") -> None:
    """Write a JSON object with its digest, as ``write_json``; ``of``: what it belongs to, ASCII without quotes."""
    whole = {"seal": _seal(of), **value}
    write_atomically(path, _sealed((json.dumps(whole, indent=1, allow_nan=False) + "\n").encode()))


def read_sealed(path: Path, *keys: str, of: str = "") -> Json:
    """Read what ``write_sealed`` wrote, an object with these keys, as ``of``.

    Raises ValueError, which names the file, where it was truncated, changed, or written for something else; OSError
    where it cannot be read.
    """
    value: Json = json.loads(_checked(path, of))
    del value["seal"]
    if not set(keys) <= set(value):
        raise ValueError(f"{path}: expected a JSON object with {list(keys)}, got one with {list(value)}. {REMEDY}")
    return value


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], of: str = "") -> None:
    """Write tensors, {name: tensor} of any shapes, as safetensors, atomically, with their digest; ``of`` as above."""
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, _sealed(save(kept, metadata={"seal": _seal(of)})))


def read_tensors(path: Path, of: str | None = None) -> dict[str, torch.Tensor]:
    """Read what ``write_tensors`` wrote, {name: tensor} of the shapes written; errors as ``read_sealed``.

    Without ``of`` it may belong to anything.
    """
    return load(_checked(path, of))


def _seal(of: str) -> str:
    return f"sha256:{ZEROS} of {of}"


def _sealed(content: bytes) -> bytes:
    """Return content with its digest in its seal, which comes before all else that is like it."""
    return content.replace(ZEROS.encode(), digest(content).encode(), 1)


def _checked(path: Path, of: str | None) -> bytes:
    """Return the content of a file after the check of its seal: nothing else is looked at before."""
    content = path.read_bytes()
    seal = SEAL.search(content)
    if seal is None:
        raise ValueError(f"{path}: expected a file with its sha256 in it, got none: truncated or changed. {REMEDY}")
    start, stop = seal.span(1)
    checksum = hashlib.sha256(memoryview(content)[:start])
    checksum.update(ZEROS.encode())
    checksum.update(memoryview(content)[stop:])
    if checksum.hexdigest() != seal[1].decode():
        raise ValueError(
            f"{path}: expected sha256 {seal[1].decode()}, got {checksum.hexdigest()} ({len(content)} bytes): "
            f"truncated or changed. {REMEDY}"
        )
    if of is not None and seal[2].decode() != of:
        raise ValueError(f"{path}: expected {of!r}, got {seal[2].decode()!r}: the file of another run. {REMEDY}")
    return content
