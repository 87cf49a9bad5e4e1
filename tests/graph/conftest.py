"""Structures of a space that tests share."""

import pytest
import torch


@pytest.fixture
def uniform():
    """A function of a space: γ with the same weight for every primitive of an edge."""
    return lambda space: {site: torch.full(c.shape, 1 / c.shape[1]) for site, c in space.choices().items()}


@pytest.fixture
def vertex():
    """A function of a space and of the number of the primitive of each edge, by site: γ of these primitives."""

    def build(space, **numbers):
        return {site: torch.eye(c.shape[1])[torch.tensor(numbers[site])] for site, c in space.choices().items()}

    return build
