"""REINFORCE: a policy over structures, one categorical law an edge, that ascends an expected reward (Williams 1992).

A controller of architecture search (Zoph and Le 2017) with independent edges in place of a recurrent network. The
reward is any function of a structure. With weights that all structures share and the reward of a batch, the same
estimator is ``bilevel.fit`` of a model with ``structures.categorical`` (as ENAS, Pham et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import log_softmax, logsigmoid

from pyro_nas import checks
from pyro_nas.graph.enumeration import StructureKey, Vertex, key_of_structure
from pyro_nas.graph.space import Space
from pyro_nas.inference.random_search import Score, Scored, evaluated

__all__ = ["MovingBaseline", "Policy", "Tables", "gradient", "search"]

Tables = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Policy:
    """The logits of a policy, {site: (edge, choice)}: categorical on the simplex, Bernoulli on the cube."""

    space: Space
    logits: Tables

    @classmethod
    def uniform(cls, space: Space) -> Policy:
        """Return the uniform policy."""
        return cls(space, {site: torch.zeros(choices.shape) for site, choices in space.choices().items()})

    def probabilities(self) -> Tables:
        """Return P(choice), {site: (edge, choice)}, which ``derive`` accepts."""
        return {site: x.softmax(-1) if self._simplex(site) else x.sigmoid() for site, x in self.logits.items()}

    def sample(self, generator: torch.Generator) -> Vertex:
        """Draw a structure."""
        drawn = {}
        for site, table in self.probabilities().items():
            if self._simplex(site):
                index = torch.multinomial(table, 1, generator=generator)
                drawn[site] = torch.zeros_like(table).scatter_(-1, index, 1.0)
            else:
                drawn[site] = torch.bernoulli(table, generator=generator)
        return drawn

    def log_probability(self, structure: Vertex) -> torch.Tensor:
        """Return log π(Γ) in nats, ()."""
        terms = []
        for site, x in self.logits.items():
            on = log_softmax(x, -1) if self._simplex(site) else logsigmoid(x)
            off = 0.0 if self._simplex(site) else (1 - structure[site]) * logsigmoid(-x)
            terms.append((structure[site] * on + off).sum())
        return torch.stack(terms).sum()

    def _simplex(self, site: str) -> bool:
        return self.space.choices()[site].on_simplex


class MovingBaseline:
    """b: the mean of past rewards, each weighing ``decay`` times the next, debiased; 0 before the first.

    It does not depend on the present draw, so that E (R − b) ∇ log π = ∇ E R. Raises ValueError for a decay outside
    [0, 0.9999].
    """

    def __init__(self, decay: float = 0.9):
        self.decay = checks.number("decay", decay, low=0, high=0.9999)
        self.total, self.weight = 0.0, 0.0

    @property
    def value(self) -> float:
        """The baseline."""
        return self.total / self.weight if self.weight else 0.0

    def update(self, reward: float) -> None:
        """Take a reward into the mean."""
        self.total = self.decay * self.total + (1 - self.decay) * reward
        self.weight = self.decay * self.weight + (1 - self.decay)


def gradient(policy: Policy, structure: Vertex, reward: float, baseline: float) -> Tables:
    """Return (R − b) ∇ log π(Γ) in the logits, {site: (edge, choice)}: an unbiased estimate of ∇ E R for Γ ~ π."""
    leaves = {site: table.clone().requires_grad_() for site, table in policy.logits.items()}
    Policy(policy.space, leaves).log_probability(structure).backward()
    return {site: (reward - baseline) * leaf.grad for site, leaf in leaves.items() if leaf.grad is not None}


def search(
    space: Space,
    score: Score,
    steps: int,
    *,
    lr: float = 0.1,
    decay: float = 0.9,
    seed: int = 0,
    callback: Callable[[int, Policy, float], None] | None = None,
) -> tuple[Policy, list[Scored]]:
    """Ascend E_π score by Adam, a draw a step; return the policy and the structures that were scored, best first.

    ``callback`` is called after each step with its number, the policy and the reward. A structure that is drawn again
    is not scored again. One whose score is −∞ counts as the worst of the others so far, and before any other as none.

    Raises ValueError for a space without open choices, numbers out of range, and a score that is NaN or +∞; TypeError
    for a score that cannot be called.
    """
    checks.is_callable("score", score, "a function of a structure")
    checks.integer("steps", steps, low=1)
    checks.number("lr", lr, low=0, open_low=True)
    if not space.choices():
        raise ValueError("space: expected one with open choices to search, got one without.")
    generator = torch.Generator().manual_seed(checks.seed(seed))
    policy, baseline = Policy.uniform(space), MovingBaseline(decay)
    optimizer = torch.optim.Adam(list(policy.logits.values()), lr=lr)
    scored: dict[StructureKey, Scored] = {}
    for step in range(steps):
        structure = policy.sample(generator)
        key = key_of_structure(structure)
        if key not in scored:
            scored[key] = evaluated(score, structure)
        finite = [entry.score for entry in scored.values() if entry.score > -math.inf]
        if finite:
            reward = max(scored[key].score, min(finite))
            start = baseline.value if baseline.weight else reward  # else whatever was drawn first would be pushed
            for site, value in gradient(policy, structure, reward, start).items():
                policy.logits[site].grad = -value
            optimizer.step()
            baseline.update(reward)
        if callback is not None:
            callback(step, policy, scored[key].score)
    return policy, sorted(scored.values(), key=lambda entry: -entry.score)
