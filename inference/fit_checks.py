"""Checks of a fit before its first step: its data, and options that not every pair can have."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from pyro_nas import checks
from pyro_nas.data import Pair, Source, check_number
from pyro_nas.evidence.currencies import SpaceModel
from pyro_nas.graph.network import Network
from pyro_nas.inference.batches import Batches
from pyro_nas.inference.schedules import Schedule

__all__ = ["check_batch_size", "check_data", "check_dealt", "check_same_model", "check_schedule", "needs_two"]


def check_batch_size(batch_size: int | None, train: Source, valid: Source | None) -> None:
    """Raise where a batch size is given and all data come by DataLoaders of another."""
    own = [
        part.batch_size if isinstance(part, DataLoader) else batch_size for part in (train, valid) if part is not None
    ]
    if batch_size is not None and batch_size not in own:
        raise ValueError(
            f"batch_size: expected none beside a DataLoader, which has {own[0]}, got {batch_size}. Leave it out."
        )


def check_same_model(model: object, guide: object) -> None:
    """Raise where the guide is of another model, whose temperature and λ the fit would not change."""
    other = getattr(guide, "model", None)
    if isinstance(model, SpaceModel) and isinstance(other, SpaceModel) and other is not model:
        raise ValueError(
            "guide: expected one of this model, got one of another, such as a copy made apart from it. Copy both "
            "together, copy.deepcopy((model, guide)), or pass guide.model."
        )


def check_data(model: object, parts: Sequence[Batches]) -> None:
    """Raise where a model cannot take data, or counts another number; have later batches of loaders looked at.

    The number is that of the training data, the first of the parts, in an epoch or at all, or that of all parts.
    """
    check_number(model, parts[0].size, parts[0].drawn, sum(batches.size for batches in parts))
    check = getattr(model, "check", None)
    check_y = getattr(getattr(model, "likelihood", None), "check", None)
    for batches in parts:
        outputs = None if check is None else check(*(batches.everything() or batches.first()))
        if isinstance(outputs, torch.Tensor) and check_y is not None:
            batches.check_y = partial(check_y, outputs)


def needs_two(model: object, data: Pair) -> bool:
    """Return whether batch normalisation sees one value a channel of one datum, which has no variance."""
    layers = [part for part in model.modules() if isinstance(part, _BatchNorm)] if isinstance(model, nn.Module) else []
    if not layers or not hasattr(model, "check"):
        return False
    values: list[int] = []
    with ExitStack() as hooks:
        for layer in layers:
            hook = layer.register_forward_pre_hook(lambda _, inputs: values.append(inputs[0][0, 0].numel()))
            hooks.callback(hook.remove)
        model.check(*data)
    return 1 in values


def check_dealt(model: object, y: torch.Tensor, particles: int) -> None:
    """Raise where a model cannot take data with a particle axis, or a batch has fewer data than particles."""
    network = getattr(model, "network", None)
    if not isinstance(network, Network):
        raise TypeError(f"dealt: expected a Model of pyro_nas.models, got {checks.describe(model)}. Switch it off.")
    if network.keeps_statistics():
        raise ValueError(
            "dealt: expected a network without batch normalisation, whose statistics would be of a share of a batch, "
            "got one with it. Use torch.nn.GroupNorm in your primitives, or switch it off."
        )
    if len(y) < particles:
        raise ValueError(f"dealt: expected {particles} data in a batch or more, one a particle, got {len(y)}.")


def check_schedule(model: object, name: str, schedule: Schedule) -> None:
    """Raise where the model refuses the schedule's first or last value, or has a prior there; change nothing."""
    before = getattr(model, name)
    if not isinstance(before, float):
        raise ValueError(f"{name}: expected a model with a number to schedule, got a prior, {before}.")
    try:
        for progress in (0.0, 1.0):
            setattr(model, name, schedule(progress))
    finally:
        setattr(model, name, before)
