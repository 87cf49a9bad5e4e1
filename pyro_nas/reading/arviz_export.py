"""Draws as ArviZ data, with edges and choices as named dimensions and independent restarts as chains."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*ArviZ is undergoing a major refactor", FutureWarning)  # of 0.23, at import
    import arviz as az

from pyro_nas.graph.space import Choices, Space

Draws = Mapping[str, torch.Tensor]


def to_arviz(draws: Draws | Sequence[Draws], space: Space, weights: bool = False) -> Any:
    """Return draws, {site: (draw, …)}, or those of several restarts, one chain each, as ArviZ data.

    Structure sites become (chain, draw, edge, choice), labelled by edge and primitive; a choice that an edge lacks is
    NaN. r-hat across restarts says whether they agree. ``weights`` exports all other sites too.
    """
    chains = [draws] if isinstance(draws, Mapping) else list(draws)
    if not chains:
        raise ValueError("draws: expected draws, or a list of them, got an empty list.")
    sizes = [{site: tuple(value.shape) for site, value in chain.items()} for chain in chains]
    if any(size != sizes[0] for size in sizes):
        raise ValueError(f"draws: expected the same sites and shapes in every chain, got {sizes}.")
    open_choices = space.choices()
    missing = [site for site in open_choices if site not in chains[0]]
    if missing:
        raise ValueError(f"draws: expected the space's sites {list(open_choices)}, got {list(chains[0])}.")
    variables: dict[str, np.ndarray] = {}
    dims: dict[str, list[str]] = {}
    coords: dict[str, list[str]] = {}
    for site in chains[0]:
        stacked = torch.stack([chain[site].detach().cpu() for chain in chains])
        if site in open_choices:
            edge, choice = (f"{site} edge", f"{site} choice")
            variables[site], coords[edge], coords[choice] = _labelled(stacked, open_choices[site])
            dims[site] = [edge, choice]
        elif weights:
            variables[site] = stacked.numpy()
    if not variables:
        raise ValueError("space: expected open choices to export, got none. Pass weights=True to export the weights.")
    data: Any = {"posterior": variables} if int(az.__version__.split(".")[0]) >= 1 else variables
    return az.from_dict(data, coords=coords, dims=dims)


def _labelled(gamma: torch.Tensor, choices: Choices) -> tuple[np.ndarray, list[str], list[str]]:
    """Spread (chain, draw, edge, choice) over the names of all edges' choices."""
    names = list(dict.fromkeys(name for row in choices.primitives for name in row))
    table = np.full((*gamma.shape[:-1], len(names)), np.nan, dtype=np.float32)
    for row, primitives in enumerate(choices.primitives):
        table[..., row, [names.index(name) for name in primitives]] = gamma[..., row, :].numpy()
    return table, [f"{j}→{k}" for j, k in choices.edges], names
