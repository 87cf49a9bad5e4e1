"""Reading the posterior: choice probabilities, entropies, most probable structures, predictive averages.

Functions of a guide or of draws ({site: tensor}); none needs the classes of this package.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from pyro import poutine
from pyro.distributions import Delta, Dirichlet, Independent
from pyro.poutine.util import site_is_subsample
from torch import nn
from torch.distributions import TransformedDistribution

from pyro_nas.data import Inputs
from pyro_nas.dirichlet_choices import largest
from pyro_nas.sites import is_structure, sample_sites
from pyro_nas.space import Restriction, Space


def hard_choices(gamma: torch.Tensor, restriction: Restriction) -> torch.Tensor:
    """Return the vertex nearest to γ, (…, edge, choice): argmax on the simplex, γ > ½ on the cube."""
    if restriction.startswith("simplex"):
        return nn.functional.one_hot(gamma.argmax(-1), gamma.shape[-1]).to(torch.get_default_dtype())
    return (gamma > 0.5).to(torch.get_default_dtype())


def choice_probabilities(guide: Callable[..., Any], *args: Any, num_samples: int = 1000) -> dict[str, torch.Tensor]:
    """Return P(choice) under a guide for each structure site, (edge, choice): that γ's nearest vertex has it.

    Exact where the site's law knows it (Gumbel-Softmax, categorical, Bernoulli: at every temperature; Dirichlet, by
    quadrature), otherwise the share of ``num_samples`` draws. The random state is left as it was.
    """
    with torch.no_grad(), torch.random.fork_rng(), poutine.block():
        runs = [_structure_sites(guide, args) for _ in range(2)]
        if not all(_same_law(site, runs[1][name]) for name, site in runs[0].items()):
            runs = [_structure_sites(guide, args) for _ in range(num_samples)]  # a law depends on another draw
        else:
            runs = runs[:1]
        return {name: torch.stack([_choices(run[name], num_samples // len(runs)) for run in runs]).mean(0)
                for name in runs[0]}  # fmt: skip


def _law(site: Any) -> Any:
    return site["fn"].base_dist if isinstance(site["fn"], Independent) else site["fn"]


def _same_law(site: Any, other: Any) -> bool:
    if isinstance(_law(site), Delta):
        return torch.equal(site["value"], other["value"])
    names = ("logits", "concentration")
    return all(torch.equal(getattr(_law(site), n), getattr(_law(other), n)) for n in names if hasattr(_law(site), n))


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


def _restriction(gamma: torch.Tensor) -> Restriction:
    return "simplex" if torch.allclose(gamma.sum(-1), torch.ones_like(gamma[..., 0]), atol=1e-3) else "cube"


def _structure_sites(guide: Callable[..., Any], args: tuple) -> dict[str, Any]:
    return {
        name: site
        for name, site in sample_sites(guide, args).items()
        if is_structure(name) and not site["infer"].get("is_auxiliary")
    }


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


def draw(guide: Callable[..., Any], *args: Any, num_samples: int = 100) -> dict[str, torch.Tensor]:
    """Return draws of all latent sites, {site: (draw, …)}, auxiliary ones left out."""
    with torch.no_grad():
        sites = [sample_sites(guide, args) for _ in range(num_samples)]
    names = [
        name for name, site in sites[0].items() if not site["infer"].get("is_auxiliary") and not site["is_observed"]
    ]
    return {name: torch.stack([drawn[name]["value"] for drawn in sites]) for name in names}


def mean_draw(guide: Callable[..., Any], *args: Any) -> dict[str, torch.Tensor]:
    """Return one draw, {site: (1, …)}: weights at their means, structure at its most probable vertex.

    A law that depends on other draws is taken at theirs: q(w | Γ) at the most probable Γ, a site that is computed from
    an auxiliary one at the latter's mean. A site that the guide gives as a point stays that point; auxiliary ones are
    left out. A transformed law without a mean gives the mean of its base, transformed.

    Raises ValueError for a law that has no mean.
    """
    probabilities = choice_probabilities(guide, *args)
    with torch.no_grad(), torch.random.fork_rng(), _Centred(probabilities):
        sites = sample_sites(guide, args)
    return {
        name: site["value"].detach()[None]
        for name, site in sites.items()
        if not site["infer"].get("is_auxiliary") and not site["is_observed"]
    }


class _Centred(poutine.messenger.Messenger):
    """Give sites their means as draws, structure sites the vertex nearest to these probabilities, none sampled."""

    def __init__(self, probabilities: Mapping[str, torch.Tensor]):
        super().__init__()
        self.probabilities = probabilities

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg) or isinstance(_law(msg), Delta):
            return
        table = self.probabilities.get(msg["name"])
        msg["value"] = _centre(msg["fn"]) if table is None else hard_choices(table, _restriction(table))
        msg["done"] = True


def _centre(law: Any) -> torch.Tensor:
    try:
        return cast(torch.Tensor, law.mean)
    except NotImplementedError:
        if isinstance(law, Independent):
            return _centre(law.base_dist)
        if not isinstance(law, TransformedDistribution):
            raise ValueError(f"guide: expected laws with a mean, got {law}. Call draw(guide) for draws.") from None
        value = _centre(law.base_dist)
        for transform in law.transforms:
            value = transform(value)
        return value


def predict(model: Any, draws: Mapping[str, torch.Tensor], x: Inputs, batch_size: int = 1024) -> torch.Tensor:
    """Return the posterior predictive mean E_q E[y | x, w, Γ], (data, features): class probabilities for classes.

    Averages ``model.likelihood.mean`` of the outputs over all draws, batch normalisation in evaluation mode. Raises
    ValueError where ``draws`` lack a latent site of the model.
    """
    parts = x if isinstance(x, tuple) else (x,)
    result = []
    with torch.no_grad(), poutine.block(), evaluation_mode(model):
        for rows in zip(*(part.split(batch_size) for part in parts), strict=True):
            batch = rows if isinstance(x, tuple) else rows[0]
            means = []
            for one in each_draw(draws):
                trace = poutine.trace(poutine.condition(model, data=one)).get_trace(batch)
                missing = [name for name in trace.stochastic_nodes if name != "y" and name != "complexity"]
                if missing:
                    raise ValueError(f"draws: expected the model's latent sites, got {list(draws)}; missing {missing}.")
                means.append(model.likelihood.mean(trace.nodes["_RETURN"]["value"]))
            result.append(torch.stack(means).mean(0))
    return torch.cat(result)


def each_draw(draws: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Return the draws one by one, {site: tensor} each, of {site: (draw, …)}; one without sites where there are none.

    Raises ValueError where sites differ in their number of draws, or it is 0.
    """
    counts = {name: len(value) for name, value in draws.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(f"draws: expected {{site: (draw, …)}} with one number of draws above 0, got {counts}.")
    return [{name: value[i] for name, value in draws.items()} for i in range(next(iter(counts.values()), 1))]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the context all parts of a module are in evaluation mode, after it in the modes they had."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
