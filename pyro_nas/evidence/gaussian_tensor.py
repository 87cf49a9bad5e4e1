"""GaussianTensor: a normal weight known by its mean and variance, whose linear maps are drawn at their output.

For w ~ N(m, σ²) the output of a linear map is normal, with mean x·m and variance x²·σ²; drawing that gives gradients
of lower variance, because each datum has noise of its own (Kingma, Salimans and Welling 2015). Positions of a
convolution's output have noise of their own too: each has the right mean and variance, but what positions share by
sharing the weight is left out (Molchanov, Ashukha and Vetrov 2017). Every other use of such a weight draws it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.nn import functional

__all__ = ["Function", "GaussianTensor"]

Function: TypeAlias = Callable[..., Any]  # of torch

LINEAR: dict[Function, Function] = {
    functional.linear: functional.linear,
    torch.conv1d: torch.conv1d,
    torch.conv2d: torch.conv2d,
    torch.conv3d: torch.conv3d,
}
VIEWS = {torch.Tensor.view, torch.Tensor.view_as, torch.Tensor.reshape, torch.Tensor.flatten, torch.Tensor.unsqueeze}
FACTS = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_sparse", "grad_fn", "is_leaf")
} | {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point, torch.Tensor.is_complex}
EPSILON = 1e-12  # keeps the square root's gradient finite where the input is exactly zero


class _Use:
    """What has been made of a normal weight and all its views in a pass: a linear map, or a draw, not both."""

    def __init__(self, mean: torch.Tensor, variance: torch.Tensor):
        self.mean, self.variance, self.linear = mean, variance, False
        self._draw: torch.Tensor | None = None

    def mark_linear(self) -> None:
        if self.linear or self._draw is not None:
            self._refuse()
        self.linear = True

    def draw(self) -> torch.Tensor:
        if self.linear:
            self._refuse()
        if self._draw is None:
            self._draw = self.mean + self.variance.sqrt() * torch.randn_like(self.mean)
        return self._draw

    def _refuse(self) -> None:
        raise RuntimeError(
            "local_reparameterization: expected a network that uses each weight once in a pass, got one that is used "
            "twice, so that its outputs share noise. Switch local reparameterisation off for it."
        )


class GaussianTensor(torch.Tensor):
    """A normal weight known by its mean, which is the tensor's own data, and its variance.

    Raises RuntimeError where a pass uses it twice, at least once in a linear map: outputs would share noise.
    """

    variance: torch.Tensor
    _use: _Use
    _view: Callable[[torch.Tensor], torch.Tensor]

    @staticmethod
    def of(mean: torch.Tensor, variance: torch.Tensor) -> GaussianTensor:
        """Wrap a mean and a variance of one shape."""
        return GaussianTensor._make(mean, variance, _Use(mean, variance), lambda draw: draw)

    @staticmethod
    def _make(
        mean: torch.Tensor, variance: torch.Tensor, use: _Use, view: Callable[[torch.Tensor], torch.Tensor]
    ) -> GaussianTensor:
        tensor: GaussianTensor = mean.as_subclass(GaussianTensor)
        tensor.variance, tensor._use, tensor._view = variance, use, view
        return tensor

    @property
    def mean_value(self) -> torch.Tensor:
        """The mean, as a plain tensor of the same shape."""
        return _plain(self)

    @classmethod
    def __torch_function__(
        cls, func: Function, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Keep views Gaussian, draw linear maps at their output, and draw the weight for everything else."""
        options = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in FACTS:
                return func(*args, **options)
            if func in VIEWS and isinstance(args[0], cls) and not any(isinstance(arg, cls) for arg in args[1:]):
                whole = args[0]

                def view(tensor: torch.Tensor) -> torch.Tensor:
                    viewed: torch.Tensor = func(tensor, *args[1:], **options)
                    return viewed

                return cls._make(
                    view(_plain(whole)), view(whole.variance), whole._use, lambda draw: view(whole._view(draw))
                )
            if func in LINEAR and not isinstance(args[0], cls):
                return _linear(func, *args, **options)
            return func(*map(_drawn, args), **{name: _drawn(arg) for name, arg in options.items()})


def _linear(
    func: Function,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *args: object,
    **kwargs: object,
) -> torch.Tensor:
    for tensor in (weight, bias):
        if isinstance(tensor, GaussianTensor):
            tensor._use.mark_linear()
    mean = func(x, _plain(weight), None if bias is None else _plain(bias), *args, **kwargs)
    variance = func(x.square(), _variance(weight), _variance(bias), *args, **kwargs)
    return torch.addcmul(mean, (variance + EPSILON).sqrt(), _noise(mean))


def _noise(like: torch.Tensor) -> torch.Tensor:
    """Return standard normal noise of this shape and memory format, drawn in memory order, which is the fast one."""
    noise = torch.empty_like(like)
    if like.dim() == 4 and noise.is_contiguous(memory_format=torch.channels_last):
        noise.permute(0, 2, 3, 1).normal_()
        return noise
    return noise.normal_()


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, GaussianTensor):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)


def _variance(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None:
        return None
    return tensor.variance if isinstance(tensor, GaussianTensor) else torch.zeros_like(tensor)


def _drawn(value: Any) -> Any:
    if isinstance(value, GaussianTensor):
        return value._view(value._use.draw())
    if isinstance(value, (tuple, list)):
        return type(value)(_drawn(item) for item in value)
    return value
