"""Attacks, noise and deleted edges against what can be worked out by hand."""

import json
from itertools import pairwise

import pytest
import torch

from pyro_nas import Network, Space, derive
from pyro_nas.graph.derivation import with_optional_edges
from pyro_nas.graph.enumeration import random_structure
from pyro_nas.graph.families import cell_spaces, zoo
from pyro_nas.graph.primitives import dense, skip, zero
from pyro_nas.models import Model, guides, likelihoods
from pyro_nas.reading.posterior import draw, predict
from pyro_nas.reading.robustness import (
    accuracy,
    cell_edges,
    deleted_edges,
    gaussian_noise,
    random_edges,
    robustness_curves,
    sign_gradient_attack,
)


@pytest.fixture
def linear():
    """A two-class linear model, three draws of it, and data well inside [−1, 1]."""
    model = Model(Space({(0, 1): {"only": dense(4, 2)}}), num_data=60).double()
    draws = {"weights": 3 * torch.randn(3, model.packing.size, dtype=torch.double)}
    draws["weights"][:, -2:] /= 100  # the biases
    x = 0.6 * torch.rand(60, 4, dtype=torch.double) - 0.3
    return model, draws, x, predict(model, draws, x).argmax(-1)


def margins(model, draws, x, y):
    """Return the margin of class y, (draw, data), and its gradient in x, (draw, data, feature)."""
    named = model.packing.unpack(draws["weights"])
    weight, bias = (named[name] for name in model.packing.names)
    signs = (2.0 * y - 1.0)[:, None]
    slope = signs * (weight[:, 1] - weight[:, 0])[:, None]
    return (x * slope).sum(-1) + signs[:, 0] * (bias[:, 1] - bias[:, 0])[:, None], slope


def check_direction(direction, model, draws, x, y):
    """∇ mean σ(m) = mean σ(m)(1 − σ(m)) ∇m, in closed form."""
    margin, slope = margins(model, draws, x, y)
    p = margin.sigmoid()
    assert torch.equal(direction, -((p * (1 - p))[..., None] * slope).sum(0).sign())


@pytest.mark.parametrize("count", [1, 3])
def test_the_attack_follows_the_gradient_of_the_predictive_mean(linear, count):
    model, draws, x, y = linear
    draws = {"weights": draws["weights"][:count]}
    moved = sign_gradient_attack(model, draws, x, y, 0.1, batch_size=17)
    assert torch.allclose((moved - x).abs(), torch.tensor(0.2).double())  # a tenth of [−1, 1]
    check_direction((moved - x).sign(), model, draws, x, y)
    assert not moved.requires_grad
    assert model.training
    with torch.no_grad():
        assert torch.equal(sign_gradient_attack(model, draws, x, y, 0.1), moved)


def test_wrong_directions_are_seen(linear):
    model, draws, x, y = linear
    moved = sign_gradient_attack(model, draws, x, y, 0.1)
    _, slope = margins(model, draws, x, y)
    wrong = [(x - moved).sign(), -slope.sum(0).sign(), -slope[0].sign()]  # descent, equal shares, one of the draws
    margin = margins(model, draws, x, y)[0]
    wrong.append(-((1 - margin.sigmoid())[..., None] * slope).sum(0).sign())  # the mean of log p, not the log of a mean
    for direction in wrong:
        with pytest.raises(AssertionError):
            check_direction(direction, model, draws, x, y)


def test_accuracy_under_attack_is_the_share_of_margins_beyond_reach(linear):
    model, draws, x, y = linear
    one = {"weights": draws["weights"][:1]}
    y = predict(model, one, x).argmax(-1)
    margin, slope = margins(model, one, x, y)
    curves = robustness_curves(model, one, x, y, epsilons=(0.0, 0.01, 0.03, 0.1), fractions=())
    for epsilon, found in curves["attack"].items():
        assert found == pytest.approx(float((margin > 2 * epsilon * slope.abs().sum(-1)).double().mean()))
    values = list(curves["attack"].values())
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.5


