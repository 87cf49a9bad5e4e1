"""Models, the only room where ``pyro.sample`` is written: priors, likelihoods, the model, guides, network families."""

from pyro_nas.models import (
    bayesian_network,
    buffet,
    cell_spaces,
    costs,
    families,
    guides,
    hypernets,
    learned_priors,
    likelihoods,
    polynomials,
    priors,
    structures,
    superposition,
    zoo,
)
from pyro_nas.models.model import Model

__all__ = [
    "Model",
    "bayesian_network",
    "buffet",
    "cell_spaces",
    "costs",
    "families",
    "guides",
    "hypernets",
    "learned_priors",
    "likelihoods",
    "polynomials",
    "priors",
    "structures",
    "superposition",
    "zoo",
]
