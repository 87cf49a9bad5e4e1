"""Models, the only room where ``pyro.sample`` is written: priors, likelihoods, the model, guides, network families."""

from pyro_nas.models import cell_spaces, costs, guides, hypernets, likelihoods, priors, structures, zoo
from pyro_nas.models.model import Model

__all__ = ["Model", "cell_spaces", "costs", "guides", "hypernets", "likelihoods", "priors", "structures", "zoo"]
