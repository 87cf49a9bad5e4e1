"""Derivation: what is kept of a structure, and a derived network against the whole one at that structure."""

from functools import partial

import pytest
import torch
from torch import nn

from pyro_nas import Network, Space, derive
from pyro_nas.graph.derivation import parallel
from pyro_nas.graph.families import cell_spaces
from pyro_nas.graph.modules import Zero
from pyro_nas.graph.primitives import dense, skip, zero


def test_derived_network_is_the_network_at_that_vertex(small_space, vertex):
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


def test_derived_cube_networks_are_the_same_function():
    x = torch.randn(40, 2)
    edges = {e: {"a": dense(2, 2), "b": dense(2, 2, "tanh")} for e in ((0, 1), (0, 2), (1, 2))}
    for aggregation in ("sum", "mean"):
        cube = Space(edges, {2: aggregation}, restriction="cube")
        for gamma in ([[1, 0], [1, 0], [0, 0]], [[0, 0], [1, 0], [1, 0]], [[1, 1], [0, 1], [1, 0]]):
            structure = {"structure": torch.tensor(gamma).float()}
            whole, part = Network(cube), Network(derive(cube, structure))
            for edge, names in part.space.edges.items():
                source = whole.edges[f"{edge[0]}-{edge[1]}"]
                for name, factory in names.items():
                    target = part.edges[f"{edge[0]}-{edge[1]}"][name]
                    linears = [m for m in target.modules() if isinstance(m, nn.Linear)]
                    kept = name.split("+") if name != "zero" else ["a"]
                    for linear, k in zip(linears, kept, strict=True):
                        source_linear = next(m for m in source[k].modules() if isinstance(m, nn.Linear))
                        linear.load_state_dict(source_linear.state_dict())
                    assert factory is not None
            assert torch.allclose(whole(x, structure=structure), part(x), atol=1e-6)


def test_derivation_keeps_the_strongest_edges_and_never_zero():
    """DARTS §2.4: two edges a node, by the probability of the best primitive that is not zero."""
    names = ("zero", "skip", "convolution 3")
    space = cell_spaces.darts(1, 2, channels=2, cells=1, nodes=2, primitives=names)
    #        0→2, 0→3, 1→2, 1→3, 2→3 in the order of the edges
    table = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.2, 0.3], [0.1, 0.3, 0.6], [0.1, 0.5, 0.4], [0.34, 0.36, 0.3]])
    cell = derive(space, {"structure.normal": table}, parents=2).aggregations[3]
    assert {edge: list(ops) for edge, ops in cell.edges.items() if edge[1] != 4} == {
        (0, 2): ["skip"], (1, 2): ["convolution 3"], (1, 3): ["skip"], (2, 3): ["skip"]
    }  # fmt: skip
    wrong = derive(space, {"structure.normal": table}).aggregations[3]
    assert list(wrong.edges[0, 2]) == ["zero"]


def test_parallel_sums():
    space = parallel({"a": skip(), "b": skip()})
    assert torch.equal(Network(space)(torch.ones(2, 2)), torch.full((2, 2), 2.0))


@pytest.mark.parametrize("factory", [zero(), zero, Zero, partial(Zero, 1), lambda: Zero()])
def test_a_zero_of_any_name_is_never_a_parent(factory):
    named = {"nothing": factory, "skip": skip()} if factory is not zero else {"none": nn.Identity, "skip": skip()}
    space = Space({(0, 2): named, (1, 2): named}, inputs=(0, 1))
    best = {"structure": torch.tensor([[0.9, 0.1], [0.6, 0.4]])}
    derived = derive(space, best, parents=2)
    assert {edge: list(primitives) for edge, primitives in derived.edges.items()} == {
        (0, 2): ["skip"], (1, 2): ["skip"],
    }  # fmt: skip
    assert list(derive(space, best).edges[0, 2]) == [next(iter(named))]  # without parents the most probable is kept


def test_zeros_of_cells_are_known_too():
    cell = Space({(0, 1): {"none": zero(), "skip": skip()}}, name="cell")
    space = Space({(0, 1): {"cell": cell}, (1, 2): {"cell": cell}})
    derived = derive(space, {"structure.cell": torch.tensor([[0.9, 0.1]])}, parents=1)
    assert list(derived.edges[0, 1]["cell"].edges[0, 1]) == ["skip"]


def test_an_edge_with_nothing_but_zeros_has_no_parent_to_keep():
    space = Space({(0, 1): {"none": zero(), "zero": zero()}})
    with pytest.raises(ValueError, match=r"^parents: expected a primitive that is no zero .* on \(0, 1\)"):
        derive(space, {"structure": torch.tensor([[0.5, 0.5]])}, parents=1)


def test_a_guide_is_no_structure(small_space):
    with pytest.raises(TypeError, match=r"^structure: expected {site: γ}, got .* Pass mean_draw\(guide\)"):
        derive(small_space, lambda: None)


def test_parents_of_a_cube_are_refused():
    cube = Space({(0, 1): {"a": skip(), "b": dense(3, 3)}}, restriction="cube")
    with pytest.raises(ValueError, match=r"^parents: expected choices on the simplex, .*2. Use threshold"):
        derive(cube, {"structure": torch.ones(1, 2)}, parents=2)


def test_modules_are_not_built_to_derive_without_parents():
    built = []

    def factory():
        built.append(1)
        return torch.nn.Identity()

    space = Space({(0, 1): {"a": factory, "b": factory}})
    derive(space, {"structure": torch.tensor([[0.3, 0.7]])})
    assert built == []
    derive(space, {"structure": torch.tensor([[0.3, 0.7]])}, parents=1)
    assert len(built) == 2
