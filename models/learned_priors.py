"""Learned priors: weight priors whose scales h are parameters of the model, set by maximum evidence.

The second level of a two-level inference (MacKay 1992; evidence lecture): a fit ascends 𝔏 in h beside the guide's own
parameters, or ``inference.empirical_bayes`` puts h at its maximum given q(w), which has a closed form.
"""

from __future__ import annotations

import re
from functools import partial

import pyro
import torch
from pyro.distributions import Normal
from torch import nn

from pyro_nas import checks
from pyro_nas.evidence.packing import Packing
from pyro_nas.models.priors import Scale, WeightPrior, checked_scale, group_numbers, scale_vector

__all__ = ["LearnedNormal", "learned_normal"]

PER = ("all", "tensor", "input", "weight", "primitive")
PRIMITIVE = re.compile(r"(.*\.)?(edges\.\d+-\d+\.[^.]+|aggregations\.\d+)(?=\.)")  # the innermost, in nested spaces


class LearnedNormal(nn.Module):
    """w_i ~ N(0, s²_{g(i)}), the scale s_g of each group g a parameter; draws the packed site "weights"."""

    group: torch.Tensor

    def __init__(self, packing: Packing, scale: Scale, per: str):
        super().__init__()
        self.packing = packing
        self.register_buffer("group", _numbered(packing, per), persistent=False)
        first = torch.zeros(int(self.group.max()) + 1).scatter_reduce(
            0, self.group, scale_vector(scale, packing), "amax"
        )
        self.log_scale = nn.Parameter(first.log())

    def forward(self) -> dict[str, torch.Tensor]:
        """Draw the weights by name."""
        scale = self.log_scale.exp().index_select(0, self.group)
        law = Normal(torch.zeros_like(scale), scale, validate_args=False).to_event(1)
        return self.packing.unpack(pyro.sample("weights", law))

    def scales(self) -> dict[str, torch.Tensor]:
        """Return the scale of each weight by name, each of the tensor's shape."""
        return self.packing.unpack(self.log_scale.detach().exp().index_select(0, self.group))

    def maximize(self, second_moment: torch.Tensor) -> None:
        """Set each scale to its maximum of the evidence given q(w): s_g² = mean over the group of E_q w_i².

        ``second_moment``: E_q w_i² = μ_i² + σ_i² of each weight, (size,).
        """
        means = torch.zeros_like(self.log_scale).scatter_reduce(
            0, self.group, second_moment.to(self.log_scale), "mean", include_self=False
        )
        self.log_scale.data.copy_(0.5 * means.log())


def learned_normal(scale: Scale = 1.0, per: str = "all") -> WeightPrior:
    """w_i ~ N(0, s²_{g(i)}), s_g learned by maximum evidence, log s_g a parameter that starts at log ``scale``.

    ``per``: one scale for "all" weights, for each "tensor", for each "input" of a tensor (axis 1; a bias is one group),
    for each "weight" (automatic relevance determination), or for each "primitive" of an edge. A group that starts with
    several scales takes the largest. MacKay 1994; Tipping 2001.

    Raises ValueError for a scale not above 0 and another ``per``.
    """
    checks.one_of("per", per, PER)
    return partial(LearnedNormal, scale=checked_scale(scale), per=per)


def _numbered(packing: Packing, per: str) -> torch.Tensor:
    """Return the group of each weight, (size,)."""
    sizes = torch.tensor(packing.sizes)
    if per == "all":
        return torch.zeros(packing.size, dtype=torch.long)
    if per == "primitive":
        owners = [_owner(name) for name in packing.names]
        order = list(dict.fromkeys(owners))
        return torch.tensor([order.index(owner) for owner in owners]).repeat_interleave(sizes)
    within = [group_numbers(shape, per).reshape(-1) for shape in packing.shapes.values()]
    starts = torch.tensor([0, *(int(part.max()) + 1 for part in within[:-1])]).cumsum(0)
    return torch.cat(within) + starts.repeat_interleave(sizes)


def _owner(name: str) -> str:
    """Return the primitive, or the aggregation, that a parameter of a network belongs to."""
    owner = PRIMITIVE.match(name)
    if owner is None:
        raise ValueError(f"per: expected a network's parameters to group by primitive, got {name!r}. Use per='tensor'.")
    return owner.group()
