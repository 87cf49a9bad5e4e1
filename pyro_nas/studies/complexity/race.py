"""Race of direct training at each λ against one hypernetwork: the seconds up to the hypernetwork's evidence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypedDict

import torch

from pyro_nas.evidence import evaluate
from pyro_nas.evidence.effects import LocalReparameterization
from pyro_nas.inference import svi
from pyro_nas.inference.options import Record
from pyro_nas.models import Model
from pyro_nas.models.guides import Guide
from pyro_nas.models.hypernets import Hypernetwork
from pyro_nas.random_state import seeded
from pyro_nas.studies.complexity.setting import Setting
from pyro_nas.studies.fit_arguments import FitArguments


class Lap(TypedDict):
    """Seconds and epochs of a training, and whether it reached the evidence that was asked for."""

    seconds: float
    epochs: int
    reached: bool


class Raced(Lap):
    """A training that stopped at its target, in nats, and the shortest with a schedule of its own length."""

    target: float
    annealed: Lap


class Race(TypedDict):
    """Trainings by λ, their seconds together, and the hypernetwork's seconds as a share of them."""

    hypernet_seconds: float
    direct: dict[str, Raced]
    direct_seconds: float
    ratio: float
    annealed_seconds: float
    annealed_ratio: float


def race(setting: Setting, hypernet: Hypernetwork, hypernet_seconds: float, complexities: Sequence[float]) -> Race:
    """Train each λ as row "direct" does, but stop where its evidence is that of the hypernetwork there.

    After every epoch the evidence is measured on all training data; that time is left out. A learning rate that falls
    over all epochs is still high where one stops early: "annealed" are the fewest epochs that, with a schedule of their
    own length, reach the target, found by bisection, and the seconds of those epochs alone.
    """
    direct: dict[str, Raced] = {}
    for complexity in complexities:
        target = _evidence(setting, *hypernet.at(complexity))
        stopped = _reach(setting, complexity, target, setting.epochs, measure_every=True)
        annealed = _shortest(setting, complexity, target, stopped)
        direct[str(complexity)] = {**stopped, "target": target, "annealed": annealed}
    total = sum(raced["seconds"] for raced in direct.values())
    least = sum(raced["annealed"]["seconds"] for raced in direct.values())
    return {
        "hypernet_seconds": round(hypernet_seconds, 2),
        "direct": direct,
        "direct_seconds": total,
        "ratio": hypernet_seconds / total,
        "annealed_seconds": least,
        "annealed_ratio": hypernet_seconds / least,
    }


def _shortest(setting: Setting, complexity: float, target: float, stopped: Lap) -> Lap:
    """Return the training of the fewest epochs that reaches the target, by bisection; ``stopped`` where none does."""
    shortest, low, high = stopped, 0, stopped["epochs"]
    while stopped["reached"] and high - low > 1:
        lap = _reach(setting, complexity, target, (low + high) // 2, measure_every=False)
        if lap["reached"]:
            shortest, high = lap, lap["epochs"]
        else:
            low = lap["epochs"]
    return shortest


def _reach(setting: Setting, complexity: float, target: float, epochs: int, *, measure_every: bool) -> Lap:
    """Train at one λ with a schedule of so many epochs; stop where the evidence is enough.

    It is measured after every epoch, or after the last alone.
    """
    torch.manual_seed(setting.seed)
    model = setting.model(complexity)
    guide, spent, reached = setting.guide(model), 0.0, False

    def stop(record: Record) -> bool:
        nonlocal spent, reached
        start = time.perf_counter()
        if measure_every or record["epoch"] == epochs - 1:
            reached = _evidence(setting, model, guide) >= target
        spent += time.perf_counter() - start
        return reached

    start = time.perf_counter()
    options: FitArguments = {**setting.options, "callbacks": [stop], "epochs": epochs, "seed": setting.seed}
    records = svi.fit(model, guide, setting.train, **options).records
    return {"seconds": time.perf_counter() - start - spent, "epochs": len(records), "reached": reached}


def _evidence(setting: Setting, model: Model, guide: Guide) -> float:
    """Return the evidence on all training data, of noise too low to stop by, and leave mode and random state."""
    with seeded(setting.seed), LocalReparameterization():
        value = evaluate(model, guide, setting.batches())["evidence"]
    model.train()
    return value
