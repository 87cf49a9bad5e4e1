"""Bayesian selection of neural architectures, as probabilistic programs."""

from pathlib import Path

import pyro

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").exists():  # run from a checkout: models/ and inference/ lie beside this folder
    __path__.append(str(_checkout))

pyro.settings.set(module_local_params=True)  # parameters live in their guide, never in the global store
