"""ArviZ: draws as its data, edges and choices as named dimensions, restarts as chains; and its diagnostics.

ArviZ is imported where it is used. 0.23 (Python 3.11) and 1.x differ in names and in types: here, and nowhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from pyro_nas.evidence.currencies import Tensors
from pyro_nas.graph.space import Choices, Space

__all__ = ["arviz", "mean_error", "pareto_smoothed", "r_hat", "restarts_r_hat", "to_arviz"]


def arviz() -> ModuleType:
    """Return the package, imported without the remark on its future that 0.23 makes once a day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
        import arviz
    return arviz


def r_hat(draws: torch.Tensor) -> float:
    """Return rank-normalised split r-hat of a number's draws, (chain, draw): 1 where chains agree.

    Vehtari et al. 2021.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # chains that stand still: infinite, or NaN
        return float(arviz().rhat(draws.numpy()))


def restarts_r_hat(restarts: Sequence[Tensors]) -> dict[str, float]:
    """Return r̂ over the draws of several restarts, {site: (draw, …)} each, by site: the largest of its numbers'.

    1 where the restarts agree. Above 1.01 they are at several modes: what each alone says of the posterior, its k̂ and
    evidence too, is of one of them. A number that is the same in all draws counts as 1.

    Raises ValueError for fewer than two restarts, and for restarts of different sites or shapes.
    """
    chains = _chains(restarts)
    if len(chains) < 2:
        raise ValueError(f"restarts: expected the draws of two restarts or more, got {len(chains)}. Fit again.")
    found = {}
    for site in chains[0]:
        draws = torch.stack([chain[site].detach().double().cpu() for chain in chains])  # (chain, draw, …)
        columns = draws.reshape(*draws.shape[:2], -1).unbind(-1)
        found[site] = max((1.0 if bool((part == part[0, 0]).all()) else r_hat(part) for part in columns), default=1.0)
    return found


def mean_error(draws: torch.Tensor) -> float:
    """Return the Monte-Carlo standard error of the mean of draws, (chain, draw), in their unit."""
    return float(arviz().mcse(draws.numpy(), method="mean"))


def pareto_smoothed(log_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Pareto-smoothed log weights, (…, draw), that sum to 1, and k̂, (…). Vehtari et al. 2024."""
    package = arviz()
    if hasattr(package, "psislw"):
        smoothed, k = package.psislw(log_weights.numpy())
    else:
        pairs = [_smoothed(weights) for weights in log_weights.reshape(-1, log_weights.shape[-1]).numpy()]
        smoothed = np.stack([weights for weights, _ in pairs]).reshape(log_weights.shape)
        k = np.array([shape for _, shape in pairs]).reshape(log_weights.shape[:-1])
    return torch.as_tensor(smoothed).log_softmax(-1), torch.as_tensor(k)


def _smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Return by ArviZ 1 the smoothed log weights, (draw,), and k̂; it takes the log likelihoods, their negatives.

    A tail of too few weights, or of equal ones, which it refuses, stays as it is with k̂ = ∞, as in 0.23.
    """
    from arviz_stats.base import array_stats

    try:
        smoothed, k = array_stats.psislw(-log_weights)
    except (ValueError, IndexError):
        return log_weights, float("inf")
    return smoothed, float(k)


def to_arviz(draws: Tensors | Sequence[Tensors], space: Space, *, weights: bool = False) -> Any:
    """Return draws, {site: (draw, …)}, or those of several restarts, one chain each, as ArviZ data.

    Structure sites become (chain, draw, edge, choice), labelled by edge and primitive; a choice that an edge lacks is
    NaN. r-hat across restarts says whether they agree. ``weights`` exports all other sites too, with
    ":" for "/" in their names.

    Raises ValueError for no draws, chains of different sites or shapes, draws that lack a site of the space, and where
    there is nothing to export.
    """
    chains = _chains([draws] if isinstance(draws, Mapping) else draws)
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
            variables[site.replace("/", ":")] = stacked.numpy()  # NetCDF has groups between slashes
    if not variables:
        raise ValueError("space: expected open choices to export, got none. Pass weights=True to export the weights.")
    package = arviz()
    grouped = int(package.__version__.partition(".")[0]) >= 1  # DataTree, not InferenceData
    return package.from_dict({"posterior": variables} if grouped else variables, coords=coords, dims=dims)


def _chains(draws: Sequence[Tensors]) -> list[Tensors]:
    """Return draws that go side by side: raise ValueError for none, and for different sites or shapes."""
    chains = list(draws)
    if not chains:
        raise ValueError("draws: expected draws, or a list of them, got an empty list.")
    sizes = [{site: tuple(value.shape) for site, value in chain.items()} for chain in chains]
    if any(size != sizes[0] for size in sizes):
        raise ValueError(f"draws: expected the same sites and shapes in every chain, got {sizes}.")
    return chains


def _labelled(gamma: torch.Tensor, choices: Choices) -> tuple[np.ndarray, list[str], list[str]]:
    """Spread (chain, draw, edge, choice) over the names of all edges' choices."""
    names = list(dict.fromkeys(name for row in choices.primitives for name in row))
    table = np.full((*gamma.shape[:-1], len(names)), np.nan, dtype=np.float32)
    for row, primitives in enumerate(choices.primitives):
        table[..., row, [names.index(name) for name in primitives]] = gamma[..., row, :].numpy()
    return table, [f"{j}→{k}" for j, k in choices.edges], names
