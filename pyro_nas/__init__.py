"""Bayesian selection of neural architectures, as probabilistic programs.

A network family is a graph whose edges carry alternative primitives; weights and structure are latent variables of one
Pyro model. ``pyro_nas`` draws the graph and reads the posterior, ``pyro_nas.models`` has priors, models and guides,
``pyro_nas.inference`` the procedures.
"""

from pathlib import Path

import pyro

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").exists():  # run from a checkout: models/ and inference/ lie beside this folder
    __path__.append(str(_checkout))

pyro.settings.set(module_local_params=True)  # parameters live in their guide, never in the global store

from pyro_nas.arviz_export import to_arviz  # noqa: E402
from pyro_nas.derivation import derive  # noqa: E402
from pyro_nas.evidence import Evidence  # noqa: E402
from pyro_nas.network import Network  # noqa: E402
from pyro_nas.posterior import draw, predict  # noqa: E402
from pyro_nas.primitives import Primitive, primitive  # noqa: E402
from pyro_nas.space import Space  # noqa: E402
from pyro_nas.space_files import read_space, write_space  # noqa: E402
from pyro_nas.structure_posterior import by_edge, choice_probabilities, edge_entropies, probable_structures  # noqa: E402
from pyro_nas.terms import Terms  # noqa: E402

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
