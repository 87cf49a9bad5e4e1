"""A pair that tests share."""

import pytest
import torch

from pyro_nas.models import Model, guides, priors


@pytest.fixture
def build(small_space):
    """A function of a structure prior: model and mean-field guide of the small space, whose choices are not alike."""

    def pair(structure=None):
        model = Model(small_space, num_data=40, weights=priors.normal(0.5), structure=structure)
        guide = guides.MeanField(model)
        guide.structure["structure"].data = torch.tensor([[1.0, -0.5], [0.2, 0.9]])
        return model, guide

    return pair
