"""Reading the posterior: draws, means, predictive averages.

Functions of a guide or of draws ({site: tensor}); none needs the classes of this package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from pyro import poutine
from pyro.distributions import Delta, Independent
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import nn
from torch.distributions import TransformedDistribution

from pyro_nas import checks
from pyro_nas.data import Inputs, check_classes, check_labels, check_tensors
from pyro_nas.evidence.currencies import Draws, Expectation, Law, PyroCallable, SampleMessage, SpaceModel, Tensors
from pyro_nas.evidence.sites import innermost, run_at, sample_sites
from pyro_nas.graph.network import running
from pyro_nas.random_state import forked
from pyro_nas.reading.structure_posterior import choice_probabilities, most_probable

__all__ = [
    "accuracy",
    "check_classifier",
    "draw",
    "draws_of",
    "each_draw",
    "evaluation_mode",
    "mean_draw",
    "predict",
    "share_correct",
]


def draw(guide: PyroCallable, *args: object, num_samples: int = 100) -> Draws:
    """Return draws of all latent sites, {site: (draw, …)}, auxiliary ones left out; they print as a table."""
    with torch.no_grad():
        sites = [sample_sites(guide, args) for _ in range(num_samples)]
    names = [
        name for name, site in sites[0].items() if not site["infer"].get("is_auxiliary") and not site["is_observed"]
    ]
    return Draws({name: torch.stack([drawn[name]["value"] for drawn in sites]) for name in names})


def mean_draw(guide: PyroCallable, *args: object) -> Draws:
    """Return one draw, {site: (1, …)}: weights at their means, structure at its most probable vertex.

    A law that depends on other draws is taken at theirs: q(w | Γ) at the most probable Γ, a site that is computed from
    an auxiliary one at the latter's mean. A site that the guide gives as a point stays that point; auxiliary ones are
    left out. A transformed law without a mean gives the mean of its base, transformed.

    Raises ValueError for a law that has no mean, or one that is not finite.
    """
    probabilities = choice_probabilities(guide, *args)
    with torch.no_grad(), forked(), _Centred(probabilities):
        sites = sample_sites(guide, args)
    return Draws(
        {
            name: site["value"].detach()[None]
            for name, site in sites.items()
            if not site["infer"].get("is_auxiliary") and not site["is_observed"]
        }
    )


class _Centred(poutine.messenger.Messenger):
    """Give sites their means as draws, structure sites the vertex nearest to these probabilities, none sampled."""

    def __init__(self, probabilities: Tensors):
        super().__init__()
        self.probabilities = probabilities

    def _pyro_sample(self, msg: SampleMessage) -> None:
        if (
            msg["is_observed"]
            or msg["done"]
            or site_is_subsample(cast(Message[..., torch.Tensor], msg))
            or isinstance(innermost(msg["fn"]), Delta)
        ):
            return
        table = self.probabilities.get(msg["name"])
        msg["value"] = _centre(msg["fn"]) if table is None else most_probable(table)
        msg["done"] = True


def _centre(law: Law) -> torch.Tensor:
    try:
        mean = law.mean
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


def predict(
    model: SpaceModel, posterior: PyroCallable | Tensors, x: Inputs, *, num_samples: int = 100, batch_size: int = 1024
) -> torch.Tensor:
    """Return the posterior predictive mean E_q E[y | x, w, Γ], (data, features): class probabilities for classes.

    ``posterior``: draws of the latent sites, {site: (draw, …)}, or a guide, of which ``num_samples`` are drawn.
    Averages ``model.likelihood.mean`` of the outputs over all draws, batch normalisation in evaluation mode.

    Raises TypeError for x that are no tensors, ValueError where the draws lack a latent site of the model, or it cannot
    run on x.
    """
    check_tensors("x", x)
    parts = x if isinstance(x, tuple) else (x,)
    draws = each_draw(draws_of(posterior, num_samples))
    result = []
    with torch.no_grad(), poutine.block(), evaluation_mode(model):
        for pieces in zip(*(part.split(batch_size) for part in parts), strict=True):
            batch = pieces if isinstance(x, tuple) else pieces[0]
            total = torch.zeros(())
            for single in draws:
                with running(model, pieces):
                    total = total + model.likelihood.mean(run_at(model, single, (batch,)).outputs)
            result.append(total / len(draws))
    return torch.cat(result)


def accuracy(
    model: SpaceModel,
    posterior: PyroCallable | Tensors,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    num_samples: int = 100,
    batch_size: int = 1024,
) -> float:
    """Return the share of x, (data, …), whose class under the posterior predictive mean is y, (data,).

    ``posterior`` and ``num_samples`` as in ``predict``. Raises ValueError where y are not class indices of x, or the
    likelihood is not one of classes.
    """
    check_classes(x, y)
    probabilities = predict(model, posterior, x, num_samples=num_samples, batch_size=batch_size)
    check_classifier(model.likelihood, probabilities, y)
    return share_correct(probabilities, y)


def check_classifier(likelihood: Expectation, outputs: torch.Tensor, y: torch.Tensor) -> None:
    """Raise ValueError where a likelihood of outputs (batch, classes) is not of classes, or y not indices of them."""
    law = likelihood.distribution(outputs)
    if law.event_shape or not law.has_enumerate_support:
        raise ValueError(
            f"model: expected a likelihood of classes, got {likelihood}. "
            "Score predict(model, posterior, x), the means of y, by an error of your own."
        )
    check_labels("y", y, outputs.shape[-1])


def share_correct(probabilities: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of data whose most probable class is y; shapes (data, classes) and (data,)."""
    return float((probabilities.argmax(-1) == y).double().mean())


def draws_of(posterior: PyroCallable | Tensors, num_samples: int = 100) -> Tensors:
    """Return draws, {site: (draw, …)}, as they are, and of a guide ``num_samples`` of them.

    Raises TypeError for what is neither, and for a guide that needs data to run.
    """
    if isinstance(posterior, Mapping):
        return posterior
    checks.is_callable("posterior", posterior, "a guide, such as fit.posterior, or draws {site: (draw, …)}")
    try:
        return draw(posterior, num_samples=num_samples)
    except TypeError as error:
        raise TypeError(
            f"posterior: expected a guide that runs without data, got one that does not: {error}. "
            "Fit an autoguide first; of another guide pass the draws, draw(guide, x, y)."
        ) from error


def each_draw(draws: Tensors) -> list[dict[str, torch.Tensor]]:
    """Return the draws one by one, {site: tensor} each, of {site: (draw, …)}; one without sites where there are none.

    Raises ValueError where sites differ in their number of draws, or it is 0.
    """
    counts = {name: len(value) for name, value in draws.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(f"draws: expected {{site: (draw, …)}} with one number of draws above 0, got {counts}.")
    return [{name: value[i] for name, value in draws.items()} for i in range(next(iter(counts.values()), 1))]


@contextmanager
def evaluation_mode(*functions: object) -> Iterator[None]:
    """Within the context all parts of modules are in evaluation mode, after it in the modes they had.

    Callables that are no modules have no mode.
    """
    modules = [function for function in functions if isinstance(function, nn.Module)]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
