"""Ways to the evidence of one model, one beside the other: what ``pyro-nas evidence`` compares.

Each takes a problem and returns an estimate of log p(D) in nats with its standard error, 0 where it is not random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from pyro_nas.data import Pair
from pyro_nas.evidence import evaluate
from pyro_nas.reading.importance import Estimate, WeightedDraws, weigh
from pyro_nas.reading.posterior import draw

RESTARTS, EPOCHS, DRAWS, PARTICLES = 3, 300, 2000, 100
STEPS, STARTS = 300, 20  # of gradient descent
HALF_WIDTH = 8.0  # standard deviations from the mode to the edge of the grid
POINTS = {1: 801, 2: 161, 3: 57}  # of the grid along each axis, by dimension


@dataclass(frozen=True, eq=False)
class Problem:
    """A small model without latent structure, and all its data.

    ``build`` makes the model of so many data; ``curvature`` is the largest that −log p(y | x, w) can have, N data
    together: gradient descent takes steps of half its inverse. ``models`` and ``inference`` are the rooms.
    """

    build: Callable[[int], Any]
    data: Pair
    curvature: float
    seed: int

    @cached_property
    def model(self) -> Any:
        """The model of these data."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return self.build(len(self.data[1]))

    @cached_property
    def laplace(self) -> Any:
        """Laplace's approximation with the full Hessian."""
        return inference.laplace_approximation.fit(self.model, self.data, seed=self.seed)

    @cached_property
    def restarts(self) -> list[tuple[Estimate, Any]]:
        """The ELBO and the mean-field guide of each restart, best first; that of the best by draws of its own."""
        inference, size = self.inference, len(self.data[1])

        def measured(guide: Any) -> tuple[Estimate, Any]:
            terms = evaluate(guide.model, guide, self.data, draws=300)
            return Estimate(terms["evidence"], terms["standard_error"]), guide

        with torch.random.fork_rng():
            found = []
            for seed in range(self.seed, self.seed + RESTARTS):
                torch.manual_seed(seed)
                model = self.build(size)  # a guide starts where its model's network does
                guide = models.guides.MeanField(model, initial_scale=0.1)
                inference.svi.fit(
                    model, guide, self.data, epochs=EPOCHS, batch_size=size, seed=seed, local_reparameterization=True,
                    optimizer=inference.adam(0.05, betas=(0.9, 0.99)), scheduler=inference.one_cycle(0.1, pct_start=0.1)
                )  # fmt: skip
                found.append(measured(guide))
            found.sort(key=lambda entry: -entry[0].value)
            return [measured(found[0][1]), *found[1:]]  # the best of noisy values is too high

    @cached_property
    def weighted(self) -> WeightedDraws:
        """Draws of the best restart's guide with their importance weights."""
        return weigh(self.model, self.restarts[0][1], self.data, draws=DRAWS, seed=self.seed)


def laplace(problem: Problem) -> Estimate:
    """Return Laplace's approximation."""
    return Estimate(problem.laplace.evidence, 0.0)


def laplace_diagonal(problem: Problem) -> Estimate:
    """Return Laplace's approximation with the diagonal of the Hessian alone."""
    fit = inference.laplace_approximation.fit
    return Estimate(fit(problem.model, problem.data, curvature="diagonal", seed=problem.seed).evidence, 0.0)


def elbo(problem: Problem) -> Estimate:
    """Return the evidence lower bound of a mean-field guide, the best of three restarts."""
    return problem.restarts[0][0]


def importance_weighted(problem: Problem) -> Estimate:
    """Return the importance-weighted bound of 100 particles, of the same guide."""
    return problem.weighted.bound(PARTICLES)


def trajectory(problem: Problem) -> Estimate:
    """Return the bound from the path of gradient descent, at the step where it peaks."""
    path = inference.trajectory.fit(
        problem.model, problem.data, steps=STEPS, starts=STARTS, log_determinant="exact", seed=problem.seed,
        learning_rate=0.5 * len(problem.data[1]) / problem.curvature,
    )  # fmt: skip
    return Estimate(path.peak["evidence"], path.peak["standard_error"])


def tempered(problem: Problem) -> Estimate:
    """Return thermodynamic integration over NUTS at 21 powers of the likelihood."""
    found = inference.tempering.evidence(problem.model, problem.data, seed=problem.seed)
    return Estimate(found.value, found.standard_error)


METHODS: dict[str, Callable[[Problem], Estimate]] = {
    "laplace": laplace,
    "laplace_diagonal": laplace_diagonal,
    "elbo": elbo,
    "importance_weighted": importance_weighted,
    "trajectory": trajectory,
    "tempered": tempered,
}
BOUNDS = ("elbo", "importance_weighted", "trajectory")  # from below


def quadrature(problem: Problem) -> float:
    """Return log ∫ p(D, w) dw by the trapezoidal rule on a grid in the axes of Laplace's normal, up to 3 weights.

    The grid covers ±8 standard deviations of Laplace's normal. Under a prior of scale 1 its error is below 1e-3 nat; a
    wide prior of separable classes gives a skewed posterior, of which it cuts off 0.02 nat at scale 100.
    """
    density = inference.laplace_approximation.LogDensity(problem.model, problem.data, problem.seed)
    with density, torch.no_grad():
        law = problem.laplace.guide.get_posterior()
        size, factor = len(law.mean), law.scale_tril
        line = torch.linspace(-HALF_WIDTH, HALF_WIDTH, POINTS[size], dtype=torch.double)
        grid = torch.cartesian_prod(*[line] * size).view(-1, size)  # (point, weight)
        points = law.mean + grid.to(law.mean) @ factor.T
        values = torch.vmap(density.joint, chunk_size=4096)(points).double()
    volume = size * math.log(float(line[1] - line[0])) + float(factor.diagonal().log().sum())
    return float(values.logsumexp(0)) + volume


def cross_validated(problem: Problem, folds: int) -> Estimate:
    """Return the log predictive density of held-out data, fitted by Laplace's approximation without each fold."""
    inference = problem.inference

    def fit(train: Pair) -> Any:
        model = problem.build(len(train[1]))
        guide = inference.laplace_approximation.fit(model, train, seed=problem.seed).guide
        return inference.cross_validation.log_predictive(model, draw(guide, num_samples=200))

    return inference.cross_validation.cross_validate(fit, problem.data, folds=folds, seed=problem.seed).total
