"""Options: what every fit takes, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import TypedDict

import torch

from pyro_nas import checks
from pyro_nas.augmentation import Augmentation
from pyro_nas.evidence import Evidence
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.inference.checkpoint import Checkpoint
from pyro_nas.inference.result import Record
from pyro_nas.inference.schedules import Schedule

__all__ = ["BATCH_SIZE", "FitOptions", "Options"]

BATCH_SIZE = 128  # data a step, where nobody says


class FitOptions(TypedDict, total=False):
    """The options of every fit by name, for editors and type checkers; ``Options`` says what they mean."""

    epochs: int
    batch_size: int | None
    temperature: Schedule | None
    complexity: Schedule | None
    local_reparameterization: bool
    structure_per_example: bool
    particles: int
    enumerate_discrete: bool
    patience: int | None
    measure_validation: bool
    callbacks: Sequence[Callable[[Record], object]]
    checkpoint: str | PathLike[str] | None
    resume: bool
    seed: int
    max_gradient_norm: float | None
    progress: bool
    vectorize_particles: bool
    dealt: bool
    stratified: bool
    emphasis: Callable[[torch.Tensor], torch.Tensor] | None
    augmentation: Augmentation | None


@dataclass(frozen=True)
class Options:
    """What every fit takes.

    ``batch_size``: data a step, by default 128; a DataLoader has its own. ``temperature`` and ``complexity``:
    schedules (functions of progress from 0 to 1) of the model's τ and λ.
    ``local_reparameterization``: draw linear maps of normal weights at their output. ``particles``: draws a step.
    ``structure_per_example``: draw Γ anew for each datum of a batch, which lowers the variance of the gradient.
    ``enumerate_discrete``: sum over discrete structures exactly. ``patience``: stop after so many epochs without a
    better validation evidence, and return to the best. ``measure_validation``: measure the evidence of validation
    data after every epoch; without it a bilevel fit saves a pass over them. ``callbacks``: called with each epoch's
    record; a true answer stops the fit. ``checkpoint``: a folder, written after every epoch; ``resume``: continue
    from it. ``seed``: of all that is random in the fit, which leaves the global random state as it was.
    ``max_gradient_norm``: of each step. ``progress``: show a bar. ``augmentation``: a function of x that each
    training batch goes through, such as those of ``pyro_nas.augmentation``; validation data stay plain, those that
    a structure is fitted to too. Where λ is a site: ``vectorize_particles``: all particles, each with a λ, in one
    batched computation; ``dealt``: each on its own share of the batch, n/L of its n data: the network then runs as
    many data as with one particle; ``stratified``: their λ from as many equally probable strata of its prior;
    ``emphasis``: a function of λ, the weight of 𝔏(λ) in what is ascended.

    Raises TypeError for what should be a function and is none, ValueError for numbers out of range and options that do
    not go together, FileExistsError for a folder that has a checkpoint where ``resume`` is off.
    """

    epochs: int = 10
    batch_size: int | None = None
    temperature: Schedule | None = None
    complexity: Schedule | None = None
    local_reparameterization: bool = False
    structure_per_example: bool = False
    particles: int = 1
    enumerate_discrete: bool = False
    patience: int | None = None
    measure_validation: bool = True
    callbacks: Sequence[Callable[[Record], object]] = ()
    checkpoint: str | PathLike[str] | None = None
    resume: bool = False
    seed: int = 0
    max_gradient_norm: float | None = None
    progress: bool = False
    vectorize_particles: bool = False
    dealt: bool = False
    stratified: bool = False
    emphasis: Callable[[torch.Tensor], torch.Tensor] | None = None
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        checks.integer("epochs", self.epochs, low=1)
        if self.batch_size is not None:
            checks.integer("batch_size", self.batch_size, low=1)
        checks.integer("particles", self.particles, low=1)
        checks.seed(self.seed)
        if self.patience is not None:
            checks.integer("patience", self.patience, low=1)
        if self.max_gradient_norm is not None:
            checks.number("max_gradient_norm", self.max_gradient_norm, low=0, open_low=True)
        if self.patience is not None and not self.measure_validation:
            raise ValueError("patience: expected measure_validation beside it, got both switched. Switch one off.")
        for name in ("temperature", "complexity"):
            if getattr(self, name) is not None:
                checks.is_callable(name, getattr(self, name), "a schedule, a function of progress from 0 to 1")
        if self.emphasis is not None:
            checks.is_callable("emphasis", self.emphasis, "a function of λ")
        if self.augmentation is not None:
            checks.is_callable("augmentation", self.augmentation, "a function of a batch of images, such as shift(2)")
        if self.structure_per_example and self.vectorize_particles:
            raise ValueError(
                "structure_per_example: expected no vectorize_particles beside it, got both. Switch one of them off."
            )
        for name in ("stratified", "dealt"):
            if getattr(self, name) and not (self.vectorize_particles and self.particles > 1):
                raise ValueError(
                    f"{name}: expected several particles in one computation, got particles={self.particles}, "
                    f"vectorize_particles={self.vectorize_particles}. Pass particles=4, vectorize_particles=True."
                )
        for callback in self.callbacks:
            checks.is_callable("callbacks", callback, "functions of an epoch's record")
        if self.resume and self.checkpoint is None:
            raise ValueError("resume: expected a checkpoint folder to continue from, got none. Pass checkpoint=….")
        if self.checkpoint is not None and not self.resume and Checkpoint(self.checkpoint).exists():
            raise FileExistsError(
                f"checkpoint: expected a folder without a checkpoint, got {str(self.checkpoint)!r}. "
                "Pass resume=True to continue it, or another folder."
            )

    def evidence(self, model: PyroCallable, guide: PyroCallable) -> Evidence:
        """Return the evidence of a pair, estimated as these options say."""
        return Evidence(
            model,
            guide,
            self.particles,
            enumerate_discrete=self.enumerate_discrete,
            vectorize_particles=self.vectorize_particles,
            emphasis=self.emphasis,
        )

    @classmethod
    def of(cls, options: FitOptions) -> Options:
        """Return checked options; raise ValueError, which names the nearest match, for an unknown one."""
        for name in options:
            checks.one_of("option", name, [field.name for field in fields(cls)])
        return cls(**options)
