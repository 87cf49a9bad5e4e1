"""Models, the only room where ``pyro.sample`` is written: priors, likelihoods, the model and guides."""

from pyro_nas.models import (
    buffet,
    cost_factors,
    every_structure,
    guides,
    hypernets,
    learned_priors,
    likelihoods,
    priors,
    structures,
)
from pyro_nas.models.model import Model

__all__ = [
    "Model",
    "buffet",
    "cost_factors",
    "every_structure",
    "guides",
    "hypernets",
    "learned_priors",
    "likelihoods",
    "priors",
    "structures",
]
