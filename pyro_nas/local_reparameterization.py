"""Local reparameterisation: an effect around any guide with normal sites (Kingma, Salimans and Welling 2015)."""

from __future__ import annotations

from pyro.distributions import Independent, Normal
from pyro.poutine.messenger import Messenger

from pyro_nas.gaussian_tensor import GaussianTensor


class LocalReparameterization(Messenger):
    """Hand normal draws on as mean and variance; ``sites`` names those that were."""

    def __init__(self):
        super().__init__()
        self.sites: set[str] = set()

    def _pyro_sample(self, msg) -> None:
        law = msg["fn"]
        base = law.base_dist if isinstance(law, Independent) else law
        if msg["done"] or msg["is_observed"] or msg["infer"].get("is_auxiliary") or not isinstance(base, Normal):
            return
        msg["value"] = GaussianTensor.of(base.loc, base.variance)
        msg["done"] = True
        self.sites.add(msg["name"])
