"""Bayesian selection of neural architectures, as probabilistic programs.

A network family is a graph whose edges carry alternative primitives; weights and structure are latent variables of one
Pyro model. ``pyro_nas`` draws the graph and reads the posterior, ``pyro_nas.models`` has priors, models and guides,
``pyro_nas.inference`` the procedures.
"""

import pyro

pyro.settings.set(module_local_params=True)  # parameters live in their guide, never in the global store

from pyro_nas.evidence import Evidence
from pyro_nas.evidence.terms import Terms
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.network import Network
from pyro_nas.graph.primitives import Primitive, primitive
from pyro_nas.graph.space import Space
from pyro_nas.graph.space_files import read_space, write_space
from pyro_nas.reading.arviz_export import to_arviz
from pyro_nas.reading.posterior import draw, predict
from pyro_nas.reading.structure_posterior import by_edge, choice_probabilities, edge_entropies, probable_structures

__all__ = [
    "Evidence",
    "Network",
    "Primitive",
    "Space",
    "Terms",
    "by_edge",
    "choice_probabilities",
    "derive",
    "draw",
    "edge_entropies",
    "predict",
    "primitive",
    "probable_structures",
    "read_space",
    "to_arviz",
    "write_space",
]