def test_steps_of_no_size_change_nothing_and_clipping_holds(linear):
    model, draws, _, y = linear
    x = 2 * torch.rand(60, 4, dtype=torch.double) - 1
    assert torch.equal(sign_gradient_attack(model, draws, x, y, 0.0), x)
    assert torch.equal(gaussian_noise(x, 0.0, 0), x)
    for moved in (sign_gradient_attack(model, draws, x, y, 0.3), gaussian_noise(x, 0.5, 0)):
        assert (moved.min(), moved.max()) == (-1, 1)
    pixels = sign_gradient_attack(model, draws, x.abs(), y, 0.3, low=0.0)
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert float((pixels - x.abs()).abs().max()) == pytest.approx(0.3)  # the range is 1


def test_an_attack_finds_its_way_where_probabilities_underflow(linear):
    """Here p of the class is 0 in floats, and so is its gradient; that of log p is not."""
    model, draws, x, _ = linear
    model, x, sharp = model.float(), x.float(), {"weights": 1e4 * draws["weights"][:1].float()}
    probabilities = predict(model, sharp, x)
    y = probabilities.argmin(-1)
    sure = probabilities.min(-1).values == 0
    assert sure.sum() > 30
    moved = sign_gradient_attack(model, sharp, x, y, 0.1)
    assert torch.equal((moved - x).sign()[sure], -margins(model, sharp, x, y)[1][0].sign()[sure])


def test_the_attack_meets_finite_differences_of_predictions_in_a_search_space(small_space, small_data):
    model = Model(small_space, num_data=40).double()
    draws = draw(guides.MeanField(model), num_samples=5)  # weights and structures
    draws = {site: value.double() for site, value in draws.items()}
    x, y = small_data[0].double().clamp(-0.7, 0.7), small_data[1]
    found = (sign_gradient_attack(model, draws, x, y, 0.1) - x).sign()
    for feature, step in enumerate(1e-5 * torch.eye(3).double()):
        there, back = (predict(model, draws, x + sign * step)[range(40), y].log() for sign in (1, -1))
        slope = (there - back) / 2e-5
        clear = slope.abs() > 1e-6
        assert clear.sum() > 30
        assert torch.equal(found[clear, feature], -slope.sign()[clear])


def test_noise_is_reproducible_and_of_the_size_it_says():
    x = torch.zeros(200, 50)
    assert torch.equal(gaussian_noise(x, 0.05, 1), gaussian_noise(x, 0.05, 1))
    assert not torch.equal(gaussian_noise(x, 0.05, 1), gaussian_noise(x, 0.05, 2))
    assert torch.allclose(2 * gaussian_noise(x, 0.02, 1), gaussian_noise(x, 0.04, 1))
    assert float(gaussian_noise(x, 0.05, 1).std()) == pytest.approx(0.1, rel=0.03)  # standard error .7 %


def cell():
    choices = {"tanh": dense(3, 3, "tanh"), "linear": dense(3, 3), "zero": zero()}
    return Space({(0, 1): choices, (0, 2): choices, (1, 2): choices}, name="cell")


@pytest.fixture
def chain():
    """Stem, cell, the same cell, readout; the search space and one with tanh, linear and linear derived from it."""
    space = Space(
        {(0, 1): {"stem": dense(3, 3)}, (1, 2): {"cell": cell()}, (2, 3): {"c": cell()}, (3, 4): {"out": dense(3, 2)}}
    )
    return space, derive(space, {"structure.cell": torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]])})


EDGES = [("cell", (0, 1)), ("cell", (0, 2)), ("cell", (1, 2))]


def test_edges_are_those_of_the_cells_that_carry_something(chain):
    searched, derived = (Network(space) for space in chain)
    assert cell_edges(searched) == cell_edges(derived) == EDGES
    assert cell_edges(Model(chain[0], num_data=1)) == EDGES
    mute = derive(chain[0], {"structure.cell": torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])})
    assert cell_edges(Network(mute)) == [EDGES[0], EDGES[2]]
    shaped = Space({(0, 1): {"shape": dense(3, 2)}, (1, 2): {"zero": zero()}})
    assert cell_edges(Network(Space({(0, 1): {"a": shaped, "b": zero()}, (1, 2): {"skip": skip()}}, name="cell"))) == [
        ("cell", (1, 2))
    ]


