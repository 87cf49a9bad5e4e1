"""Bayesian selection of neural architectures, as probabilistic programs.

A network family is a graph whose edges carry alternative primitives; weights and structure are latent variables of one
Pyro model. ``graph`` has the families, ``models`` priors, models and guides, ``inference`` the procedures, ``evidence``
the evidence lower bound, ``reading`` what is read off a posterior; this module has what a first example needs.
"""

from pyro_nas.evidence import Evidence, Terms, evaluate
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.network import Network
from pyro_nas.graph.primitives import Primitive, primitive
from pyro_nas.graph.space import Space
from pyro_nas.graph.space_files import read_space, write_space
from pyro_nas.reading.arviz_export import to_arviz
from pyro_nas.reading.posterior import accuracy, draw, predict
from pyro_nas.reading.structure_posterior import by_edge, choice_probabilities, edge_entropies, probable_structures

__version__ = "0.2.0"

__all__ = [
    "Evidence",
    "Network",
    "Primitive",
    "Space",
    "Terms",
    "accuracy",
    "by_edge",
    "choice_probabilities",
    "derive",
    "draw",
    "edge_entropies",
    "evaluate",
    "predict",
    "primitive",
    "probable_structures",
    "read_space",
    "to_arviz",
    "write_space",
]
