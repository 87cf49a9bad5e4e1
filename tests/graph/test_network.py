"""Networks: the equation by hand, aggregations, primitives that are not run, a structure for each example."""

from functools import partial

import pytest
import torch
from torch import nn

from pyro_nas import Network, Space
from pyro_nas.graph.network import running
from pyro_nas.graph.primitives import dense, primitive, skip, zero


class Counted(nn.Module):
    """Doubles, and counts its calls."""

    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return 2 * x


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


@pytest.mark.parametrize("kind", ["mixed", "one-hot", "one-hot, negative"])
def test_examples_see_their_own_structure(small_space, small_data, kind):
    """A primitive that the first example does without runs for the others."""
    network = Network(small_space)
    gamma = torch.softmax(torch.randn(40, 2, 2), -1)
    if kind != "mixed":
        gamma = torch.eye(2)[torch.randint(2, (40, 2))] * (1 if kind == "one-hot" else -1)
    with torch.no_grad():
        together = network(small_data[0], structure={"structure": gamma})
        apart = [network(x[None], structure={"structure": g}) for x, g in zip(small_data[0], gamma, strict=True)]
    assert torch.allclose(together, torch.cat(apart), atol=1e-6)


def test_names_do_not_collide():
    with pytest.raises(ValueError, match="name: expected a letter"):
        Space({(0, 1): {"a": dense(2, 2)}}, name="2")
    assert len(list(Network(Space({(0, 1): {"training": dense(2, 2)}})).parameters())) == 2
    with pytest.raises(ValueError, match="distinct names"):
        Network(Space({(0, 1): {"a.b": dense(2, 2), "a/b": dense(2, 2)}}))
    with pytest.raises(ValueError, match="Rename the function"):

        @primitive
        def skip():
            return nn.Identity()


def test_a_module_that_cannot_be_built_is_named():
    huge = Space({(0, 1): {"huge": dense(2**31, 2**31)}})
    with pytest.raises(
        ValueError, match=r"^edges\[\(0, 1\)\]\['huge'\]: expected a module that can be built, .* too large"
    ):
        Network(huge)


def test_a_copy_has_modules_of_its_own_and_ties_what_was_tied():
    shared = nn.Linear(3, 3)
    network = Network(Space({(0, 1): {"a": lambda: shared}, (1, 2): {"b": lambda: shared}}))
    copied = network.copied()
    assert len(list(copied.parameters())) == 2
    assert copied.edges["0-1"]["a"] is copied.edges["1-2"]["b"]
    assert copied.edges["0-1"]["a"] is not shared


def test_what_a_network_cannot_run_on_comes_with_a_remedy():
    network = Network(Space({(0, 1): {"a": dense(3, 2)}}))
    with (
        pytest.raises(ValueError, match=r"inputs of shape \(4, 5\): .*$") as caught,
        running(network, (torch.ones(4, 5),)),
    ):
        network(torch.ones(4, 5))
    assert "call x.to" not in str(caught.value)
    with (
        pytest.raises(ValueError, match=r"x is torch.uint8: call x.to\(torch.float32\)"),
        running(network, (torch.ones(4, 3, dtype=torch.uint8),)),
    ):
        network(torch.ones(4, 3, dtype=torch.uint8))


def test_weights_replace_a_shared_parameter_at_every_place_and_leave_it():
    """One layer on two edges, a parameter of two layers, and one that is neither."""
    shared = torch.nn.Linear(2, 2)
    tied, own = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    tied.weight = shared.weight
    edges = {(0, 1): {"a": lambda: shared}, (1, 2): {"b": lambda: shared}, (2, 3): {"c": lambda: tied}}
    network = Network(Space({**edges, (3, 4): {"d": lambda: own}}))
    weight, bias, before = torch.randn(2, 2), torch.randn(2), dict(network.named_parameters())
    x = torch.randn(5, 2)
    found = network.with_weights({"edges.0-1.a.weight": weight, "edges.0-1.a.bias": bias}, x, {})
    once = x @ weight.T + bias
    expected = own((once @ weight.T + bias) @ weight.T + tied.bias)
    torch.testing.assert_close(found, expected)
    assert all(parameter is before[name] for name, parameter in network.named_parameters())
