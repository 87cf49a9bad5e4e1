"""Parts of the spline hypernetwork: its basis, and how a weight shrinks with λ."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import logsigmoid

__all__ = ["Shrinkage", "b_splines"]


def b_splines(place: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ``count`` B-splines of degree 2 on [0, 1], knots evenly spaced, threefold at the ends: (…, count).

    Three of them are not 0 at a place; all sum to 1 (de Boor 1978).
    """
    intervals = count - 2
    scaled = place * intervals
    left = scaled.detach().floor().clamp(0, intervals - 1)  # the knot before the place
    first = (left + 1 - scaled).square() / (left + 1 - (left - 1).clamp_min(0))
    last = (scaled - left).square() / ((left + 2).clamp_max(intervals) - left)
    weights = torch.stack([first, 1 - first - last, last], -1)
    index = left.long().unsqueeze(-1) + torch.arange(3, device=place.device)
    return weights.new_zeros(*place.shape, count).scatter(-1, index, weights)


class Shrinkage(torch.autograd.Function):
    """(a, log g/λ, 1/τ²) → (m, log σ): σ⁻² = g/λ + 1/τ², m = a √(1 − σ²/τ²), in few passes over the weights."""

    @staticmethod
    def forward(
        ctx: Any, amplitude: torch.Tensor, log_gain: torch.Tensor, precision: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return m and log σ."""
        gain = log_gain.clamp_max(80.0).exp()  # e^80 is still finite
        total = gain + precision
        share = gain.div_(total)  # 1 − σ²/τ²
        root = share.sqrt()
        loc, log_scale = amplitude * root, total.log_().mul_(-0.5)
        ctx.save_for_backward(amplitude, log_gain, precision, share, root, loc)
        return loc, log_scale

    @staticmethod
    def backward(
        ctx: Any, loc_gradient: torch.Tensor, log_scale_gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Return the gradients of a and log g/λ."""
        amplitude, log_gain, precision, share, root, loc = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, through the inputs
            place = log_gain - precision.log()
            share = torch.sigmoid(place)
            root = (0.5 * logsigmoid(place)).exp()  # the derivative of √share is not finite where share is 0
            loc = amplitude * root
        change = loc * loc_gradient
        both = change + log_scale_gradient
        return root * loc_gradient, 0.5 * torch.addcmul(change, share, both, value=-1), None
