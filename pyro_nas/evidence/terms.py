"""Terms: an estimate of the generalised evidence, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pyro_nas.evidence.sites import is_structure

__all__ = ["COST", "Terms", "average"]

COST = "cost"  # the site of a factor that a structure's cost adds to the model


@dataclass
class Terms:
    """An estimate of the generalised evidence, differentiable with respect to model and guide.

    ``log_likelihood`` estimates E_q log p(y | x, w, Γ) of all N data, ``divergence`` maps each latent site to its own,
    and "cost" to what the model makes Γ pay, without λ, and ``penalty`` each to λ times that; all in nats, (), or
    (particle,) of vectorised particles. ``surrogate`` is the value whose gradient to ascend: the evidence and
    ``score``, what the score function and an emphasis add to it.
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
        """The value whose gradient to ascend."""
        return self.evidence + self.score

    def divergence_of(self, *, structure: bool) -> torch.Tensor:
        """Return KL of the structure sites, or of all others but the cost (the weights and their hyperparameters)."""
        kept = [kl for site, kl in self.divergence.items() if site != COST and is_structure(site) == structure]
        return sum(kept[1:], kept[0]) if kept else torch.zeros_like(self.log_likelihood)

    def summary(self) -> dict[str, float]:
        """Return the terms as numbers."""
        terms = {
            "evidence": self.evidence,
            "log_likelihood": self.log_likelihood,
            "kl_weights": self.divergence_of(structure=False),
            "kl_structure": self.divergence_of(structure=True),
        } | {name: value for name, value in self.divergence.items() if name == COST}
        numbers = torch.stack([value.detach() for value in terms.values()]).tolist()
        return dict(zip(terms, numbers, strict=True))

    def mean(self) -> Terms:
        """Return the mean over particles of terms that have a value for each."""
        return Terms(
            self.log_likelihood.mean(),
            {name: value.mean() for name, value in self.divergence.items()},
            {name: value.mean() for name, value in self.penalty.items()},
            self.score.mean() if isinstance(self.score, torch.Tensor) else self.score,
        )


def average(estimates: list[Terms], weights: torch.Tensor) -> Terms:
    """Return Σ weight · estimate of all terms, () each, for weights of shape (estimate,)."""

    def total(values: Sequence[torch.Tensor | float]) -> torch.Tensor:
        return (torch.stack([torch.as_tensor(value, device=weights.device) for value in values]) * weights).sum()

    return Terms(
        total([terms.log_likelihood for terms in estimates]),
        {name: total([terms.divergence[name] for terms in estimates]) for name in estimates[0].divergence},
        {name: total([terms.penalty[name] for terms in estimates]) for name in estimates[0].penalty},
        total([terms.score for terms in estimates]),
    )
