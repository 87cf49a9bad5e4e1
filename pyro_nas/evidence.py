"""The generalised evidence of a (model, guide) pair, term by term.

𝔏(λ) = E_q log p(y | x, w, Γ) − λ · KL(q ‖ p), with one divergence per latent site. Divergences that have a closed form
(``torch.distributions.kl``) are exact; others are log q − log p at the draw. Where q is discrete its gradient is the
score function with a running mean as baseline (Ranganath, Gerrish and Blei 2014), or, with ``enumerate_discrete``, the
exact sum over all its values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution, Independent, kl_divergence

from pyro_nas.sites import Substitute, Substituted, check_sites, divergence, is_structure, log_prob_of, sample_sites

MAX_ENUMERATED = 10_000


@dataclass
class Terms:
    """An estimate of the generalised evidence, differentiable with respect to model and guide.

    ``log_likelihood`` estimates E_q log p(y | x, w, Γ) of all N data, ``divergence`` maps each latent site to its own,
    without λ, and ``complexity`` each to its λ; all in nats. ``surrogate`` has the value and the gradient to ascend.
    """

    log_likelihood: torch.Tensor
    divergence: dict[str, torch.Tensor] = field(default_factory=dict)
    complexity: dict[str, Any] = field(default_factory=dict)
    score: torch.Tensor | float = 0.0

    @property
    def evidence(self) -> torch.Tensor:
        """E log-likelihood − Σ λ · divergence."""
        total = self.log_likelihood
        for site, value in self.divergence.items():
            total = total - value * self.complexity[site]
        return total

    @property
    def surrogate(self) -> torch.Tensor:
        """The evidence, with the score-function term in its gradient."""
        return self.evidence + self.score

    def divergence_of(self, *, structure: bool) -> torch.Tensor:
        """Return KL of the structure sites, or of all others (the weights and their hyperparameters)."""
        zero = torch.zeros_like(self.log_likelihood)
        return sum((kl for site, kl in self.divergence.items() if is_structure(site) == structure), zero)

    def summary(self) -> dict[str, float]:
        """Return the terms as numbers."""
        return {
            "evidence": self.evidence.item(),
            "log_likelihood": self.log_likelihood.item(),
            "kl_weights": self.divergence_of(structure=False).item(),
            "kl_structure": self.divergence_of(structure=True).item(),
        }


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
            estimates = [self._particle(self.guide, args) for _ in range(self.particles)]
        return estimates[0] if self.particles == 1 else _mean(estimates)

    def _particle(self, guide: Callable[..., Any], args: tuple, fixed: Collection[str] = ()) -> Terms:
        """Return one draw's estimate; the sites in ``fixed`` are conditioned on and have no divergence."""
        ours = sample_sites(guide, args)
        with Substitute({name: site["value"] for name, site in ours.items()}):
            theirs = sample_sites(self.model, args)
        check_sites(theirs, ours)
        likelihoods = [log_prob_of(site) for name, site in theirs.items() if name not in ours and site["is_observed"]]
        terms = Terms(sum(likelihoods[1:], likelihoods[0]) if likelihoods else torch.zeros(()))
        inexact = []
        for name, site in ours.items():
            if name in fixed or site["is_observed"]:
                continue
            if name in theirs:
                value, exact = divergence(site, theirs[name])
                if not exact:
                    inexact.append(name)
            else:  # an auxiliary draw of the guide
                value = site["fn"].log_prob(site["value"]).sum()
            terms.divergence[name], terms.complexity[name] = value, site["scale"]
        discrete = [name for name in terms.divergence if not ours[name]["fn"].has_rsample]
        if discrete:
            terms.score = self._score(terms, [ours[name] for name in discrete], set(discrete) - set(inexact))
        return terms

    def _score(self, terms: Terms, discrete: list[Any], exact: Collection[str]) -> torch.Tensor:
        """Return a term of value 0 whose gradient is (reward − baseline) ∇ log q; the baseline knows past draws only.

        The reward is the part of the evidence that depends on the draw: all but the discrete sites' exact divergences.
        """
        log_q = sum(site["fn"].log_prob(site["value"]).sum() for site in discrete)
        kept = [kl * terms.complexity[name] for name, kl in terms.divergence.items() if name not in exact]
        reward = (terms.log_likelihood - sum(kept)).detach()
        centred = reward - self.baseline / self.baseline_weight.clamp_min(1e-6)
        if self.training:
            self.baseline.mul_(0.9).add_(reward, alpha=0.1)
            self.baseline_weight.mul_(0.9).add_(0.1)
        return (log_q - log_q.detach()) * centred

    def _enumerated(self, args: tuple) -> Terms:
        """Return the estimate with the exact sum over all values of the guide's discrete sites."""
        sites = sample_sites(self.guide, args)
        discrete = {name: site["fn"] for name, site in sites.items() if not site["fn"].has_rsample}
        supports = {name: _support(name, law) for name, law in discrete.items()}
        count = 1
        for support in supports.values():
            count *= len(support)
        if count > MAX_ENUMERATED:
            raise ValueError(
                f"enumerate_discrete: expected at most {MAX_ENUMERATED} structures, got {count}. "
                "Use the score function (enumerate_discrete=False)."
            )
        total: Terms | None = None
        for values in itertools.product(*supports.values()):
            data = dict(zip(supports, values, strict=True))
            probability = torch.stack([discrete[name].log_prob(value) for name, value in data.items()]).sum().exp()
            terms = self._particle(Substituted(self.guide, data), args, frozenset(data))
            total = _add(total, terms, probability)
        assert total is not None
        with torch.no_grad():
            prior = sample_sites(self.model, args)
        for name, law in discrete.items():
            total.divergence[name] = kl_divergence(law, prior[name]["fn"])
            total.complexity[name] = sites[name]["scale"]
        return total


