"""Settings of a search, and what they name: priors, guide and the options of its fits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_nas import checks
from pyro_nas.inference import adam, one_cycle, schedules
from pyro_nas.inference.schedules import Schedule
from pyro_nas.inference.stepper import OptimizerFactory
from pyro_nas.models import Model, guides, priors, structures
from pyro_nas.studies.fit_arguments import FitArguments

INITIAL_SCALE = 0.02
GUIDES: dict[str, Callable[[Model], guides.Guide]] = {
    "mean_field": lambda model: guides.MeanField(model, INITIAL_SCALE),
    "low_rank": lambda model: guides.LowRankNormal(model, initial_scale=INITIAL_SCALE),
    "point_mass": guides.PointMass,
    "point_weights": guides.PointWeights,
    "structure_conditioned": lambda model: guides.StructureConditioned(model, initial_scale=INITIAL_SCALE),
}
WEIGHTS: dict[str, Callable[[float], priors.WeightPrior]] = {
    "normal": lambda gain: priors.normal(priors.fan_in(gain)),
    "laplace": lambda gain: priors.laplace(priors.fan_in(gain / 2**0.5)),
    "relevance_determination": lambda gain: priors.relevance_determination(priors.fan_in(gain)),
}
STRUCTURES: dict[str, Callable[[], structures.StructurePrior]] = {
    "gumbel_softmax": structures.gumbel_softmax,
    "straight_through": structures.straight_through,
    "dirichlet": structures.dirichlet,
    "categorical": structures.categorical,
    "relaxed_bernoulli": structures.relaxed_bernoulli,
    "bernoulli": structures.bernoulli,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command that its result depends on: what config.json holds."""

    data: str
    root: str | None
    space: str
    guide: str
    weights: str
    structure: str
    prior_gain: float
    complexity: float
    epochs: int | None
    retrain_epochs: int | None
    batch_size: int
    lr: float
    structure_lr: float
    draws: int
    seed: int
    device: str


@dataclass(frozen=True)
class Parts:
    """What checked settings name. ``options`` are of both fits, the rest of the fit options of the search alone."""

    device: torch.device
    make_guide: Callable[[Model], guides.Guide]
    weights: priors.WeightPrior
    structure: structures.StructurePrior
    options: FitArguments
    structure_optimizer: OptimizerFactory
    temperature: Schedule | None


def parts_of(settings: Settings) -> Parts:
    """Check settings and return what they name; raise ValueError, which names the setting."""
    checks.seed(settings.seed)
    checks.integer("draws", settings.draws, low=1)
    device = checks.device("device", settings.device)
    make_guide = GUIDES[checks.one_of("guide", settings.guide, GUIDES)]
    structure = STRUCTURES[checks.one_of("structure", settings.structure, STRUCTURES)]()
    make_weights = WEIGHTS[checks.one_of("weights", settings.weights, WEIGHTS)]
    gain = checks.number("prior_gain", settings.prior_gain, low=0, open_low=True)
    checks.integer("batch_size", settings.batch_size, low=1)
    for name, epochs in {"epochs": settings.epochs, "retrain_epochs": settings.retrain_epochs}.items():
        if epochs is not None:
            checks.integer(name, epochs, low=1)
    options: FitArguments = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "progress": sys.stderr.isatty(),
        "local_reparameterization": settings.guide in ("mean_field", "structure_conditioned"),
        "optimizer": adam(settings.lr),
        "scheduler": one_cycle(settings.lr),
    }
    annealed = structure.temperature is not None and settings.structure != "dirichlet"
    temperature = schedules.geometric(1.0, 0.1) if annealed else None
    optimizer = adam(settings.structure_lr)
    return Parts(device, make_guide, make_weights(gain), structure, options, optimizer, temperature)
