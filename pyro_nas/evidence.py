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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pyro_nas.sites import (
    Substitute,
    Substituted,
    check_sites,
    divergence,
    is_structure,
    log_prob_of,
    log_ratio,
    sample_sites,
    scale_of,
)

MAX_ENUMERATED = 10_000


@dataclass
class Terms:
    """An estimate of the generalised evidence, differentiable with respect to model and guide.

    ``log_likelihood`` estimates E_q log p(y | x, w, Γ) of all N data, ``divergence`` maps each latent site to its own,
    without λ, and ``penalty`` each to λ times that; all in nats. ``surrogate`` is the value whose gradient to ascend.
    """

    log_likelihood: torch.Tensor
    divergence: dict[str, torch.Tensor] = field(default_factory=dict)
    penalty: dict[str, torch.Tensor] = field(default_factory=dict)
    score: torch.Tensor | float = 0.0

    @property
    def evidence(self) -> torch.Tensor:
        """E log-likelihood − Σ λ · divergence."""
        total = self.log_likelihood
        for value in self.penalty.values():
            total = total - value
        return total

    @property
    def surrogate(self) -> torch.Tensor:
        """The evidence, with the score-function term in its gradient."""
        return self.evidence + self.score

    def divergence_of(self, *, structure: bool) -> torch.Tensor:
        """Return KL of the structure sites, or of all others (the weights and their hyperparameters)."""
        kept = [kl for site, kl in self.divergence.items() if is_structure(site) == structure]
        return sum(kept[1:], kept[0]) if kept else torch.zeros_like(self.log_likelihood)

    def summary(self) -> dict[str, float]:
        """Return the terms as numbers."""
        terms = {
            "evidence": self.evidence,
            "log_likelihood": self.log_likelihood,
            "kl_weights": self.divergence_of(structure=False),
            "kl_structure": self.divergence_of(structure=True),
        }
        numbers = torch.stack([value.detach() for value in terms.values()]).tolist()
        return dict(zip(terms, numbers, strict=True))


class Evidence(nn.Module):
    """Estimate 𝔏(λ) with ``particles`` draws; called with the arguments of model and guide, returns ``Terms``.

    Model and guide may be any Pyro callables. Raises ValueError where their latent sites differ.
    """

    baseline: torch.Tensor
    baseline_weight: torch.Tensor

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        particles: int = 1,
        enumerate_discrete: bool = False,
    ):
        super().__init__()
        self.model, self.guide = model, guide
        self.particles, self.enumerate_discrete = particles, enumerate_discrete
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("baseline_weight", torch.zeros(()))

    def named_own_buffers(self) -> dict[str, torch.Tensor]:
        """Return the buffers that are not the model's or the guide's."""
        return {"baseline": self.baseline, "baseline_weight": self.baseline_weight}

    def forward(self, *args: Any) -> Terms:
        """Return the mean of ``particles`` estimates."""
        if self.enumerate_discrete:
            estimates = [self._enumerated(args) for _ in range(self.particles)]
        else:
            estimates = [self._particle(self.guide, args)[0] for _ in range(self.particles)]
        if self.particles == 1:
            return estimates[0]
        return _average(estimates, estimates[0].log_likelihood.new_full((self.particles,), 1 / self.particles))

    def _particle(self, guide: Callable[..., Any], args: tuple, fixed: Collection[str] = ()) -> tuple[Terms, Any]:
        """Return one draw's estimate and the guide's sites; those in ``fixed`` have log q − log p as divergence."""
        ours = sample_sites(guide, args)
        with Substitute({name: site["value"] for name, site in ours.items()}):
            theirs = sample_sites(self.model, args)
        check_sites(theirs, ours)
        likelihoods = [log_prob_of(site) for name, site in theirs.items() if name not in ours and site["is_observed"]]
        terms = Terms(sum(likelihoods[1:], likelihoods[0]) if likelihoods else torch.zeros(()))
        exact = set()
        for name, site in ours.items():
            if site["is_observed"]:
                continue
            if name not in theirs:  # an auxiliary draw of the guide
                value = site["fn"].log_prob(site["value"]).sum()
            elif name in fixed:
                value = log_ratio(site, theirs[name])
            else:
                value, is_exact = divergence(site, theirs[name])
                exact |= {name} if is_exact else set()
            terms.divergence[name], terms.penalty[name] = value, value * scale_of(name, site, theirs)
        discrete = [n for n in terms.divergence if n not in fixed and not ours[n]["fn"].has_rsample]
        if discrete:
            terms.score = self._score(terms, [ours[name] for name in discrete], exact & set(discrete))
        return terms, ours

    def _score(self, terms: Terms, discrete: list[Any], exact: Collection[str]) -> torch.Tensor:
        """Return a term of value 0 whose gradient is (reward − baseline) ∇ log q; the baseline knows past draws only.

        The reward is the part of the evidence that depends on the draw: all of it, but for the exact divergence of the
        one discrete site there is. (With several, the law of one may depend on the draw of another.)
        """
        log_q = sum(site["fn"].log_prob(site["value"]).sum() for site in discrete)
        left_out = exact if len(discrete) == 1 else ()
        kept = [value for name, value in terms.penalty.items() if name not in left_out]
        reward = (terms.log_likelihood - sum(kept)).detach()
        centred = reward - self.baseline / self.baseline_weight.clamp_min(1e-6)
        if self.training:
            self.baseline.mul_(0.9).add_(reward, alpha=0.1)
            self.baseline_weight.mul_(0.9).add_(0.1)
        return (log_q - log_q.detach()) * centred

    def _enumerated(self, args: tuple) -> Terms:
        """Return the estimate with the exact sum over all values of the guide's discrete sites, Σ q(v) 𝔏(v).

        Laws and probabilities are those of the guide run at v, so that the law of one site may depend on another.
        """
        sites = sample_sites(self.guide, args)
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
            terms, ours = self._particle(Substituted(self.guide, data), args, data.keys())
            estimates.append(terms)
            weights.append(torch.stack([ours[name]["fn"].log_prob(ours[name]["value"]).sum() for name in data]).sum())
        return _average(estimates, torch.stack(weights).exp())