def evaluate(
    model: Callable[..., Any], guide: Callable[..., Any], batches: Iterable[tuple[Any, torch.Tensor]], draws: int = 1
) -> dict[str, float]:
    """Return the terms of the evidence on all data of ``batches``, without gradients: the mean of ``draws`` estimates.

    Each batch has draws of its own. With two draws or more, "standard_error" is that of the mean evidence. The model is
    left in evaluation mode.
    """
    evidence = Evidence(model, guide).eval()
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


def _support(name: str, law: Distribution) -> list[torch.Tensor]:
    """Return all values of a discrete law, the product over its batch and event axes."""
    while isinstance(law, Independent) or hasattr(law, "base_dist"):
        law = law.base_dist
    if not law.has_enumerate_support:
        raise ValueError(f"enumerate_discrete: expected discrete sites with finite support, got {law} at {name!r}.")
    single = law.enumerate_support(expand=False).reshape(-1, *law.event_shape)
    rows = law.batch_shape.numel()
    return [
        torch.stack(values).reshape(*law.batch_shape, *law.event_shape)
        for values in itertools.product(single, repeat=rows)
    ]


def _add(total: Terms | None, terms: Terms, weight: torch.Tensor) -> Terms:
    weighted = Terms(
        terms.log_likelihood * weight,
        {name: value * weight for name, value in terms.divergence.items()},
        dict(terms.complexity),
    )
    if total is None:
        return weighted
    return Terms(
        total.log_likelihood + weighted.log_likelihood,
        {name: total.divergence[name] + value for name, value in weighted.divergence.items()},
        weighted.complexity,
    )


def _mean(estimates: list[Terms]) -> Terms:
    count = len(estimates)
    return Terms(
        sum((terms.log_likelihood for terms in estimates[1:]), estimates[0].log_likelihood) / count,
        {name: torch.stack([t.divergence[name] for t in estimates]).mean() for name in estimates[0].divergence},
        estimates[0].complexity,
        sum(terms.score for terms in estimates) / count,
    )
