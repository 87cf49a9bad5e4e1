"""Selection: scores of discrete structures under weights that all of them share, to choose one by validation.

``inference.random_search.rank(score, structures)`` then gives the best of k, ``inference.evolution`` searches on.
"""

from __future__ import annotations

from collections.abc import Callable

from pyro import poutine

from pyro_nas.data import Labelled, check_pair
from pyro_nas.evidence.currencies import PyroCallable, SpaceModel
from pyro_nas.graph.enumeration import Vertex, hard_choices, key_of_structure
from pyro_nas.reading.batch_normalization import recalibrated
from pyro_nas.reading.posterior import accuracy, draw, mean_draw

__all__ = ["probable_draws", "shared_weight_score"]


def shared_weight_score(
    model: SpaceModel, guide: PyroCallable, calibration: Labelled, valid: Labelled
) -> Callable[[Vertex], float]:
    """Return a function of a structure: accuracy on ``valid`` with a guide's mean weights, given it, in classification.

    Batch normalisation takes its statistics anew for each structure, from ``calibration``, and has its own back after
    it. Both are pairs (x, y) on the model's device. SPOS, Guo et al. 2020, §3.4.

    Raises what ``check_pair`` raises for either.
    """
    for name, pair in {"calibration": calibration, "valid": valid}.items():
        check_pair(name, pair)
    x, y = valid

    def score(structure: Vertex) -> float:
        fixed = {site: table.to(y.device) for site, table in structure.items()}
        weights = mean_draw(poutine.condition(guide, data=fixed))
        draws = {**weights, **{site: table[None] for site, table in fixed.items()}}
        with recalibrated(model, draws, calibration):
            return accuracy(model, draws, x, y)

    return score


def probable_draws(model: SpaceModel, guide: PyroCallable, count: int) -> list[Vertex]:
    """Return the distinct structures among ``count`` draws of a guide, each at its nearest vertex."""
    drawn = draw(guide, num_samples=count)
    hard = {site: hard_choices(drawn[site], choices.restriction).cpu() for site, choices in model.choices.items()}
    structures = [{site: tables[index] for site, tables in hard.items()} for index in range(count)]
    return list({key_of_structure(structure): structure for structure in structures}.values())
