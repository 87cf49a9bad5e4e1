"""Pictures of studies show the numbers of their summaries, with units."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from pyro_nas.reading.plots import COLOURS
from pyro_nas.studies.plots import plot_evidence, plot_pruning, plot_ranks, plot_robustness

STORED = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def evidence_rows():
    values = {"degree 0": -120.0, "degree 1": -20.0, "degree 2": -25.0}
    differences = {"laplace": (0.0, -0.01, 0.25), "elbo": (-0.1, -0.4, -2.0), "trajectory": (-0.5, -8.0, -30.0)}
    return {
        name: {
            "exact": exact,
            "estimates": {
                method: {"value": exact + shift[k], "standard_error": 0.1 * k * (method != "laplace")}
                for method, shift in differences.items()
            },
            "cross_validation": {"value": exact + 3, "standard_error": 1.0},
            "leave_one_out": {"value": exact + 4, "standard_error": 1.0, "largest_pareto_k": (0.3, 0.9, None)[k]},
        }
        for k, (name, exact) in enumerate(values.items())
    }, differences


def test_evidence_is_drawn_as_the_difference_from_the_exact_value():
    rows, differences = evidence_rows()
    posterior = {"exact": dict.fromkeys(rows, 1 / 3)} | {m: dict.fromkeys(rows, 1 / 3) for m in differences}
    exact, difference, probabilities = plot_evidence(rows, posterior).axes
    assert exact.lines[0].get_ydata().tolist() == [-120.0, -20.0, -25.0]
    assert exact.lines[1].get_ydata().tolist() == [-117.0, -17.0, -22.0]
    assert exact.lines[-1].get_xdata().tolist() == [1, 2]  # k̂ above 0.7, or infinite
    assert exact.lines[-1].get_ydata().tolist() == [-16.0, -21.0]
    places = []
    for container, method, colour in zip(difference.containers, differences, COLOURS, strict=False):
        points, _, (bars,) = container
        places.append(points.get_xdata())
        assert np.allclose(points.get_ydata(), differences[method])
        lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
        assert np.allclose(lengths, [0.0, 0.2 * (method != "laplace"), 0.4 * (method != "laplace")])  # ± one error
        assert points.get_color() == colour
        bound = method != "laplace"
        assert points.get_marker() == ("^" if bound else "o")
        assert container.get_label() == ("≥ " if bound else "") + method
    assert np.abs(np.diff(places, axis=0)).min() > 0.1  # side by side
    low, high = difference.get_ylim()
    assert low < -30
    assert high > 0.25
    assert difference.get_yscale() == "symlog"
    assert {-10.0, -1.0, -0.5, 0.0} <= {*difference.get_yticks()}
    assert [exact.get_ylabel(), difference.get_ylabel()] == ["nats, all data", "nats"]
    assert len(probabilities.patches) == 12
    assert probabilities.get_ylabel() == "p(model | D)"
    assert {axis.get_xlabel() for axis in (exact, difference, probabilities)} == {"degree"}


def test_accuracies_are_in_per_cent():
    curve = [{"mean": 0.9, "sd": 0.1}, {"mean": 0.5, "sd": 0.2}]
    (axis,) = plot_pruning({"direct": {0.1: curve}}).axes
    assert axis.lines[0].get_ydata().tolist() == [90.0, 50.0]
    assert axis.lines[0].get_xdata().tolist() == [0.0, 50.0]
    assert axis.figure.get_supylabel() == "test accuracy, %"
    summary = json.loads((STORED / "compare_short.json").read_text())["methods"]
    axes = plot_robustness(summary).axes
    method, stored = next(iter(summary.items()))
    expected = stored["test"]["point"]["robustness"]["attack"]
    assert np.allclose(axes[0].lines[0].get_ydata(), [100 * level["mean"] for level in expected.values()])
    assert np.allclose(axes[0].lines[0].get_xdata(), [float(level) for level in expected])
    assert axes[0].get_ylabel() == "test accuracy of retrained networks, %"
    assert axes[3].get_xlabel() == "attack ε, share of the pixels' range"
    assert method in axes[2].get_legend().texts[0].get_text()


def test_ranks_lie_on_the_curve_of_all_cells():
    accuracies = [0.5, 0.9, 0.7]
    (axis,) = plot_ranks(accuracies, {"darts": [{"rank": 2, "accuracy": 0.7}]}).axes
    every, chosen = axis.lines
    assert every.get_xdata().tolist() == [1, 2, 3]
    assert np.allclose(every.get_ydata(), [90, 70, 50])
    assert chosen.get_xdata().tolist() == [2]
    assert math.isclose(chosen.get_ydata()[0], 70)
    assert axis.get_ylabel() == "test accuracy, mean over seeds, %"
    assert axis.get_xlabel() == "rank among 3 cells"
