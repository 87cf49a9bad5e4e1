"""Distinct structures, one after another: each fit is repelled by the structures that earlier ones found.

The i-th fit ascends 𝔏 − Σ_{j<i} λ_j · P(Γ = Γ_j). That is the structure-selection lecture's enumeration of structures
with the sign that repels: it adds λ_j KL(q ‖ q_j) to what is maximised; added to the loss, as printed there, it
attracts. For a q_j that is Γ_j but for equally probable errors, KL(q ‖ q_j) falls with q(Γ_j), in proportion, but for
constants and the entropy of q. That is left out: it would pay q for being certain, and without bound where q is
relaxed. Errors are of the structure as a whole. Of each edge by itself they would give the share of edges that differ,
linear in γ: most of it is paid far from all Γ_j, and what lies between them is found at no strength.

λ_j levels Γ_j: with it all structures found are worth the same, a little less than the worst of them was. What is
better than that is then the maximum, be it next to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_nas import checks
from pyro_nas.data import Pair
from pyro_nas.evidence import Evidence
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.evidence.sites import is_structure, sample_sites, substituted
from pyro_nas.evidence.terms import COST
from pyro_nas.graph.enumeration import Vertex, count_structures, key_of_structure
from pyro_nas.graph.repulsion import Repulsion
from pyro_nas.graph.space import Space
from pyro_nas.random_state import forked
from pyro_nas.reading.structure_posterior import choice_probabilities, probable_structures

__all__ = ["Found", "search"]

STRONGER = (1.0, 10.0)  # times strength: of a fit, and of another where it comes to a structure again


@dataclass(frozen=True)
class Found:
    """A structure, the (model, guide) pair that was fitted to find it, and the evidence at the structure, in nats.

    E_q(w | Γ) log p(y | x, w, Γ) − λ (KL(q(w | Γ) ‖ p(w)) − log P(Γ)), without what Γ pays: at λ = 1 at most
    log p(D, Γ), which it is where q(w | Γ) is the posterior of w.
    """

    structure: Vertex
    evidence: float
    model: PyroCallable
    guide: PyroCallable


def search(
    space: Space,
    build: Callable[[Repulsion], tuple[PyroCallable, PyroCallable]],
    fit: Callable[[PyroCallable, PyroCallable], object],
    data: Pair,
    count: int,
    strength: float = 3.0,
    draws: int = 100,
) -> list[Found]:
    """Return ``count`` distinct structures with their fitted pairs, that of the highest evidence first.

    ``build`` makes a fresh (model, guide) from what Γ pays in nats, such as
    ``Model(space, cost=cost_factors.additive(repulsion), …)``, or any Pyro model with ``pyro.factor("cost",
    -repulsion(structure))``. ``fit`` is any procedure of the pair. ``strength`` is how many nats below the worst
    structure found all of them are levelled; let it exceed the error of the evidence, a mean of so many ``draws``.

    The structure of a fit is its most probable one. Where that is found already, another pair is repelled by ten times
    the strength, and its most probable structure that is not found is taken: all ``count`` come. Fits go on, one more
    at least, until one finds nothing that belongs among the best ``count``. So structures come in their exact order
    unless two fits in turn miss a better one, in local optima.

    Raises ValueError for a count above the number of structures, and for numbers out of range.
    """
    checks.integer("count", count, low=1)
    checks.integer("draws", draws, low=1)
    checks.number("strength", strength, low=0, open_low=True, remedy="Below 0 structures would attract.")
    checks.is_callable("build", build, "a function from a repulsion to a (model, guide) pair")
    checks.is_callable("fit", fit, "a procedure of a (model, guide) pair")
    if not space.choices():
        raise ValueError("space: expected one with open choices to search, got one without.")
    everything = count_structures(space)
    if count > everything:
        raise ValueError(f"count: expected at most the {everything} structures of the space, got {count}.")
    entries: list[Found] = []
    while len(entries) < everything and (len(entries) < count or _belongs(entries, count)):
        before = [entry.structure for entry in entries]
        keys = set(map(key_of_structure, before))
        for factor in STRONGER:
            model, guide = build(Repulsion(space.choices(), before, _levels(entries, data, factor * strength)))
            fit(model, guide)
            ranked = probable_structures(space, choice_probabilities(guide, *data), len(before) + 1)
            if key_of_structure(ranked[0].structure) not in keys:
                break
        structure = next(entry.structure for entry in ranked if key_of_structure(entry.structure) not in keys)
        entries.append(Found(structure, _evidence(space, model, guide, data, structure, draws), model, guide))
    return sorted(entries, key=lambda entry: -entry.evidence)[:count]


def _belongs(entries: list[Found], count: int) -> bool:
    """Whether the last is among the best ``count``."""
    return sum(entry.evidence > entries[-1].evidence for entry in entries) < count


def _levels(entries: list[Found], data: Pair, drop: float) -> list[float]:
    """Return λ_j that level all structures found at so many nats below the worst; a model pays λ times what it is."""
    if not entries:
        return []
    worst, complexity = min(entry.evidence for entry in entries), _complexity(entries[0].model, data)
    return [(entry.evidence - worst + drop) / complexity for entry in entries]


def _complexity(model: PyroCallable, data: Pair) -> float:
    """Return λ, the scale of the structure's sites; where it is drawn, of one draw."""
    with torch.no_grad(), forked():
        sites = sample_sites(model, data)
    return float(next(torch.as_tensor(site["scale"]).mean() for name, site in sites.items() if is_structure(name)))


def _evidence(
    space: Space, model: PyroCallable, guide: PyroCallable, data: Pair, structure: Vertex, draws: int
) -> float:
    """Return the mean of so many estimates of the evidence at a structure, in nats, without what Γ pays."""
    prior = choice_probabilities(model, *data)
    at = Evidence(model, substituted(guide, structure)).eval()
    estimates = []
    with torch.no_grad(), forked():
        for _ in range(draws):
            terms = at(*data)
            weights = [value for name, value in terms.penalty.items() if name != COST and not is_structure(name)]
            estimates.append(terms.log_likelihood - sum(weights))
    total = 0.0
    for site, choices in space.choices().items():
        present = structure[site].to(prior[site]) == 1
        shares = prior[site][present] if choices.on_simplex else torch.where(present, prior[site], 1 - prior[site])
        total += float(shares.double().log().sum())
    return float(torch.stack(estimates).double().mean()) + _complexity(model, data) * total
