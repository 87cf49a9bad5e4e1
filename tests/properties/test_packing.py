"""What holds for every layout of named tensors: packing and unpacking undo each other, and make views."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_nas.evidence.packing import Packing

quick = settings(deadline=None, derandomize=True, database=None)
shapes = st.dictionaries(st.text(min_size=1), st.lists(st.integers(0, 3), max_size=3).map(torch.Size), min_size=1)
leading = st.lists(st.integers(1, 3), max_size=2)


@quick
@given(shapes, st.integers(0, 2**20))
def test_unpacking_undoes_packing(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    packing = Packing.of(tensors)
    vector = packing.pack(tensors)
    assert vector.shape == (packing.size,)
    unpacked = packing.unpack(vector)
    assert list(unpacked) == list(tensors)
    assert all(torch.equal(unpacked[name], tensor) for name, tensor in tensors.items())


@quick
@given(shapes, leading)
def test_packing_undoes_unpacking_and_leading_axes_stay(shapes, lead):
    packing = Packing(shapes)
    vectors = torch.arange(float(packing.size * torch.Size(lead).numel())).view(*lead, packing.size)
    views = packing.unpack(vectors)
    assert all(view.shape == (*lead, *shapes[name]) for name, view in views.items())
    assert torch.equal(torch.cat([view.reshape(*lead, -1) for view in views.values()], -1), vectors)
    vectors.zero_()
    assert all(not view.any() for view in views.values())  # they are views


@quick
@given(shapes, st.integers(1, 3))
def test_a_vector_of_another_size_is_refused(shapes, more):
    packing = Packing(shapes)
    with pytest.raises(ValueError, match="vector: expected shape"):
        packing.unpack(torch.zeros(packing.size + more))
