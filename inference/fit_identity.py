"""Identity of a fit: what a checkpoint was made with, so that a fit goes on with the same or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields

import torch
from torch.utils.data import Dataset, TensorDataset

from pyro_nas.data import Inputs, Pair
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.evidence.terms import Terms
from pyro_nas.files import Json
from pyro_nas.files.identity import describe_value, differences, versions
from pyro_nas.inference.batches import Batches
from pyro_nas.inference.options import Options
from pyro_nas.inference.schedules import Schedule
from pyro_nas.inference.stepper import Stepper
from pyro_nas.random_state import seeded

__all__ = ["check_identity", "fit_identity", "sample_batch", "values_at"]

FREE = ("epochs", "callbacks", "checkpoint", "resume", "progress")  # options that may differ in what goes on
SCHEDULED = ("temperature", "complexity")
TOLERANCE = 1e-4  # of what model and guide compute, which threads and processors round
LEVEL = 0.1  # of the parameters there: of what is to be positive too


def fit_identity(
    model: PyroCallable,
    guide: PyroCallable,
    data: Mapping[str, Batches | None],
    options: Options,
    steppers: Mapping[str, Stepper],
    procedure: Mapping[str, object],
) -> Json:
    """Return what a fit depends on, as JSON values: procedure, options, space, data by digest, library versions.

    Schedules by their values at five places; ``values_at`` has what model and guide compute, any Pyro callables.
    """
    chosen = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in FREE}
    scheduled = {name: chosen.pop(name) for name in SCHEDULED}
    numbers = {name: getattr(model, name, None) for name in ("num_data", *SCHEDULED) if scheduled.get(name) is None}
    parts = {
        "procedure": procedure,
        "options": chosen,
        "schedules": {name: _values(schedule) for name, schedule in scheduled.items() if schedule is not None},
        "model": {"class": type(model), "space": getattr(model, "space", None), **numbers},
        "guide": {"class": type(guide)},
        "data": {name: None if batches is None else _data(batches) for name, batches in data.items()},
        "steps": {name: stepper.made_by for name, stepper in steppers.items()},
        "device": next((p.device.type for stepper in steppers.values() for p in stepper.values), "cpu"),
        "versions": versions(),
    }
    described: Json = json.loads(json.dumps(describe_value(parts)))
    return described


def _values(schedule: Schedule) -> list[float]:
    return [schedule(progress / 4) for progress in range(5)]


def _data(batches: Batches) -> dict[str, object]:
    """Return size and batches of data, and digests of those that are tensors."""
    dataset = None if batches.loader is None else batches.loader.dataset
    tensors = dataset.tensors if isinstance(dataset, TensorDataset) else batches.everything()
    return {"size": batches.size, "batches": len(batches), "tensors": tensors}


def sample_batch(batches: Batches) -> Pair | None:
    """Return a batch that is the same whatever was drawn before: the first data, (batch, …) each.

    None of data that are drawn anew each time, or cannot be asked for by number.
    """
    if batches.loader is None:
        return batches.first()
    loader = batches.loader
    if not isinstance(loader.dataset, Dataset) or not hasattr(loader.dataset, "__getitem__"):
        return None
    found = []
    for _ in range(2):
        with seeded(0):
            rows = [loader.dataset[i] for i in range(min(batches.size, loader.batch_size or batches.batch_size))]
            x, y = loader.collate_fn(rows)
        found.append((describe_value((x, y)), (_moved(x, batches.device), y.to(batches.device))))
    return found[0][1] if found[0][0] == found[1][0] else None


def _moved(x: Inputs | list[torch.Tensor], device: torch.device) -> Inputs:
    return x.to(device) if isinstance(x, torch.Tensor) else tuple(part.to(device) for part in x)


def values_at(
    live: Mapping[str, torch.Tensor], evidence: Callable[..., Terms], batch: Pair | None
) -> dict[str, float] | None:
    """Return the terms of 𝔏 on a batch, in nats, at parameters of one value, ``live``, which stay as they are.

    They tell laws, activations, λ and N of one pair from those of another, also where both have the same shapes. None
    without a batch, and of a pair that cannot run there.
    """
    if batch is None:
        return None
    try:
        with seeded(0), torch.no_grad(), _levelled(live):
            terms = evidence(*batch).mean()
    except (ValueError, RuntimeError, ArithmeticError):  # a pair of the user's, that cannot run there
        return None
    numbers = {"log_likelihood": terms.log_likelihood, **{f"divergence of {n}": v for n, v in terms.divergence.items()}}
    numbers |= {f"penalty of {n}": value for n, value in terms.penalty.items()}
    return {name: float(value) for name, value in numbers.items()}


@contextmanager
def _levelled(live: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within the context all tensors of real numbers hold LEVEL and, to tell their places, a little more or less."""
    before = {name: value.clone() for name, value in live.items() if value.is_floating_point()}
    try:
        for name in before:
            places = torch.arange(live[name].numel(), device=live[name].device).view(live[name].shape)
            live[name].copy_(LEVEL * (1 + 0.5 * torch.sin(places)))
        yield
    finally:
        for name, value in before.items():
            live[name].copy_(value)


def check_identity(folder: object, saved: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raise ValueError, which lists the differences, where a checkpoint was made with something else."""
    different = differences({"fit": saved["fit"]}, {"fit": now["fit"]})
    different += differences({"values": saved["values"]}, {"values": now["values"]}, tolerance=TOLERANCE)
    if different:
        raise ValueError(
            f"checkpoint: expected the fit that {str(folder)!r} was started with, got {', '.join(different)}. "
            "Resume with the same, or start in another folder."
        )
