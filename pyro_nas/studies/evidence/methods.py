"""Ways to the evidence of one model, one beside the other: what ``pyro-nas evidence`` compares.

Each takes the fits of a problem and returns an estimate of log p(D) in nats with its standard error, 0 where it is not
random.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pyro_nas.data import Pair
from pyro_nas.inference import cross_validation, laplace_approximation, tempering
from pyro_nas.inference import trajectory as trajectories
from pyro_nas.inference.cross_validation import LogDensity as LogPredictive
from pyro_nas.reading.importance import Estimate
from pyro_nas.reading.posterior import draw
from pyro_nas.studies.evidence.problems import Fits, Problem

PARTICLES = 100
STEPS, STARTS = 300, 20  # of gradient descent
HALF_WIDTH = 8.0  # standard deviations from the mode to the edge of the grid
POINTS = {1: 801, 2: 161, 3: 57}  # of the grid along each axis, by dimension


def laplace_full(fits: Fits) -> Estimate:
    """Return Laplace's approximation with the full Hessian."""
    return _laplace(fits, "full")


def laplace_diagonal(fits: Fits) -> Estimate:
    """Return Laplace's approximation with the diagonal of the Hessian alone."""
    return _laplace(fits, "diagonal")


def _laplace(fits: Fits, curvature: str) -> Estimate:
    problem = fits.problem
    approximation = laplace_approximation.fit(fits.model, problem.data, curvature=curvature, seed=problem.seed)
    return Estimate(approximation.evidence, 0.0)


def elbo(fits: Fits) -> Estimate:
    """Return the evidence lower bound of a mean-field guide, the best of three restarts."""
    return fits.restarts[0].elbo


def importance_weighted(fits: Fits) -> Estimate:
    """Return the importance-weighted bound of 100 particles, of the same guide."""
    return fits.weighted.bound(PARTICLES)


def trajectory(fits: Fits) -> Estimate:
    """Return the bound from the path of gradient descent, at the step where it peaks."""
    problem = fits.problem
    path = trajectories.fit(
        fits.model, problem.data, steps=STEPS, starts=STARTS, log_determinant="exact", seed=problem.seed,
        learning_rate=0.5 * len(problem.data[1]) / problem.curvature,
    )  # fmt: skip
    peak = max(path.records, key=lambda record: record["evidence"])
    return Estimate(path.evidence, peak["standard_error"])


def tempered(fits: Fits) -> Estimate:
    """Return thermodynamic integration over NUTS at 21 powers of the likelihood."""
    integral = tempering.evidence(fits.model, fits.problem.data, seed=fits.problem.seed)
    return Estimate(integral.value, integral.standard_error)


METHODS: dict[str, Callable[[Fits], Estimate]] = {
    "laplace": laplace_full,
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
    model = problem.model()
    approximation = laplace_approximation.fit(model, problem.data, seed=problem.seed)
    density = laplace_approximation.LogDensity(model, problem.data, problem.seed)
    with density, torch.no_grad():
        law = approximation.posterior.get_posterior()
        size, factor = len(law.mean), law.scale_tril
        line = torch.linspace(-HALF_WIDTH, HALF_WIDTH, POINTS[size], dtype=torch.double)
        grid = torch.cartesian_prod(*[line] * size).view(-1, size)  # (point, weight)
        points = law.mean + grid.to(law.mean) @ factor.T
        values = torch.vmap(density.joint, chunk_size=4096)(points).double()
    volume = size * math.log(float(line[1] - line[0])) + float(factor.diagonal().log().sum())
    return float(values.logsumexp(0)) + volume


def cross_validated(problem: Problem, folds: int) -> Estimate:
    """Return the log predictive density of held-out data, fitted by Laplace's approximation without each fold."""

    def fit(train: Pair) -> LogPredictive:
        model = problem.build(len(train[1]))
        guide = laplace_approximation.fit(model, train, seed=problem.seed).posterior
        return cross_validation.log_predictive(model, draw(guide, num_samples=200))

    return cross_validation.cross_validate(fit, problem.data, folds=folds, seed=problem.seed).total
