"""Checks: values that are accepted, with their types, and errors that name argument, expectation and remedy."""

import math

import numpy as np
import pytest
import torch

from pyro_nas import checks


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float64(0.5), np.int64(1)])
def test_numbers_within_an_interval_come_back_as_floats(value):
    result = checks.number("x", value, low=0, high=1)
    assert type(result) is float
    assert result == value


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, True, "1", None, torch.ones(2)])
def test_other_numbers_are_named(value):
    with pytest.raises(ValueError, match=r"^x: expected a finite number in \[0, 1\], got .*\. Use 1\.$"):
        checks.number("x", value, low=0, high=1, remedy="Use 1.")


def test_an_open_end_is_left_out():
    assert checks.number("x", 1e-300, low=0, open_low=True) > 0
    with pytest.raises(ValueError, match=r"x: expected a finite number in \(0, inf\], got 0"):
        checks.number("x", 0, low=0, open_low=True)


def test_integers_are_those_that_python_counts_with():
    for value in (3, np.int64(3), torch.tensor(3)):
        result = checks.integer("n", value, low=3)
        assert type(result) is int
        assert result == 3
    for wrong in (2, 3.0, True, "3", torch.tensor(3.5)):
        with pytest.raises((ValueError, TypeError), match="n: expected an integer of at least 3"):
            checks.integer("n", wrong, low=3)


def test_integers_have_a_largest_where_one_is_given():
    assert checks.integer("n", 10**6, high=10**6) == 10**6
    with pytest.raises(ValueError, match=r"^n: expected an integer of at least 0 and at most 1,000,000, got 1000001"):
        checks.integer("n", 10**6 + 1, high=10**6)


def test_seeds_are_those_that_torch_takes():
    torch.Generator().manual_seed(checks.seed(2**63 - 1))
    for wrong in (-1, 2**63, 0.5):
        with pytest.raises(ValueError, match=r"^seed: expected an integer"):
            checks.seed(wrong)


def test_the_nearest_name_is_offered_and_only_a_near_one():
    assert checks.one_of("kind", "tanh", ["tanh", "relu"]) == "tanh"
    with pytest.raises(ValueError, match=r"kind: expected one of \['tanh', 'relu'\], got 'tahn'. Did you mean 'tanh'?"):
        checks.one_of("kind", "tahn", ["tanh", "relu"])
    with pytest.raises(ValueError, match=r"got 'zzz'\.$"):
        checks.one_of("kind", "zzz", ["tanh", "relu"])


def test_callables_are_called_by_what_they_should_be():
    assert checks.is_callable("score", len, "a function of a structure") is len
    with pytest.raises(TypeError, match="score: expected a function of a structure, got 3"):
        checks.is_callable("score", 3, "a function of a structure")


def test_devices_are_those_of_this_machine():
    assert checks.device("device", "cpu") == torch.device("cpu")
    for wrong in ("cuda:77", "gpu", 3.5):
        with pytest.raises(ValueError, match=r"device: expected a device of this machine \(\['cpu'"):
            checks.device("device", wrong)


def test_probabilities_are_positive_and_sum_to_one():
    assert torch.equal(checks.probabilities("p", [0.25, 0.75], 2), torch.tensor([0.25, 0.75]))
    table = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
    assert torch.equal(checks.probabilities("p", table, 2), table)
    for wrong, message in (
        ([0.5, 0.5], "expected 3 probabilities on the last axis"),
        ([0.5, 0.5, 0.0], "expected finite probabilities above zero"),
        ([0.5, 0.4, 0.3], "expected probabilities that sum to 1"),
    ):
        with pytest.raises(ValueError, match=f"^p: {message}"):
            checks.probabilities("p", wrong, 3)


def test_values_are_described_briefly():
    assert checks.describe(torch.zeros(2, 3)) == "a torch.float32 tensor of shape (2, 3)"
    assert checks.describe(np.zeros((2, 3))) == "a float64 ndarray of shape (2, 3)"
    assert checks.describe(np.float64(0.5)) == f"{np.float64(0.5)!r} (float64)"
    assert checks.describe("abc") == "'abc' (str)"
    assert len(checks.describe(list(range(1000)))) <= 80 + len(" (list)")
