"""The generalised evidence of a (model, guide) pair, term by term.

𝔏(λ) = E_q log p(y | x, w, Γ) − λ · KL(q ‖ p), with one divergence per latent site. Divergences that have a closed form
(``torch.distributions.kl``) are exact; others are log q − log p at the draw. Where q is discrete its gradient is the
score function with a running mean as baseline (Ranganath, Gerrish and Blei 2014), or, with ``enumerate_discrete``, the
exact sum over all its values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable

import pyro
import torch
from pyro.distributions import Unit
from torch import nn

from pyro_nas import checks
from pyro_nas.data import Pair
from pyro_nas.evidence.currencies import Law, PyroCallable, Site, Sites
from pyro_nas.evidence.divergences import divergence, log_ratio, scale_of
from pyro_nas.evidence.sites import (
    COMPLEXITY,
    Substitute,
    check_sites,
    log_prob_of,
    sample_sites,
    substituted,
    support_rows,
)
from pyro_nas.evidence.terms import COST, Terms, average

__all__ = ["MAX_ENUMERATED", "Evidence", "evaluate"]

MAX_ENUMERATED = 10_000


class Evidence(nn.Module):
    """Estimate 𝔏(λ) with ``particles`` draws; called with the arguments of model and guide, returns ``Terms``.

    Model and guide may be any Pyro callables. Raises ValueError where their latent sites differ. Where λ is a site,
    each particle has one of its own, and the estimate is the mean over them. ``vectorize_particles``: one run in a
    plate at dim −2, so that plates of the data must be at dim −1. ``emphasis`` maps λ to the weight of its 𝔏(λ) in what
    is ascended (not in what is reported): evidences of small and large λ differ by orders of magnitude.
    """

    baseline: torch.Tensor
    baseline_weight: torch.Tensor

    def __init__(
        self,
        model: PyroCallable,
        guide: PyroCallable,
        particles: int = 1,
        *,
        enumerate_discrete: bool = False,
        vectorize_particles: bool = False,
        emphasis: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__()
        if enumerate_discrete and vectorize_particles:
            raise ValueError("vectorize_particles: expected no enumerate_discrete beside it, got both. Choose one.")
        self.model, self.guide = model, guide
        self.particles, self.enumerate_discrete = particles, enumerate_discrete
        self.vectorize_particles, self.emphasis = vectorize_particles, emphasis
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("baseline_weight", torch.zeros(()))

    def named_own_buffers(self) -> dict[str, torch.Tensor]:
        """Return the buffers that are not the model's or the guide's."""
        return {"baseline": self.baseline, "baseline_weight": self.baseline_weight}

    def forward(self, *args: object) -> Terms:
        """Return the mean of ``particles`` estimates."""
        if self.vectorize_particles:
            with pyro.plate("particles", self.particles, dim=-2):
                return self._particle(self.guide, args)[0].mean()
        if self.enumerate_discrete:
            estimates = [self._enumerated(args) for _ in range(self.particles)]
        else:
            estimates = [self._particle(self.guide, args)[0] for _ in range(self.particles)]
        if self.particles == 1:
            return estimates[0]
        return average(estimates, estimates[0].log_likelihood.new_full((self.particles,), 1 / self.particles))

    def _particle(
        self, guide: PyroCallable, args: tuple[object, ...], fixed: Collection[str] = ()
    ) -> tuple[Terms, Sites]:
        """Return one draw's estimate and the guide's sites; those in ``fixed`` have log q − log p as divergence."""
        ours = sample_sites(guide, args)
        with Substitute({name: site["value"] for name, site in ours.items()}):
            theirs = sample_sites(self.model, args)
        check_sites(theirs, ours)
        if (
            not self.vectorize_particles
            and COMPLEXITY in ours
            and torch.as_tensor(ours[COMPLEXITY]["value"]).numel() > 1
        ):
            raise ValueError(
                f"complexity: expected one λ a particle, got {ours[COMPLEXITY]['value'].numel()}. "
                "Pass particles=…, vectorize_particles=True to have several at once."
            )
        total = self._total
        observed = {n: site for n, site in theirs.items() if n not in ours and site["is_observed"]}
        costs = {n: site for n, site in observed.items() if n == COST and isinstance(site["fn"], Unit)}  # a factor
        likelihoods = [log_prob_of(site, total) for name, site in observed.items() if name not in costs]
        terms = Terms(sum(likelihoods[1:], likelihoods[0]) if likelihoods else total(torch.zeros(())))
        exact = set()
        for name, site in ours.items():
            if site["is_observed"]:
                continue
            if name not in theirs:  # an auxiliary draw of the guide
                value = log_prob_of(site, total, scaled=False)
            elif name in fixed:
                value = log_ratio(site, theirs[name], total)
            else:
                value, is_exact = divergence(site, theirs[name], total)
                _check_per_example(name, site, is_exact=is_exact)
                exact |= {name} if is_exact else set()
            scale = scale_of(name, site, theirs)
            terms.divergence[name] = value
            terms.penalty[name] = value * _each(scale, vectorized=self.vectorize_particles)
        discrete = [n for n in terms.divergence if n not in fixed and not ours[n]["fn"].has_rsample]
        for name, site in costs.items():
            terms.divergence[name] = -total(site["fn"].log_prob(site["value"]))
            terms.penalty[name] = -log_prob_of(site, total)
        if discrete:
            terms.score = self._score(terms, [ours[name] for name in discrete], exact & set(discrete))
        if self.emphasis is not None:
            if COMPLEXITY not in ours:
                raise ValueError("emphasis: expected a guide that draws λ, got one without the site 'complexity'.")
            complexity = torch.as_tensor(ours[COMPLEXITY]["value"], device=terms.log_likelihood.device)
            complexity = complexity.squeeze(-1)
            weight = self.emphasis(complexity)
            if not isinstance(weight, torch.Tensor) or weight.shape != complexity.shape:
                raise ValueError(
                    f"emphasis: expected weights of the shape of λ, {tuple(complexity.shape)}, "
                    f"got {checks.describe(weight)}."
                )
            terms.score = weight * terms.surrogate - terms.evidence
        return terms, ours

    def _total(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a site's values, () or, of vectorised particles, (particle,)."""
        if not self.vectorize_particles:
            return value.sum()
        if value.dim() > 2:
            raise ValueError(
                f"vectorize_particles: expected sites with plates at dim −1 only, got values of shape "
                f"{tuple(value.shape)}. Pass vectorize_particles=False."
            )
        if value.dim() < 2 or len(value) != self.particles:
            value = value.expand(self.particles, value.shape[-1] if value.dim() else 1)
        return value.sum(-1)

    def _score(self, terms: Terms, discrete: list[Site], exact: Collection[str]) -> torch.Tensor:
        """Return a term of value 0 whose gradient is (reward − baseline) ∇ log q; the baseline knows past draws only.

        The reward is the part of the evidence that depends on the draw: all of it, but for the exact divergence of the
        one discrete site there is. (With several, the law of one may depend on the draw of another.)
        """
        log_q = torch.stack([self._total(site["fn"].log_prob(site["value"])) for site in discrete]).sum(0)
        left_out = exact if len(discrete) == 1 else ()
        kept = [value for name, value in terms.penalty.items() if name not in left_out]
        reward = (terms.log_likelihood - sum(kept)).detach()
        centred = reward - self.baseline / self.baseline_weight.clamp_min(1e-6)
        if self.training:
            self.baseline.mul_(0.9).add_(reward.mean(), alpha=0.1)
            self.baseline_weight.mul_(0.9).add_(0.1)
        return (log_q - log_q.detach()) * centred

    def _enumerated(self, args: tuple[object, ...]) -> Terms:
        """Return the estimate with the exact sum over all values of the guide's discrete sites, Σ q(v) 𝔏(v).

        Laws and probabilities are those of the guide run at v, so that the law of one site may depend on another.
        """
        sites = sample_sites(self.guide, args)
        shared = {name: site["value"] for name, site in sites.items() if name == COMPLEXITY}  # one λ for all values
        laws = {n: site["fn"] for n, site in sites.items() if not site["fn"].has_rsample and not site["is_observed"]}
        if not laws:
            raise ValueError("enumerate_discrete: expected a guide with discrete sites, got none. Switch it off.")
        supports = {name: _support(name, law) for name, law in laws.items()}
        count = math.prod(len(single) ** rows for single, rows in supports.values())
        if count > MAX_ENUMERATED:
            raise ValueError(
                f"enumerate_discrete: expected at most {MAX_ENUMERATED} structures, got {count}. "
                "Use the score function (enumerate_discrete=False)."
            )
        estimates, weights = [], []
        for values in itertools.product(
            *(itertools.product(single, repeat=rows) for single, rows in supports.values())
        ):
            data = {
                name: torch.stack(rows).reshape(sites[name]["value"].shape)
                for name, rows in zip(supports, values, strict=True)
            }
            terms, ours = self._particle(substituted(self.guide, {**shared, **data}), args, data.keys())
            estimates.append(terms)
            weights.append(torch.stack([self._total(ours[n]["fn"].log_prob(ours[n]["value"])) for n in data]).sum(0))
        return average(estimates, torch.stack(weights).exp())


