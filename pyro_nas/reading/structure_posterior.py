"""Reading the structure's posterior: choice probabilities, entropies, most probable structures.

Functions of a guide or of tables of probabilities; none needs the classes of this package.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta, Dirichlet

from pyro_nas import checks
from pyro_nas.evidence.currencies import PyroCallable, Site, Sites
from pyro_nas.evidence.sites import is_structure, same_law, sample_sites, unjoined
from pyro_nas.graph.enumeration import Vertex, hard_choices, least_sums, structure_of
from pyro_nas.graph.space import Choices, Restriction, Space
from pyro_nas.printing import Printed, Table
from pyro_nas.random_state import forked
from pyro_nas.reading.autoguides import structure_draws

__all__ = [
    "ChoiceProbabilities",
    "ProbableStructure",
    "by_edge",
    "choice_probabilities",
    "edge_entropies",
    "entropy",
    "largest",
    "most_probable",
    "number_by_edge",
    "probable_structures",
]


class ChoiceProbabilities(Printed, dict[str, torch.Tensor]):
    """P(choice) of each structure site, {site: (edge, choice)}: a dictionary that prints as a table.

    ``choices`` name edges and primitives, where they are known; ``remark`` says of which posterior they are.
    """

    def __init__(self, tables: Mapping[str, torch.Tensor], choices: Mapping[str, Choices], remark: str):
        super().__init__(tables)
        self.choices, self.remark = choices, remark

    def table(self) -> Table:
        """Return a row an edge, a cell a choice."""
        rows = []
        for site, table in self.items():
            known = self.choices.get(site)
            for index, probabilities in enumerate(table.tolist()):
                edge = f"edge {index}" if known is None else "{}→{}".format(*known.edges[index])
                names = range(len(probabilities)) if known is None else known.primitives[index]
                cells = (f"{name} {value:.3f}" for name, value in zip(names, probabilities, strict=True))
                rows.append((f"{site} {edge}", *cells))
        return Table(self.remark, rows)


def most_probable(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the vertex of the most probable choices, (edge, choice), under independent edges."""
    return hard_choices(probabilities, _restriction(probabilities))


