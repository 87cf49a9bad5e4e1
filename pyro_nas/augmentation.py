"""Augmentation: random changes of a batch of images, each example its own, that leave its class as it is.

Each function returns a callable from images of shape (batch, channels, height, width) to images of the same shape,
type and memory format. What is drawn comes from torch's global random state, so that a fit's seed governs it and a
fit that is continued draws what it would have drawn. Images are taken to be scaled to [−1, 1], with a background of −1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import pad

from pyro_nas import checks
from pyro_nas.data import Inputs

__all__ = [
    "Augmentation",
    "augmented",
    "compose",
    "cutout",
    "mirror",
    "shift",
]

Augmentation = Callable[[torch.Tensor], torch.Tensor]


def shift(pixels: int, fill: float = -1.0) -> Augmentation:
    """Move each image by (Δrow, Δcolumn), both uniform on {−pixels, …, pixels}; ``fill`` comes in from outside.

    The random crop of the padded image that is standard since He et al. 2016, §4.2.

    Raises ValueError for pixels below 1 and, when called, for x that are no images, or whose side is not longer.
    """
    return partial(_shifted, pixels=checks.integer("pixels", pixels, low=1), fill=checks.number("fill", fill))


def mirror(probability: float = 0.5) -> Augmentation:
    """Swap left and right of each image with this probability.

    Raises ValueError for one outside [0, 1] and, when called, for x that are no images.
    """
    return partial(_mirrored, probability=checks.number("probability", probability, low=0, high=1))


def cutout(size: int, fill: float = -1.0) -> Augmentation:
    """Set a square of ``size`` pixels a side to ``fill`` in all channels, its centre uniform on the image's pixels.

    What lies outside the image is cut off, so that most of an image may stay. DeVries and Taylor 2017, who fill with
    the mean of the data.

    Raises ValueError for a size below 1 and, when called, for x that are no images, or whose side is not longer.
    """
    return partial(_cut_out, size=checks.integer("size", size, low=1), fill=checks.number("fill", fill))


def compose(*parts: Augmentation) -> Augmentation:
    """Apply the parts one after the other, the first one first; raise TypeError for one that cannot be called."""
    for part in parts:
        checks.is_callable("parts", part, "functions of a batch of images, such as shift(2)")
    return partial(_composed, parts=parts)


def augmented(augmentation: Augmentation, x: Inputs) -> torch.Tensor:
    """Return ``augmentation(x)``, of the shape, type and device of x.

    Raises TypeError where x or the result is no single tensor, ValueError where shape, type or device are not kept.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"augmentation: expected data x of one tensor, got a {type(x).__name__} of {len(x)}. "
            "Augment such data in a Dataset of your own."
        )
    result = augmentation(x)
    if not isinstance(result, torch.Tensor):
        raise TypeError(f"augmentation: expected a function that returns a tensor, got {checks.describe(result)}.")
    if (result.shape, result.dtype, result.device) != (x.shape, x.dtype, x.device):
        raise ValueError(
            f"augmentation: expected {checks.describe(x)} on {x.device}, as it was given, "
            f"got {checks.describe(result)} on {result.device}."
        )
    return result


def _shifted(x: torch.Tensor, pixels: int, fill: float) -> torch.Tensor:
    height, width = _sides(x, "pixels", pixels)
    padded = pad(x, [pixels] * 4, value=fill)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (batch, c, Δrows, Δcolumns, height, width), a view
    rows, columns = torch.randint(2 * pixels + 1, (2, len(x)), device=x.device)
    return _laid_out(windows[torch.arange(len(x), device=x.device), :, rows, columns], x)


def _mirrored(x: torch.Tensor, probability: float) -> torch.Tensor:
    _sides(x)
    swapped = torch.rand(len(x), 1, 1, 1, device=x.device) < probability
    return _laid_out(torch.where(swapped, x.flip(3), x), x)


def _cut_out(x: torch.Tensor, size: int, fill: float) -> torch.Tensor:
    inside = []
    for axis, side in enumerate(_sides(x, "size", size)):
        first = torch.randint(side, (len(x), 1), device=x.device) - size // 2
        offset = torch.arange(side, device=x.device) - first  # (batch, side)
        inside.append(((offset >= 0) & (offset < size)).unsqueeze(2 - axis))  # (batch, height, 1), (batch, 1, width)
    return _laid_out(x.masked_fill((inside[0] & inside[1])[:, None], fill), x)


def _composed(x: torch.Tensor, parts: tuple[Augmentation, ...]) -> torch.Tensor:
    for part in parts:
        x = part(x)
    return x


def _sides(x: torch.Tensor, name: str = "", extent: int = 0) -> tuple[int, int]:
    """Return height and width of images; raise where x are none, or an extent reaches a side."""
    if not isinstance(x, torch.Tensor) or x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            "augmentation: expected x to be images, a real tensor of shape (batch, channels, height, width), "
            f"got {checks.describe(x)}. Reshape x, or leave this augmentation out."
        )
    if extent >= min(x.shape[2:]):
        raise ValueError(f"{name}: expected less than a side of the images, {tuple(x.shape[2:])}, got {extent}.")
    return x.shape[2], x.shape[3]


def _laid_out(result: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a result in the memory format of another tensor of its shape."""
    return result if result.stride() == like.stride() else torch.empty_like(like).copy_(result)
