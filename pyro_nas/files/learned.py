"""What a fit learned, as tensors by name, and files of it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from pyro_nas.files.seals import read_tensors

__all__ = ["load_state", "state_of"]


def state_of(model: nn.Module, guide: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a fit learned, as named tensors: the guide's state, the model's point estimates and buffers.

    {"guide.NAME" or "model.NAME": tensor}, each of the shape that it has there, and not copied.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = {n: v for n, v in model.state_dict().items() if n not in parameters or parameters[n].requires_grad}
    return {**{f"model.{n}": v for n, v in kept.items()}, **{f"guide.{n}": v for n, v in guide.state_dict().items()}}


def load_state(path: str | os.PathLike[str], model: nn.Module, guide: nn.Module, of: str | None = None) -> None:
    """Set model and guide to what ``state_of`` returned of such a pair and ``write_tensors`` wrote.

    Raises ValueError, and changes nothing, where names or shapes differ, and as ``read_tensors``.
    """
    saved, current = read_tensors(Path(path), of), state_of(model, guide)
    if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in current.items()}:
        shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (saved, current)]
        different = sorted(n for n in saved.keys() | current.keys() if shapes[0].get(n) != shapes[1].get(n))
        raise ValueError(
            f"path: expected the tensors of this model and guide in {str(path)!r}, got others: {different}."
        )
    for name, value in current.items():
        value.copy_(saved[name])
