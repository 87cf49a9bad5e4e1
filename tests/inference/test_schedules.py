"""Schedules: their values against the formulas, at both ends and between."""

import pytest

from pyro_nas.inference import schedules

PROGRESS = [0.0, 0.1, 0.25, 0.5, 0.9, 1.0]
FORMULAS = {
    "constant": (schedules.constant(3.0), lambda t: 3.0),
    "linear": (schedules.linear(2.0, -1.0), lambda t: 2.0 - 3.0 * t),
    "geometric": (schedules.geometric(8.0, 0.5), lambda t: 8.0 * 0.0625**t),
    "warm up": (schedules.warm_up(4.0, 0.25), lambda t: 4.0 * min(1.0, max(0.001, 4 * t))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_values_are_those_of_the_formula(name):
    schedule, formula = FORMULAS[name]
    assert [schedule(t) for t in PROGRESS] == pytest.approx([formula(t) for t in PROGRESS])


def test_a_geometric_schedule_is_no_straight_line():
    assert schedules.geometric(8.0, 0.5)(0.5) == pytest.approx(2.0)  # the geometric mean of its ends
    assert schedules.linear(8.0, 0.5)(0.5) == pytest.approx(4.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.constant(float("nan")), "value: expected a finite number"),
        (lambda: schedules.linear(1.0, float("inf")), "end: expected a finite number"),
        (lambda: schedules.geometric(0.0, 1.0), r"start: expected a finite number in \(0"),
        (lambda: schedules.warm_up(1.0, 0.0), r"fraction: expected a finite number in \(0, 1\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