def test_edges_that_only_collect_do_not_count():
    """The cell of DARTS with 4 nodes has 14 edges that choose, and 4 into its output."""
    edges = {(j, k): {"a": skip(), "b": zero()} for k in range(2, 6) for j in range(k)}
    collect = {(k, 6): {"skip": skip()} for k in range(2, 6)}
    darts = Space({**edges, **collect}, {6: "concatenation"}, (0, 1), name="normal")
    inputs = {(0, 1): {"a": skip()}, (0, 2): {"b": skip()}, (1, 3): {"c": skip()}, (2, 3): {"d": skip()}}
    network = Network(Space(inputs, {3: darts}))
    derived = Network(derive(network.space, {"structure.normal": torch.tensor([1.0, 0.0]).expand(14, 2)}))
    assert cell_edges(network) == cell_edges(derived) == sorted(("normal", edge) for edge in edges)
    with deleted_edges(derived, cell_edges(derived)):
        assert torch.equal(derived(torch.randn(2, 3)), torch.zeros(2, 12))


def by_hand(network, x, gone):
    """The derived chain with its cells' edges, (0, 1) tanh and the others linear, as a formula."""
    parts = [network.edges[f"{j}-{j + 1}"] for j in range(4)]
    x = parts[0]["stem"](x)
    for within in (parts[1]["cell"].edges, parts[2]["c"].edges):
        on = {edge: float(edge not in gone) for edge in [(0, 1), (0, 2), (1, 2)]}
        middle = on[0, 1] * within["0-1"]["tanh"](x)
        x = on[0, 2] * within["0-2"]["linear"](x) + on[1, 2] * within["1-2"]["linear"](middle)
    return parts[3]["out"](x)


def check_deletion(context, network, gone):
    x = torch.randn(5, 3)
    with context:
        found = network(x)
    assert torch.allclose(found, by_hand(network, x, gone), atol=1e-6)


def test_deleted_edges_are_gone_from_every_cell_of_the_name(chain):
    network = Network(chain[1])
    x = torch.randn(5, 3)
    plain = network(x)
    for bits in range(8):
        gone = [edge for index, (_, edge) in enumerate(EDGES) if bits >> index & 1]
        check_deletion(deleted_edges(network, [("cell", edge) for edge in gone]), network, gone)
    with pytest.raises(AssertionError):  # in the first cell alone
        check_deletion(deleted_edges(network.edges["1-2"], [EDGES[1]]), network, [EDGES[1][1]])
    with deleted_edges(network, []):
        assert torch.equal(network(x), plain)
    with deleted_edges(network, EDGES):
        assert torch.equal(network.edges["1-2"]["cell"](x), torch.zeros(5, 3))
    with pytest.raises(RuntimeError, match="stop"), deleted_edges(network, EDGES):
        raise RuntimeError("stop")
    assert torch.equal(network(x), plain)
    assert not any(module._forward_hooks for module in network.modules())


def test_deletion_is_as_a_zero_of_the_structure_in_a_search_space(chain):
    """On the cube an edge without any primitive is a row of zeros, which the network knows by itself."""
    network = Network(chain[0])
    gamma = torch.tensor([[0.5, 0.4, 0.1], [0.2, 0.3, 0.5], [0.6, 0.2, 0.2]])
    x = torch.randn(5, 3)
    with deleted_edges(network, [EDGES[0]]):
        found = network(x, structure={"structure.cell": gamma})
    gamma[0] = 0
    assert torch.equal(found, network(x, structure={"structure.cell": gamma}))


