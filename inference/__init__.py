"""Inference: the only room where an optimiser steps."""

from pyro_nas.inference import bilevel, schedules, svi
from pyro_nas.inference.stepper import NonFiniteLoss, adam, clipped, delayed, one_cycle

__all__ = ["NonFiniteLoss", "adam", "bilevel", "clipped", "delayed", "one_cycle", "schedules", "svi"]
