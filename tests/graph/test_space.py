"""Spaces: the graph, and the structure sites of a space and of the cells in it."""

import pytest
import torch

from pyro_nas import Network, Space, derive
from pyro_nas.graph.primitives import dense, skip, zero


def test_cells_share_structure_by_name_and_have_weights_of_their_own(uniform, vertex):
    cell = Space({(0, 1): {"a": dense(3, 3), "b": dense(3, 3, "tanh")}}, name="cell")
    two = Space({(0, 2): {"x": skip()}, (1, 2): {"y": dense(3, 3), "z": skip()}}, inputs=(0, 1), name="pair")
    space = Space(
        {(0, 1): {"cell": cell}, (0, 2): {"cell": cell}, (1, 3): {"s": skip()}, (2, 3): {"s": skip()}}, {3: two}
    )
    assert {site: c.shape for site, c in space.choices().items()} == {
        "structure.cell": (1, 2),
        "structure.pair": (1, 2),
    }
    network = Network(space)
    assert len(list(network.parameters())) == 2 * 4 + 2  # two positions of the cell, and the pair's dense
    out = network(torch.randn(6, 3), structure=uniform(space))
    assert out.shape == (6, 3)
    derived = derive(space, vertex(space, **{"structure.cell": [1], "structure.pair": [0]}))
    assert derived.choices() == {}
    assert list(derived.edges[0, 1]["cell"].edges[0, 1]) == ["b"]
    assert list(derived.edges[0, 2]["cell"].edges[0, 1]) == ["b"]
    assert list(derived.aggregations[3].edges[1, 2]) == ["y"]


def test_mixed_numbers_of_choices_get_a_site_each(uniform):
    space = Space({(0, 1): {"a": skip(), "b": zero()}, (1, 2): {"a": skip(), "b": zero(), "c": dense(2, 2)}})
    assert {site: c.shape for site, c in space.choices().items()} == {"structure.2": (1, 2), "structure.3": (1, 3)}
    assert Network(space)(torch.randn(4, 2), structure=uniform(space)).shape == (4, 2)


def test_vertices_follow_the_edges_and_the_last_is_the_output():
    edges = {(0, 4): {"a": skip()}, (1, 4): {"a": skip()}, (4, 2): {"a": skip()}, (0, 2): {"a": skip()}}
    space = Space({**edges, (2, 3): {"a": skip()}}, inputs=(0, 1))
    assert space.vertices == [0, 1, 4, 2, 3]
    assert space.output == 3
    assert [space.parents(vertex) for vertex in space.vertices] == [[], [], [0, 1], [0, 4], [2]]
    assert list(space.edges) == sorted(space.edges)
    assert space.choices() == {}


@pytest.mark.parametrize("restriction", ["simplex", "simplex vertices", "cube", "cube vertices"])
def test_an_edge_of_a_single_primitive_is_a_choice_on_the_cube_alone(restriction):
    space = Space({(0, 1): {"a": skip()}, (1, 2): {"a": skip(), "b": zero()}}, restriction=restriction)
    simplex = restriction.startswith("simplex")
    expected = {"structure": (1, 2)} if simplex else {"structure.1": (1, 1), "structure.2": (1, 2)}
    assert {site: c.shape for site, c in space.choices().items()} == expected
    assert all(choices.on_simplex is simplex for choices in space.choices().values())


def test_spaces_nest_twenty_deep():
    space = Space({(0, 1): {"skip": skip()}})
    for _ in range(19):
        space = Space({(0, 1): {"inner": space}})
    assert Network(space)(torch.ones(2, 3)).tolist() == torch.ones(2, 3).tolist()
    with pytest.raises(ValueError, match=r"^edges: expected spaces nested at most 20 deep, got 21"):
        Space({(0, 1): {"inner": space}})