def test_a_cell_at_a_vertex_and_a_convolutional_one():
    joined = Space({(0, 2): {"a": skip()}, (1, 2): {"b": skip()}, (2, 3): {"c": skip()}}, inputs=(0, 1), name="join")
    two = {(0, 1): {"a": dense(3, 3)}, (0, 2): {"b": dense(3, 3)}, (1, 3): {"p": skip()}, (2, 3): {"q": skip()}}
    network = Network(Space(two, aggregations={3: joined}))
    x = torch.randn(5, 3)
    with deleted_edges(network, [("join", (0, 2))]):
        assert torch.equal(network(x), network.edges["0-2"]["b"](x))
    space = zoo.cells(1, 3, channels=2)
    uniform = {site: torch.full(choices.shape, 0.25) for site, choices in space.choices().items()}
    for network in (Network(space).eval(), Network(derive(space, uniform)).eval()):
        with deleted_edges(network, cell_edges(network)):
            outputs = network(torch.randn(4, 1, 8, 8), structure=uniform)
        assert torch.equal(outputs, outputs[:1].expand(4, 3))  # nothing of x is left


def test_an_absent_edge_is_a_deleted_one():
    """Every edge of both kinds of cell by itself; a wrong variant, another edge, gives something else."""
    space = cell_spaces.darts(1, 3, 2, cells=3, nodes=2, primitives=("convolution 1", "skip"), stem_channels=2)
    derived = derive(space, random_structure(space, torch.Generator().manual_seed(1)))
    torch.manual_seed(0)
    whole, optional = Network(derived).eval(), Network(with_optional_edges(derived)).eval()
    optional.load_state_dict(whole.state_dict())
    x, sites = torch.randn(4, 1, 8, 8), optional.space.choices()
    present = {site: torch.ones(choices.shape) for site, choices in sites.items()}
    assert {site: choices.shape for site, choices in sites.items()} == dict.fromkeys(present, (7, 1))
    assert torch.equal(whole(x), optional(x, structure=present))
    seen = []
    for name, edge in cell_edges(whole):
        site = f"structure.{name}"
        absent = present[site].clone()
        absent[sites[site].edges.index(edge)] = 0
        seen.append(optional(x, structure={**present, site: absent}))
        with deleted_edges(whole, [(name, edge)]):
            assert torch.allclose(seen[-1], whole(x), atol=1e-6)
    assert len(seen) == 10
    assert not any(torch.allclose(one, other, atol=1e-6) for one, other in pairwise(seen))


def test_edges_are_made_optional_in_cells_alone():
    with pytest.raises(ValueError, match="space: expected a cell, a nested space with a name"):
        with_optional_edges(zoo.convolutions(1, 3))
    space = cell_spaces.nas_bench_201(1, 3, 2, repeats=2, nodes=3, stages=2, primitives=("convolution 1", "skip"))
    chosen = {site: torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]) for site in space.choices()}
    derived = derive(space, chosen)
    torch.manual_seed(0)
    whole, optional = Network(derived).eval(), Network(with_optional_edges(derived)).eval()  # cells stand on edges
    optional.load_state_dict(whole.state_dict())
    assert {site: choices.shape for site, choices in optional.space.choices().items()} == {"structure.cell": (3, 1)}
    x, absent = torch.randn(4, 1, 8, 8), torch.tensor([[1.0], [0.0], [1.0]])
    with deleted_edges(whole, [("cell", (0, 2))]):
        assert torch.allclose(optional(x, structure={"structure.cell": absent}), whole(x), atol=1e-6)
    present = optional(x, structure={"structure.cell": torch.ones(3, 1)})
    assert torch.allclose(present, whole(x), atol=1e-6)
    assert not torch.allclose(present, optional(x, structure={"structure.cell": absent}), atol=1e-6)


def test_random_edges_are_as_many_as_asked_and_grow_with_the_fraction():
    edges = [("cell", (0, k)) for k in range(1, 15)]
    for seed in range(20):
        chosen = [random_edges(edges, fraction, seed) for fraction in (0.0, 0.1, 0.3, 0.5, 1.0)]
        assert [len(set(some)) for some in chosen] == [0, 1, 4, 7, 14]  # of the ancestor's 14 edges
        for fewer, more in pairwise(chosen):
            assert set(fewer) <= set(more)
    assert random_edges(edges, 0.3, 1) == random_edges(edges, 0.3, 1) != random_edges(edges, 0.3, 2)


