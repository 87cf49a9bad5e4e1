"""Bilevel variational inference: weights ascend the evidence of training data, structure that of validation data.

DARTS' alternation of first order, with 𝔏(λ) as both objectives (VarDARTS thesis talk).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Unpack

from pyro_nas.data import Pair, Source
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.evidence.terms import Terms
from pyro_nas.inference.batches import Batches
from pyro_nas.inference.loop import Session
from pyro_nas.inference.options import FitOptions, Options
from pyro_nas.inference.result import Fit, G
from pyro_nas.inference.state import split_parameters
from pyro_nas.inference.stepper import OptimizerFactory, SchedulerFactory, Stepper, adam, delayed

__all__ = ["alternate", "fit"]

StructureStep = Callable[[int, Stepper, Stepper, Pair, Pair], object]


def fit(
    model: PyroCallable,
    guide: G,
    train: Source,
    valid: Source,
    *,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    structure_optimizer: OptimizerFactory | None = None,
    structure_scheduler: SchedulerFactory | None = None,
    **options: Unpack[FitOptions],
) -> Fit[G]:
    """Alternate a step of q(w) and the point estimates on ``train`` with one of q(Γ) on ``valid``; return the ``Fit``.

    min over q(Γ) of −𝔏_valid subject to q(w) = argmin of −𝔏_train, each likelihood scaled to N data. Arguments as
    ``svi.fit``; ``structure_optimizer`` and ``structure_scheduler`` are those of the structure's parameters, by default
    ``delayed()``, which holds the structure still for the first 0.3 of the steps.

    Raises ValueError where the guide's structure sites share parameters with its weights.
    """
    with Session(model, guide, train, valid, Options.of(options), {"fit": "bilevel"}) as session:
        factories = (optimizer, scheduler, structure_optimizer, structure_scheduler)
        return alternate(session, lambda number, lower, upper, batch, held_out: upper(number, *held_out), *factories)


def alternate(
    session: Session[G],
    structure_step: StructureStep,
    optimizer: OptimizerFactory | None,
    scheduler: SchedulerFactory | None,
    structure_optimizer: OptimizerFactory | None,
    structure_scheduler: SchedulerFactory | None,
) -> Fit[G]:
    """Run a session in which each step of the weights, on a training batch, follows one of the structure.

    ``structure_step(number, lower, upper, batch, held_out)`` makes the latter, given the steppers of weights and of
    structure, the training batch and a validation batch.

    Raises ValueError for a session without validation data, and as ``state.split_parameters``.
    """
    valid = session.valid
    if valid is None:
        raise ValueError("valid: expected data for the structure, got None. Pass (x, y), or use svi.fit.")
    weights, structure = split_parameters(session.guide, session.train.first(), session.named)
    lower = session.stepper(list(weights), optimizer or adam(), scheduler)
    upper = session.stepper(list(structure), structure_optimizer or adam(), structure_scheduler or delayed(), valid)
    held_out: Iterator[Pair] = iter(())

    def step(number: int, batch: Pair) -> Terms:
        nonlocal held_out
        if number % len(session.train) == 0:  # anew in each epoch, where a checkpoint may continue
            held_out = _endless(valid, number)
        structure_step(number, lower, upper, batch, next(held_out))
        return lower(number, *batch)

    return session.run({"weights": lower, "structure": upper}, step)


def _endless(batches: Batches, taken: int) -> Iterator[Pair]:
    """Yield batches without end; of a loader, whose order may be fixed, those after the ``taken`` first ones."""
    if batches.loader is not None:
        yield from batches.after(taken % len(batches))
    while True:
        yield from batches
