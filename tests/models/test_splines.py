"""Splines: the basis against SciPy's, and the derivatives of shrinkage."""

import numpy as np
import torch
from scipy.interpolate import BSpline

from pyro_nas.models.splines import Shrinkage, b_splines


def test_b_splines_are_scipys():
    place = torch.linspace(0, 1, 41, dtype=torch.double)
    for count in (3, 4, 7):
        knots = np.concatenate([[0, 0], np.linspace(0, 1, count - 1), [1, 1]])
        expected = BSpline.design_matrix(place.numpy(), knots, 2).toarray()
        assert np.allclose(b_splines(place, count).numpy(), expected, atol=1e-12)
        assert not np.allclose(b_splines(place**1.1, count).numpy(), expected, atol=1e-3)


def test_shrinkage_has_first_and_second_derivatives():
    torch.manual_seed(0)
    precision = torch.rand(6, dtype=torch.double) + 0.5

    def shrunk(amplitude, log_gain):
        return Shrinkage.apply(amplitude, log_gain, precision)

    inputs = [torch.randn(6, dtype=torch.double, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(shrunk, inputs)
    assert torch.autograd.gradgradcheck(shrunk, inputs)
    far = torch.tensor([-200.0, -95.0, 79.0, 200.0], requires_grad=True)
    loc, log_scale = Shrinkage.apply(torch.ones(4), far, torch.ones(4))
    assert torch.allclose(loc.detach(), torch.tensor([0.0, 0.0, 1.0, 1.0]), atol=1e-6)
    assert torch.allclose(log_scale.detach(), torch.tensor([0.0, 0.0, -39.5, -40.0]), atol=1e-4)
    (once,) = torch.autograd.grad((loc + log_scale).sum(), far, create_graph=True)
    (twice,) = torch.autograd.grad(once.sum(), far)
    assert bool((once.isfinite() & twice.isfinite()).all())
