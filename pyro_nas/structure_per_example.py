"""Structure per example: an effect around any guide whose structure sites have gradients through their draws."""

from __future__ import annotations

from pyro.distributions import Delta, Independent
from pyro.poutine.messenger import Messenger

from pyro_nas.sites import is_structure


class StructurePerExample(Messenger):
    """Draw Γ anew for each of ``size`` data, (size, edge, choice); ``sites`` names those that were.

    Σ_n E_q log p(y_n | Γ) is the same whether all data see one draw or each its own, and so is the divergence: only
    the variance of the estimate differs. It asks for divergences in closed form (SNAS, Xie et al. 2019, draws so).
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.sites: set[str] = set()

    def _pyro_sample(self, msg) -> None:
        law = msg["fn"]
        if self.sites and not msg["done"] and not msg["cond_indep_stack"] and law.batch_shape == (self.size,):
            raise ValueError(
                f"structure_per_example: expected draws that do not depend on the structure, got {msg['name']!r}, "
                f"{self.size} of them. Switch it off, or use a guide such as MeanField."
            )
        if msg["done"] or msg["is_observed"] or msg["infer"].get("is_auxiliary") or not is_structure(msg["name"]):
            return
        point = isinstance(law.base_dist if isinstance(law, Independent) else law, Delta)
        if law.has_rsample and law.batch_shape == () and not point:
            msg["value"] = law.expand((self.size,)).rsample()
            msg["done"] = True
            self.sites.add(msg["name"])
