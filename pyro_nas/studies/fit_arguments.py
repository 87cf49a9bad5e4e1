"""Arguments of fits, as the studies hand them on from one function to the next: a misspelt one is found by mypy."""

from __future__ import annotations

from pyro_nas.inference.options import FitOptions
from pyro_nas.inference.stepper import OptimizerFactory, SchedulerFactory


class FitArguments(FitOptions, total=False):
    """Keyword arguments of ``svi.fit``."""

    optimizer: OptimizerFactory | None
    scheduler: SchedulerFactory | None


class BilevelArguments(FitArguments, total=False):
    """And those of ``bilevel.fit``."""

    structure_optimizer: OptimizerFactory
    structure_scheduler: SchedulerFactory
