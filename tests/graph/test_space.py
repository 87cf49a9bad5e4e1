"""Spaces: graphs, nesting, derivation, files."""

from functools import partial

import pytest
import torch
from torch import nn

from pyro_nas import Network, Space, derive, primitive, read_space, write_space
from pyro_nas.graph.derivation import parallel
from pyro_nas.graph.families import zoo
from pyro_nas.graph.primitives import convolution, dense, skip, zero


class Counted(nn.Module):
    """Doubles, and counts its calls."""

    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return 2 * x


def uniform(space):
    return {site: torch.full(c.shape, 1 / c.shape[1]) for site, c in space.choices().items()}


def vertex(space, **rows):
    result = {}
    for site, c in space.choices().items():
        result[site] = torch.zeros(c.shape)
        for row, k in enumerate(rows[site]):
            result[site][row, k] = 1.0
    return result


def test_network_computes_the_lectures_equation():
    """f_2 = Σ_j ⟨γ^{j2}, g^{j2}⟩(f_j) for a hand-computed graph."""
    space = Space(
        {
            (0, 1): {"double": Counted, "zero": zero()},
            (0, 2): {"skip": skip(), "double": Counted},
            (1, 2): {"skip": skip()},
        }
    )
    gamma = {"structure": torch.tensor([[0.25, 0.75], [0.6, 0.4]])}
    x = torch.randn(5, 3)
    f1 = 0.25 * 2 * x
    expected = 0.6 * x + 0.4 * 2 * x + f1
    assert torch.allclose(Network(space)(x, structure=gamma), expected)


def test_a_primitive_of_weight_zero_is_not_run():
    space = Space({(0, 1): {"double": Counted, "skip": skip()}})
    network, x = Network(space), torch.ones(2, 2)
    Counted.calls = 0
    assert torch.equal(network(x, structure={"structure": torch.tensor([[0.0, 1.0]])}), x)
    assert Counted.calls == 0
    network(x, structure={"structure": torch.tensor([[1e-30, 1.0]])})
    assert Counted.calls == 1


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("sum", 4.0), ("mean", 2.0), ("product", 3.0), ("concatenation", None), (partial(nn.Bilinear, 2, 2, 2), None)],
)
def test_aggregations(aggregation, expected):
    class Triple(nn.Module):
        def forward(self, x):
            return 3 * x

    space = Space({(0, 2): {"a": skip()}, (1, 2): {"b": Triple}}, {2: aggregation}, inputs=(0, 1))
    out = Network(space)(torch.ones(4, 2), torch.ones(4, 2))
    if expected is not None:
        assert torch.allclose(out, torch.full((4, 2), expected))
    else:
        assert out.shape == ((4, 4) if aggregation == "concatenation" else (4, 2))


def test_cells_share_structure_by_name_and_have_weights_of_their_own():
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


def test_mixed_numbers_of_choices_get_a_site_each():
    space = Space({(0, 1): {"a": skip(), "b": zero()}, (1, 2): {"a": skip(), "b": zero(), "c": dense(2, 2)}})
    assert {site: c.shape for site, c in space.choices().items()} == {"structure.2": (1, 2), "structure.3": (1, 3)}
    assert Network(space)(torch.randn(4, 2), structure=uniform(space)).shape == (4, 2)


def test_derived_network_is_the_network_at_that_vertex(small_space):
    gamma = vertex(small_space, structure=[1, 0])
    whole = Network(small_space)
    part = Network(derive(small_space, gamma))
    part.load_state_dict({name: value for name, value in whole.state_dict().items() if name in part.state_dict()})
    x = torch.randn(7, 3)
    assert torch.allclose(whole(x, structure=gamma), part(x))


def test_derive_averages_draws_over_hard_choices(small_space):
    draws = torch.tensor([[[0.51, 0.49], [0.9, 0.1]], [[0.51, 0.49], [0.0, 1.0]], [[0.0, 1.0], [0.1, 0.9]]])
    derived = derive(small_space, {"structure": draws})  # the mean of γ would choose "linear" on the first edge
    assert list(derived.edges[0, 1]) == ["tanh"]
    assert list(derived.edges[0, 2]) == ["skip"]


def test_cube_keeps_several_primitives_or_none():
    space = Space(
        {
            (0, 1): {"a": dense(2, 2), "b": skip()},
            (0, 2): {"a": dense(2, 2), "b": skip()},
            (1, 2): {"a": skip(), "b": zero()},
        },
        restriction="cube",
    )
    gamma = {"structure": torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])}
    derived = derive(space, gamma)
    assert sorted(derived.edges) == [(0, 1), (1, 2)]
    whole, part = Network(space), Network(derived)
    dense_part = next(m for m in part.modules() if isinstance(m, nn.Linear))
    dense_part.load_state_dict(whole.edges["0-1"]["a"].state_dict())
    x = torch.randn(3, 2)
    assert torch.allclose(whole(x, structure=gamma), part(x))
    with pytest.raises(ValueError, match="threshold"):
        derive(space, {"structure": torch.zeros(3, 2)})


def test_parallel_sums():
    space = parallel({"a": skip(), "b": skip()})
    assert torch.equal(Network(space)(torch.ones(2, 2)), torch.full((2, 2), 2.0))


def test_files_keep_spaces(tmp_path):
    space = zoo.cells(1, 10, channels=4)
    write_space(space, tmp_path / "space.json")
    assert read_space(tmp_path / "space.json") == space

    @primitive
    def my_gate(features: int) -> nn.Module:
        return nn.Linear(features, features)

    mine = Space({(0, 2): {"gate": my_gate(3)}, (1, 2): {"skip": skip()}}, {2: "mean"}, (0, 1), "mine", "cube")
    write_space(mine, tmp_path / "mine.json")
    assert read_space(tmp_path / "mine.json") == mine
    with pytest.raises(ValueError, match=r"edges\[\(0, 1\)\].*primitive"):
        write_space(Space({(0, 1): {"opaque": partial(nn.Linear, 3, 3)}}), tmp_path / "no.json")
    assert not (tmp_path / "no.json").exists()
    for text in ("{", "[]", '{"format": "pyro_nas space 1"}', '{"format": "pyro_nas space 1", "edges": [{}]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="expected"):
            read_space(tmp_path / "bad.json")
    text = (tmp_path / "mine.json").read_text().replace("my_gate", "os.system")
    (tmp_path / "evil.json").write_text(text)
    with pytest.raises(ValueError, match="expected one of"):
        read_space(tmp_path / "evil.json")


def test_images_flow_through_the_zoo():
    space = zoo.cells(1, 10, channels=4, nodes=3)
    assert Network(space)(torch.randn(5, 1, 8, 8), structure=uniform(space)).shape == (5, 10)
    space = zoo.layers(64, 10, width=8, depth=3)
    assert Network(space)(torch.randn(5, 1, 8, 8), structure=uniform(space)).shape == (5, 10)
    assert convolution(3, 4, stride=2)()(torch.randn(2, 3, 9, 9)).shape == (2, 4, 5, 5)
