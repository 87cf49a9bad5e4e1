"""What holds for every space: JSON keeps it, its derived network computes the same, and structures are ranked right."""

import json
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pyro_nas import Network, Space, derive, probable_structures
from pyro_nas.graph.enumeration import all_structures, count_structures, key_of_structure, random_structure
from pyro_nas.graph.primitives import dense, skip, zero
from pyro_nas.graph.space_files import from_dict, to_dict

WIDTH = 3
PRIMITIVES = {
    "dense": dense(WIDTH, WIDTH),
    "tanh": dense(WIDTH, WIDTH, "tanh"),
    "a.b": dense(WIDTH, WIDTH, "sigmoid"),
    "keys": skip(),
    "nothing": zero(),
}
quick = settings(deadline=None, derandomize=True, database=None, max_examples=40)


@st.composite
def graphs(draw, inputs, vertices):
    """Edges over vertices 0 … vertices − 1 that all lie between the inputs and the last vertex."""
    edges = set()
    for vertex in range(inputs, vertices):
        edges |= {(parent, vertex) for parent in draw(st.sets(st.integers(0, vertex - 1), min_size=1))}
    loose = set(range(vertices - 1)) - {parent for parent, _ in edges}
    return sorted(edges | {(vertex, vertices - 1) for vertex in loose})


@st.composite
def spaces(draw, depth=2, inputs=1, name="", most=4):
    """Spaces of vectors of WIDTH numbers, with cells on edges and on vertices; cells of one name share choices."""
    edges = draw(graphs(inputs, draw(st.integers(inputs + 1, max(inputs + 1, most)))))
    on_edges = dict(PRIMITIVES)
    if depth:
        on_edges["cell"] = draw(spaces(depth=depth - 1, name=f"{name}edge", most=3))
    names = st.lists(st.sampled_from(list(on_edges)), min_size=1, max_size=3, unique=True)
    chosen = {edge: {key: on_edges[key] for key in draw(names)} for edge in edges}
    aggregations = {}
    for vertex in range(inputs, max(child for _, child in edges) + 1):
        parents = sum(child == vertex for _, child in edges)
        kinds = ["default", "sum", "mean", "product", *(["cell"] if depth else [])]
        kind = draw(st.sampled_from(kinds))
        if kind == "cell":
            cell = spaces(depth=depth - 1, inputs=parents, name=f"{name}vertex{vertex}", most=parents + 2)
            aggregations[vertex] = draw(cell)
        elif kind != "default":
            aggregations[vertex] = kind
    return Space(chosen, aggregations, tuple(range(inputs)), name, draw(st.sampled_from(["simplex", "cube"])))


def copy_weights(whole, part):
    """Give a derived network the weights of the network of the whole space."""
    for (j, k), names in part.space.edges.items():
        known = dict(zip(whole.space.edges[j, k], whole.edges[f"{j}-{k}"].values(), strict=True))
        for name, module in zip(names, part.edges[f"{j}-{k}"].values(), strict=True):
            if name in known:
                copy_module(known[name], module)
            elif name != "zero":  # several primitives in parallel: "a+b"
                for (start, vertex), inner in module.space.edges.items():
                    if start == 0:
                        (single,) = inner
                        (target,) = module.edges[f"0-{vertex}"].values()
                        copy_module(known[single], target)
    for vertex, module in part.aggregations.items():
        copy_module(whole.aggregations[vertex], module)


def copy_module(source, target):
    if isinstance(target, Network):
        copy_weights(source, target)
    else:
        target.load_state_dict(source.state_dict())


def derived_or_none(space, gamma):
    """The derived space, None where the structure (on the cube) leaves nothing on the way to the output."""
    try:
        return derive(space, gamma)
    except ValueError as error:
        if "is left" not in str(error):
            raise
        return None


@quick
@given(spaces())
def test_json_keeps_a_space(space):
    assert from_dict(json.loads(json.dumps(to_dict(space)))) == space


@quick
@given(spaces(inputs=2), st.integers(0, 2**20))
def test_the_derived_network_computes_what_the_whole_does_at_that_structure(space, seed):
    gamma = random_structure(space, torch.Generator().manual_seed(seed))
    derived = derived_or_none(space, gamma)
    assume(derived is not None)
    assert derived.choices() == {}
    torch.manual_seed(seed)
    whole, part = Network(space).double(), Network(derived).double()
    copy_weights(whole, part)
    inputs = torch.randn(2, 5, WIDTH, dtype=torch.double)
    torch.testing.assert_close(part(*inputs), whole(*inputs, structure=gamma))


def test_nothing_stays_open_where_a_cell_is_left_out():
    """A product needs the shape of what a dropped edge would give, here that of a cell with choices."""
    cell = Space({(0, 1): {"dense": PRIMITIVES["dense"], "tanh": PRIMITIVES["tanh"]}}, name="cell")
    edges = {(0, 1): {"dense": PRIMITIVES["dense"]}, (0, 2): {"cell": cell}, (1, 2): {"skip": skip()}}
    space = Space(edges, {2: "product"}, restriction="cube")
    gamma = {"structure": torch.tensor([[1.0], [0.0], [1.0]]), "structure.cell": torch.tensor([[0.0, 1.0]])}
    derived = derive(space, gamma)
    assert derived.choices() == {}
    assert not Network(derived)(torch.randn(2, WIDTH)).any()


@quick
@given(spaces(depth=1, most=3), st.data())
def test_probable_structures_are_the_first_of_all(space, data):
    assume(count_structures(space) <= 300)
    probabilities = {}
    for site, choices in space.choices().items():
        weights = data.draw(
            st.lists(st.integers(0, 4), min_size=math.prod(choices.shape), max_size=math.prod(choices.shape))
        )
        table = torch.tensor(weights, dtype=torch.double).view(choices.shape)
        if choices.restriction == "simplex":
            table = table + (table.sum(-1, keepdim=True) == 0)
            probabilities[site] = table / table.sum(-1, keepdim=True)
        else:
            probabilities[site] = table / 4

    def probability(structure):
        shares = []
        for site, choices in space.choices().items():
            table = probabilities[site]
            if choices.restriction == "simplex":
                shares.append((table * structure[site]).sum(-1))
            else:
                shares.append(torch.where(structure[site] == 1, table, 1 - table))
        return math.prod(float(share.prod()) for share in shares)

    every = sorted((probability(structure) for structure in all_structures(space)), reverse=True)
    count = data.draw(st.integers(1, 20))
    ranked = probable_structures(space, probabilities, count)
    assert [one.probability for one in ranked] == pytest.approx(every[:count])
    assert [probability(one.structure) for one in ranked] == pytest.approx(every[:count])
    assert len({key_of_structure(one.structure) for one in ranked}) == min(count, len(every))
    assert sum(every) == pytest.approx(1.0)
