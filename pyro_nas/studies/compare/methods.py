"""Methods of the comparison: ways to one structure, all of one space, data and budget of processed images.

A budget counts the images that pass forward through the network while it is searched, in training and in choosing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Unpack

import torch

from pyro_nas.data import Labelled
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.enumeration import Vertex, key_of_structure
from pyro_nas.inference import adam, bilevel, darts, delayed, evolution, random_search, schedules, svi
from pyro_nas.inference.schedules import Schedule
from pyro_nas.models import Model, guides, structures
from pyro_nas.models.guides import Guide
from pyro_nas.models.structures import StructurePrior
from pyro_nas.reading.posterior import draw, mean_draw
from pyro_nas.reading.robustness import accuracy
from pyro_nas.reading.selection import probable_draws, shared_weight_score
from pyro_nas.reading.structure_posterior import choice_probabilities
from pyro_nas.studies.compare.task import Count, SearchResult, Task
from pyro_nas.studies.fit_arguments import BilevelArguments

SCORED = 1024  # validation images that a structure is scored by
CALIBRATED = 512  # training images from which its batch normalisation is
SAMPLED = 10  # draws of a posterior of which the best is taken
DRAWS = 5  # of a searched network that has a posterior


def vardarts(task: Task) -> SearchResult:
    """Bilevel variational inference: Normal weights, Gumbel-Softmax structure (VarDARTS thesis talk)."""
    return _bilevel(
        task, structures.gumbel_softmax(), lambda model: guides.MeanField(model, task.initial_scale),
        temperature=_annealed(),
    )  # fmt: skip


def darts_first_order(task: Task) -> SearchResult:
    """DARTS of first order: point weights and point structure on the simplex."""
    return _bilevel(task, structures.dirichlet(), guides.PointMass)


def darts_second_order(task: Task) -> SearchResult:
    """DARTS of second order: four passes a step instead of two, so half the epochs."""
    fit = partial(darts.fit, rate=task.lr)
    return _bilevel(task, structures.dirichlet(), guides.PointMass, fit, passes=2)


def hard(task: Task) -> SearchResult:
    """Straight-through samples: one primitive an edge runs (GDAS, Dong and Yang 2019)."""
    return _bilevel(task, structures.straight_through(), guides.PointWeights, temperature=_annealed())


def dirichlet(task: Task) -> SearchResult:
    """Dirichlet structure (DrNAS, Chen et al. 2021), point weights."""
    return _bilevel(task, structures.dirichlet(), guides.PointWeights)


def reinforce(task: Task) -> SearchResult:
    """Score-function gradients of a categorical structure with a moving baseline (ENAS, Pham et al. 2018)."""
    return _bilevel(task, structures.categorical(), guides.PointWeights)


def snas(task: Task) -> SearchResult:
    """Gumbel-Softmax structure and point weights on one objective, all known data (SNAS, Xie et al. 2019)."""
    known = task.split.known
    model = replace(task, split=replace(task.split, train=known)).model(structures.gumbel_softmax())
    guide = guides.PointWeights(model).to(task.device)
    return _searched(
        task, model, guide, svi.fit, known, epochs=task.epochs(len(known[1])), structure_per_example=True,
        temperature=_annealed(),
    )  # fmt: skip


def single_path(task: Task) -> SearchResult:
    """Weights under uniform paths, then evolution by validation accuracy (SPOS, Guo et al. 2020)."""
    train = task.split.train
    model = task.model(structures.categorical())
    guide = guides.PointWeights(model).to(task.device)
    guide.structure.requires_grad_(False)  # the uniform prior
    start = time.perf_counter()
    with Count(model) as count:
        epochs = max(1, int(0.75 * task.images // len(train[1])))
        svi.fit(model, guide, train, **task.fit_options(epochs))
        cost = min(CALIBRATED, len(train[1])) + min(SCORED, len(task.split.valid[1]))
        most = max(8, (task.images - count.images) // cost)
        scored = evolution.search(
            task.space, score_of(task, model, guide), population=max(2, most // 4), generations=4,
            parents=max(2, most // 20), seed=task.seed,
        )  # fmt: skip
    seconds, best = time.perf_counter() - start, scored[0].structure
    draws = {**mean_draw(guide), **{site: table[None].to(task.device) for site, table in best.items()}}
    return SearchResult(best, count.images, seconds, model, draws)


class Child(NamedTuple):
    """A network that random search trained, and the images that it saw."""

    model: Model
    guide: Guide
    images: int


def random(task: Task) -> SearchResult:
    """Distinct uniform structures, each trained for its share of the budget; the best by validation accuracy."""
    train, start = task.split.train, time.perf_counter()
    children: dict[tuple[object, ...], Child] = {}
    validated = min(SCORED, len(task.split.valid[1]))
    epochs = max(1, int((task.images / task.children - validated) // len(train[1])))

    def score(structure: Vertex) -> float:
        model = task.model(space=derive(task.space, structure))
        guide = guides.PointWeights(model).to(task.device)
        with Count(model) as count:
            svi.fit(model, guide, train, **task.fit_options(epochs))
            result = accuracy(model, mean_draw(guide), *first(task, task.split.valid, SCORED))
        children[key_of_structure(structure)] = Child(model, guide, count.images)
        return result

    number = max(1, round(task.images / (epochs * len(train[1]) + validated)))
    best = random_search.search(task.space, score, number, task.seed)[0].structure
    seconds, child = time.perf_counter() - start, children[key_of_structure(best)]
    images = sum(other.images for other in children.values())
    return SearchResult(best, images, seconds, child.model, mean_draw(child.guide))


METHODS: dict[str, Callable[[Task], SearchResult]] = {
    "vardarts": vardarts,
    "darts": darts_first_order,
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


def score_of(task: Task, model: Model, guide: Guide) -> Callable[[Vertex], float]:
    """Return the score of structures under the weights of a search."""
    split = task.split
    return shared_weight_score(model, guide, first(task, split.train, CALIBRATED), first(task, split.valid, SCORED))


def discretised(task: Task, result: SearchResult, how: str) -> SearchResult:
    """Return what a search left as one structure: "argmax" of its probabilities, a "sample", or the "best" of ten.

    The best of ten draws is by validation accuracy under the weights of the search; its images come on top of the
    budget, and are counted. (SNAS has trained on the validation part: for it that is no validation.)
    """
    if how == "argmax" or result.guide is None:
        return result
    model, guide = result.model, result.guide
    torch.manual_seed(task.seed)
    drawn = probable_draws(model, guide, 1 if how == "sample" else SAMPLED)
    start = time.perf_counter()
    with Count(model) as count:
        best = drawn[0] if how == "sample" else random_search.rank(score_of(task, model, guide), drawn)[0].structure
    seconds = result.seconds + time.perf_counter() - start
    return replace(result, structure=best, images=result.images + count.images, seconds=seconds)


def _annealed() -> Schedule:
    return schedules.geometric(1.0, 0.2)


def _bilevel(
    task: Task,
    structure: StructurePrior,
    make_guide: Callable[[Model], Guide],
    fit: Callable[..., object] = bilevel.fit,
    *,
    passes: int = 1,
    **options: Unpack[BilevelArguments],
) -> SearchResult:
    """Search with weights on the training part and structure on the validation part, in ``passes`` over both a step."""
    model = task.model(structure)
    train, valid = task.split.train, task.split.valid
    options = {
        "epochs": task.epochs(passes * (len(train[1]) + len(valid[1]))),
        "structure_optimizer": adam(task.structure_lr),
        "structure_scheduler": delayed(),
        "measure_validation": False,
        **options,
    }
    return _searched(task, model, make_guide(model).to(task.device), fit, train, valid, **options)


def _searched(
    task: Task,
    model: Model,
    guide: Guide,
    fit: Callable[..., object],
    *parts: Labelled,
    **options: Unpack[BilevelArguments],
) -> SearchResult:
    """Fit a pair and return its choice probabilities; a point structure is its own, the weights of its mixture."""
    start = time.perf_counter()
    with Count(model) as count:
        fit(model, guide, *parts, **{**task.fit_options(options["epochs"]), **options})
    seconds = time.perf_counter() - start
    probabilities = {site: table.cpu() for site, table in choice_probabilities(guide).items()}
    if isinstance(guide, guides.PointMass):
        draws = mean_draw(guide)
        probabilities = {site: draws[site][0].cpu() for site in probabilities}
    else:
        draws = draw(guide, num_samples=DRAWS)
    return SearchResult(probabilities, count.images, seconds, model, draws, guide)
