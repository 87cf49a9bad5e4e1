"""Stratification: an effect that spreads the draws of a site in a plate of particles over its law."""

from __future__ import annotations

import torch
from pyro.poutine.messenger import Messenger

from pyro_nas.sites import device_of


class Stratified(Messenger):
    """Draw a scalar site of L particles one from each of L equally probable strata, in random order.

    Each draw by itself has the site's law, so that means over particles stay unbiased; together they cover it, which
    lowers the variance. Needs a law with a quantile function (``icdf``).
    """

    def __init__(self, site: str):
        super().__init__()
        self.site, self.used = site, False

    def _pyro_sample(self, msg) -> None:
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
