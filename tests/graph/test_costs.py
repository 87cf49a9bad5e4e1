"""Costs: tables against derived networks, and the cost of probabilities against the expected one."""

import itertools
import statistics

import pytest
import torch

from pyro_nas import Space, derive
from pyro_nas.graph.costs import CostTable, measure, total_cost
from pyro_nas.graph.families import zoo
from pyro_nas.graph.primitives import convolution, dense, max_pool, pooled_readout, separable_convolution, skip, zero


def options(channels):
    return {
        "convolution": convolution(channels, channels),
        "separable": separable_convolution(channels, channels, 5),
        "pool": max_pool(),
        "skip": skip(),
        "zero": zero(),
    }


def joining(channels):
    """A cell of two inputs."""
    return Space({edge: options(channels) for edge in [(0, 2), (1, 2), (2, 3)]}, inputs=(0, 1), name="joining")


@pytest.fixture
def convolutional():
    """One cell at two vertices as what aggregates there, another on two edges, and choices of the space's own."""
    tails = [Space({(0, 1): options(c), (0, 2): options(c), (1, 2): options(c)}, name="tail") for c in (4, 6)]
    join = {"skip": skip()}
    return Space(
        {
            (0, 1): {"stem": convolution(1, 4)}, (1, 2): {"wide": convolution(4, 4, 5), "skip": skip()},
            (1, 3): join, (2, 3): join, (2, 4): join, (3, 4): join, (4, 5): {"tail": tails[0]},
            (5, 6): {"halving": convolution(4, 6, stride=2)}, (6, 7): {"tail": tails[1]},
            (7, 8): {"readout": pooled_readout(6, 3)},
        },
        aggregations={3: joining(4), 4: joining(4)},
    )  # fmt: skip


def vertices(space):
    """A random structure of one primitive an edge."""
    choices = space.choices()
    return {s: torch.eye(c.shape[1])[torch.randint(c.shape[1], c.shape[:1])] for s, c in choices.items()}


@pytest.mark.parametrize("kind", ["parameters", "multiply_accumulates"])
def test_counts_are_exactly_those_of_derived_networks(convolutional, kind):
    x = torch.randn(5, 1, 8, 8)
    table = measure(convolutional, x, kind)
    for _ in range(10):
        structure = vertices(convolutional)
        assert float(table(structure)) == total_cost(derive(convolutional, structure), x, kind)
    assert (table.tables["structure.tail"][:, 2:] == 0).all()  # pool, skip and zero
    layers = Space({(0, 1): {"dense": dense(3, 3), "zero": zero()}, (1, 2): {"readout": dense(3, 2)}})
    by_hand = measure(layers, torch.randn(5, 3), kind)
    fixed, chosen = {"parameters": (3 * 2 + 2, 3 * 3 + 3), "multiply_accumulates": (3 * 2, 3 * 3)}[kind]
    assert (by_hand.fixed, by_hand.tables["structure"].tolist()) == (fixed, [[chosen, 0]])


def test_latency_is_one_number_for_equal_primitives_and_leaves_the_random_state(convolutional):
    x = torch.randn(2, 1, 8, 8)
    state = torch.get_rng_state()
    table = measure(convolutional, x, repeats=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(rows, rows[:1].expand_as(rows)) for rows in table.tables.values())
    assert all((rows >= 0).all() for rows in table.tables.values())
    assert table.tables["structure.tail"][0, 0] > table.tables["structure.tail"][0, 3]  # a convolution, a skip
    closed = derive(convolutional, vertices(convolutional))
    assert measure(closed, x, repeats=2).fixed > 0
    assert total_cost(closed, x, repeats=2) > 0


@pytest.mark.slow
def test_predicted_latency_is_within_a_quarter_of_the_measured():
    """Other processes only ever add to a time: both sides are the least of five rounds."""
    space, x = zoo.cells(1, 10, channels=16, nodes=3), torch.randn(64, 1, 28, 28)
    found = [vertices(space) for _ in range(8)]
    rounds = []
    for _ in range(5):
        table = measure(space, x)
        rounds.append([(float(table(s)), total_cost(derive(space, s), x)) for s in found])
    least = [[min(values) for values in zip(*pairs, strict=True)] for pairs in zip(*rounds, strict=True)]
    ratios = [predicted / measured for predicted, measured in least]
    print("predicted / measured latency:", [round(ratio, 2) for ratio in ratios])
    assert all(0.75 <= ratio <= 1.25 for ratio in ratios)
    assert max(m for _, m in least) > 1.5 * min(m for _, m in least)  # structures differ
    assert statistics.correlation(*zip(*least, strict=True)) > 0.9


TABLE = CostTable(3.0, {"structure": torch.tensor([[5.0, 2.0, 0.0], [1.0, 4.0, 0.5]])}, "units")


def test_the_cost_of_probabilities_is_the_expected_cost():
    every = torch.stack(
        [torch.eye(3)[list(pair)] for pair in itertools.product(range(3), repeat=2)]
    )  # (9, edge, choice)
    probabilities = torch.rand(2, 3).softmax(-1)
    weights = (probabilities[0][:, None] * probabilities[1]).flatten()
    expected = (weights * TABLE({"structure": every})).sum()
    assert torch.allclose(TABLE({"structure": probabilities}), expected)
    assert TABLE({"structure": every.view(3, 3, 2, 3)}).shape == (3, 3)
    assert torch.allclose(TABLE.scaled(1000, "thousandths")({"structure": probabilities}), 1000 * expected)


SMALL = Space({(0, 1): {"a": dense(3, 2), "b": dense(3, 2)}})
NESTED = Space({(0, 1): {"cell": Space({(0, 1): SMALL.edges[0, 1]}, name="cell"), "b": dense(3, 2)}})


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: measure(SMALL, torch.ones(2, 3), "flops"), ValueError, "kind: expected one of .* got 'flops'"),
        (lambda: measure(SMALL, torch.ones(2, 3), repeats=0), ValueError, "repeats: expected an integer of at least 1"),
        (lambda: measure(SMALL, torch.ones(2, 4)), ValueError, r"x: the network cannot run on inputs of .*\(2, 4\)"),
        (lambda: measure(SMALL, torch.ones(0, 3)), ValueError, r"x: expected tensors of shape \(batch, …\)"),
        (lambda: measure(NESTED, torch.ones(2, 3)), ValueError, "space: expected cells .* not linear .* Derive"),
        (lambda: total_cost(SMALL, torch.ones(2, 3)), ValueError, "space: expected nothing left .* Call derive"),
        (lambda: TABLE({"structure": torch.ones(2, 2)}), ValueError, r"structure\['structure'\]: expected shape"),
        (lambda: TABLE({}), ValueError, r"structure\['structure'\]: expected shape .* got None"),
        (lambda: CostTable(1.0, {"structure": torch.ones(3)}, "units"), ValueError, r"tables\['structure'\]: expected"),
        (lambda: CostTable(float("nan"), {}, "units"), ValueError, "fixed: expected a finite number"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
