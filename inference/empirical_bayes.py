"""Empirical Bayes: the two-level inference of weights w and hyperparameters h, by expectation maximisation.

First level: q(w) ascends 𝔏 given h, as in ``svi``. Second level: h is put at the maximum of 𝔏 given q(w), in closed
form. Both ascend the same 𝔏, so the first level need not be at its end before the second begins (Neal and Hinton 1998).
The same fit by gradients in w and h at once is ``svi.fit``. MacKay 1992; evidence lecture, "Bayesian inference".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, Unpack, runtime_checkable

import torch
from torch import nn

from pyro_nas import checks
from pyro_nas.data import Pair, Source
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.evidence.packing import Packing
from pyro_nas.evidence.terms import Terms
from pyro_nas.inference.loop import Session
from pyro_nas.inference.options import FitOptions, Options
from pyro_nas.inference.result import Fit, G
from pyro_nas.inference.stepper import OptimizerFactory, SchedulerFactory, adam
from pyro_nas.reading.pruning import moments

__all__ = ["LearnedPrior", "fit"]


@runtime_checkable
class LearnedPrior(Protocol):
    """A prior of the packed site "weights" whose parameters h have a best value given E_q w² of each weight."""

    packing: Packing

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield h."""

    def maximize(self, second_moment: torch.Tensor) -> None:
        """Set h to the maximum of E_q log p(w | h), given E_q w², (size,)."""


def fit(
    model: nn.Module,
    guide: G,
    train: Source,
    valid: Source | None = None,
    *,
    every: int = 10,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    **options: Unpack[FitOptions],
) -> Fit[G]:
    """Fit a guide, and the scales of the model's learned prior to the evidence; return the ``Fit``.

    After ``every`` epochs of steps in q(w) one of h: for a Normal prior of zero mean, s_g² = mean over the group of
    μ_i² + σ_i², whatever λ is. Other arguments as ``svi.fit``. The guide's law of the packed site "weights" must know
    its mean and variance; with others, ``svi.fit`` learns h by gradients.

    Raises ValueError before the first step for a model without one learned prior and a guide without such a law.
    """
    checks.integer("every", every, low=1)
    chosen = Options.of(options)
    prior = _learned_prior(model)
    with Session(model, guide, train, valid, chosen, {"fit": "empirical_bayes", "every": every}) as session:
        _second_moment(prior, guide, session.train.first())  # raises for a guide without one
        if every > chosen.epochs:
            raise ValueError(f"every: expected at most as many as epochs, {chosen.epochs}, got {every}: h would stay.")
        second = {id(parameter) for parameter in prior.parameters()}
        first = [name for name, value in session.named.items() if id(value) not in second]
        stepper = session.stepper(first, optimizer or adam(), scheduler)

        def step(number: int, batch: Pair) -> Terms:
            terms = stepper(number, *batch)
            if (number + 1) % (every * len(session.train)) == 0:
                prior.maximize(_second_moment(prior, guide, batch))
            return terms

        return session.run({"weights": stepper}, step)


def _learned_prior(model: object) -> LearnedPrior:
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    priors = [part for part in parts if isinstance(part, LearnedPrior)]
    if len(priors) != 1:
        raise ValueError(
            f"model: expected a module with one learned prior, got {len(priors)}. "
            "Build it with weights=learned_priors.learned_normal(…)."
        )
    return priors[0]


def _second_moment(prior: LearnedPrior, guide: PyroCallable, args: tuple[object, ...]) -> torch.Tensor:
    """Return E_q w² = μ² + σ² of each weight, (size,)."""
    mean, sd = moments(guide, prior.packing, *args)
    return prior.packing.pack({name: mean[name].square() + sd[name].square() for name in mean})
