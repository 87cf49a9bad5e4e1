"""Learned priors: the groups that share a scale, and the scales that they start with."""

from functools import partial

import pytest
import torch
from torch import nn

from pyro_nas import Space
from pyro_nas.evidence.packing import Packing
from pyro_nas.models import Model
from pyro_nas.models.learned_priors import learned_normal


def test_groups_and_first_scales(small_space):
    def prior(per, scale=1.0):
        return Model(small_space, num_data=4, weights=learned_normal(scale, per)).weights

    groups = {per: len(prior(per).log_scale) for per in ("all", "tensor", "input", "weight", "primitive")}
    # dense maps 3 → 3 on four edges' primitives and 3 → 2 at the end, each with a bias: 5 primitives with weights
    assert groups == {"all": 1, "tensor": 10, "input": 20, "weight": 56, "primitive": 5}
    names = Model(small_space, num_data=4, weights=learned_normal()).packing.names
    first = {name: 1.0 + index for index, name in enumerate(names)}
    scales = prior("tensor", lambda name, shape: first[name]).scales()
    assert all(torch.allclose(scales[name], torch.tensor(first[name])) for name in names)
    by_primitive = prior("primitive", lambda name, shape: first[name])
    assert by_primitive.log_scale.exp().tolist() == pytest.approx([2, 4, 6, 8, 10])  # the larger of weight and bias


def test_nested_spaces_group_by_their_own_primitives():
    cell = Space({(0, 1): {"a": partial(nn.Linear, 2, 2)}, (1, 2): {"b": partial(nn.Linear, 2, 2)}}, name="cell")
    model = Model(Space({(0, 1): {"cell": cell}}), num_data=1, weights=learned_normal(per="primitive"))
    assert len(model.weights.log_scale) == 2


BAD = {
    "per": (lambda: learned_normal(per="weights"), "per: expected one of .* Did you mean 'weight'"),
    "scale": (lambda: learned_normal(0.0), "scale: expected a finite number in"),
    "no network": (
        lambda: learned_normal(per="primitive")(Packing({"w": torch.Size([2])})),
        "per: expected a network's parameters to group by primitive, got 'w'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()
