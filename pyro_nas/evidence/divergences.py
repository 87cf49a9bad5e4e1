"""Divergences: KL(q ‖ p) of a site in closed form where there is one that holds, else log q − log p at its draw."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pyro.distributions import Delta
from torch.distributions import Transform, kl_divergence

from pyro_nas.evidence.currencies import Law, Site, Sites
from pyro_nas.evidence.gaussian_tensor import GaussianTensor
from pyro_nas.evidence.sites import Total, device_of, innermost, log_prob_of, masked

__all__ = ["divergence", "log_ratio", "scale_of"]


def divergence(ours: Site, theirs: Site, total: Total) -> tuple[torch.Tensor, bool]:
    """Return KL(q ‖ p) of a site in nats, () or (L,) by ``total``, and whether it is exact given other sites' draws.

    Of a law on one point, as an autoguide draws a constrained site, it is log q − log p there, with the density that it
    carries: 0 of a point estimate, the Jacobian's of a draw that was made elsewhere.

    Raises ValueError for a map of a law on one point: rounding loses the density.
    """
    q, p, mask = ours["fn"], theirs["fn"], ours["mask"]
    if isinstance(innermost(q), Delta):
        if any(_maps(q)):
            raise ValueError(f"guide: expected Delta(map(point), log_density=…), got a map of Delta(point): {q}.")
        return log_ratio(ours, theirs, total), True
    if mask is not theirs["mask"] or not all(part.bijective for part in _maps(q)):  # KL would take no notice
        return log_ratio(ours, theirs, total), False
    if q is p:
        return total(torch.zeros((), device=device_of(q))), True
    try:
        return total(masked(kl_divergence(q, p), mask)), True
    except NotImplementedError:
        return log_ratio(ours, theirs, total), False


def _maps(law: Law) -> Iterator[Transform]:
    """Yield the maps within a law. Where one is not one to one, KL of what it is applied to is not that of the law."""
    while hasattr(law, "base_dist"):
        yield from getattr(law, "transforms", ())
        law = law.base_dist


def log_ratio(ours: Site, theirs: Site, total: Total) -> torch.Tensor:
    """Return log q − log p of a site at its draw, in nats, () or (L,) by ``total``.

    Raises ValueError for a site that is known by mean and variance, not drawn.
    """
    if isinstance(ours["value"], GaussianTensor):
        raise ValueError(
            f"local_reparameterization: expected KL(q ‖ p) in closed form, got {ours['fn']} and {theirs['fn']}. "
            "Switch it off, or give the weights a normal prior."
        )
    return log_prob_of(ours, total, scaled=False) - log_prob_of(theirs, total, scaled=False)


def scale_of(name: str, ours: Site, theirs: Sites) -> float | torch.Tensor:
    """Return λ of a guide's site, a number, () or (L, 1): the model's, whatever the guide's (Pyro's autoguides: none).

    An auxiliary draw has that of the site it serves ("SITE_unconstrained", "SITE_aux"), or the one of all the model's
    sites: raises ValueError where those differ.
    """
    served = name if name in theirs else name.removesuffix("_unconstrained").removesuffix("_aux")
    if served in theirs:
        return theirs[served]["scale"]
    scales = [site["scale"] for site in theirs.values() if not site["is_observed"]]
    if any(scale is not scales[0] and not torch.equal(*map(torch.as_tensor, (scale, scales[0]))) for scale in scales):
        raise ValueError(
            f"guide: expected draws of one λ each, got {name!r}, a joint draw of sites whose λ differ. "
            "Give λ a guide of its own, by pyro.infer.autoguide.AutoGuideList, or a number."
        )
    return scales[0] if scales else ours["scale"]
