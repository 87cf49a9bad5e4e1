"""Primitives: the operations an edge may carry, as recipes that build plain modules.

A recipe knows its builder's name and arguments, so that a space that uses it can be written to JSON.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Annotated, Any, ParamSpec, get_type_hints

from torch import nn

from pyro_nas.checks import integer, one_of
from pyro_nas.graph.modules import ACTIVATIONS, NORMALIZATIONS, FactorizedReduction, Zero, padded_convolution

__all__ = [
    "BUILDERS",
    "RECIPES",
    "Check",
    "Primitive",
    "Size",
    "among",
    "average_pool",
    "convolution",
    "dense",
    "factorized_reduction",
    "flatten",
    "max_pool",
    "normalized_pool",
    "pooled_readout",
    "preactivated_convolution",
    "preactivated_separable",
    "primitive",
    "separable_convolution",
    "skip",
    "upsampling_convolution",
    "zero",
]

P = ParamSpec("P")

BUILDERS: dict[str, Callable[..., nn.Module]] = {}
RECIPES: dict[str, Callable[..., Primitive]] = {}  # by the names of their builders: they check their arguments
Check = Callable[[str, Any], object]  # (name, value): raises for a value that will not do


def among(accepted: Iterable[str]) -> Check:
    """Return the check of an argument that is one of these names, for ``Annotated``."""
    return lambda name, value: one_of(name, value, accepted)


Size = Annotated[int, partial(integer, low=1)]
Repeats = Annotated[int, partial(integer, low=1, high=100)]
Activation = Annotated[str, among(ACTIVATIONS)]
Normalization = Annotated[str, among(NORMALIZATIONS)]
Pooling = Annotated[str, among(("max", "average"))]


@dataclass(frozen=True, repr=False)
class Primitive:
    """A recipe: calling it builds a fresh module from ``BUILDERS[name](**arguments)``."""

    name: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        """Return the call that makes it."""
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    def __call__(self) -> nn.Module:
        """Build a fresh module."""
        return BUILDERS[self.name](**self.arguments)


def primitive(builder: Callable[P, nn.Module]) -> Callable[P, Primitive]:
    """Turn a function that builds a module into one that returns a recipe, and register it under its name.

    Arguments must be JSON values if spaces with this primitive are to be written to a file. Those that are annotated
    with a check, as ``Annotated[int, check]``, are checked when the recipe is made; ``Size`` is an integer above 0.
    Raises ValueError for a name that another module has taken; the recipe, what the checks raise, ValueError in ours.
    """
    known = BUILDERS.setdefault(builder.__name__, builder)
    if known.__module__ != builder.__module__:
        raise ValueError(
            f"primitive: expected a name that {known.__module__} does not have already, got {builder.__name__!r}. "
            "Rename the function."
        )
    BUILDERS[builder.__name__] = builder
    signature, checks = inspect.signature(builder), _checks(builder)

    @wraps(builder)
    def recipe(*args: P.args, **kwargs: P.kwargs) -> Primitive:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for name, check in checks.items():
            check(f"{builder.__name__}({name})", arguments[name])
        return Primitive(builder.__name__, arguments)

    RECIPES[builder.__name__] = recipe
    return recipe


def _checks(builder: Callable[..., nn.Module]) -> dict[str, Check]:
    """Return the checks that a builder's arguments are annotated with, by their names."""
    try:
        hints = get_type_hints(builder, include_extras=True)
    except NameError:  # an annotation of names that only its author has: none of the checks here
        return {}
    return {
        name: hint.__metadata__[0] for name, hint in hints.items() if callable(getattr(hint, "__metadata__", (0,))[0])
    }


@primitive
def dense(inputs: Size, outputs: Size, activation: Activation = "identity") -> nn.Module:
    """x ↦ activation(W x + b); shapes (…, inputs) → (…, outputs)."""
    linear = nn.Linear(inputs, outputs)
    return linear if activation == "identity" else nn.Sequential(linear, ACTIVATIONS[activation]())


@primitive
def convolution(
    inputs: Size,
    outputs: Size,
    kernel: Size = 3,
    stride: Size = 1,
    dilation: Size = 1,
    activation: Activation = "relu",
    normalization: Normalization = "batch",
) -> nn.Module:
    """Convolution, normalisation, activation; (batch, inputs, h, w) → (batch, outputs, ⌈h/stride⌉, ⌈w/stride⌉).

    ``normalization``: "batch", or "group", in up to 8 groups, which keeps no running statistics: hypernetworks and
    vectorised particles need that.
    """
    return nn.Sequential(
        padded_convolution(inputs, outputs, kernel, stride, dilation),
        NORMALIZATIONS[normalization](outputs),
        ACTIVATIONS[activation](),
    )


