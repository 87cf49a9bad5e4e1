"""Importance: draws of a guide with weights log p(D, w, Γ) − log q(w, Γ), which set right that q is not the posterior.

From one set of weighted draws come the evidence and lower bounds of it, the posterior of discrete structures, and
leave-one-out cross-validation. All of it is of λ = 1: at another λ neither the posterior nor the evidence is Bayes'.
Pareto's k̂ of the weights judges the draws that there are: above 0.7 too few for so heavy a tail (Vehtari et al. 2024).
It cannot see what no draw shows, a mode that the guide misses: with one of two equal modes k̂ is low, and the evidence
log 2 too small. ``arviz_export.restarts_r_hat`` shows modes that other fits come to: read it beside k̂.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import Delta

from pyro_nas import checks
from pyro_nas.data import Pair, check_pair
from pyro_nas.evidence.currencies import PyroCallable, Site, Sites
from pyro_nas.evidence.sites import Substitute, check_sites, innermost, is_structure, log_prob_of, sample_sites
from pyro_nas.graph.enumeration import StructureKey, Vertex, key_of_structure
from pyro_nas.random_state import seeded
from pyro_nas.reading.arviz_export import pareto_smoothed
from pyro_nas.reading.posterior import evaluation_mode

__all__ = [
    "Estimate",
    "LeaveOneOut",
    "WeightedDraws",
    "check_unscaled",
    "leave_one_out",
    "pointwise_log_likelihood",
    "structure_probabilities",
    "total",
    "weigh",
]


class Estimate(NamedTuple):
    """A Monte-Carlo estimate in nats and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True, eq=False)
class WeightedDraws:
    """Draws of a guide, {site: (draw, …)}, and log p(D, w, Γ) − log q(w, Γ), (draw,), in double precision.

    ``log_likelihoods`` are log p(y_i | x_i, w, Γ), (draw, data); None of a model that has no term for each datum.
    """

    draws: dict[str, torch.Tensor]
    log_weights: torch.Tensor
    log_likelihoods: torch.Tensor | None

    @cached_property
    def evidence(self) -> Estimate:
        """log (1/S) Σ p(D, w_s)/q(w_s) for log p(D): unbiased before the logarithm; its error by the delta method."""
        ratio = (self.log_weights - self.log_weights.max()).exp()
        return Estimate(float(_log_mean(self.log_weights)), float(ratio.std() / ratio.mean()) / len(ratio) ** 0.5)

    @cached_property
    def _smoothed(self) -> tuple[torch.Tensor, torch.Tensor]:
        return pareto_smoothed(self.log_weights)

    @property
    def weights(self) -> torch.Tensor:
        """Self-normalised weights, (draw,), their largest smoothed by a Pareto law."""
        return self._smoothed[0].exp()

    @property
    def pareto_k(self) -> float:
        """k̂ of the weights: above 0.7 not to be trusted, below it if the guide misses no mode (see above).

        Infinite where fewer than five of the largest differ from the rest.
        """
        return float(self._smoothed[1])

    @property
    def effective_sample_size(self) -> float:
        """1 / Σ weight²: as many draws of the posterior would do as well."""
        return float(1 / self.weights.square().sum())

    def bound(self, particles: int) -> Estimate:
        """Return E log (1/K) Σ p(D, w_k)/q(w_k) of K ``particles``: from the ELBO at K = 1 up to log p(D).

        The mean over groups of K draws. Burda, Grosse and Salakhutdinov 2016.

        Raises ValueError for particles below 1, or more than half of the draws.
        """
        checks.integer("particles", particles, low=1)
        groups = len(self.log_weights) // particles
        if groups < 2:
            raise ValueError(
                f"particles: expected at most half of the {len(self.log_weights)} draws, got {particles}. "
                "Draw more, or take fewer particles."
            )
        values = _log_mean(self.log_weights[: groups * particles].view(groups, particles))
        return Estimate(float(values.mean()), float(values.std()) / groups**0.5)


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """log p(y_i | x_i, D without i), (data,), in nats, and k̂ of each datum: above 0.7 its value is not reliable."""

    pointwise: torch.Tensor
    pareto_k: torch.Tensor

    @property
    def total(self) -> Estimate:
        """The sum over data, and the standard error that it has as a sum of so many independent terms."""
        return total(self.pointwise)


def weigh(model: PyroCallable, guide: PyroCallable, data: Pair, draws: int = 1000, seed: int = 0) -> WeightedDraws:
    """Draw from a guide and return the draws with their importance weights for the model's posterior.

    Model and guide may be any Pyro callables, called as (x, y) with ``data``, which are all data there are; structures
    may be relaxed or discrete. The random state is left as it was.

    Raises ValueError where λ is not 1 or num_data not the number of data, where sites of model and guide differ, where
    the guide gives a site as a point, which has no density, and where no draw has a density under the model.
    """
    checks.is_callable("model", model, "a Pyro model")
    checks.is_callable("guide", guide, "a Pyro guide")
    x, y = check_pair("data", data)
    checks.integer("draws", draws, low=2)
    if hasattr(model, "check"):
        model.check(x, y)
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model, guide))
        stack.enter_context(torch.no_grad())
        stack.enter_context(seeded(seed))
        laws = {name: innermost(site["fn"]) for name, site in sample_sites(guide, (x, y)).items()}
        runs = [_run(model, guide, (x, y))]
        stack.enter_context(pyro.validation_enabled(False))  # one pass will do
        runs += [_run(model, guide, (x, y)) for _ in range(draws - 1)]
    values = {name: torch.stack([run[0][name] for run in runs]) for name in runs[0][0]}
    points = [n for n, value in values.items() if isinstance(laws[n], Delta) and bool((value == value[0]).all())]
    if points:
        raise ValueError(f"guide: expected laws with a density, got points at {points}. Fit guides.MeanField, say.")
    log_weights = torch.stack([weight for _, weight, _ in runs])
    if bool(log_weights.isnan().any()) or bool((log_weights == -torch.inf).all()):
        raise ValueError(
            "guide: expected draws of which some have a density under the model, and none NaN, got log weights from "
            f"{float(log_weights.min())} to {float(log_weights.max())}. Fit the guide to this model first."
        )
    terms = [term for _, _, term in runs if term is not None]
    return WeightedDraws(values, log_weights, torch.stack(terms) if terms else None)


