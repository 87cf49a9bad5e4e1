"""Cross-validation: the log predictive density of data that a fit has not seen, fold by fold.

Any way to fit is a function of training data that returns a log predictive density; ``log_predictive`` makes one of a
model and draws of its posterior. Unlike the evidence this asks for refitting, and not for a normalised prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.model_selection import KFold, StratifiedKFold

from pyro_nas import checks
from pyro_nas.data import Inputs, Pair, check_pair
from pyro_nas.evidence.currencies import PyroCallable, Tensors
from pyro_nas.evidence.sites import run_at
from pyro_nas.random_state import seeded
from pyro_nas.reading.importance import Estimate, pointwise_log_likelihood, total
from pyro_nas.reading.posterior import each_draw, evaluation_mode

__all__ = ["CrossValidation", "LogDensity", "cross_validate", "log_predictive"]

LogDensity = Callable[[Inputs, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """log p(y_i | x_i, data outside i's fold), (data,), in nats, and the fold in which each datum was held out."""

    pointwise: torch.Tensor
    fold: torch.Tensor

    @property
    def by_fold(self) -> torch.Tensor:
        """The sums of the folds, (fold,)."""
        return self.pointwise.new_zeros(int(self.fold.max()) + 1).index_add(0, self.fold, self.pointwise)

    @property
    def total(self) -> Estimate:
        """The sum over all data, and the standard error that it has as a sum of so many independent terms."""
        return total(self.pointwise)


def cross_validate(fit: Callable[[Pair], LogDensity], data: Pair, *, folds: int = 10, seed: int = 0) -> CrossValidation:
    """Hold out each of ``folds`` parts of the data once, fit to the others, and score what was held out.

    ``fit((x, y))`` returns a function (x, y) → log p(y_i | x_i), (data,); as many folds as data leave one out. Data are
    shuffled; where y holds class indices, and each class has as many data as there are folds, folds are stratified.
    The random state is ``seed``'s within, and left as it was.

    Raises ValueError for fewer than two folds, more than there are data, and densities of another shape or NaN.
    Stone 1974.
    """
    checks.is_callable("fit", fit, "a function of training data (x, y) that returns a log predictive density")
    x, y = check_pair("data", data)
    if checks.integer("folds", folds, low=2) > len(y):
        raise ValueError(
            f"folds: expected at most as many as data, {len(y)}, got {folds}. Leave one out with {len(y)}."
        )
    classes = y.dim() == 1 and not y.is_floating_point()
    stratified = classes and int(y.unique(return_counts=True)[1].min()) >= folds
    splitter = (StratifiedKFold if stratified else KFold)(folds, shuffle=True, random_state=checks.seed(seed) % 2**32)
    pointwise, fold = torch.zeros(len(y), dtype=torch.double), torch.zeros(len(y), dtype=torch.long)
    with seeded(seed):
        for index, (kept, held) in enumerate(splitter.split(range(len(y)), y.cpu() if stratified else None)):
            density = checks.is_callable("fit", fit(_take(x, y, kept)), "one that returns a function of (x, y)")
            with torch.no_grad():
                values = density(*_take(x, y, held))
            if values.shape != held.shape or bool(values.isnan().any()):
                raise ValueError(
                    f"fit: expected a log density for each of {len(held)} data held out, without NaN, "
                    f"got {checks.describe(values)}. Return log p(y_i | x_i) of each, not their sum."
                )
            pointwise[held], fold[held] = values.double().cpu(), index
    return CrossValidation(pointwise, fold)


def log_predictive(model: PyroCallable, draws: Tensors) -> LogDensity:
    """Return (x, y) ↦ log (1/S) Σ p(y_i | x_i, w_s, Γ_s), (data,), of a Pyro model and draws {site: (draw, …)}.

    Calling it raises ValueError where the draws lack a site of the model, or where its log-likelihood has no term for
    each datum.
    """
    each = each_draw(draws)

    def density(x: Inputs, y: torch.Tensor) -> torch.Tensor:
        terms = []
        with torch.no_grad(), evaluation_mode(model):
            for single in each:
                sites = run_at(model, single, (x, y)).sites
                likelihood = pointwise_log_likelihood({n: s for n, s in sites.items() if n not in single}, len(y))
                if likelihood is None:
                    raise ValueError("model: expected one that observes each datum, within pyro.plate, got another.")
                terms.append(likelihood)
        return torch.stack(terms).logsumexp(0) - math.log(len(terms))

    return density


def _take(x: Inputs, y: torch.Tensor, index: Sequence[int]) -> Pair:
    """Return the data at these places."""
    return (x[index] if isinstance(x, torch.Tensor) else tuple(part[index] for part in x)), y[index]
