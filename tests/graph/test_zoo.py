"""The zoo: sizes, choices and shapes of its families."""

import torch

from pyro_nas import Network
from pyro_nas.graph.enumeration import count_structures
from pyro_nas.graph.families import zoo
from pyro_nas.graph.primitives import convolution


def test_images_flow_through_the_zoo(uniform):
    space = zoo.cells(1, 10, channels=4, nodes=3)
    assert Network(space)(torch.randn(5, 1, 8, 8), structure=uniform(space)).shape == (5, 10)
    space = zoo.layers(64, 10, width=8, depth=3)
    assert Network(space)(torch.randn(5, 1, 8, 8), structure=uniform(space)).shape == (5, 10)
    assert convolution(3, 4, stride=2)()(torch.randn(2, 3, 9, 9)).shape == (2, 4, 5, 5)


def test_sizes_of_the_families():
    """Three activations, and a skip after the first layer; a cell's edges are all pairs of its vertices."""
    assert count_structures(zoo.layers(4, 3, depth=3)) == 3 * 4 * 4
    assert zoo.cells(1, 10, nodes=3).choices()["structure.cell"].shape == (3 + 2 + 1, 4)
    plain = zoo.convolutions(3, 10, channels=(4, 8))
    assert plain.choices() == {}
    convolutions = (3 * 4 + 4 * 8) * 9 + 2 * (4 + 8)  # the scale and the shift of batch normalisation
    assert sum(p.numel() for p in Network(plain).parameters()) == convolutions + 8 * 10 + 10
    assert Network(plain)(torch.randn(2, 3, 8, 8)).shape == (2, 10)
