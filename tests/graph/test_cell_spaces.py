"""Cell spaces: the sizes that the literature gives, shapes, shared structure, and what is derived from them."""

import itertools
from functools import partial

import networkx as nx
import pytest
import torch

from pyro_nas import Network, derive
from pyro_nas.graph.enumeration import all_structures, count_structures, key_of_structure, neighbours, random_structure
from pyro_nas.graph.families import cell_spaces, zoo
from pyro_nas.inference import svi
from pyro_nas.models import Model, guides, structures


def test_nas_bench_201_has_15625_cells_with_24_neighbours_each():
    """Dong and Yang 2020: 5⁶ cells; an edge of six changes to one of four others."""
    space = cell_spaces.nas_bench_201(1, 10, channels=2, repeats=1)
    assert count_structures(space) == 15_625
    keys = {key_of_structure(structure) for structure in all_structures(space)}
    assert len(keys) == 15_625
    for seed in range(3):
        structure = random_structure(space, torch.Generator().manual_seed(seed))
        around = [key_of_structure(other) for other in neighbours(space, structure)]
        assert len(around) == len(set(around)) == 24
        assert set(around) <= keys - {key_of_structure(structure)}


def test_the_darts_space_has_the_published_sizes(uniform):
    """14 edges a cell, two kinds of cells, 8 cells with reductions at a third and two thirds; outputs 4 × channels."""
    space = cell_spaces.darts(3, 10, channels=4)
    assert {site: c.shape for site, c in space.choices().items()} == {
        "structure.normal": (14, 7), "structure.reduction": (14, 7)
    }  # fmt: skip
    kinds = [space.aggregations[vertex].name for vertex in sorted(space.aggregations)]
    assert [index for index, kind in enumerate(kinds) if kind == "reduction"] == [2, 5]
    with torch.no_grad():
        network = Network(space).eval()
        seen = {}
        for vertex, cell in network.aggregations.items():
            cell.register_forward_hook(lambda _, inputs, output, vertex=vertex: seen.update({vertex: output.shape}))
        assert network(torch.randn(2, 3, 32, 32), structure=uniform(space)).shape == (2, 10)
    assert [tuple(seen[v][1:]) for v in sorted(seen, key=int)] == [
        (16, 32, 32), (16, 32, 32), (32, 16, 16), (32, 16, 16), (32, 16, 16), (64, 8, 8), (64, 8, 8), (64, 8, 8)
    ]  # fmt: skip


def test_parameters_of_the_derived_darts_network_are_those_of_the_formula():
    """A network of skips alone: stem, 1×1 matching, factorised reductions and the readout."""
    space = cell_spaces.darts(3, 10, channels=4, cells=1, nodes=2)
    skips = {site: torch.eye(7)[2].expand(c.shape) for site, c in space.choices().items()}
    network = Network(derive(space, skips))
    stem = 3 * 12 * 9 + 2 * 12
    matching = 2 * (12 * 4 + 2 * 4)
    assert sum(p.numel() for p in network.parameters()) == stem + matching + (8 * 10 + 10)


@pytest.mark.parametrize("name", ["darts", "nas_bench_201", "fabric"])
def test_outputs_do_not_depend_on_the_rest_of_the_batch_and_every_weight_gets_a_gradient(name, uniform):
    space = getattr(cell_spaces, name)(1, 3, channels=4)
    network = Network(space).eval()
    x = torch.randn(3, 1, 16, 16)
    structure = uniform(space)
    assert torch.allclose(network(x, structure=structure)[:1], network(x[:1], structure=structure), atol=1e-5)
    network(x, structure=structure).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters() if p.dim() > 1)


@pytest.mark.parametrize("name", ["darts", "nas_bench_201"])
def test_group_normalisation_keeps_no_statistics_and_runs_batched_over_structures(name):
    """What hypernetworks and vectorised particles ask for; with batch normalisation it is refused."""
    make = partial(getattr(cell_spaces, name), 1, 3, channels=2, nodes=2)
    space = make(normalization="group")
    network = Network(space)
    assert not network.keeps_statistics()
    assert Network(make()).keeps_statistics()
    tables = {s: torch.rand(4, *c.shape).softmax(-1) for s, c in space.choices().items()}
    x = torch.randn(2, 1, 8, 8)
    together = torch.vmap(lambda gamma: network(x, structure=gamma, skip_zeros=False))(tables)
    apart = torch.stack([network(x, structure={s: t[i] for s, t in tables.items()}) for i in range(4)])
    assert torch.allclose(together, apart, atol=1e-5)


def test_a_fabric_is_the_trellis_of_the_paper():
    """Saxena and Verbeek: paths lead from the finest scale of the first layer to the coarsest of the last."""
    scales, depth = 3, 4
    trellis = cell_spaces.fabric(1, 2, channels=2, scales=scales, depth=depth).edges[1, 2]["fabric"]
    expected = {
        (a * scales + s, b * scales + t)
        for (a, s), (b, t) in itertools.product(itertools.product(range(depth), range(scales)), repeat=2)
        if (b == a + 1 and abs(s - t) <= 1) or (b == a and a in (0, depth - 1) and t == s + 1)
    }
    assert set(trellis.edges) == expected
    assert trellis.output == scales * depth - 1
    longest = nx.dag_longest_path_length(trellis.graph)
    assert longest == depth - 1 + 2 * (scales - 1) + 0


def test_a_fabric_is_fitted_and_derived(small_images, uniform):
    x, y = small_images
    space = cell_spaces.fabric(1, 3, channels=2, scales=2, depth=2)
    model = Model(space, num_data=len(y), structure=structures.relaxed_bernoulli(0.5), complexity=0.01)
    guide = guides.PointWeights(model)
    history = svi.fit(model, guide, (x, y), epochs=2, batch_size=16).records
    assert torch.isfinite(torch.tensor(history[-1]["evidence"]))
    assert Network(derive(space, uniform(space), threshold=0.4))(x).shape == (len(y), 3)


@pytest.mark.parametrize("make", [cell_spaces.darts, cell_spaces.nas_bench_201, zoo.cells])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_cells_see_images_at_the_stride_of_the_stem(make, stem_stride, uniform):
    space = make(1, 3, channels=2, stem_stride=stem_stride)
    network, shapes = Network(space).eval(), []
    network.edges["0-1"].stem.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape[2:])))
    network(torch.randn(2, 1, 12, 8), structure=uniform(space))
    assert shapes == [(12 // stem_stride, 8 // stem_stride)]


def test_what_was_searched_in_a_small_network_is_derived_in_a_large_one():
    sizes = {"nodes": 2, "primitives": ("skip", "convolution 3")}
    small = cell_spaces.darts(1, 2, channels=2, cells=2, **sizes)
    large = cell_spaces.darts(1, 2, channels=6, cells=5, **sizes)
    structure = random_structure(small, torch.Generator().manual_seed(0))
    found = derive(large, structure, parents=2)
    assert found.choices() == {}
    assert len(found.aggregations) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cell_spaces.darts(1, 2, primitives=("skp",)), r"primitives: expected one of .* Did you mean 'skip'"),
        (lambda: cell_spaces.darts(1, 2, cells=0), r"cells: expected an integer of at least 1"),
        (lambda: cell_spaces.nas_bench_201(1, 2, nodes=1), r"nodes: expected an integer of at least 2"),
        (lambda: cell_spaces.fabric(1, 2, depth=1), r"depth: expected an integer of at least 2"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
