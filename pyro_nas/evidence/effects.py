"""Effects: handlers around a guide that change how its sites are drawn, not their laws.

``LocalReparameterization`` hands normal draws on as mean and variance, ``Stratified`` spreads the draws of particles
over a law, ``StructurePerExample`` draws Γ anew for each datum.
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta, Normal
from pyro.poutine.messenger import Messenger

from pyro_nas.evidence.currencies import SampleMessage
from pyro_nas.evidence.gaussian_tensor import GaussianTensor
from pyro_nas.evidence.sites import device_of, is_structure, unjoined

__all__ = ["LocalReparameterization", "Stratified", "StructurePerExample"]


class LocalReparameterization(Messenger):
    """Hand normal draws on as mean and variance; ``sites`` names those that were."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: set[str] = set()

    def _pyro_sample(self, msg: SampleMessage) -> None:
        law = msg["fn"]
        base = unjoined(law)
        if msg["done"] or msg["is_observed"] or msg["infer"].get("is_auxiliary") or not isinstance(base, Normal):
            return
        msg["value"] = GaussianTensor.of(base.loc, base.variance)
        msg["done"] = True
        self.sites.add(msg["name"])


class Stratified(Messenger):
    """Draw a scalar site of L particles one from each of L equally probable strata, in random order.

    Each draw by itself has the site's law, so that means over particles stay unbiased; together they cover it, which
    lowers the variance. Raises ValueError for a law without a quantile function (``icdf``).
    """

    def __init__(self, site: str):
        super().__init__()
        self.site, self.used = site, False

    def _pyro_sample(self, msg: SampleMessage) -> None:
        if msg["name"] != self.site or msg["done"] or msg["is_observed"]:
            return
        law = msg["fn"]
        shape = law.shape()
        count = shape.numel()
        place = (torch.randperm(count) + torch.rand(count)) / count
        edge = torch.finfo(place.dtype).eps / 2
        place = place.clamp(edge, 1 - edge)  # the quantiles 0 and 1 may be 0 and infinite
        try:
            msg["value"] = law.icdf(place.view(shape).to(device_of(law)))
        except NotImplementedError:
            raise ValueError(
                f"stratified: expected a law of {self.site!r} with quantiles (icdf), got {law}. Switch it off."
            ) from None
        msg["done"] = self.used = True


class StructurePerExample(Messenger):
    """Draw Γ anew for each of ``size`` data, (size, edge, choice); ``sites`` names those that were.

    Σ_n E_q log p(y_n | Γ) is the same whether all data see one draw or each its own, and so is the divergence: only
    the variance of the estimate differs. It asks for divergences in closed form (SNAS, Xie et al. 2019, draws so).

    Raises ValueError for draws of other sites that depend on Γ, (size,) of them.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.sites: set[str] = set()

    def _pyro_sample(self, msg: SampleMessage) -> None:
        law = msg["fn"]
        if self.sites and not msg["done"] and not msg["cond_indep_stack"] and law.batch_shape == (self.size,):
            raise ValueError(
                f"structure_per_example: expected draws that do not depend on the structure, got {msg['name']!r}, "
                f"{self.size} of them. Switch it off, or use a guide such as MeanField."
            )
        if msg["done"] or msg["is_observed"] or msg["infer"].get("is_auxiliary") or not is_structure(msg["name"]):
            return
        point = isinstance(unjoined(law), Delta)
        if law.has_rsample and law.batch_shape == () and not point:
            msg["value"] = law.expand((self.size,)).rsample()
            msg["done"] = True
            self.sites.add(msg["name"])
