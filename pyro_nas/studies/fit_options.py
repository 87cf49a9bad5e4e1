"""Options of fits, as the studies hand them on from one function to the next: a misspelt one is found by mypy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TypedDict

import torch

from pyro_nas.augmentation import Augmentation
from pyro_nas.inference.options import Record
from pyro_nas.inference.schedules import Schedule
from pyro_nas.inference.stepper import OptimizerFactory, SchedulerFactory


class FitOptions(TypedDict, total=False):
    """Keyword arguments of ``svi.fit``, those that a study sets."""

    epochs: int
    batch_size: int
    seed: int
    progress: bool
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory
    temperature: Schedule
    local_reparameterization: bool
    structure_per_example: bool
    particles: int
    vectorize_particles: bool
    stratified: bool
    emphasis: Callable[[torch.Tensor], torch.Tensor]
    augmentation: Augmentation
    callbacks: Sequence[Callable[[Record], object]]
    checkpoint: str | PathLike[str]
    resume: bool


class BilevelOptions(FitOptions, total=False):
    """And those of ``bilevel.fit``; ``rate`` is that of ``darts.fit``."""

    structure_optimizer: OptimizerFactory
    structure_scheduler: SchedulerFactory
    measure_validation: bool
    rate: float
