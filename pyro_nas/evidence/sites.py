"""Sample sites of Pyro callables: running them, fixing values, comparing a guide's with its model's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast
from weakref import WeakSet

import pyro
import torch
from pyro import poutine
from pyro.distributions import Independent
from pyro.nn import PyroModule
from pyro.poutine.util import site_is_subsample
from torch import nn
from torch.distributions import Distribution

from pyro_nas.evidence.currencies import Law, PyroCallable, SampleMessage, Site, Sites, Tensors
from pyro_nas.random_state import check_thread

__all__ = [
    "COMPLEXITY",
    "Run",
    "Substitute",
    "check_draw",
    "check_sites",
    "device_of",
    "innermost",
    "is_structure",
    "local_parameters",
    "log_prob_of",
    "masked",
    "run",
    "run_at",
    "same_law",
    "sample_sites",
    "substituted",
    "support_rows",
    "transformed",
    "unjoined",
]

D = TypeVar("D", bound=Distribution)
_SEEN: WeakSet[nn.Module] = WeakSet()  # modules whose parts have been prepared: to walk them at each run is slow
COMPLEXITY = "complexity"  # the site of λ
TARGET = "y"  # the site that a model draws where no target is given
Total = Callable[[torch.Tensor], torch.Tensor]  # a sum over all but the particles, () or (L,)


def is_structure(site: str) -> bool:
    """Whether a latent site is a structure: the convention is a name that starts with "structure"."""
    return site.startswith("structure")


class Substitute(poutine.messenger.Messenger):
    """Give sites these values, as draws: unlike ``replay`` also values that a condition fixed in the guide."""

    def __init__(self, values: Tensors):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: SampleMessage) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def substituted(function: PyroCallable, values: Tensors) -> PyroCallable:
    """Return the callable, run under ``Substitute`` with values {site: tensor}, each of its site's shape."""
    return Substitute(values)(function)


@contextmanager
def local_parameters(function: PyroCallable) -> Iterator[None]:
    """Within the context a PyroModule, such as an autoguide, keeps its parameters in itself.

    Pyro's default is the global store, where a second guide of one name takes over the parameters of the first. The
    setting ``module_local_params`` is back to the user's value after it.
    """
    with pyro.settings.context(module_local_params=True):
        for module in _pyro_modules(function):
            vars(module._pyro_context).setdefault("param_state", {"params": {}, "constraints": {}})  # if made without
        yield


def _pyro_modules(function: object) -> Iterator[PyroModule]:
    """Yield a PyroModule, or those within handlers and modules around it."""
    if isinstance(function, PyroModule):
        yield function
    elif isinstance(function, partial):
        for part in (function.func, *function.args):
            yield from _pyro_modules(part)
    elif isinstance(function, nn.Module) and function not in _SEEN:
        _SEEN.add(function)
        yield from (module for module in function.modules() if isinstance(module, PyroModule))


class Run(NamedTuple):
    """What a Pyro callable returned, for a model the outputs, and its sample sites, without those of plates."""

    outputs: Any
    sites: Sites


def run(function: PyroCallable, args: tuple[object, ...]) -> Run:
    """Run a Pyro callable; raise RuntimeError where another thread is in a fit."""
    check_thread()
    with local_parameters(function):
        nodes = poutine.trace(function).get_trace(*args).nodes
    sites = {n: site for n, site in nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}
    return Run(nodes["_RETURN"]["value"], cast(Sites, sites))


def sample_sites(function: PyroCallable, args: tuple[object, ...]) -> Sites:
    """Run a Pyro callable and return its sample sites, without those of plates."""
    return run(function, args).sites


def run_at(model: PyroCallable, draw: Tensors, args: tuple[object, ...]) -> Run:
    """Run a model with its latent sites at one draw, {site: tensor}; raise ValueError where the draw lacks one.

    λ may be left out, and so may y where it is not among ``args``.
    """
    outcome = run(poutine.condition(model, data=dict(draw)), args)
    check_draw(draw, [name for name, site in outcome.sites.items() if not site["is_observed"]])
    return outcome


def check_draw(draw: Tensors, latent: list[str]) -> None:
    """Raise ValueError where a draw, {site: tensor}, lacks one of these latent sites of a model; λ and y are none."""
    missing = [name for name in latent if name not in (*draw, TARGET, COMPLEXITY)]
    if missing:
        raise ValueError(f"draws: expected the model's latent sites, got {list(draw)}; missing {missing}.")


def unjoined(law: Law) -> Law:
    """Return a law without the ``Independent`` around it, which only joins axes to one event."""
    while isinstance(law, Independent):
        law = law.base_dist
    return law


def innermost(law: Law) -> Law:
    """Return the law within all wrappers, transforms and ``Independent`` among them."""
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return law


def device_of(law: Law) -> torch.device:
    """Return where a law's parameters are."""
    return next((v.device for v in vars(innermost(law)).values() if isinstance(v, torch.Tensor)), torch.device("cpu"))


def same_law(law: object, other: object) -> bool:
    """Whether two laws, of one site in two runs, are known to be the same: of one type, with equal parameters.

    False where either has no tensor to tell by.
    """
    pairs = list(_parameters(law, other))
    return bool(pairs) and all(torch.equal(a, b) if a.shape == b.shape else False for a, b in pairs)


def _parameters(law: object, other: object) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the tensors of both laws and of all that they are made of, pair by pair."""
    if isinstance(law, torch.Tensor) and isinstance(other, torch.Tensor):
        yield law, other
    elif isinstance(law, (list, tuple)) and isinstance(other, (list, tuple)):
        for part, counterpart in zip(law, other, strict=False):
            yield from _parameters(part, counterpart)
    elif type(law) is not type(other):
        yield torch.zeros(()), torch.ones(())
    elif isinstance(law, (Distribution, torch.distributions.Transform)):
        for name in vars(law).keys() & vars(other).keys():  # a lazy property may be there in one alone
            yield from _parameters(vars(law)[name], vars(other)[name])


def transformed(law: D, function: Callable[[torch.Tensor], torch.Tensor]) -> D:
    """Return a law with a function, such as a move to a device, applied to its parameters, tensors of any shape."""
    moved = copy.copy(law)
    for name, value in vars(law).items():
        if isinstance(value, torch.Tensor):
            vars(moved)[name] = function(value)
        elif isinstance(value, Distribution):
            vars(moved)[name] = transformed(value, function)
    return moved


def support_rows(law: Law) -> tuple[torch.Tensor, int] | None:
    """Return the values of one row of a discrete law, (value, …), and its number of rows; None of others."""
    law = innermost(law)
    if not law.has_enumerate_support:
        return None
    single = law.enumerate_support(expand=False)
    return single.reshape(len(single), *law.event_shape), law.batch_shape.numel()


def log_prob_of(site: Site, total: Total, *, scaled: bool = True) -> torch.Tensor:
    """Return the masked and, if ``scaled``, scaled log-probability of a site in nats, () or (L,) by ``total``."""
    log_prob = masked(site["fn"].log_prob(site["value"]), site["mask"])
    scale = site["scale"] if scaled else 1.0
    return total(log_prob * scale) if torch.is_tensor(scale) else total(log_prob) * scale


def masked(value: torch.Tensor, mask: bool | torch.Tensor | None) -> torch.Tensor:
    """Return the values with 0 where the mask is False."""
    return value if mask is None else torch.where(torch.as_tensor(mask), value, torch.zeros_like(value))


def check_sites(theirs: Sites, ours: Sites) -> None:
    """Raise ValueError where the guide lacks a latent site of the model, or has another that is not auxiliary."""
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
