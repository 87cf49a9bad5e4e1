"""What the methods of the comparison share: a task and its budget, what a search leaves, a count of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from pyro_nas.data import Split
from pyro_nas.graph.space import Space, Structure
from pyro_nas.inference import adam, one_cycle
from pyro_nas.models import Model, priors
from pyro_nas.models.guides import Guide
from pyro_nas.models.structures import StructurePrior
from pyro_nas.studies.fit_arguments import FitArguments


def check_images(split: Split, images: int, least_side: int = 1) -> None:
    """Raise ValueError for data that are not images of two classes or more, too small, or too many for the budget."""
    x, count = split.train[0], len(split.train[1]) + len(split.valid[1])
    if x.dim() != 4 or min(x.shape[2:]) < least_side:
        raise ValueError(
            f"data: expected images (data, channels, h, w) of sides of at least {least_side}, got {tuple(x.shape)}."
        )
    if split.classes < 2:
        raise ValueError(f"data: expected two classes or more, got {split.classes}.")
    if images < 2 * count:
        raise ValueError(
            f"images: expected a budget of {2 * count} or more, two passes over the data, which an epoch of "
            f"second-order DARTS takes, got {images}. Take a larger budget or fewer data."
        )


@dataclass(frozen=True)
class Task:
    """What all methods share.

    ``images`` is the budget of the search, ``children`` the networks that random search trains with it.
    ``initial_scale``: the standard deviation that normal weights start with, small beside the weights of wide layers,
    whose training its noise would slow. ``progress``: fits show a bar.
    """

    space: Space
    split: Split
    images: int
    seed: int
    device: torch.device
    batch_size: int = 128
    lr: float = 0.01
    structure_lr: float = 0.05
    complexity: float = 0.003
    initial_scale: float = 0.004
    children: int = 8
    progress: bool = field(default=False, kw_only=True)

    def settings(self) -> dict[str, float]:
        """Return what the fits of all methods share, as JSON values."""
        names = ("images", "batch_size", "lr", "structure_lr", "complexity", "initial_scale", "children")
        return {name: getattr(self, name) for name in names}

    def model(self, structure: StructurePrior | None = None, space: Space | None = None) -> Model:
        """Return a model of the space, with weights N(0, 1/fan-in)."""
        torch.manual_seed(self.seed)
        return Model(
            space or self.space, num_data=len(self.split.train[1]), weights=priors.normal(priors.fan_in()),
            structure=structure, complexity=self.complexity,
        ).to(self.device)  # fmt: skip

    def fit_options(self, epochs: int) -> FitArguments:
        """Return the options of a fit of the weights."""
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "epochs": epochs,
            "progress": self.progress,
            "optimizer": adam(self.lr),
            "scheduler": one_cycle(self.lr),
        }

    def epochs(self, data: int) -> int:
        """Return how many epochs of so many images the budget allows, at least one."""
        return max(1, int(self.images // data))


@dataclass(frozen=True)
class SearchResult:
    """What a search left: a structure or choice probabilities, at what cost, and the network that it trained.

    ``draws``, {site: (draw, …)}, are of what is latent in ``model``; ``guide``: where structure has a law of its own.
    """

    structure: Structure
    images: int
    seconds: float
    model: Model
    draws: Mapping[str, torch.Tensor]
    guide: Guide | None = None


class Count:
    """Counts the images that pass forward through a model's network, while its context lasts."""

    def __init__(self, model: Model):
        self.model, self.images = model, 0

    def __enter__(self) -> Count:
        def add(_network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self.images += len(inputs[0])

        self._hook = self.model.network.register_forward_pre_hook(add)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
