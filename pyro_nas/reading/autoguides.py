"""Autoguides: many draws of the structure of Pyro's normal autoguides from one run, by the laws of their base."""

from __future__ import annotations

from typing import cast

import torch
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.autoguide.guides import AutoContinuous
from torch.distributions import biject_to

from pyro_nas.evidence.currencies import PyroCallable, Sites
from pyro_nas.evidence.sites import is_structure

__all__ = ["structure_draws"]

NUMBERS = 2**20  # that are drawn of a joint latent, unless ten draws are more


@torch.no_grad()
def structure_draws(guide: PyroCallable, run: Sites, count: int) -> dict[str, torch.Tensor]:
    """Return draws of the structure sites of an autoguide, {site: (draw, edge, choice)}, given the sites of one run.

    An ``AutoNormal`` draws each site by a normal of its own, of which only those of structure are drawn, ``count``
    times; an ``AutoContinuous`` all sites jointly, fewer times where they are many. Other guides give none.
    """
    parts = list(guide) if isinstance(guide, AutoGuideList) else [guide]
    draws: dict[str, torch.Tensor] = {}
    for part in parts:
        if isinstance(part, AutoNormal) and part.prototype_trace is not None:
            for name, site in part.prototype_trace.iter_stochastic_nodes():
                if is_structure(name):
                    law = run[f"{name}_unconstrained"]["fn"]
                    draws[name] = biject_to(site["fn"].support)(law.sample(torch.Size((count,))))
        elif isinstance(part, AutoContinuous):
            law = run[f"_{part._pyro_name}_latent"]["fn"]
            joint = law.sample(torch.Size((min(count, max(10, NUMBERS // part.latent_dim)),)))
            for site, value in part._unpack_latent(joint):
                if is_structure(name := cast(str, site["name"])):
                    draws[name] = biject_to(site["fn"].support)(value)
    return draws
