"""Currencies: draws are a dictionary, and print their moments."""

import copy
import pickle

import pytest
import torch

from pyro_nas import draw
from pyro_nas.evidence.currencies import Draws, SpaceModel
from pyro_nas.models import Model, guides


@pytest.fixture
def draws():
    return Draws({"weights": torch.tensor([[1.0, 3.0], [1.0, 3.0], [2.0, 2.0]]), "scale": torch.full((3,), 0.5)})


def test_draws_are_a_dictionary(draws):
    assert isinstance(draws, dict)
    assert {site: tuple(value.shape) for site, value in draws.items()} == {"weights": (3, 2), "scale": (3,)}
    for copied in (copy.deepcopy(draws), pickle.loads(pickle.dumps(draws))):
        assert isinstance(copied, Draws)
        assert all(torch.equal(copied[site], draws[site]) for site in draws)


def test_draws_print_their_number_and_the_moments_of_all_values(draws):
    """Of 1, 3, 1, 3, 2, 2: mean 2, sd √(4/6)."""
    lines = repr(draws).splitlines()
    assert lines[0] == "3 draws of 2 sites"
    assert lines[1].split() == ["weights", "(3,", "2)", "mean", "2,", "sd", f"{(4 / 6) ** 0.5:.4g}"]
    assert lines[2].split() == ["scale", "(3,)", "mean", "0.5,", "sd", "0"]
    assert repr(Draws({})) == "0 draws of 0 sites"
    assert "empty" in repr(Draws({"weights": torch.zeros(3, 0)}))


def test_readings_of_a_model_give_and_take_them(small_space):
    model = Model(small_space, num_data=40)
    assert isinstance(model, SpaceModel)
    drawn = draw(guides.MeanField(model), num_samples=3)
    assert isinstance(drawn, Draws)
    assert sorted(drawn) == ["structure", "weights"]
    assert all(len(value) == 3 for value in drawn.values())
