"""Selection: scores of discrete structures under weights that all of them share, to choose one by validation.

``inference.random_search.rank(score, structures)`` then gives the best of k, ``inference.evolution`` searches on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine

from pyro_nas.data import Labelled, check_pair
from pyro_nas.graph.enumeration import Vertex, hard_choices, key_of_structure
from pyro_nas.reading.batch_normalization import recalibrated
from pyro_nas.reading.posterior import draw, mean_draw, predict


def shared_weight_score(model: Any, guide: Any, calibration: Labelled, valid: Labelled) -> Callable[[Vertex], float]:
    """Return a function of a structure: accuracy on ``valid`` with a guide's mean weights, given it, in classification.

    Batch normalisation takes its statistics anew for each structure, from ``calibration``, and has its own back after
    it. Both are pairs (x, y) on the model's device. SPOS, Guo et al. 2020, §3.4.
    """
    for name, pair in {"calibration": calibration, "valid": valid}.items():
        check_pair(name, pair)
    x, y = valid

    def score(structure: Vertex) -> float:
        fixed = {site: table.to(y.device) for site, table in structure.items()}
        weights = mean_draw(poutine.condition(guide, data=fixed))
        draws = {**weights, **{site: table[None] for site, table in fixed.items()}}
        with recalibrated(model, draws, calibration):
            return float((predict(model, draws, x).argmax(-1) == y).double().mean())

    return score


def probable_draws(model: Any, guide: Any, count: int) -> list[Vertex]:
    """Return the distinct structures among ``count`` draws of a guide, each at its nearest vertex."""
    drawn = draw(guide, num_samples=count)
    hard = {site: hard_choices(drawn[site], own.restriction).cpu() for site, own in model.choices.items()}
    found = [{site: tables[index] for site, tables in hard.items()} for index in range(count)]
    return list({key_of_structure(structure): structure for structure in found}.values())