def test_curves_are_the_accuracies_they_name(chain):
    model = Model(chain[1], num_data=1)
    draws = {"weights": torch.randn(2, model.packing.size)}
    x = torch.rand(100, 3) * 2 - 1
    y = (predict(model, draws, x).argmax(-1) + (torch.rand(100) < 0.2).long()) % 2
    clean = accuracy(model, draws, x, y)
    curves = robustness_curves(model, draws, x, y, fractions=(0.0, 0.4, 1.0), repetitions=4, seed=3)
    assert curves["attack"][0.0] == curves["noise"][0.0] == curves["deleted_edges"][0.0] == clean
    assert curves["attack"][0.2] == accuracy(model, draws, sign_gradient_attack(model, draws, x, y, 0.2), y)
    assert curves["noise"][0.2] == accuracy(model, draws, gaussian_noise(x, 0.2, 3), y)
    each = []
    for seed in range(3, 7):
        with deleted_edges(model.network, random_edges(EDGES, 0.4, seed)):
            each.append(accuracy(model, draws, x, y))
    assert len(set(each)) > 1
    assert curves["deleted_edges"][0.4] == pytest.approx(sum(each) / 4)
    assert curves["deleted_edges"][1.0] in (float((y == c).double().mean()) for c in (0, 1))  # a constant answer
    only = robustness_curves(model, draws, x, y, epsilons=(), noises=(), fractions=(1.0,), edges=EDGES[:1])
    with deleted_edges(model.network, EDGES[:1]):
        assert only == {"attack": {}, "deleted_edges": {1.0: accuracy(model, draws, x, y)}, "noise": {}}
    assert json.loads(json.dumps(curves))["attack"]["0.1"] == curves["attack"][0.1]


def test_bad_input_is_named(linear, chain):
    model, draws, x, y = linear
    shared = torch.nn.Linear(3, 3)
    tied = Network(Space({(0, 1): {"a": lambda: shared}, (0, 2): {"b": lambda: shared}, (1, 2): {"c": skip()}}))
    calls = {
        "x: expected values in": lambda: sign_gradient_attack(model, draws, 9 * x, y, 0.1),
        "x: expected floating-point": lambda: sign_gradient_attack(model, draws, x.long(), y, 0.1),
        "y: expected class indices of shape": lambda: accuracy(model, draws, x, y[:, None]),
        "epsilon: expected": lambda: sign_gradient_attack(model, draws, x, y, -0.1),
        "epsilons: expected": lambda: robustness_curves(model, draws, x, y, epsilons=(float("nan"),), fractions=()),
        "high: expected": lambda: sign_gradient_attack(model, draws, x, y, 0.1, low=1.0, high=0.0),
        "sd: expected": lambda: gaussian_noise(x, -1.0, 0),
        "seed: expected": lambda: gaussian_noise(x, 1.0, -1),
        "draws: expected": lambda: sign_gradient_attack(model, {}, x, y, 0.1),
        "fraction: expected": lambda: random_edges(EDGES, 1.5, 0),
        "edges: expected an edge or more": lambda: robustness_curves(model, draws, x, y),
        "edges: expected .name, edge. among": lambda: deleted_edges(Network(chain[0]), [("cell", (7, 8))]).__enter__(),
        "edges: expected edges with modules of their own": lambda: deleted_edges(tied, [("", (0, 1))]).__enter__(),
        "repetitions: expected": lambda: robustness_curves(model, draws, x, y, repetitions=0),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
    assert model.training


def test_an_attack_on_a_model_without_classes_is_refused():
    model = Model(Space({(0, 1): {"a": dense(3, 2)}}), num_data=4, likelihood=likelihoods.gaussian(1.0))
    draws = draw(guides.MeanField(model), num_samples=2)
    with pytest.raises(ValueError, match=r"^model: expected a likelihood of classes"):
        sign_gradient_attack(model, draws, torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]), 0.1)
