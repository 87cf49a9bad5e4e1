"""Small spaces and data that tests share."""

import os

import pytest
import torch

from pyro_nas import Space
from pyro_nas.graph.primitives import dense, skip

torch.set_num_threads(1)  # the tensors here are small
if {"PYTEST_XDIST_WORKER", "XDG_CACHE_HOME"} <= set(os.environ):  # in one cache ArviZ' first imports would collide
    os.environ["XDG_CACHE_HOME"] += f"/{os.environ['PYTEST_XDIST_WORKER']}"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def small_space():
    """Two edges with two choices each and a readout without one; x (…, 3) → (…, 2)."""
    return Space(
        {
            (0, 1): {"tanh": dense(3, 3, "tanh"), "linear": dense(3, 3)},
            (0, 2): {"relu": dense(3, 3, "relu"), "skip": skip()},
            (1, 2): {"only": dense(3, 3)},
            (2, 3): {"readout": dense(3, 2)},
        }
    )


@pytest.fixture
def small_data():
    """Forty points of two classes."""
    x = torch.randn(40, 3)
    return x, (x[:, 0] * x[:, 1] > 0).long()


@pytest.fixture
def small_images():
    """Twenty-four images 1 × 8 × 8 of three classes."""
    y = torch.arange(24) % 3
    x = torch.randn(24, 1, 8, 8) * 0.3
    x[torch.arange(24), 0, 2 * y] += 1.0
    return x, y