@primitive
def separable_convolution(
    inputs: Size, outputs: Size, kernel: Size = 3, stride: Size = 1, dilation: Size = 1, activation: Activation = "relu"
) -> nn.Module:
    """Depthwise then pointwise convolution, batch normalisation, activation; shapes as ``convolution``."""
    return nn.Sequential(
        padded_convolution(inputs, inputs, kernel, stride, dilation, groups=inputs),
        padded_convolution(inputs, outputs, 1, 1),
        nn.BatchNorm2d(outputs),
        ACTIVATIONS[activation](),
    )


@primitive
def preactivated_convolution(
    inputs: Size,
    outputs: Size,
    kernel: Size = 3,
    stride: Size = 1,
    dilation: Size = 1,
    normalization: Normalization = "batch",
) -> nn.Module:
    """ReLU, convolution, normalisation; shapes as ``convolution`` (DARTS; NAS-Bench-201)."""
    layer = padded_convolution(inputs, outputs, kernel, stride, dilation)
    return nn.Sequential(nn.ReLU(), layer, NORMALIZATIONS[normalization](outputs))


@primitive
def preactivated_separable(
    inputs: Size,
    outputs: Size,
    kernel: Size = 3,
    stride: Size = 1,
    dilation: Size = 1,
    repeats: Repeats = 1,
    normalization: Normalization = "batch",
) -> nn.Module:
    """ReLU, depthwise and pointwise convolution, normalisation, ``repeats`` times; shapes as ``convolution``.

    DARTS' separable convolution has two repeats, its dilated one dilation 2 and one repeat.
    """
    layers: list[nn.Module] = []
    for repeat in range(repeats):
        last = repeat == repeats - 1
        layers += [
            nn.ReLU(),
            padded_convolution(inputs, inputs, kernel, 1 if repeat else stride, dilation, groups=inputs),
            padded_convolution(inputs, outputs if last else inputs, 1, 1),
            NORMALIZATIONS[normalization](outputs if last else inputs),
        ]
    return nn.Sequential(*layers)


@primitive
def normalized_pool(
    channels: Size, kind: Pooling = "max", kernel: Size = 3, stride: Size = 1, normalization: Normalization = "batch"
) -> nn.Module:
    """Maximum or mean over windows, normalisation without scale and shift; shapes as ``max_pool`` (DARTS)."""
    pool = max_pool if kind == "max" else average_pool
    return nn.Sequential(pool(kernel, stride)(), NORMALIZATIONS[normalization](channels, affine=False))


@primitive
def factorized_reduction(inputs: Size, outputs: Size, normalization: Normalization = "batch") -> nn.Module:
    """Return DARTS' skip connection of stride 2; shapes (batch, inputs, h, w) → (batch, outputs, ⌈h/2⌉, ⌈w/2⌉)."""
    return FactorizedReduction(inputs, outputs, normalization)


@primitive
def upsampling_convolution(inputs: Size, outputs: Size, kernel: Size = 3) -> nn.Module:
    """Nearest neighbour, twice the pixels a side, then ``convolution``; (batch, inputs, h, w) → (…, 2h, 2w)."""
    return nn.Sequential(nn.Upsample(scale_factor=2), convolution(inputs, outputs, kernel)())


@primitive
def max_pool(kernel: Size = 3, stride: Size = 1) -> nn.Module:
    """Maximum over windows; shapes (batch, c, h, w) → (batch, c, ⌈h/stride⌉, ⌈w/stride⌉)."""
    return nn.MaxPool2d(kernel, stride, (kernel - 1) // 2, ceil_mode=kernel % 2 == 0)


@primitive
def average_pool(kernel: Size = 3, stride: Size = 1) -> nn.Module:
    """Mean over windows, padding not counted; shapes as ``max_pool``."""
    return nn.AvgPool2d(kernel, stride, (kernel - 1) // 2, ceil_mode=kernel % 2 == 0, count_include_pad=False)


@primitive
def skip() -> nn.Module:
    """x ↦ x."""
    return nn.Identity()


@primitive
def zero(stride: Size = 1) -> nn.Module:
    """x ↦ 0."""
    return Zero(stride)


@primitive
def flatten() -> nn.Module:
    """Shapes (batch, …) → (batch, product of …)."""
    return nn.Flatten()


@primitive
def pooled_readout(inputs: Size, outputs: Size) -> nn.Module:
    """Mean over space, then linear; shapes (batch, inputs, h, w) → (batch, outputs)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))