def structure_probabilities(weighted: WeightedDraws) -> list[tuple[Vertex, float]]:
    """Return the discrete structures that were drawn with their posterior probabilities, best first.

    Σ weight of the draws that have the structure. Raises ValueError for draws that are no vertices.
    """
    structure = {site: value for site, value in weighted.draws.items() if is_structure(site)}
    if not structure or any(bool(((value != 0) & (value != 1)).any()) for value in structure.values()):
        raise ValueError(
            f"weighted: expected draws with structure sites at vertices, got the sites {list(weighted.draws)}. "
            "Give the model a structure prior on vertices, such as structures.categorical, and fit a guide to it."
        )
    probabilities: dict[StructureKey, tuple[Vertex, float]] = {}
    for index, weight in enumerate(weighted.weights.tolist()):
        vertex = {site: value[index] for site, value in structure.items()}
        key = key_of_structure(vertex)
        probabilities[key] = (vertex, weight + (probabilities[key][1] if key in probabilities else 0.0))
    return sorted(probabilities.values(), key=lambda entry: -entry[1])


def leave_one_out(weighted: WeightedDraws) -> LeaveOneOut:
    """Return leave-one-out cross-validation without fitting again, right also where q is not the posterior.

    p(y_i | x_i, D without i) = Σ w_s p(y_i | x_i, w_s), with w_s ∝ p(D, w_s) / q(w_s) / p(y_i | x_i, w_s),
    Pareto-smoothed. Magnusson, Andersen, Jonasson and Vehtari 2019.

    Raises ValueError where the model's likelihood has no term for each datum, or is 0 at one.
    """
    if weighted.log_likelihoods is None:
        raise ValueError(
            "weighted: expected a model that observes each datum, got one whose log-likelihood has no axis for them "
            "alone. Observe y within pyro.plate, with one log-probability a datum."
        )
    terms = weighted.log_likelihoods.T  # (data, draw)
    without = weighted.log_weights - terms
    if bool(without.isnan().any()):
        raise ValueError(
            "weighted: expected draws with p(y_i | x_i, w) above 0 at each datum, got some with 0, which say nothing "
            "of the data without it. Fit a guide whose draws all have a density under the model."
        )
    log_weights, k = pareto_smoothed(without)
    return LeaveOneOut((log_weights + terms).logsumexp(-1), k)


def total(pointwise: torch.Tensor) -> Estimate:
    """Return the sum of the terms of n data, (data,), and √(n Var), its standard error."""
    return Estimate(float(pointwise.sum()), float((len(pointwise) * pointwise.var()).sqrt()))


def pointwise_log_likelihood(sites: Sites, size: int) -> torch.Tensor | None:
    """Return Σ log p(y_i | …) over observed sites with a term for each datum, unscaled, (data,); None without one."""
    terms = [log_prob_of(site, lambda value: value, scaled=False) for site in sites.values() if site["is_observed"]]
    terms = [term for term in terms if term.shape == (size,)]
    return torch.stack(terms).double().sum(0) if terms else None


def check_unscaled(sites: Iterable[tuple[str, Site]]) -> None:
    """Raise ValueError where a sample site of a model has a scale: λ, or another count of data."""
    for name, site in sites:
        if bool((torch.as_tensor(site["scale"]) == 1).all()):
            continue
        if site["is_observed"]:
            raise ValueError(
                f"data: expected all data, each counted once, got the scale {site['scale']} at {name!r}. "
                "Pass as many data as the model's num_data, and no cost."
            )
        raise ValueError(
            f"complexity: expected λ = 1, that of Bayes' rule, got the scale {site['scale']} at {name!r}. "
            "Build the model, and the guide, with complexity=1.0."
        )


def _run(
    model: PyroCallable, guide: PyroCallable, data: Pair
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor | None]:
    """Return one draw of the guide, log p − log q of it, and log p(y_i | x_i, w, Γ), (data,)."""
    ours = sample_sites(guide, data)
    with Substitute({name: site["value"] for name, site in ours.items()}):
        theirs = sample_sites(model, data)
    check_sites(theirs, ours)
    check_unscaled((*theirs.items(), *ours.items()))
    drawn = {name: site for name, site in ours.items() if not site["is_observed"]}
    log_p = [log_prob_of(site, torch.sum).double() for site in theirs.values()]
    log_q = [log_prob_of(site, torch.sum).double() for site in drawn.values()]
    values = {name: site["value"] for name, site in drawn.items() if not site["infer"].get("is_auxiliary")}
    return values, torch.stack(log_p).sum() - sum(log_q), pointwise_log_likelihood(theirs, len(data[1]))


def _log_mean(values: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the mean of exponentials, (…, draw) → (…)."""
    return values.logsumexp(-1) - math.log(values.shape[-1])
