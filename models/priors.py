"""Weight priors: given the layout of a network's weights, a callable that draws them by name.

A prior is any function from a ``Packing`` to a callable () → {name: tensor} that draws by ``pyro.sample``. Families
with a location and a scale draw one packed site, "weights", however deep the network is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn

from pyro_nas import checks
from pyro_nas.evidence.packing import Packing
from pyro_nas.models.log_interval import LogInterval
from pyro_nas.models.normals import FixedNormal

__all__ = [
    "Draw",
    "Each",
    "FanIn",
    "LocationScale",
    "RelevanceDetermination",
    "Scale",
    "WeightPrior",
    "checked_scale",
    "each",
    "fan_in",
    "group_numbers",
    "laplace",
    "log_interval",
    "log_uniform",
    "normal",
    "relevance_determination",
    "scale_vector",
]

Draw = Callable[[], dict[str, torch.Tensor]]
WeightPrior = Callable[[Packing], Draw]
Scale = float | Callable[[str, torch.Size], float]


def scale_vector(scale: Scale, packing: Packing) -> torch.Tensor:
    """Return the scale of each weight, shape (size,); raise ValueError where a function gives one not above 0."""
    if not callable(scale):
        return torch.full((), float(scale)).expand(packing.size)
    values = {name: scale(name, shape) for name, shape in packing.shapes.items()}
    checked = [checks.number(f"scale of {name!r}", value, low=0, open_low=True) for name, value in values.items()]
    return torch.tensor(checked).repeat_interleave(torch.tensor(packing.sizes, dtype=torch.long))


def checked_scale(scale: Scale) -> Scale:
    """Return a scale that is a function or a number above 0; raise ValueError for others."""
    remedy = "Pass a standard deviation above 0, or a function of a tensor's name and shape."
    return scale if callable(scale) else checks.number("scale", scale, low=0, open_low=True, remedy=remedy)


class LocationScale(nn.Module):
    """w ~ family(0, scale), independent; draws the packed site "weights"."""

    scale: torch.Tensor

    def __init__(self, packing: Packing, family: Callable[..., TorchDistribution], scale: Scale):
        super().__init__()
        self.packing, self.family = packing, family
        self.register_buffer("scale", scale_vector(scale, packing), persistent=False)
        self._law: TorchDistribution | None = None

    def extra_repr(self) -> str:
        """Return the family and the scales."""
        low, high = (float(bound) for bound in self.scale.aminmax()) if self.scale.numel() else (0.0, 0.0)
        name = type(self.family(torch.zeros(1), torch.ones(1))).__name__
        return f"{name}, scale {low:.3g}" + (f" to {high:.3g}" if high > low else "")

    def forward(self) -> dict[str, torch.Tensor]:
        """Draw the weights by name."""
        if self._law is None:
            self._law = self.family(torch.zeros_like(self.scale), self.scale).to_event(1)
        return self.packing.unpack(pyro.sample("weights", self._law))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self._law = None  # it holds tensors of the old device or type
        super()._apply(fn, recurse)
        return self


class RelevanceDetermination(nn.Module):
    """s_g ~ LogNormal(log scale, width²), w_i ~ N(0, s_{g(i)}²); draws the sites "scales" and "weights"."""

    group: torch.Tensor
    log_scale: torch.Tensor

    def __init__(self, packing: Packing, scale: Scale, width: float, per: str):
        super().__init__()
        self.packing, self.width = packing, width
        group = torch.cat([group_numbers(shape, per).reshape(-1) for shape in packing.shapes.values()])
        sizes = [int(group_numbers(shape, per).max()) + 1 for shape in packing.shapes.values()]
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0).repeat_interleave(torch.tensor(packing.sizes))
        self.register_buffer("group", group + starts, persistent=False)
        first = torch.zeros(sum(sizes)).scatter_reduce(0, self.group, scale_vector(scale, packing), "amax")
        self.register_buffer("log_scale", first.log(), persistent=False)

    def forward(self) -> dict[str, torch.Tensor]:
        """Draw the scales, then the weights by name."""
        width = torch.full_like(self.log_scale, self.width)
        scales = pyro.sample("scales", dist.LogNormal(self.log_scale, width, validate_args=False).to_event(1))
        spread = scales.index_select(-1, self.group)
        law = dist.Normal(torch.zeros_like(spread), spread, validate_args=False).to_event(1)
        return self.packing.unpack(pyro.sample("weights", law))


def group_numbers(shape: torch.Size, per: str) -> torch.Tensor:
    """Number the groups of one tensor, of its shape: axis 0 of a weight is the output, axis 1 the input."""
    if per == "weight":
        return torch.arange(shape.numel()).view(shape)
    if per == "tensor" or len(shape) < 2:
        return torch.zeros(shape, dtype=torch.long)
    return torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)).expand(shape)


class Each:
    """w_name ~ make(name, shape), one site a tensor; raises ValueError for a law of another event shape."""

    def __init__(self, packing: Packing, make: Callable[[str, torch.Size], TorchDistribution]):
        self.packing, self.make = packing, make
        for name, shape in packing.shapes.items():
            with pyro.poutine.block():
                law = make(name, shape)
            if not isinstance(law, torch.distributions.Distribution) or law.batch_shape or law.event_shape != shape:
                raise ValueError(
                    f"make: expected for {name!r} a distribution of event shape {tuple(shape)}, got {law}. "
                    "Call .expand(shape).to_event(len(shape)) on it."
                )

    def __call__(self) -> dict[str, torch.Tensor]:
        """Draw the weights by name."""
        shapes = self.packing.shapes.items()
        return {name: pyro.sample(f"weights.{name}", self.make(name, shape)) for name, shape in shapes}


def normal(scale: Scale = 1.0) -> WeightPrior:
    """w ~ N(0, scale²), independent; ``scale`` is a standard deviation, or a function of a tensor's name and shape.

    Raises ValueError for one not above 0; that of a function, in the model.
    """
    return partial(LocationScale, family=FixedNormal, scale=checked_scale(scale))


def laplace(scale: Scale = 1.0) -> WeightPrior:
    """w ~ Laplace(0, scale), independent; the standard deviation is √2 · scale. Errors as ``normal``."""
    return partial(LocationScale, family=dist.Laplace, scale=checked_scale(scale))


def relevance_determination(scale: Scale = 1.0, width: float = 1.0, per: str = "input") -> WeightPrior:
    """Automatic relevance determination: w_i ~ N(0, s_g²), s_g ~ LogNormal(log scale, width²).

    ``per``: weights share a scale with those of the same "input" (axis 1; a bias is one group), of the same "tensor",
    or with none ("weight"). MacKay 1994; Neal 1996.

    Raises ValueError for a scale or a width not above 0, and another ``per``.
    """
    checks.number("width", width, low=0, open_low=True)
    checks.one_of("per", per, ["input", "tensor", "weight"])
    return partial(RelevanceDetermination, scale=checked_scale(scale), width=width, per=per)


def each(make: Callable[[str, torch.Size], TorchDistribution]) -> WeightPrior:
    """Give every tensor the law ``make(name, shape)``, of that event shape, at the site "weights.NAME".

    Raises TypeError where ``make`` cannot be called and, in the model, ValueError for a law of another shape.
    """
    checks.is_callable("make", make, "a function of a tensor's name and shape that returns a distribution")
    return partial(Each, make=make)


@dataclass(frozen=True)
class FanIn:
    """The scale gain / √(inputs of one output)."""

    gain: float

    def __call__(self, name: str, shape: torch.Size) -> float:
        """Return the scale of a tensor of this shape, (outputs, inputs, …)."""
        return self.gain / math.sqrt(max(1, shape[1:].numel()))


def fan_in(gain: float = 1.0) -> Callable[[str, torch.Size], float]:
    """Return the scale gain / √(inputs of one output), which keeps activations of one size at every width.

    Raises ValueError for a gain not above 0.
    """
    checks.number("gain", gain, low=0, open_low=True)
    return FanIn(gain)


def log_uniform(low: float, high: float) -> TorchDistribution:
    """log λ ~ U(log low, log high): a prior of the complexity λ (hypernetwork paper, §3).

    Raises ValueError as ``log_interval``.
    """
    return log_interval(low, high, ends=0.0)


def log_interval(low: float, high: float, ends: float = 0.5) -> TorchDistribution:
    """A prior of the complexity λ on [low, high], from log-uniform (``ends`` 0) to arcsine in log λ (``ends`` 1).

    The arcsine law is the density of Chebyshev's nodes: a function of λ that is fitted at random points has neighbours
    on one side only at an end, and needs more of them there.

    Raises ValueError unless 0 < low < high, with high / low within single precision, and 0 ≤ ends ≤ 1.
    """
    checks.number("low", low, low=0, open_low=True)
    checks.number("high", high, low=low, open_low=True)
    checks.number("ends", ends, low=0, high=1)
    if not torch.isfinite(torch.tensor(float(high)) / torch.tensor(float(low))) or torch.tensor(float(low)) == 0:
        raise ValueError(f"high: expected low and high / low within single precision, got low={low}, high={high}.")
    return LogInterval(torch.tensor(float(low)), torch.tensor(float(high)), float(ends))
