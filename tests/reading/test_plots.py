"""Pictures of a space and of a fit: labels stand at their arcs and do not collide, colours and units are right."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from pyro_nas import Space, derive
from pyro_nas.graph.families import cell_spaces, zoo
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.reading.plots import colours_of, plot_architecture, plot_history, plot_structure, save

TERMS = {"log_likelihood": -8.0, "kl_weights": 1.0, "kl_structure": 0.0}
TERMS |= {"valid_evidence": -9.5, "valid_log_likelihood": -8.5}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def darts():
    return cell_spaces.darts(1, 10, channels=4, cells=3, nodes=4)


def probabilities_of(space, sharpness=3.0):
    return {site: (sharpness * torch.randn(c.shape)).softmax(-1) for site, c in space.choices().items()}


def edge_labels(axis):
    """Return the texts of a panel but the names of its vertices."""
    return [text for text in axis.texts if not text.get_text().isdigit()]


def arcs(axis):
    """Return {(start, end): [(apex in steps, colour, width)]} of the arrows of a panel."""
    found = {}
    for patch in axis.patches:
        (start, _), (end, _) = patch._posA_posB
        apex = -patch.get_connectionstyle().rad * (end - start) / 2
        found.setdefault((start, end), []).append((apex, to_rgb(patch.get_edgecolor()), patch.get_linewidth()))
    return found


def test_pictures_show_what_they_should(small_space):
    space = zoo.cells(1, 10, channels=4, nodes=3)
    figure = plot_architecture(space, {"structure.cell": torch.randn(6, 4).softmax(-1)})
    assert len(figure.axes) == 2
    texts = {text.get_text() for text in figure.axes[1].texts}
    assert {"0", "1", "2", "3"} <= texts
    assert sum(" 0." in text for text in texts) >= 5
    assert len(figure.axes[1].patches) == 24
    records = [
        {"epoch": e, "evidence": -9.0 + e, "structure": {"structure": [[0.5, 0.5], [0.1 * e, 1 - 0.1 * e]]}, **TERMS}
        for e in range(4)
    ]
    figure = plot_structure(records, small_space)
    assert [axis.get_title() for axis in figure.axes] == ["structure  0 → 1", "structure  0 → 2"]
    assert np.allclose(figure.axes[1].lines[0].get_ydata(), [0.0, 0.1, 0.2, 0.3])
    figure = plot_history(records)
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), [-9, -8, -7, -6])
    with pytest.raises(ValueError, match="open choices"):
        plot_structure(records, Space({(0, 1): {"a": skip()}}))


def test_of_many_edges_those_are_drawn_that_are_least_certain(monkeypatch):
    monkeypatch.setattr("pyro_nas.reading.plots.PANELS", 2)
    space = Space({(i, i + 1): {"a": skip(), "b": skip()} for i in range(4)})
    tables = [[[0.5, 0.5], [0.9, 0.1], [0.6, 0.4], [0.99, 0.01]], [[1.0, 0.0], [0.6, 0.4], [0.9, 0.1], [0.3, 0.7]]]
    records = [{"epoch": epoch, "structure": {"structure": table}} for epoch, table in enumerate(tables)]
    figure = plot_structure(records, space)
    assert [axis.get_title() for axis in figure.axes] == ["structure  1 → 2", "structure  3 → 4"]
    assert np.allclose(figure.axes[1].lines[0].get_ydata(), [0.99, 0.3])


def test_labels_of_cells_of_four_nodes_stand_at_their_arcs():
    space = darts()
    probabilities = probabilities_of(space)
    figure = plot_architecture(space, probabilities)
    for site, axis in zip(("structure.normal", "structure.reduction"), figure.axes[1:], strict=True):
        labels = {label.xy: label.get_text() for label in edge_labels(axis)}
        assert len(labels) == 18
        choices = space.choices()[site]
        for edge, names, table in zip(choices.edges, choices.primitives, probabilities[site], strict=True):
            best = int(table.argmax())
            apex, colour, width = arcs(axis)[edge][best]  # vertices of a cell are numbered by their places
            assert width == max(arc[2] for arc in arcs(axis)[edge])
            assert colour == to_rgb(colours_of(space)[names[best]])
            (text,) = (text for at, text in labels.items() if np.allclose(at, (sum(edge) / 2, apex), atol=1e-3))
            assert text == f"{names[best]} {table[best]:.2f}"


def test_labels_of_cells_of_four_nodes_never_overlap():
    """Whichever arc of its bundle each stands at, and none leaves the picture."""
    space = darts()
    boxes = [[] for _ in range(18)]
    for best in (0, 3, 6):  # between them a label moves by less than its height
        certain = {site: torch.eye(7)[best].expand(choices.shape) for site, choices in space.choices().items()}
        figure = plot_architecture(space, certain)
        figure.canvas.draw()
        for places, label in zip(boxes, edge_labels(figure.axes[1]), strict=True):
            box = label.get_window_extent()
            assert all(figure.bbox.fully_contains(*corner) for corner in box.corners())
            places.append(box)
        plt.close(figure)
    for places, others in itertools.combinations(boxes, 2):
        assert not any(box.overlaps(other) for box, other in itertools.product(places, others))


def test_a_derived_cell_keeps_the_colours_of_the_searched_one():
    space = darts()
    derived = derive(space, probabilities_of(space), parents=2)
    figure = plot_architecture(derived, searched=space)
    expected, names = colours_of(space), set()
    for cell, axis in zip((derived.aggregations[3], derived.aggregations[4]), figure.axes[1:], strict=True):
        place = {vertex: i for i, vertex in enumerate(cell.vertices)}
        for (start, end), (name,) in cell.edges.items():
            ((_, colour, _),) = arcs(axis)[place[start], place[end]]
            assert colour == to_rgb(expected[name])
            names.add(name)
    assert len(names) > 3
    (legend,) = figure.legends
    lines = zip(legend.texts, legend.get_lines(), strict=True)
    entries = {text.get_text(): to_rgb(line.get_color()) for text, line in lines}
    assert entries == {name: to_rgb(expected[name]) for name in names}
    for _, colour, _ in itertools.chain(*arcs(plot_architecture(derived).axes[1]).values()):
        assert colour == (0, 0, 0)  # without it nothing says which


def test_primitives_of_all_cells_differ_in_colour():
    names = tuple(cell_spaces.PRIMITIVES)
    colours = colours_of(cell_spaces.darts(1, 10, channels=4, cells=1, nodes=1, primitives=names))
    assert [*colours] == [*names]
    assert len({*colours.values()}) == len(names) == 13


def test_an_open_edge_without_probabilities_says_how_many_choices_it_has(small_space):
    (axis,) = plot_architecture(small_space).axes
    assert sorted(label.get_text() for label in edge_labels(axis)) == ["2 choices", "2 choices", "only", "readout"]


def test_twenty_eight_panels_share_one_legend():
    space = darts()
    shapes = {site: choices.shape for site, choices in space.choices().items()}
    records = [{"epoch": e, "structure": {s: np.full(shape, 1 / 7) for s, shape in shapes.items()}} for e in range(3)]
    figure = plot_structure(records, space)
    assert len(figure.axes) == 28
    assert not [axis for axis in figure.axes if axis.get_legend()]
    (legend,) = figure.legends
    colours = colours_of(space)
    assert [text.get_text() for text in legend.texts] == [*colours]
    for axis in figure.axes:
        assert [line.get_color() for line in axis.lines] == [*colours.values()]
    assert figure.get_size_inches()[1] < 9
    assert figure.get_supxlabel() == "epoch"
    assert figure.get_supylabel() == "probability of the choice"


def test_terms_are_in_nats():
    figure = plot_history([{"epoch": e, "evidence": -9.0, **TERMS} for e in range(2)])
    assert [axis.get_ylabel() for axis in figure.axes] == ["nats, all training data"] * 2 + ["nats"] * 2
    assert {axis.get_xlabel() for axis in figure.axes} == {"epoch"}


def test_a_small_space_is_written(tmp_path):
    space = Space({(0, 1): {"tanh": dense(2, 2, "tanh"), "skip": skip()}})
    save(plot_architecture(space, {"structure": torch.tensor([[0.25, 0.75]])}), tmp_path / "space.png")
    assert (tmp_path / "space.png").stat().st_size > 3000