def evaluate(
    model: Callable[..., Any], guide: Callable[..., Any], batches: Iterable[tuple[Any, torch.Tensor]], draws: int = 1
) -> dict[str, float]:
    """Return the terms of the evidence on all data of ``batches``, without gradients: the mean of ``draws`` estimates.

    ``batches``: (x, y), or what yields such pairs each time it is gone through. Each batch has draws of its own. With
    two draws or more, "standard_error" is that of the mean evidence. The model is left in evaluation mode.
    """
    evidence = Evidence(model, guide).eval()
    batches = [batches] if isinstance(batches, tuple) else batches
    totals = []
    with torch.no_grad():
        for _ in range(draws):
            parts = [(evidence(x, y).summary(), len(y)) for x, y in batches]
            size = sum(count for _, count in parts)
            totals.append({name: sum(part[name] * count for part, count in parts) / size for name in parts[0][0]})
    result = {name: sum(total[name] for total in totals) / draws for name in totals[0]}
    if draws > 1:
        values = torch.tensor([total["evidence"] for total in totals], dtype=torch.double)
        result["standard_error"] = float(values.std() / draws**0.5)
    return result


def _support(name: str, law: Any) -> tuple[torch.Tensor, int]:
    """Return the values of one row of a discrete law, (values, …), and its number of independent rows."""
    while hasattr(law, "base_dist"):
        law = law.base_dist
    if not law.has_enumerate_support:
        raise ValueError(f"enumerate_discrete: expected discrete sites with finite support, got {law} at {name!r}.")
    single = law.enumerate_support(expand=False)
    return single.reshape(len(single), *law.event_shape), law.batch_shape.numel()


def _average(estimates: list[Terms], weights: torch.Tensor) -> Terms:
    """Return Σ weight · estimate of all terms."""

    def total(values: list[Any]) -> torch.Tensor:
        return (torch.stack([torch.as_tensor(value, device=weights.device) for value in values]) * weights).sum()

    return Terms(
        total([terms.log_likelihood for terms in estimates]),
        {name: total([terms.divergence[name] for terms in estimates]) for name in estimates[0].divergence},
        {name: total([terms.penalty[name] for terms in estimates]) for name in estimates[0].penalty},
        total([terms.score for terms in estimates]),
    )
