"""Training of the rows of the complexity study: ways to a posterior at every λ."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from pyro.distributions.torch_distribution import TorchDistribution

from pyro_nas.inference import svi
from pyro_nas.models import Model
from pyro_nas.models.guides import Guide
from pyro_nas.models.hypernets import Hypernetwork
from pyro_nas.studies.complexity.setting import COMPLEXITIES, Setting
from pyro_nas.studies.fit_arguments import FitArguments


@dataclass(frozen=True)
class Trained:
    """A trained row: a plain pair at each λ, the parameter updates it took, its hypernetwork where it has one."""

    pairs: dict[float, tuple[Model, Guide]]
    updates: int
    seconds: float
    hypernet: Hypernetwork | None = None


def directly(setting: Setting, epochs: int) -> Trained:
    """Train a mean-field guide at each λ by itself; updates are summed over λ."""
    pairs: dict[float, tuple[Model, Guide]] = {}
    updates, seconds = 0, 0.0
    for complexity in COMPLEXITIES:
        torch.manual_seed(setting.seed)
        model = setting.model(complexity)
        guide = setting.guide(model)
        pairs[complexity] = (model, guide)
        more, spent = _fit(setting, model, guide, epochs=epochs)
        updates, seconds = updates + more, seconds + spent
    return Trained(pairs, updates, seconds)


def by_hypernetwork(
    setting: Setting, make: Callable[[Guide], Hypernetwork], prior: TorchDistribution, **options: Unpack[FitArguments]
) -> Trained:
    """Train a hypernetwork once, with λ of this prior."""
    torch.manual_seed(setting.seed)
    model = setting.model(prior)
    hypernet = make(setting.guide(model)).to(setting.device)
    updates, seconds = _fit(setting, model, hypernet, **options)
    pairs = {complexity: hypernet.at(complexity) for complexity in COMPLEXITIES}
    return Trained(pairs, updates, seconds, hypernet)


def tuned(setting: Setting, trained: Trained, hypernet: Hypernetwork) -> Trained:
    """Train the plain guides of a hypernetwork for one epoch each; updates count one of them, as the paper does."""
    pairs: dict[float, tuple[Model, Guide]] = {}
    updates, seconds = 0, trained.seconds
    for complexity in trained.pairs:
        model, guide = pairs[complexity] = hypernet.at(complexity)
        more, spent = _fit(setting, model, guide, epochs=1)
        updates, seconds = updates + more, seconds + spent
    return Trained(pairs, trained.updates + updates // len(pairs), seconds)


def _fit(
    setting: Setting, model: Model, guide: Guide | Hypernetwork, **options: Unpack[FitArguments]
) -> tuple[int, float]:
    """Fit, and return the updates and the seconds that it took."""
    start = time.perf_counter()
    taken: FitArguments = {**setting.options, **options, "seed": setting.seed}
    records = svi.fit(model, guide, setting.train, **taken).records
    return records[-1]["updates"], time.perf_counter() - start
