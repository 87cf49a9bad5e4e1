"""Likelihoods: modules that observe y given the network's outputs, inside the model's data plate.

Called as ``likelihood(outputs, y)`` within ``pyro.plate``; ``y=None`` draws. ``distribution(outputs)`` is the law of
one y, ``mean(outputs)`` what predictive averaging averages: class probabilities, or means.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn
from torch.distributions.utils import lazy_property
from torch.nn.functional import cross_entropy

from pyro_nas import checks
from pyro_nas.data import check_labels
from pyro_nas.models.distributions import Shape

__all__ = ["Bernoulli", "Categorical", "ClassIndex", "Gaussian", "Likelihood", "bernoulli", "categorical", "gaussian"]


class Likelihood(nn.Module):
    """Abstract: the law of y given outputs of shape (batch, features)."""

    def distribution(self, outputs: torch.Tensor) -> TorchDistribution:
        """Return the law of y, batch shape (batch,)."""
        raise NotImplementedError  # abstract

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the expectation of y (of its one-hot form for classes), shape (…, batch, features)."""
        raise NotImplementedError  # abstract

    def check(self, outputs: torch.Tensor, y: torch.Tensor) -> None:
        """Raise TypeError or ValueError where y cannot be observed under outputs of this shape."""
        raise NotImplementedError  # abstract

    def forward(self, outputs: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Observe y, or draw it where y is None."""
        return pyro.sample("y", self.distribution(outputs), obs=y)


class ClassIndex(dist.Categorical):
    """Categorical given unnormalised logits, (…, classes), whose log-probability is one fused call."""

    def __init__(self, logits: torch.Tensor):
        self.unnormalised = logits
        self._num_events = logits.shape[-1]
        torch.distributions.Distribution.__init__(self, logits.shape[:-1], validate_args=False)

    @lazy_property
    def logits(self) -> torch.Tensor:
        """Log-probabilities."""
        return self.unnormalised.log_softmax(-1)

    @lazy_property
    def probs(self) -> torch.Tensor:
        """Probabilities."""
        return self.unnormalised.softmax(-1)

    @property
    def param_shape(self) -> torch.Size:
        """The shape of the logits."""
        return self.unnormalised.shape

    def expand(self, batch_shape: Shape, _instance: object = None) -> ClassIndex:
        """Return the same law with another batch shape."""
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return type(self)(self.unnormalised.expand(*batch_shape, -1))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return log softmax(logits) at the index ``value``."""
        if value.dim() == 1 and value.shape == self.batch_shape:
            return -cross_entropy(self.unnormalised, value.long(), reduction="none")
        shape = self.batch_shape
        if value.shape != shape[-value.dim() :]:
            shape = torch.broadcast_shapes(value.shape, shape)
        logits = self.unnormalised.expand(*shape, -1).flatten(0, -2)
        indices = value.long().expand(shape).flatten()
        return -cross_entropy(logits, indices, reduction="none").view(shape)


class Categorical(Likelihood):
    """y ~ Categorical(softmax(outputs)); y holds class indices of shape (batch,)."""

    def distribution(self, outputs: torch.Tensor) -> TorchDistribution:
        """Return Categorical(logits=outputs)."""
        return ClassIndex(outputs)

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return class probabilities, shape (…, batch, classes)."""
        return outputs.softmax(-1)

    def check(self, outputs: torch.Tensor, y: torch.Tensor) -> None:
        """Check that y, (batch,), holds indices of the classes of outputs, (batch, classes).

        Raises TypeError for y that are no integers, ValueError for other shapes and indices.
        """
        if outputs.dim() != 2 or outputs.shape[1] < 2:
            raise ValueError(f"space: expected outputs of shape (batch, classes), got {tuple(outputs.shape)}.")
        check_labels("y", y, outputs.shape[1])


class Gaussian(Likelihood):
    """y ~ N(outputs, σ²), features independent; σ is learned, a point estimate that starts at ``noise``."""

    def __init__(self, noise: float, *, learn: bool):
        super().__init__()
        self.log_noise = nn.Parameter(torch.tensor(noise).log(), requires_grad=learn)

    def distribution(self, outputs: torch.Tensor) -> TorchDistribution:
        """Return N(outputs, σ²) with one event axis."""
        noise = self.log_noise.exp().expand_as(outputs)
        law: TorchDistribution = dist.Normal(outputs, noise, validate_args=False).to_event(1)
        return law

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs."""
        return outputs

    def check(self, outputs: torch.Tensor, y: torch.Tensor) -> None:
        """Check that y has the outputs' shape, (batch, …).

        Raises TypeError for y that are not floating-point, ValueError for another shape.
        """
        _check_real(outputs, y)


class Bernoulli(Likelihood):
    """y ~ Bernoulli(σ(outputs)), features independent; y holds zeros and ones as floats, (batch, features)."""

    def distribution(self, outputs: torch.Tensor) -> TorchDistribution:
        """Return Bernoulli(logits=outputs) with one event axis."""
        law: TorchDistribution = dist.Bernoulli(logits=outputs, validate_args=False).to_event(1)
        return law

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of one."""
        return outputs.sigmoid()

    def check(self, outputs: torch.Tensor, y: torch.Tensor) -> None:
        """Check that y has the outputs' shape, (batch, …), and holds zeros and ones.

        Raises TypeError for y that are not floating-point, ValueError for another shape or other values.
        """
        _check_real(outputs, y)
        if not bool(((y == 0) | (y == 1)).all()):
            raise ValueError(f"y: expected zeros and ones, got values from {float(y.min())} to {float(y.max())}.")


def _check_real(outputs: torch.Tensor, y: torch.Tensor) -> None:
    if not y.is_floating_point():
        raise TypeError(f"y: expected floating-point values, got {checks.describe(y)}. Call y.float().")
    if y.shape[1:] != outputs.shape[1:]:
        raise ValueError(
            f"y: expected shape (batch, {', '.join(str(size) for size in outputs.shape[1:])}), the network's outputs, "
            f"got {tuple(y.shape)}. Reshape y, or change the last primitive."
        )


def categorical() -> Likelihood:
    """y ~ Categorical(softmax(outputs)), for classes."""
    return Categorical()


def gaussian(noise: float = 1.0, *, learn: bool = True) -> Likelihood:
    """y ~ N(outputs, σ²); σ starts at ``noise`` and, where ``learn``, is a point estimate.

    Raises ValueError for a ``noise`` not above 0.
    """
    return Gaussian(checks.number("noise", noise, low=0, open_low=True), learn=learn)


def bernoulli() -> Likelihood:
    """y ~ Bernoulli(σ(outputs)), for zeros and ones."""
    return Bernoulli()
