"""Normal laws: their divergences and derivatives against torch's."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_nas.models.normals import FixedNormal, MeanFieldNormal


@pytest.mark.parametrize("scale", [0.3, "by weight"])
@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_the_divergence_of_joint_normals_is_torchs_and_so_are_its_derivatives(scale, mean):
    torch.manual_seed(0)
    tau = torch.full((6,), 0.3).double() if scale == 0.3 else torch.rand(6).double() + 0.1
    prior = FixedNormal(torch.full((6,), mean, dtype=torch.double), tau).to_event(1)
    for shape in ((6,), (3, 1, 6)):
        loc, log_scale = (torch.randn(shape, dtype=torch.double, requires_grad=True) for _ in range(2))
        ours = kl_divergence(MeanFieldNormal(loc, log_scale).to_event(1), prior)
        plain = torch.distributions.Normal(loc, log_scale.exp())
        right = kl_divergence(plain, torch.distributions.Normal(mean, tau)).sum(-1)
        assert ours.shape == shape[:-1]
        assert torch.allclose(ours, right, rtol=1e-6)
        first = [torch.autograd.grad(kl.square().sum(), [loc, log_scale], create_graph=True) for kl in (ours, right)]
        second = [torch.autograd.grad(sum(g.sin().sum() for g in part), [loc, log_scale]) for part in first]
        for mine, theirs in zip(first[0] + second[0], first[1] + second[1], strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_joint_normals_over_more_axes_and_of_other_priors():
    loc, log_scale = torch.randn(4, 3), torch.randn(4, 3)
    law = MeanFieldNormal(loc, log_scale).to_event(2)
    rows = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)).expand((4,))
    right = kl_divergence(torch.distributions.Normal(loc, log_scale.exp()), torch.distributions.Normal(0.0, 1.0)).sum()
    for prior in (
        dist.Normal(torch.zeros(4, 3), torch.ones(4, 3)).to_event(2),
        FixedNormal(torch.zeros(4, 3), torch.ones(4, 3)).to_event(2),
        dist.Independent(rows, 1),
    ):
        assert torch.allclose(kl_divergence(law, prior), right, rtol=1e-5)
    wide = MeanFieldNormal(loc[0], log_scale[0]).to_event(1).expand((5, 1))
    assert wide.batch_shape == (5, 1)
    assert wide.rsample().shape == (5, 1, 3)
    assert torch.allclose(wide.base_dist.variance, (2 * log_scale[0]).exp().expand(5, 1, 3))
