"""Pruning: which weights a posterior can do without, and what is left of the accuracy.

Scores are functions of a guide, masks of scores, and masks are applied to draws; nothing is trained again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyro_nas import checks
from pyro_nas.evidence.currencies import PyroCallable, SpaceModel, Tensors
from pyro_nas.evidence.packing import Packing
from pyro_nas.evidence.sites import same_law, sample_sites, unjoined
from pyro_nas.random_state import forked
from pyro_nas.reading.posterior import accuracy

__all__ = ["masks", "moments", "parametric_complexity", "prune", "pruning_curve", "relative_density", "stability"]

LEVELS = tuple(level / 10 for level in range(10))


def moments(guide: PyroCallable, packing: Packing, *args: object) -> tuple[Tensors, Tensors]:
    """Return mean μ and standard deviation σ of each weight under a guide, {name: tensor} each.

    Raises ValueError for a guide that does not draw the packed site "weights" from a law with these moments, one and
    the same whatever it draws for other sites.
    """
    with torch.no_grad(), forked():
        runs = [sample_sites(guide, args) for _ in range(2)]
    if "weights" not in runs[0]:
        raise ValueError(f"guide: expected one that draws the packed site 'weights', got one of {sorted(runs[0])}.")
    laws = [run["weights"]["fn"] for run in runs]
    law = unjoined(laws[0])
    sd = law.variance.sqrt()
    if not same_law(*laws) or not bool(((sd > 0) & sd.isfinite()).all()):
        raise ValueError(
            f"guide: expected a law of the weights with a mean and a spread of its own, got {type(law).__name__}, "
            "without a spread, or different from run to run. Use guides.MeanField or guides.LowRankNormal."
        )
    return packing.unpack(law.mean.detach()), packing.unpack(sd.detach())


def relative_density(mean: Tensors, sd: Tensors) -> dict[str, torch.Tensor]:
    """Return log ρ = −μ²/2σ² of each weight: the log-density at zero, relative to the mode (Graves 2011).

    In nats, {name: tensor} of the shapes of μ and σ. In logs, since ρ itself underflows where a weight matters.
    """
    return {name: -0.5 * (mean[name] / sd[name]).square() for name in mean}


def masks(scores: Tensors, fraction: float, scope: str = "layer", *, biases: bool = False) -> dict[str, torch.Tensor]:
    """Return which weights to keep when the ``fraction`` with the highest scores goes, {name: booleans}.

    ``scope``: the fraction is taken within each "layer" (tensor), or over all, "global". Biases (tensors of less than
    two axes) stay unless ``biases``. The number pruned is rounded down; among equal scores the first ones go.

    Raises ValueError for a fraction outside [0, 1] and another scope.
    """
    checks.number("fraction", fraction, low=0, high=1)
    checks.one_of("scope", scope, ["layer", "global"])
    chosen = {name: score for name, score in scores.items() if biases or score.dim() > 1}
    kept = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    groups = [[name] for name in chosen] if scope == "layer" else [list(chosen)]
    for group in filter(None, groups):
        flat = torch.cat([chosen[name].flatten() for name in group])
        keep = torch.ones_like(flat, dtype=torch.bool)
        keep[flat.sort(descending=True, stable=True).indices[: int(fraction * len(flat) + 1e-9)]] = False
        for name, part in zip(group, keep.split([chosen[name].numel() for name in group]), strict=True):
            kept[name] = part.view_as(chosen[name])
    return kept


def prune(draws: Tensors, keep: Tensors, packing: Packing) -> dict[str, torch.Tensor]:
    """Return draws, {site: (draw, …)}, with the weights that are not kept set to zero."""
    return {**draws, "weights": draws["weights"] * packing.pack(keep)}


def pruning_curve(
    model: SpaceModel,
    draws: Tensors,
    scores: Tensors,
    x: torch.Tensor,
    y: torch.Tensor,
    levels: Sequence[float] = LEVELS,
    *,
    scope: str = "layer",
    biases: bool = False,
) -> list[float]:
    """Return the accuracy on (x, y) of the predictive mean of ``draws`` after pruning to each level.

    ``scope`` and ``biases`` as in ``masks``. The draw at the posterior means alone gives the network at the means.

    Raises ValueError as ``masks`` and ``accuracy``.
    """
    kept = [masks(scores, level, scope=scope, biases=biases) for level in levels]
    return [accuracy(model, prune(draws, keep, model.packing), x, y) for keep in kept]


def stability(curve: Sequence[float]) -> float:
    """Return S = accuracy unpruned / accuracy after pruning most (hypernetwork paper, §4): 1 is perfectly stable."""
    return curve[0] / max(curve[-1], 1e-12)


def parametric_complexity(mean: Tensors, sd: Tensors) -> float:
    """Return min over h of KL(q ‖ p(· | h)) in nats for zero-mean normal priors of free variance per weight.

    ½ Σ log(1 + μ²/σ²), attained at the variance μ² + σ² (evidence lecture, parametric complexity).
    """
    return float(sum(0.5 * (mean[name] / sd[name]).square().double().log1p().sum() for name in mean))