def choice_probabilities(
    guide: PyroCallable, *args: object, num_samples: int = 1000, max_runs: int | None = None
) -> ChoiceProbabilities:
    """Return P(choice) under a guide for each structure site, (edge, choice): that γ's nearest vertex has it.

    Exact where the site's law knows it (Gumbel-Softmax, categorical, Bernoulli: at every temperature; Dirichlet, by
    quadrature) and depends on no other draw. Otherwise the mean over ``num_samples`` runs of the guide, ``max_runs`` at
    most, or, for a law that does not know it, the share of draws; normal autoguides give those in one run. The random
    state is left as it was. They print as a table, with λ and the temperature of a guide that knows its model: at λ
    other than 1 they are of a tempered posterior.
    """
    with torch.no_grad(), forked(), poutine.block():
        runs = [sample_sites(guide, args)]
        drawn = structure_draws(guide, runs[0], num_samples)
        names = [name for name in _structure_sites(runs[0]) if name not in drawn]
        if names:
            runs.append(sample_sites(guide, args))
            if not _same_laws(runs) or _coincide(*runs):
                runs += [sample_sites(guide, args) for _ in range(min(num_samples, max_runs or num_samples) - 2)]
        if _same_laws(runs):
            runs = runs[:1]
        tables = {name: hard_choices(gamma, _restriction(gamma)).mean(0) for name, gamma in drawn.items()}
        for name in names:
            tables[name] = torch.stack([_choices(run[name], num_samples // len(runs)) for run in runs]).mean(0)
    model = getattr(guide, "model", None)
    return ChoiceProbabilities(tables, getattr(model, "choices", {}), _remark(model))


def _remark(model: object) -> str:
    """Return of which posterior probabilities are, as far as the model says."""
    complexity, temperature = (getattr(model, name, None) for name in ("complexity", "temperature"))
    parts = ["probability of each choice"]
    if isinstance(complexity, float):
        parts.append(f"λ = {complexity:g}" + ("" if complexity == 1 else ", a tempered posterior"))
    elif complexity is not None:
        parts.append(f"λ ~ {complexity}")
    if isinstance(temperature, float):
        parts.append(f"temperature {temperature:g}")
    return "; ".join(parts)


def _same_laws(runs: list[Sites]) -> bool:
    """Return whether the laws of the structure sites are known to be the same in all runs."""
    return all(same_law(runs[0][n]["fn"], run[n]["fn"]) for n in _structure_sites(runs[0]) for run in runs[1:])


def _coincide(run: Sites, other: Sites) -> bool:
    """Return whether draws that a structure's law may depend on were in part the same in both runs.

    Discrete draws are; the same law in both then does not tell that it never differs.
    """
    structure = _structure_sites(run)
    before = list(run)[: list(run).index(structure[-1])] if structure else []
    drawn = [n for n in before if not isinstance(unjoined(run[n]["fn"]), Delta) and not run[n]["is_observed"]]
    return any(bool((run[name]["value"] == other[name]["value"]).any()) for name in drawn)


def _choices(site: Site, num_samples: int) -> torch.Tensor:
    """Return P(choice) under the law of one run, (edge, choice)."""
    law = unjoined(site["fn"])
    probabilities: torch.Tensor | None = getattr(law, "probs", None)
    if probabilities is not None:
        return probabilities.clone()
    if isinstance(law, Dirichlet):
        concentration: torch.Tensor = law.concentration
        rows = [largest(row) for row in concentration.double().view(-1, concentration.shape[-1])]
        return torch.stack(rows).view(concentration.shape).to(concentration)
    gamma = site["value"][None] if isinstance(law, Delta) else law.sample(torch.Size((max(1, num_samples),)))
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


def _structure_sites(run: Sites) -> list[str]:
    return [name for name, site in run.items() if is_structure(name) and not site["infer"].get("is_auxiliary")]


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy of the choice per edge in nats, (…, edge, K) → (…, edge): 0 … log K."""
    entropies: torch.Tensor = torch.special.entr(probabilities).sum(-1)
    return entropies


def edge_entropies(space: Space, probabilities: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the structural entropy per edge of each site in nats, {site: (edge, choice)} → {site: (edge,)}.

    On the cube it is the sum over independent choices.
    """
    result = {}
    for site, choices in space.choices().items():
        table = probabilities[site]
        result[site] = (
            entropy(table)
            if choices.on_simplex
            else (torch.special.entr(table) + torch.special.entr(1 - table)).sum(-1)
        )
    return result


def by_edge(space: Space, tables: Mapping[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Return {"site j→k": {primitive: number}} of numbers per choice, {site: (edge, choice)}."""
    return {
        f"{site} {j}→{k}": dict(zip(names, numbers, strict=True))
        for site, choices in space.choices().items()
        for (j, k), names, numbers in zip(choices.edges, choices.primitives, tables[site].tolist(), strict=True)
    }


def number_by_edge(space: Space, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return {"site j→k": number} of a number per edge, {site: (edge,)}."""
    return {
        f"{site} {j}→{k}": number
        for site, choices in space.choices().items()
        for (j, k), number in zip(choices.edges, values[site].tolist(), strict=True)
    }


class ProbableStructure(NamedTuple):
    """A structure, {site: (edge, choice)}, which ``derive`` accepts, and the logarithm of its probability, in nats."""

    structure: Vertex
    log_probability: float

    @property
    def probability(self) -> float:
        """The probability itself, which of very many edges is 0 in a float."""
        return math.exp(self.log_probability)


def probable_structures(
    space: Space, probabilities: Mapping[str, torch.Tensor], count: int = 5
) -> list[ProbableStructure]:
    """Return the ``count`` most probable structures under independent edges, best first, with log-probabilities.

    On the cube choices are independent too. The search is exact, and best first over edges, or choices on the cube, so
    that it does not matter how many structures there are.

    Raises ValueError as ``Space.check_structure``, and for a count below 1.
    """
    space.check_structure(probabilities, "probabilities")
    checks.integer("count", count, low=1)
    sites = space.choices()
    orders: list[list[int]] = []  # of each digit, its values, most probable first
    losses: list[list[float]] = []  # how much less log-probable than the first each is
    best = 0.0
    for site, choices in sites.items():
        logs, order = _logs(probabilities[site].double(), choices).sort(dim=-1, descending=True, stable=True)
        orders += order.tolist()
        losses += (logs[:, :1] - logs).tolist()
        best += float(logs[:, 0].sum())
    structures = []
    for loss, ranks in itertools.islice(least_sums(losses), count):
        digits = [order[0] for order in orders]
        for digit, rank in ranks.items():
            digits[digit] = orders[digit][rank]
        structures.append(ProbableStructure(structure_of(sites, digits), best - loss))
    return structures


def _logs(table: torch.Tensor, choices: Choices) -> torch.Tensor:
    """Return the log-probabilities of the values of each digit of a site, (digit, value)."""
    return table.log() if choices.on_simplex else torch.stack([(-table).log1p(), table.log()], -1).flatten(0, 1)
