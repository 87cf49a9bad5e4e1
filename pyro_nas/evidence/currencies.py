"""Currencies: what passes between rooms. A Pyro callable, its sample sites, draws of them, and a model of a space.

Read this first: every procedure takes a (model, guide) pair of Pyro callables and every reading takes draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypedDict

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn

from pyro_nas.evidence.packing import Packing
from pyro_nas.graph.network import Network
from pyro_nas.graph.space import Choices, Space
from pyro_nas.printing import Printed, Table

__all__ = ["Draws", "Expectation", "Law", "PyroCallable", "SampleMessage", "Site", "Sites", "SpaceModel", "Tensors"]

Law: TypeAlias = TorchDistribution
PyroCallable: TypeAlias = Callable[..., Any]  # a model or a guide: it draws by pyro.sample
Tensors: TypeAlias = Mapping[str, torch.Tensor]  # by site, or by the name of a parameter


class Site(TypedDict):
    """A sample site of a trace, as far as it is read here."""

    fn: Law
    value: torch.Tensor
    is_observed: bool
    infer: dict[str, object]
    scale: float | torch.Tensor
    mask: bool | torch.Tensor | None


Sites: TypeAlias = dict[str, Site]


class SampleMessage(Site):
    """A sample site on its way through the handlers of ``pyro.poutine``."""

    name: str
    done: bool
    cond_indep_stack: tuple[object, ...]


class Draws(Printed, dict[str, torch.Tensor]):
    """Draws of latent sites, {site: (draw, …)}: a dictionary that prints as a table."""

    def table(self) -> Table:
        """Return a row a site: its shape, and mean and standard deviation of all its values."""
        rows = []
        for site, value in self.items():
            numbers = value.detach().double()
            moments = f"mean {numbers.mean():.4g}, sd {numbers.std(correction=0):.4g}" if numbers.numel() else "empty"
            rows.append((site, str(tuple(value.shape)), moments))
        return Table(f"{len(next(iter(self.values()), ()))} draws of {len(self)} sites", rows)


class Expectation(Protocol):
    """A likelihood as reading uses it: the law of y given outputs, and its expectation."""

    def distribution(self, outputs: torch.Tensor) -> Law:
        """Return the law of y, batch shape (batch,)."""

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the expectation of y, class probabilities for classes: (…, batch, features)."""


class SpaceModel(nn.Module):
    """Abstract: a Pyro model of a space, called as ``model(x, y)``; ``pyro_nas.models.Model`` is the one."""

    space: Space
    network: Network
    packing: Packing
    choices: dict[str, Choices]
    likelihood: Expectation
    weights: Callable[[], dict[str, torch.Tensor]]
