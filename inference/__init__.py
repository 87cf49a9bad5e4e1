"""Inference: the only room where an optimiser steps."""

from pyro_nas.inference import (
    bilevel,
    cross_validation,
    darts,
    distinct,
    empirical_bayes,
    evolution,
    kronecker,
    laplace_approximation,
    random_search,
    reinforce,
    sampling,
    schedules,
    svi,
    tempering,
    trajectory,
)
from pyro_nas.inference.result import Fit
from pyro_nas.inference.stepper import NonFiniteLoss, adam, clipped, cosine, delayed, one_cycle

__all__ = [
    "Fit",
    "NonFiniteLoss",
    "adam",
    "bilevel",
    "clipped",
    "cosine",
    "cross_validation",
    "darts",
    "delayed",
    "distinct",
    "empirical_bayes",
    "evolution",
    "kronecker",
    "laplace_approximation",
    "one_cycle",
    "random_search",
    "reinforce",
    "sampling",
    "schedules",
    "svi",
    "tempering",
    "trajectory",
]
