"""Reading the structure's posterior: choice probabilities, entropies, most probable structures.

Functions of a guide or of tables of probabilities; none needs the classes of this package.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, Dirichlet, Independent

from pyro_nas.evidence.sites import is_structure, sample_sites
from pyro_nas.graph.enumeration import hard_choices
from pyro_nas.graph.space import Restriction, Space


def most_probable(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the vertex of the most probable choices, (edge, choice), under independent edges."""
    return hard_choices(probabilities, _restriction(probabilities))


def choice_probabilities(guide: Callable[..., Any], *args: Any, num_samples: int = 1000) -> dict[str, torch.Tensor]:
    """Return P(choice) under a guide for each structure site, (edge, choice): that γ's nearest vertex has it.

    Exact where the site's law knows it (Gumbel-Softmax, categorical, Bernoulli: at every temperature; Dirichlet, by
    quadrature) and depends on no other draw. Otherwise the mean over ``num_samples`` runs of the guide, or, for a law
    that does not know it, the share of draws. The random state is left as it was.
    """
    with torch.no_grad(), torch.random.fork_rng(), poutine.block():
        runs = [sample_sites(guide, args) for _ in range(2)]
        if not _same_laws(runs) or _coincide(*runs):
            runs += [sample_sites(guide, args) for _ in range(num_samples - 2)]
        if _same_laws(runs):
            runs = runs[:1]
        return {name: torch.stack([_choices(run[name], num_samples // len(runs)) for run in runs]).mean(0)
                for name in _structure_sites(runs[0])}  # fmt: skip


def _law(site: Any) -> Any:
    return site["fn"].base_dist if isinstance(site["fn"], Independent) else site["fn"]


def _same_laws(runs: list[dict[str, Any]]) -> bool:
    """Return whether the laws of the structure sites are known to be the same in all runs."""
    return all(_same_law(runs[0][name], run[name]) for name in _structure_sites(runs[0]) for run in runs[1:])


def _same_law(site: Any, other: Any) -> bool:
    if isinstance(_law(site), Delta):
        return torch.equal(site["value"], other["value"])
    names = [name for name in ("logits", "concentration") if hasattr(_law(site), name)]
    return bool(names) and all(torch.equal(getattr(_law(site), n), getattr(_law(other), n)) for n in names)


def _coincide(run: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether draws that a structure's law may depend on were in part the same in both runs.

    Discrete draws are; the same law in both then does not tell that it never differs.
    """
    structure = _structure_sites(run)
    before = list(run)[: list(run).index(structure[-1])] if structure else []
    drawn = [name for name in before if not isinstance(_law(run[name]), Delta) and not run[name]["is_observed"]]
    return any(bool((run[name]["value"] == other[name]["value"]).any()) for name in drawn)


def _choices(site: Any, num_samples: int) -> torch.Tensor:
    """Return P(choice) under the law of one run, (edge, choice)."""
    if hasattr(_law(site), "probs"):
        return _law(site).probs.clone()
    if isinstance(_law(site), Dirichlet):
        concentration = _law(site).concentration
        rows = [largest(row) for row in concentration.double().view(-1, concentration.shape[-1])]
        return torch.stack(rows).view(concentration.shape).to(concentration)
    delta = isinstance(_law(site), Delta)
    gamma = site["value"][None] if delta else _law(site).sample((max(1, num_samples),))
    return hard_choices(gamma, _restriction(gamma)).mean(0)


def largest(concentration: torch.Tensor) -> torch.Tensor:
    """Return P(γ_k is the largest) for γ ~ Dirichlet(α), (K,), in double precision.

    γ ∝ independent x_k ~ Gamma(α_k, 1), so P_k = ∫ p(x_k = x) Π_{j≠k} P(x_j < x) dx, by the trapezoidal rule in log x.
    """
    highest, total = float(concentration.max()), float(concentration.sum())
    start, end = max(-700.0, -40 / min(total, 1.0)), math.log(highest + 10 * highest**0.5 + 40)
    logs = torch.linspace(start, end, int((end - start) * 10 * max(1.0, highest) ** 0.5), dtype=torch.double)
    alpha, x = concentration.cpu()[:, None], logs.exp()
    density = (alpha * logs - x - alpha.lgamma()).exp()
    below = torch.special.gammainc(alpha, x.expand(len(alpha), -1))
    others = torch.stack([torch.cat([below[:k], below[k + 1 :]]).prod(0) for k in range(len(alpha))])
    probabilities = (density * others).sum(-1)
    return (probabilities / probabilities.sum()).to(concentration.device)


def _restriction(gamma: torch.Tensor) -> Restriction:
    return "simplex" if torch.allclose(gamma.sum(-1), torch.ones_like(gamma[..., 0]), atol=1e-3) else "cube"


def _structure_sites(run: Mapping[str, Any]) -> list[str]:
    return [name for name, site in run.items() if is_structure(name) and not site["infer"].get("is_auxiliary")]


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy of the choice per edge in nats, (…, edge, K) → (…, edge): 0 … log K."""
    return torch.special.entr(probabilities).sum(-1)


def edge_entropies(space: Space, probabilities: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the structural entropy per edge of each site in nats; on the cube the sum over independent choices."""
    result = {}
    for site, choices in space.choices().items():
        table = probabilities[site]
        simplex = choices.restriction.startswith("simplex")
        result[site] = (
            entropy(table) if simplex else (torch.special.entr(table) + torch.special.entr(1 - table)).sum(-1)
        )
    return result


def by_edge(space: Space, values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return {"site j→k": …} of values per site: {primitive: number} of shape (edge, choice), a number of (edge,)."""
    table: dict[str, Any] = {}
    for site, choices in space.choices().items():
        for (j, k), names, row in zip(choices.edges, choices.primitives, values[site].tolist(), strict=True):
            table[f"{site} {j}→{k}"] = dict(zip(names, row, strict=True)) if isinstance(row, list) else row
    return table


def probable_structures(
    space: Space, probabilities: Mapping[str, torch.Tensor], count: int = 5
) -> list[tuple[dict[str, torch.Tensor], float]]:
    """Return the ``count`` most probable structures under independent edges, best first, with their probabilities.

    Each structure maps sites to vertices γ, (edge, choice), which ``derive`` accepts. The search is exact: a best-first
    walk over the ranks of each edge's options.
    """
    space.check_structure(probabilities, "probabilities")
    options: list[tuple[str, int, list[tuple[float, torch.Tensor]]]] = []
    for site, choices in space.choices().items():
        for row, table in enumerate(probabilities[site].double()):
            if choices.restriction.startswith("simplex"):
                vertices = [(float(p), one) for p, one in zip(table, torch.eye(len(table)), strict=True)]
            else:
                vertices = [
                    (
                        math.prod(float(p if on else 1 - p) for p, on in zip(table, bits, strict=True)),
                        torch.tensor(bits),
                    )
                    for bits in itertools.product((0.0, 1.0), repeat=len(table))
                ]
            options.append((site, row, sorted(vertices, key=lambda option: -option[0])))
    found: list[tuple[dict[str, torch.Tensor], float]] = []
    start = (0,) * len(options)
    queue, seen = [(-_probability(options, start), start)], {start}
    while queue and len(found) < count:
        negative, ranks = heapq.heappop(queue)
        structure = {site: torch.zeros(choices.shape) for site, choices in space.choices().items()}
        for (site, row, vertices), rank in zip(options, ranks, strict=True):
            structure[site][row] = vertices[rank][1]
        found.append((structure, -negative))
        for edge, (_, _, vertices) in enumerate(options):
            following = (*ranks[:edge], ranks[edge] + 1, *ranks[edge + 1 :])
            if following[edge] < len(vertices) and following not in seen:
                seen.add(following)
                heapq.heappush(queue, (-_probability(options, following), following))
    return found


def _probability(options: list[Any], ranks: tuple[int, ...]) -> float:
    return math.prod(vertices[rank][0] for (_, _, vertices), rank in zip(options, ranks, strict=True))
