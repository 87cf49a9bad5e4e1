"""Every structure: a guide of many fits in one computation, one a structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_nas import checks
from pyro_nas.data import Inputs
from pyro_nas.graph.enumeration import Vertex
from pyro_nas.models.model import Model
from pyro_nas.models.normals import MeanFieldNormal

__all__ = ["EveryStructure"]


class EveryStructure(nn.Module):
    """q_l(w) = Π N(m_li, σ_li²) for each of some given structures Γ_l: a guide of many fits in one computation.

    ``structures`` are vertices, {site: (edge, choice)} each; to restart, give one several times. Fitted with
    ``particles=len(structures), vectorize_particles=True`` the evidence is the mean over them, whose gradient in m_l
    and σ_l is that of 𝔏(Γ_l): each is a fit of its own. They start at draws from the prior, with standard deviation
    ``initial_scale``. ``member(l)`` is the guide of one structure alone.

    Raises TypeError for a model that is no ``Model``, ValueError where its weights are more than the site "weights".
    """

    model: Model

    def __init__(self, model: Model, structures: Sequence[Vertex], initial_scale: float = 0.05):
        super().__init__()
        if not isinstance(model, Model):
            raise TypeError(f"model: expected a Model, got {checks.describe(model)}.")
        if list(model.latent_weights()) != ["weights"]:
            raise ValueError(
                f"model: expected one of the packed site 'weights', got {list(model.latent_weights())}. "
                "Use priors.normal or priors.laplace."
            )
        if not structures:
            raise ValueError("structures: expected one or more, got none. Pass list(all_structures(space)).")
        for structure in structures:
            model.space.check_structure(structure, "structures")
        checks.number("initial_scale", initial_scale, low=0, open_low=True)
        self.__dict__["model"] = model  # not a submodule: the guide's state is its own
        self.structures = list(structures)
        with torch.no_grad(), pyro.poutine.block():
            start = torch.stack([model.packing.pack(model.weights()) for _ in structures])
        self.loc = nn.Parameter(start)
        self.log_scale = nn.Parameter(torch.full_like(start, initial_scale).log())

    def forward(self, x: Inputs | None = None, y: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Draw all weights and structures, (structure, 1, …), in a plate of as many particles."""
        stacked = {
            site: torch.stack([structure[site] for structure in self.structures])[:, None]
            for site in self.model.choices
        }
        return self._draw(self.loc[:, None], self.log_scale[:, None], stacked)

    def kept(self, numbers: Sequence[int]) -> EveryStructure:
        """Return the guide of some of the structures, where these fits stand: to go on with the best."""
        rest = EveryStructure(self.model, [self.structures[number] for number in numbers])
        rest.load_state_dict({name: value[list(numbers)] for name, value in self.state_dict().items()})
        return rest

    def member(self, number: int) -> Callable[..., dict[str, torch.Tensor]]:
        """Return the guide of one structure: a Pyro callable of the model's arguments."""
        return lambda x=None, y=None: self._draw(self.loc[number], self.log_scale[number], self.structures[number])

    def _draw(
        self, loc: torch.Tensor, log_scale: torch.Tensor, structure: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        with pyro.poutine.scale(scale=self.model.complexity):
            weights = pyro.sample("weights", MeanFieldNormal(loc, log_scale).to_event(1))
            points = {site: pyro.sample(site, dist.Delta(gamma, event_dim=2)) for site, gamma in structure.items()}
        return {"weights": weights, **points}
