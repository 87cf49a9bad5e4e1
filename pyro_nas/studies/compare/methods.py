"""Methods of the comparison: ways to one structure, all of one space, data and budget of processed images.

A budget counts the images that pass forward through the network while it is searched, in training and in choosing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pyro_nas.data import Labelled
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.enumeration import Vertex, key_of_structure
from pyro_nas.reading.posterior import draw, mean_draw
from pyro_nas.reading.robustness import accuracy
from pyro_nas.reading.selection import probable_draws, shared_weight_score
from pyro_nas.reading.structure_posterior import choice_probabilities
from pyro_nas.studies.compare.task import Count, Found, Task

SCORED = 1024  # validation images that a structure is scored by
CALIBRATED = 512  # training images from which its batch normalisation is
SAMPLED = 10  # draws of a posterior of which the best is taken
DRAWS = 5  # of a searched network that has a posterior


def _searched(
    task: Task, model: Any, guide: Any, fit: Callable[..., Any], *data: Any, epochs: int, **own: Any
) -> Found:
    """Fit a pair and return its choice probabilities; a point structure is its own, the weights of its mixture."""
    start = time.perf_counter()
    with Count(model) as count:
        fit(model, guide, *data, **{**task.fit_options(epochs), **own})
    seconds = time.perf_counter() - start
    probabilities = {site: table.cpu() for site, table in choice_probabilities(guide).items()}
    if isinstance(guide, models.guides.PointMass):
        draws = mean_draw(guide)
        probabilities = {site: draws[site][0].cpu() for site in probabilities}
    else:
        draws = draw(guide, num_samples=DRAWS)
    return Found(probabilities, count.images, seconds, model, draws, guide)


def _bilevel(
    task: Task,
    structure: Any,
    guide: Callable[[Any], Any],
    fit: Callable[..., Any] | None = None,
    passes: int = 1,
    **own: Any,
) -> Found:
    model = task.model(structure)
    train, valid = task.split.train, task.split.valid
    inference = task.inference
    own = {
        "structure_optimizer": inference.adam(task.structure_lr),
        "structure_scheduler": inference.delayed(),
        "measure_validation": False,
        **own,
    }
    epochs = task.epochs(passes * (len(train[1]) + len(valid[1])))
    return _searched(
        task, model, guide(model).to(task.device), fit or inference.bilevel.fit, train, valid, epochs=epochs, **own
    )


def _annealed(task: Task) -> dict[str, Any]:
    return {"temperature": inference.schedules.geometric(1.0, 0.2)}


def vardarts(task: Task) -> Found:
    """Bilevel variational inference: Normal weights, Gumbel-Softmax structure (VarDARTS thesis talk)."""
    structures, guides = models.structures, models.guides
    return _bilevel(
        task, structures.gumbel_softmax(), lambda model: guides.MeanField(model, task.initial_scale), **_annealed(task)
    )


def darts(task: Task) -> Found:
    """DARTS of first order: point weights and point structure on the simplex."""
    models = task.models
    return _bilevel(task, models.structures.dirichlet(), models.guides.PointMass)


def darts_second_order(task: Task) -> Found:
    """DARTS of second order: four passes a step instead of two, so half the epochs."""
    models = task.models
    fit = inference.darts.fit
    return _bilevel(task, models.structures.dirichlet(), models.guides.PointMass, fit=fit, passes=2, rate=task.lr)


def hard(task: Task) -> Found:
    """Straight-through samples: one primitive an edge runs (GDAS, Dong and Yang 2019)."""
    models = task.models
    return _bilevel(task, models.structures.straight_through(), models.guides.PointWeights, **_annealed(task))


def dirichlet(task: Task) -> Found:
    """Dirichlet structure (DrNAS, Chen et al. 2021), point weights."""
    models = task.models
    return _bilevel(task, models.structures.dirichlet(), models.guides.PointWeights)


def reinforce(task: Task) -> Found:
    """Score-function gradients of a categorical structure with a moving baseline (ENAS, Pham et al. 2018)."""
    models = task.models
    return _bilevel(task, models.structures.categorical(), models.guides.PointWeights)


def snas(task: Task) -> Found:
    """Gumbel-Softmax structure and point weights on one objective, all known data (SNAS, Xie et al. 2019)."""
    models = task.models
    known = task.split.known
    model = replace(task, split=replace(task.split, train=known)).model(models.structures.gumbel_softmax())
    guide = models.guides.PointWeights(model).to(task.device)
    return _searched(task, model, guide, inference.svi.fit, known, epochs=task.epochs(len(known[1])),
                     structure_per_example=True, **_annealed(task))  # fmt: skip


def single_path(task: Task) -> Found:
    """Weights under uniform paths, then evolution by validation accuracy (SPOS, Guo et al. 2020)."""
    models, train = task.models, task.split.train
    model = task.model(models.structures.categorical())
    guide = models.guides.PointWeights(model).to(task.device)
    guide.structure.requires_grad_(False)  # the uniform prior
    start = time.perf_counter()
    with Count(model) as count:
        epochs = max(1, int(0.75 * task.images // len(train[1])))
        inference.svi.fit(model, guide, train, **task.fit_options(epochs))
        score = score_of(task, model, guide)
        cost = min(CALIBRATED, len(train[1])) + min(SCORED, len(task.split.valid[1]))
        most = max(8, (task.images - count.images) // cost)
        found = inference.evolution.search(
            task.space, score, population=max(2, most // 4), generations=4, parents=max(2, most // 20), seed=task.seed
        )
    seconds, best = time.perf_counter() - start, found[0].structure
    draws = {**mean_draw(guide), **{site: table[None].to(task.device) for site, table in best.items()}}
    return Found(best, count.images, seconds, model, draws)


def random(task: Task) -> Found:
    """Distinct uniform structures, each trained for its share of the budget; the best by validation accuracy."""
    train, start, images = task.split.train, time.perf_counter(), 0
    trained: dict[Any, tuple[Any, Any]] = {}
    scored = min(SCORED, len(task.split.valid[1]))
    epochs = max(1, int((task.images / task.children - scored) // len(train[1])))

    def score(structure: Vertex) -> float:
        nonlocal images
        model = task.model(space=derive(task.space, structure))
        guide = models.guides.PointWeights(model).to(task.device)
        with Count(model) as count:
            inference.svi.fit(model, guide, train, **task.fit_options(epochs))
            result = accuracy(model, mean_draw(guide), *first(task, task.split.valid, SCORED))
        images += count.images
        trained[key_of_structure(structure)] = model, guide
        return result

    share = epochs * len(train[1]) + scored
    children = max(1, round(task.images / share))
    found = inference.random_search.search(task.space, score, children, task.seed)
    seconds, best = time.perf_counter() - start, found[0].structure
    model, guide = trained[key_of_structure(best)]
    return Found(best, images, seconds, model, mean_draw(guide))


METHODS: dict[str, Callable[[Task], Found]] = {
    "vardarts": vardarts,
    "darts": darts,
    "darts_second_order": darts_second_order,
    "snas": snas,
    "hard": hard,
    "dirichlet": dirichlet,
    "single_path": single_path,
    "random": random,
    "reinforce": reinforce,
}


def first(task: Task, pair: Labelled, count: int) -> Labelled:
    """Return the first data of a part, on the device."""
    x, y = (part[:count].to(task.device) for part in pair)
    return x, y


def score_of(task: Task, model: Any, guide: Any) -> Callable[[Vertex], float]:
    """Return the score of structures under the weights of a search."""
    split = task.split
    return shared_weight_score(model, guide, first(task, split.train, CALIBRATED), first(task, split.valid, SCORED))


def discretised(task: Task, found: Found, how: str) -> Found:
    """Return what a search found as one structure: "argmax" of its probabilities, a "sample", or the "best" of ten.

    The best of ten draws is by validation accuracy under the weights of the search; its images come on top of the
    budget, and are counted. (SNAS has trained on the validation part: for it that is no validation.)
    """
    if how == "argmax" or found.guide is None:
        return found
    model, guide = found.model, found.guide
    torch.manual_seed(task.seed)
    drawn = probable_draws(model, guide, 1 if how == "sample" else SAMPLED)
    start = time.perf_counter()
    with Count(model) as count:
        best = (
            drawn[0]
            if how == "sample"
            else inference.random_search.rank(score_of(task, model, guide), drawn)[0].structure
        )
    seconds = found.seconds + time.perf_counter() - start
    return replace(found, structure=best, images=found.images + count.images, seconds=seconds)