def evaluate(
    model: PyroCallable,
    guide: PyroCallable,
    batches: Pair | Iterable[Pair],
    draws: int = 1,
) -> dict[str, float]:
    """Return the terms of the evidence on all data of ``batches``, without gradients: the mean of ``draws`` estimates.

    ``batches``: (x, y), or what yields such pairs each time it is gone through. Each batch has draws of its own. With
    two draws or more, "standard_error" is that of the mean evidence. The model is left in evaluation mode.
    """
    evidence = Evidence(model, guide).eval()
    pairs = [batches] if isinstance(batches, tuple) else batches
    totals = []
    with torch.no_grad():
        for _ in range(draws):
            parts = [(evidence(x, y).summary(), len(y)) for x, y in pairs]
            size = sum(count for _, count in parts)
            totals.append({name: sum(part[name] * count for part, count in parts) / size for name in parts[0][0]})
    result = {name: sum(total[name] for total in totals) / draws for name in totals[0]}
    if draws > 1:
        values = torch.tensor([total["evidence"] for total in totals], dtype=torch.double)
        result["standard_error"] = float(values.std() / draws**0.5)
    return result


def _each(scale: float | torch.Tensor, *, vectorized: bool) -> float | torch.Tensor:
    """Return λ of the terms of a site: a number, or one of each vectorised particle, (particle,)."""
    if vectorized and isinstance(scale, torch.Tensor) and scale.dim() > 0:
        return scale.squeeze(-1)
    if isinstance(scale, torch.Tensor) and scale.numel() > 1:
        raise ValueError(f"scale: expected one λ a site, () of it, got {tuple(scale.shape)}. Give each λ its own site.")
    return scale


def _check_per_example(name: str, site: Site, *, is_exact: bool) -> None:
    """Raise where log q − log p would be summed over the data's own draws of a site."""
    law = site["fn"]
    if not is_exact and site["value"].dim() > len(law.batch_shape) + len(law.event_shape):
        raise ValueError(
            f"structure_per_example: expected a divergence in closed form at {name!r}, got none. "
            "Switch it off, or use a guide in the family of the structure prior."
        )


def _support(name: str, law: Law) -> tuple[torch.Tensor, int]:
    """Return the values of one row of a discrete law, (values, …), and its number of independent rows."""
    rows = support_rows(law)
    if rows is None:
        raise ValueError(f"enumerate_discrete: expected discrete sites with finite support, got {law} at {name!r}.")
    return rows
