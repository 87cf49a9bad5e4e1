"""GaussianTensor: the moments of a linear map's output, and uses of a weight that would share noise."""

import pytest
import torch
from torch.nn import functional

from pyro_nas.evidence.gaussian_tensor import GaussianTensor


def test_local_reparameterisation_refuses_what_would_share_noise():
    weight = GaussianTensor.of(torch.zeros(2, 2), torch.ones(2, 2))
    x = torch.ones(1, 2)
    functional.linear(x, weight)
    for again in (lambda: functional.linear(x, weight.view(2, 2)), lambda: weight.t() @ x.t(), lambda: weight + 1):
        with pytest.raises(RuntimeError, match="used twice"):
            again()
    weight = GaussianTensor.of(torch.zeros(2, 2), torch.ones(2, 2))
    assert torch.equal(weight + 0, weight.view(4).view(2, 2) + 0)  # one draw for all views
    assert torch.equal(weight[0] + 0, (weight + 0)[0])
    assert len(set((GaussianTensor.of(torch.zeros(1), torch.ones(1)).expand(4) + 0).tolist())) == 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_of_a_normal_weight_has_the_moments_of_its_output(memory_format):
    mean, variance = torch.randn(3, 2, 3, 3), torch.rand(3, 2, 3, 3)
    x = torch.randn(1, 2, 4, 4).to(memory_format=memory_format)
    draws = torch.cat([torch.conv2d(x, GaussianTensor.of(mean, variance)) for _ in range(4000)]).double()
    error = (torch.conv2d(x.square(), variance)[0] / 4000).sqrt()
    assert (((draws.mean(0) - torch.conv2d(x, mean)[0]).abs() / error) < 4.5).all()
    assert ((draws.var(0) / torch.conv2d(x.square(), variance)[0] - 1).abs() < 0.15).all()
    noise = (draws - draws.mean(0)).flatten(1)
    assert (torch.corrcoef(noise.T).fill_diagonal_(0).abs() < 0.09).all()  # every output has noise of its own
