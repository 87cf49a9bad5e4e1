"""Sample sites of Pyro callables: running them, fixing values, comparing a guide's with its model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch.distributions import kl_divergence

COMPLEXITY = "complexity"  # the site of λ
Total = Callable[[torch.Tensor], torch.Tensor]  # a sum over all but the particles, () or (L,)


def is_structure(site: str) -> bool:
    """Whether a latent site is a structure: the convention is a name that starts with "structure"."""
    return site.startswith("structure")


class Substitute(poutine.messenger.Messenger):
    """Give sites these values, as draws: unlike ``replay`` also values that a condition fixed in the guide."""

    def __init__(self, values: dict[str, torch.Tensor]):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class Substituted:
    """A callable run under ``Substitute``."""

    def __init__(self, function: Callable[..., Any], values: dict[str, torch.Tensor]):
        self.function, self.values = function, values

    def __call__(self, *args: Any) -> Any:
        """Run it."""
        with Substitute(self.values):
            return self.function(*args)


def device_of(law: Any) -> torch.device:
    """Return where a law's parameters are."""
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return next((v.device for v in vars(law).values() if isinstance(v, torch.Tensor)), torch.device("cpu"))


def sample_sites(function: Callable[..., Any], args: tuple) -> dict[str, Any]:
    """Run a Pyro callable and return its sample sites, without those of plates."""
    nodes = poutine.trace(function).get_trace(*args).nodes
    return {n: site for n, site in nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}


def divergence(ours: Any, site: Any, total: Total) -> tuple[torch.Tensor, bool]:
    """Return KL(q ‖ p) of a site and whether it is exact given the draws of other sites."""
    q, p = ours["fn"], site["fn"]
    if q is p:
        return total(torch.zeros((), device=device_of(q))), True
    try:
        return total(kl_divergence(q, p)), True
    except NotImplementedError:
        return log_ratio(ours, site, total), False


def log_ratio(ours: Any, site: Any, total: Total) -> torch.Tensor:
    """Return log q − log p of a site at its draw."""
    return total(ours["fn"].log_prob(ours["value"])) - total(site["fn"].log_prob(site["value"]))


def scale_of(name: str, ours: Any, theirs: dict[str, Any]) -> Any:
    """Return λ of a guide's site: the model's, whether or not the guide scales its own (Pyro's autoguides do not).

    An auxiliary draw has that of the site it serves ("<site>_unconstrained"), or the one of all the model's sites.
    """
    served = name if name in theirs else name.removesuffix("_unconstrained")
    if served in theirs:
        return theirs[served]["scale"]
    scales = [site["scale"] for site in theirs.values() if not site["is_observed"]]
    if any(scale is not scales[0] and not torch.equal(*map(torch.as_tensor, (scale, scales[0]))) for scale in scales):
        raise ValueError(
            f"guide: expected draws of one λ each, got {name!r}, a joint draw of sites whose λ differ. "
            "Give λ a guide of its own, by pyro.infer.autoguide.AutoGuideList, or a number."
        )
    return scales[0] if scales else ours["scale"]


def innermost(law: Any) -> Any:
    """Return the law within all wrappers, such as Independent."""
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return law


def support_rows(law: Any) -> tuple[torch.Tensor, int] | None:
    """Return the values of one row of a discrete law, (value, …), and its number of rows; None of others."""
    law = innermost(law)
    if not law.has_enumerate_support:
        return None
    single = law.enumerate_support(expand=False)
    return single.reshape(len(single), *law.event_shape), law.batch_shape.numel()


def log_prob_of(site: Any, total: Total) -> torch.Tensor:
    """Return the scaled and masked log-probability of an observed site."""
    log_prob = site["fn"].log_prob(site["value"])
    if site["mask"] is not None:
        log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, torch.zeros_like(log_prob))
    scale = site["scale"]
    return total(log_prob * scale) if torch.is_tensor(scale) else total(log_prob) * scale


def check_sites(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise where the model has a latent site that the guide lacks, or the guide one that is not auxiliary."""
    latent = {
        name for name, site in theirs.items() if not site["is_observed"] and not site["infer"].get("_deterministic")
    }
    missing = sorted(latent - ours.keys())
    extra = sorted(
        name
        for name, site in ours.items()
        if name not in theirs and not site["infer"].get("is_auxiliary") and not site["is_observed"]
    )
    if missing or extra:
        raise ValueError(
            f"guide: expected the model's latent sites {sorted(latent)}, got {sorted(ours)}; "
            f"missing {missing}, unknown {extra}. Draw the missing ones in the guide; mark draws that the model "
            "does not have with infer={'is_auxiliary': True}."
        )
