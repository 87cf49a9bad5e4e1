"""Particles: several draws of weights and structure through one network, batched where that is right."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.func import functional_call

from pyro_nas.gaussian_tensor import GaussianTensor
from pyro_nas.network import Network

Tensors = Mapping[str, torch.Tensor]


def run_particles(
    network: Network,
    weights: Tensors,
    structure: Tensors,
    x: Any,
    shapes: Mapping[str, torch.Size],
    batched: bool,
    tie_weights: bool,
) -> torch.Tensor:
    """Return the outputs of each particle, (…, L, batch, features), for draws of shape (…, L, 1, *shape).

    ``batched``: one computation by ``torch.vmap``, which runs every primitive. Otherwise one after the other, which is
    right for hard structures, of which only one primitive runs, and for batch normalisation, which counts its batches.
    Raises ValueError for draws in a plate at dim −1, that of the data, and for modules that ``torch.vmap`` cannot run.
    """
    tensors = {**weights, **structure}
    leads = {value.shape[: value.dim() - len(shapes[name])] for name, value in tensors.items()}
    lead = next(iter(leads)) if len(leads) == 1 else torch.broadcast_shapes(*leads)
    if lead[-1] != 1:
        raise ValueError(f"model: expected particles in a plate at dim −2 or before, got draws of shape {tuple(lead)}.")

    def flat(tensors: Tensors) -> dict[str, torch.Tensor]:
        return {n: t.expand(lead + shapes[n]).reshape(-1, *shapes[n]) for n, t in tensors.items()}

    def run(means: Tensors, variances: Tensors, gamma: Tensors, skip_zeros: bool) -> torch.Tensor:
        drawn = {n: GaussianTensor.of(mean, variances[n]) if n in variances else mean for n, mean in means.items()}
        arguments = {"structure": gamma, "skip_zeros": skip_zeros}
        return functional_call(network, drawn, x, arguments, tie_weights=tie_weights)

    normal = {name: weight for name, weight in weights.items() if isinstance(weight, GaussianTensor)}
    parts = (
        flat({**weights, **{name: weight.mean_value for name, weight in normal.items()}}),
        flat({name: weight.variance for name, weight in normal.items()}),
        flat(structure),
    )
    if batched:
        try:
            outputs = torch.vmap(partial(run, skip_zeros=False), randomness="different")(*parts)
        except RuntimeError as error:
            raise ValueError(
                f"vectorize_particles: a module of the network cannot run batched over weights: {error} "
                "Pass vectorize_particles=False."
            ) from error
    else:
        each = (tuple({n: t[index] for n, t in part.items()} for part in parts) for index in range(lead.numel()))
        outputs = torch.stack([run(means, variances, gamma, True) for means, variances, gamma in each])
    if outputs.dim() != 3:
        raise ValueError(
            f"vectorize_particles: expected outputs of shape (batch, features), got {tuple(outputs.shape[1:])}. "
            "Pass vectorize_particles=False, or flatten the outputs."
        )
    return outputs.reshape(*lead[:-1], *outputs.shape[1:])
