"""Particles: several draws of weights and structure through one network, batched where that is right."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from pyro_nas.data import Inputs
from pyro_nas.evidence.currencies import Tensors
from pyro_nas.evidence.gaussian_tensor import GaussianTensor
from pyro_nas.graph.network import Network

__all__ = ["Dealt", "Parts", "deal", "run_particles"]

Parts = tuple[torch.Tensor, ...]  # a tensor for each input of a space


class Dealt(Parts):
    """Inputs of L particles that have data of their own: a tensor of shape (L, datum, …) for each input of a space."""


def deal(x: Inputs, y: torch.Tensor, particles: int) -> tuple[Dealt, torch.Tensor]:
    """Deal a batch to particles: the first n/L data to the first, and so on; n mod L data at its end are left out.

    Where the order is random, the mean over particles of (N/n_l) Σ_i log p(y_i | x_i, w_l) has the expectation that it
    has with all n data for each, and the network runs n data instead of L n. The noise of the data is the same in what
    all particles would move alike, and up to L times the variance in what one of them moves alone, such as a knot of a
    spline over λ (λ by example: Dosovitskiy and Djolonga 2020, "You only train once").
    """
    each = len(y) // particles
    parts = [
        part[: each * particles].view(particles, each, *part.shape[1:])
        for part in (*(x if isinstance(x, tuple) else (x,)), y)
    ]
    return Dealt(parts[:-1]), parts[-1]


def run_particles(
    network: Network,
    weights: Tensors,
    structure: Tensors,
    x: Inputs,
    shapes: Mapping[str, torch.Size],
    *,
    batched: bool,
) -> torch.Tensor:
    """Return the outputs of each particle, (…, L, batch, features), for draws of shape (…, L, 1, *shape).

    ``batched``: one computation by ``torch.vmap``, which runs every primitive. Otherwise one after the other, which is
    right for hard structures, of which only one primitive runs, and for batch normalisation, which counts its batches.
    ``x`` is the same for all particles, unless it is ``Dealt``.
    Raises ValueError for draws in a plate at dim −1, that of the data, and for modules that ``torch.vmap`` cannot run.
    """
    tensors = {**weights, **structure}
    leads = {value.shape[: value.dim() - len(shapes[name])] for name, value in tensors.items()}
    lead = next(iter(leads)) if len(leads) == 1 else torch.broadcast_shapes(*leads)
    if lead[-1] != 1:
        raise ValueError(f"model: expected particles in a plate at dim −2 or before, got draws of shape {tuple(lead)}.")

    def flat(tensors: Tensors) -> dict[str, torch.Tensor]:
        return {n: t.expand(lead + shapes[n]).reshape(-1, *shapes[n]) for n, t in tensors.items()}

    def run(means: Tensors, variances: Tensors, gamma: Tensors, data: Parts, *, skip_zeros: bool) -> torch.Tensor:
        drawn = {n: GaussianTensor.of(mean, variances[n]) if n in variances else mean for n, mean in means.items()}
        return network.with_weights(drawn, data or x, gamma, skip_zeros=skip_zeros)

    data = tuple(x) if isinstance(x, Dealt) else ()
    normal = {name: weight for name, weight in weights.items() if isinstance(weight, GaussianTensor)}
    parts = (
        flat({**weights, **{name: weight.mean_value for name, weight in normal.items()}}),
        flat({name: weight.variance for name, weight in normal.items()}),
        flat(structure),
    )
    if batched:
        try:
            outputs = torch.vmap(partial(run, skip_zeros=False), randomness="different")(*parts, data)
        except RuntimeError as error:
            raise ValueError(
                f"vectorize_particles: a module of the network cannot run batched over weights: {error} "
                "Pass vectorize_particles=False."
            ) from error
    else:
        each = []
        for index in range(lead.numel()):
            means, variances, gamma = ({n: t[index] for n, t in part.items()} for part in parts)
            each.append(run(means, variances, gamma, tuple(part[index] for part in data), skip_zeros=True))
        outputs = torch.stack(each)
    if outputs.dim() != 3:
        raise ValueError(
            f"vectorize_particles: expected outputs of shape (batch, features), got {tuple(outputs.shape[1:])}. "
            "Pass vectorize_particles=False, or flatten the outputs."
        )
    return outputs.reshape(*lead[:-1], *outputs.shape[1:])
