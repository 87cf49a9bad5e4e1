"""The loop that gradient procedures run in: epochs, schedules, early stopping, checkpoints.

A procedure is a function that makes one step on a batch; the loop does not know what it optimises.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Generic

import pyro
import torch
from torch import nn
from tqdm import tqdm

from pyro_nas import checks
from pyro_nas.augmentation import augmented
from pyro_nas.data import Pair, Source
from pyro_nas.evidence import Terms, evaluate
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.inference.batches import Batches
from pyro_nas.inference.fit_checks import (
    check_batch_size,
    check_data,
    check_dealt,
    check_same_model,
    check_schedule,
    needs_two,
)
from pyro_nas.inference.fit_identity import fit_identity, sample_batch, values_at
from pyro_nas.inference.options import BATCH_SIZE, Options
from pyro_nas.inference.result import Fit, G, Record
from pyro_nas.inference.saved_fit import SavedFit
from pyro_nas.inference.state import FitState, named_parameters
from pyro_nas.inference.stepper import OptimizerFactory, SchedulerFactory, Stepper
from pyro_nas.random_state import check_thread, forked, seeded
from pyro_nas.reading.structure_posterior import choice_probabilities

__all__ = ["Session"]


class Session(AbstractContextManager["Session[G]"], Generic[G]):
    """A fit in progress: its data, parameters, random state and modes, checked before the first step.

    Within the context the random state is the fit's own, started at its seed, and Pyro validates only the first pass.

    Raises TypeError for a model or a guide that cannot be called, and for data that are no tensors; ValueError for
    other bad data and for options that the pair cannot have, such as a schedule of what the model lacks; RuntimeError
    where another thread is in a fit; and, on entering, ValueError where the sites of the guide are not the model's, or
    it has no parameters.
    """

    def __init__(
        self,
        model: PyroCallable,
        guide: G,
        train: Source,
        valid: Source | None,
        options: Options,
        procedure: Mapping[str, object],
    ):
        check_thread()
        checks.is_callable("model", model, "a Pyro model")
        checks.is_callable("guide", guide, "a Pyro guide")
        check_same_model(model, guide)
        self.model, self.guide, self.options, self.procedure = model, guide, options, procedure
        modules = [part for part in (model, guide) if isinstance(part, nn.Module)]
        self.device = next((p.device for part in modules for p in part.parameters()), torch.device("cpu"))
        check_batch_size(options.batch_size, train, valid)
        batch_size = options.batch_size or BATCH_SIZE
        self.train = Batches("train", train, batch_size, self.device)
        self.valid = None if valid is None else Batches("valid", valid, batch_size, self.device)
        if options.patience is not None and valid is None:
            raise ValueError("patience: expected validation data to stop by, got valid=None. Pass valid=(x, y).")
        for name in ("temperature", "complexity"):
            schedule = getattr(options, name)
            if schedule is not None and getattr(model, name, None) is None:
                raise ValueError(f"{name}: expected a model with a {name} to schedule, got one without.")
            if schedule is not None:
                check_schedule(model, name, schedule)
        check_data(model, [self.train] if self.valid is None else [self.train, self.valid])
        if options.dealt:
            check_dealt(model, self.train.first()[1], options.particles)
        self.steps = options.epochs * len(self.train)
        self._stack = ExitStack()

    def __enter__(self) -> Session[G]:
        self._stack.enter_context(seeded(self.options.seed))
        try:
            self._first_pass()
        except BaseException:
            self.__exit__()
            raise
        self._set_mode(train=True)
        self._stack.enter_context(pyro.validation_enabled(False))
        return self

    def _first_pass(self) -> None:
        """Run model and guide once on a first batch, and collect the parameters."""
        self._set_progress(0)
        self._set_mode(train=False)  # the first pass is a check, and leaves batch normalisation as it is
        first = self.train.first()
        self._augmented(copy.deepcopy(first))  # it may be a view of the data, which the function may write to
        with pyro.validation_enabled(True), torch.no_grad():
            self.options.evidence(self.model, self.guide)(*first)
        self.named = named_parameters(self.model, self.guide, first)
        if not any(name.startswith("guide.") for name in self.named):
            raise ValueError("guide: expected parameters to fit, got none.")

    def __exit__(self, *error: object) -> None:
        self._set_mode(train=False)
        self._stack.close()

    def stepper(
        self,
        names: Sequence[str],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        batches: Batches | None = None,
    ) -> Stepper:
        """Return a stepper of the evidence in the parameters of these names, by default on training batches.

        Raises ValueError where one of the batches is too small for batch normalisation.
        """
        batches = self.train if batches is None else batches
        if batches.smallest in (1, None) and needs_two(self.model, batches.first()):
            batches.require_two()
        evidence = self.options.evidence(self.model, self.guide).to(self.device)
        parameters = {name: self.named[name] for name in names}
        size, weight = self.train.size, batches.weight
        return Stepper(evidence, parameters, size, self.steps, optimizer, scheduler, self.options, weight)

    def run(self, steppers: dict[str, Stepper], step: Callable[[int, Pair], Terms]) -> Fit[G]:
        """Run all epochs, and return to the best where patience was lost or to be lost.

        Raises CorruptCheckpoint or ValueError for a checkpoint that is broken, of another pair, or of another number of
        scheduled steps, and what a step or a loader raises, which leaves the pair as after the last whole epoch.
        """
        options = self.options
        generators = self.train.generators() | ({} if self.valid is None else self.valid.generators())
        state = FitState(self.model, self.guide, self.named, steppers, generators)
        history: list[Record] = []
        best: dict[str, torch.Tensor] = {}
        saved: SavedFit | None = None
        if options.checkpoint is not None:
            schedules = [options.temperature, options.complexity, *(stepper.scheduler for stepper in steppers.values())]
            scheduled = any(schedule is not None for schedule in schedules)
            saved = SavedFit(options.checkpoint, state, self._identity(state), self.steps, scheduled=scheduled)
            self._stack.enter_context(saved)
            if options.resume:
                history, best = saved.load()
        bar = tqdm(total=options.epochs, initial=len(history), disable=not options.progress, unit="epoch", leave=False)
        with bar:
            asked = False  # by a callback; unlike lost patience that does not outlast the call
            while len(history) < options.epochs and not asked and not (history and history[-1]["stopped"]):
                record = self._epoch(len(history), state, step)
                history.append(record)
                if options.patience is not None and _best_epoch(history) == len(history) - 1:
                    best = state.snapshot()
                record["stopped"] = self._lost_patience(history)
                asked = self._asked(record)
                if saved is not None:
                    saved.save(history, best)
                bar.update()
                bar.set_postfix(evidence=f"{record['evidence']:.4g}")
        last = history[-1]
        if best:
            state.restore(best)
            last = history[_best_epoch(history)]
        self._set_progress(self.steps)
        return Fit(self.model, self.guide, history, last["evidence"])

    def _identity(self, state: FitState) -> dict[str, object]:
        """Return what a checkpoint says of the fit that it is of."""
        self._set_progress(0)
        self._set_mode(train=False)
        data = {"train": self.train, "valid": self.valid}
        options = fit_identity(self.model, self.guide, data, self.options, state.steppers, self.procedure)
        evidence = self.options.evidence(self.model, self.guide).to(self.device)
        values = values_at(state.live, evidence, sample_batch(self.train))
        self._set_mode(train=True)
        return {"fit": options, "values": values}

    def _asked(self, record: Record) -> bool:
        """Whether a callback stops the fit; what callbacks draw, and the modes they leave, do not change it."""
        if not self.options.callbacks:
            return False
        with forked():
            answers = [callback(record) for callback in self.options.callbacks]
        self._set_mode(train=True)
        return any(answers)

    def _epoch(self, epoch: int, state: FitState, step: Callable[[int, Pair], Terms]) -> Record:
        good = state.snapshot()
        sums: dict[str, float] = {}
        done, seen = epoch * len(self.train), 0
        try:
            for batch in self.train:
                self._set_progress(done)
                for name, value in step(done, self._augmented(batch)).summary().items():
                    sums[name] = sums.get(name, 0.0) + value * len(batch[1])
                done, seen = done + 1, seen + len(batch[1])
        except Exception:
            state.restore(good)
            raise
        record: Record = {"epoch": epoch, "updates": done * sum(value.numel() for value in self.named.values())}
        record |= {name: total / seen for name, total in sums.items()}
        for name in ("temperature", "complexity"):
            if isinstance(getattr(self.model, name, None), float):
                record[name] = getattr(self.model, name)
        if self.valid is not None and self.options.measure_validation:
            record.update({f"valid_{name}": value for name, value in self._validate().items()})
        probabilities = choice_probabilities(self.guide, *self.train.first(), num_samples=100, max_runs=10)
        record["structure"] = {site: value.tolist() for site, value in probabilities.items()}
        return record

    def _augmented(self, batch: Pair) -> Pair:
        """Return a training batch as a step sees it."""
        x, y = batch
        return batch if self.options.augmentation is None else (augmented(self.options.augmentation, x), y)

    def _validate(self) -> dict[str, float]:
        """Return the terms of the evidence on the validation part, scaled to N data.

        The noise is the same every epoch, and τ and λ are those that the fit ends with, so that epochs compare.
        """
        assert self.valid is not None
        self._set_progress(self.steps)
        with seeded(0):
            terms = evaluate(self.model, self.guide, self.valid)
        self._set_mode(train=True)
        return terms

    def _lost_patience(self, history: list[Record]) -> bool:
        patience = self.options.patience
        return patience is not None and len(history) - 1 - _best_epoch(history) >= patience

    def _set_progress(self, done: int) -> None:
        for name in ("temperature", "complexity"):
            schedule = getattr(self.options, name)
            if schedule is not None:
                setattr(self.model, name, schedule(min(1.0, done / max(1, self.steps - 1))))

    def _set_mode(self, *, train: bool) -> None:
        for part in (self.model, self.guide):
            if isinstance(part, nn.Module):
                part.train(train)


def _best_epoch(history: list[Record]) -> int:
    values = [record["valid_evidence"] for record in history]
    return max(range(len(values)), key=lambda epoch: -math.inf if math.isnan(values[epoch]) else values[epoch])
