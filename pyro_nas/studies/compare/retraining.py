"""Retraining of what a search found: on all known data, augmented, by points or with a posterior and rarer edges."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import torch

from pyro_nas import augmentation as augmentations
from pyro_nas.evidence.sites import is_structure
from pyro_nas.graph.derivation import with_optional_edges
from pyro_nas.graph.space import Space
from pyro_nas.inference import schedules, svi
from pyro_nas.inference.options import Record
from pyro_nas.models import Model, guides, structures
from pyro_nas.models.guides import Guide
from pyro_nas.reading.posterior import draw, mean_draw
from pyro_nas.studies.compare.sizes import Size
from pyro_nas.studies.compare.task import Task

DRAWS = 10  # networks that a prediction by a posterior averages
CERTAIN = 1 - 1e-6
EDGE_TEMPERATURE = 0.05  # of the presence of edges: near 0 or 1


class Fitted(NamedTuple):
    """A retrained pair and the seconds that it took."""

    model: Model
    guide: Guide
    seconds: float


def retrain(task: Task, size: Size, architecture: Space, *, posterior: bool, epochs: int) -> Fitted:
    """Fit a network with nothing left to choose to all known data, augmented.

    With a posterior, weights are Normal; where ``size.presence`` is below 1, each example then also sees its own cells,
    in which edges are present at random, by prior and posterior alike, fewer from epoch to epoch.
    """
    known = task.split.known
    full = replace(task, lr=size.retrain_lr, split=replace(task.split, train=known))
    optional = posterior and size.presence < 1
    if optional:
        model = full.model(structures.relaxed_bernoulli(EDGE_TEMPERATURE), with_optional_edges(architecture))
    else:
        model = full.model(space=architecture)
    guide = guides.MeanField(model, task.initial_scale) if posterior else guides.PointWeights(model)
    fall = schedules.linear(1.0, size.presence)

    def make_rarer(record: Record) -> None:
        _set_presence(model, guide, fall(min(1.0, (record["epoch"] + 2) / epochs)))

    if optional:
        guide.structure.requires_grad_(False)
        _set_presence(model, guide, fall(1 / epochs))
    guide.to(task.device)
    parts = [augmentations.shift(size.shifted, fill=float(known[0].min()))] if size.shifted else []
    parts += [augmentations.mirror()] if size.mirrored else []
    start = time.perf_counter()
    arguments = full.fit_options(epochs)
    arguments["augmentation"] = augmentations.compose(*parts)
    arguments["structure_per_example"] = optional
    arguments["callbacks"] = [make_rarer] if optional else []
    svi.fit(model, guide, known, **arguments)
    return Fitted(model, guide, time.perf_counter() - start)


def ways_of(guide: Guide, *, posterior: bool) -> dict[str, dict[str, torch.Tensor]]:
    """Return the draws that a retrained network is judged by: its mean, "point", and draws of its "posterior".

    All edges are present in both.
    """
    mean = mean_draw(guide)
    if not posterior:
        return {"point": mean}
    whole = {site: value.expand(DRAWS, -1, -1) for site, value in mean.items() if is_structure(site)}
    return {"point": mean, "posterior": {**draw(guide, num_samples=DRAWS), **whole}}


def _set_presence(model: Model, guide: Guide, probability: float) -> None:
    """Set the probability of each edge of the cells, in prior and posterior; edges that only collect are certain."""
    for _, cell in model.space.children():
        for choices in cell.own_choices():
            collect = [cell.aggregations.get(vertex) == "concatenation" for _, vertex in choices.edges]
            table = [[CERTAIN if only else min(probability, CERTAIN)] for only in collect]
            model.structure_probabilities(choices.site).copy_(torch.tensor(table))
    guide.follow_prior()
