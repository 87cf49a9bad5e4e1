"""Stochastic variational inference: gradient ascent of 𝔏(λ) in all parameters of guide and model at once."""

from __future__ import annotations

from typing import Unpack

from pyro_nas.data import Source
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.inference.loop import Session
from pyro_nas.inference.options import FitOptions, Options
from pyro_nas.inference.result import Fit, G
from pyro_nas.inference.stepper import OptimizerFactory, SchedulerFactory, adam

__all__ = ["fit"]


def fit(
    model: PyroCallable,
    guide: G,
    train: Source,
    valid: Source | None = None,
    *,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    **options: Unpack[FitOptions],
) -> Fit[G]:
    """Fit a guide to a model by ascending E_q log p(y | x, w, Γ) − λ KL(q ‖ p); return the ``Fit``.

    ``train`` and ``valid``: (x, y), a Dataset or a DataLoader; validation data only measure and stop. ``optimizer`` is
    a function of a list of parameters, ``scheduler`` one of the optimizer and the number of steps (called every step).
    ``options`` are those of ``Options``. Evidence and its terms are in nats, of all training data.

    Raises ValueError or TypeError before the first step for bad input, NonFiniteLoss during it. Hoffman et al. 2013.
    """
    with Session(model, guide, train, valid, Options.of(options), {"fit": "svi"}) as session:
        main = session.stepper(list(session.named), optimizer or adam(), scheduler)
        return session.run({"all": main}, lambda step, batch: main(step, *batch))
