"""Setting of the complexity study: data, network, guide and budget that all rows of one run share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pyro.distributions.torch_distribution import TorchDistribution

from pyro_nas.data import Labelled
from pyro_nas.graph.primitives import dense, flatten
from pyro_nas.graph.space import Space
from pyro_nas.models import Model, guides, priors
from pyro_nas.studies.fit_arguments import FitArguments

COMPLEXITIES = (0.1, 1.0, 10.0, 100.0)
LOW, HIGH = 0.1, 100.0
GRID = tuple(float(f"{10 ** (-1 + step / 4):.4g}") for step in range(13))
PRIOR_SCALE, INITIAL_SCALE = 0.1, math.exp(-3)
Start = Literal["prior", "network"]


@dataclass(frozen=True)
class Setting:
    """What all rows of a run share; ``options`` are those of every fit."""

    train: Labelled
    test: Labelled
    classes: int
    hidden: int
    epochs: int
    hypernet_epochs: int
    draws: int
    seed: int
    device: torch.device
    start: Start
    options: FitArguments

    def model(self, complexity: float | TorchDistribution) -> Model:
        """Return the model of the study: inputs, ReLU units, classes; N(0, 0.1²) weights and biases."""
        inputs = self.train[0][0].numel()
        space = Space(
            {
                (0, 1): {"flatten": flatten()},
                (1, 2): {"hidden": dense(inputs, self.hidden, "relu")},
                (2, 3): {"readout": dense(self.hidden, self.classes)},
            }
        )
        weights = priors.normal(PRIOR_SCALE)
        return Model(space, num_data=len(self.train[1]), weights=weights, complexity=complexity).to(self.device)

    def guide(self, model: Model) -> guides.MeanField:
        """Return a mean-field guide; its means start at a draw of the prior, or at the network's own initialisation."""
        guide = guides.MeanField(model, INITIAL_SCALE)
        if self.start == "prior":
            with torch.no_grad():
                guide.loc["weights"].normal_(0, PRIOR_SCALE)
        return guide.to(self.device)

    def batches(self, size: int = 10_000) -> list[Labelled]:
        """Return the training data in order."""
        x, y = (part.to(self.device) for part in self.train)
        return list(zip(x.split(size), y.split(size), strict=True))
