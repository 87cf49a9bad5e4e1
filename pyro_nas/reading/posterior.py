"""Reading the posterior: draws, means, predictive averages.

Functions of a guide or of draws ({site: tensor}); none needs the classes of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from pyro import poutine
from pyro.distributions import Delta, Independent
from pyro.poutine.util import site_is_subsample
from torch import nn
from torch.distributions import TransformedDistribution

from pyro_nas.data import Inputs
from pyro_nas.evidence.sites import innermost, sample_sites
from pyro_nas.reading.structure_posterior import choice_probabilities, most_probable


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

    Raises ValueError for a law that has no mean, or one that is not finite.
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
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg) or isinstance(innermost(msg["fn"]), Delta):
            return
        table = self.probabilities.get(msg["name"])
        msg["value"] = _centre(msg["fn"]) if table is None else most_probable(table)
        msg["done"] = True


def _centre(law: Any) -> torch.Tensor:
    try:
        mean = cast(torch.Tensor, law.mean)
    except NotImplementedError:
        mean = torch.tensor(torch.nan)
    if torch.isfinite(mean).all():
        return mean
    if isinstance(law, Independent):
        return _centre(law.base_dist)
    if not isinstance(law, TransformedDistribution):
        raise ValueError(f"guide: expected laws with a finite mean, got {law}. Call draw(guide) for draws.")
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
