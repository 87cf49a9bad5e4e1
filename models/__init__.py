"""Models: the only room where ``pyro.sample`` is written. Priors, likelihoods, the model, guides, and families."""

from pyro_nas.models import guides, likelihoods, priors, structures, zoo
from pyro_nas.models.model import Model

__all__ = ["Model", "guides", "likelihoods", "priors", "structures", "zoo"]
