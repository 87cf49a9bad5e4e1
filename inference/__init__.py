"""Inference: the only room where an optimiser steps."""

from pyro_nas.inference import bilevel, darts, evolution, random_search, reinforce, schedules, svi
from pyro_nas.inference.stepper import NonFiniteLoss, adam, clipped, cosine, delayed, one_cycle

__all__ = [
    "NonFiniteLoss",
    "adam",
    "bilevel",
    "clipped",
    "cosine",
    "darts",
    "delayed",
    "evolution",
    "one_cycle",
    "random_search",
    "reinforce",
    "schedules",
    "svi",
]
