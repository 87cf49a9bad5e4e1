"""Problems: small models with all their data, and the fits of one that several ways to its evidence share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pyro_nas.data import Pair
from pyro_nas.evidence import evaluate
from pyro_nas.inference import adam, one_cycle, svi
from pyro_nas.models import Model, guides
from pyro_nas.random_state import forked, seeded
from pyro_nas.reading.importance import Estimate, WeightedDraws, weigh

RESTARTS, EPOCHS, DRAWS = 3, 300, 2000


@dataclass(frozen=True, eq=False)
class Problem:
    """A small model without latent structure, and all its data.

    ``build`` makes the model of so many data; ``curvature`` is the largest that −log p(y | x, w) can have, N data
    together: gradient descent takes steps of half its inverse.
    """

    build: Callable[[int], Model]
    data: Pair
    curvature: float
    seed: int

    def model(self) -> Model:
        """Return the model of these data, a new one each time, and leave the random state as it was."""
        with seeded(self.seed):
            return self.build(len(self.data[1]))


class Restart(NamedTuple):
    """A fitted mean-field guide and its ELBO."""

    elbo: Estimate
    guide: guides.MeanField


@dataclass(frozen=True, eq=False)
class Fits:
    """A problem, its model, the restarts of a mean-field guide, best first, and weighted draws of the best one."""

    problem: Problem
    model: Model
    restarts: list[Restart]
    weighted: WeightedDraws


def fit(problem: Problem) -> Fits:
    """Fit what several ways to the evidence share."""
    model, fitted = problem.model(), restarts(problem)
    return Fits(problem, model, fitted, weigh(model, fitted[0].guide, problem.data, draws=DRAWS, seed=problem.seed))


def restarts(problem: Problem) -> list[Restart]:
    """Fit a mean-field guide from several starts and return them, best first; the best is measured by new draws.

    The random state is left as it was.
    """
    with forked():
        fitted = [_restart(problem, seed) for seed in range(problem.seed, problem.seed + RESTARTS)]
        fitted.sort(key=lambda restart: -restart.elbo.value)
        return [_measured(problem, fitted[0].guide), *fitted[1:]]  # the best of noisy values is too high


def _restart(problem: Problem, seed: int) -> Restart:
    torch.manual_seed(seed)
    size = len(problem.data[1])
    model = problem.build(size)  # a guide starts where its model's network does
    guide = guides.MeanField(model, initial_scale=0.1)
    svi.fit(
        model, guide, problem.data, epochs=EPOCHS, batch_size=size, seed=seed, local_reparameterization=True,
        optimizer=adam(0.05, betas=(0.9, 0.99)), scheduler=one_cycle(0.1, pct_start=0.1),
    )  # fmt: skip
    return _measured(problem, guide)


def _measured(problem: Problem, guide: guides.MeanField) -> Restart:
    terms = evaluate(guide.model, guide, problem.data, draws=300)
    return Restart(Estimate(terms["evidence"], terms["standard_error"]), guide)
