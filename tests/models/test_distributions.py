"""Densities and divergences of structure laws, against Monte Carlo, limits and torch's own."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_nas.models.distributions import GumbelSoftmax, RelaxedBernoulli, StraightThrough, relaxed_divergence
from pyro_nas.models.likelihoods import ClassIndex
from pyro_nas.models.normals import FixedNormal, MeanFieldNormal
from pyro_nas.models.structures import TEMPERATURES

PERMITTED = [TEMPERATURES[0], 0.05, 0.1, 0.2, 0.5, 1.0, 10.0, TEMPERATURES[1]]


def agrees(exact, draws, sigmas=4.5):
    error = draws.std(0) / math.sqrt(len(draws))
    return bool(((draws.mean(0) - exact).abs() <= sigmas * error + 1e-5).all())


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_relaxed_divergence_is_the_mean_of_the_log_ratio(size, temperature):
    q, p = (GumbelSoftmax(temperature, scale * torch.randn(4, size).double()) for scale in (2.0, 1.0))
    draw = q.rsample_log((200_000,))
    ratio = q.log_prob_of_log(draw) - p.log_prob_of_log(draw)
    exact = kl_divergence(q, p)
    assert agrees(exact, ratio)
    assert not agrees(exact + 0.1, ratio)  # and the check has power
    assert not agrees(kl_divergence(q, GumbelSoftmax(temperature, torch.zeros(4, size).double())), ratio)


def test_relaxed_divergence_is_zero_at_equality_finite_far_away_and_differentiable():
    same = torch.randn(5, 4)
    assert torch.equal(relaxed_divergence(same, same), torch.zeros(5))
    far = torch.tensor([[300.0, 0.0, -200.0]], requires_grad=True)
    value = relaxed_divergence(far, torch.zeros(1, 3))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(far.grad).all()
    logits, prior = torch.randn(2, 3, dtype=torch.double, requires_grad=True), torch.randn(2, 3, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda a: relaxed_divergence(a, prior), logits)


def test_divergence_of_unequal_temperatures_is_unbiased():
    q, p = GumbelSoftmax(0.5, torch.randn(1, 3).double()), GumbelSoftmax(1.5, torch.zeros(1, 3).double())
    draw = q.rsample_log((200_000,))
    ratio = q.log_prob_of_log(draw) - p.log_prob_of_log(draw)
    single = torch.stack([kl_divergence(q, p) for _ in range(20_000)])
    assert agrees(ratio.mean(0), single)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_densities_equal_torchs(temperature):
    logits = torch.randn(3, 4).double()
    ours = GumbelSoftmax(temperature, logits)
    theirs = dist.RelaxedOneHotCategorical(torch.tensor(temperature).double(), logits=logits)
    gamma = theirs.sample((50,))
    assert torch.allclose(ours.log_prob(gamma), theirs.log_prob(gamma))
    ours, theirs = (
        RelaxedBernoulli(temperature, logits),
        dist.RelaxedBernoulli(torch.tensor(temperature).double(), logits=logits),
    )
    gamma = theirs.sample((50,))
    assert torch.allclose(ours.log_prob(gamma), theirs.log_prob(gamma), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_choice_probabilities_do_not_depend_on_temperature(temperature):
    law = GumbelSoftmax(temperature, torch.tensor([1.0, 0.0, -1.0]))
    shares = torch.nn.functional.one_hot(law.sample((100_000,)).argmax(-1), 3).float()
    assert agrees(law.probs, shares)
    cube = RelaxedBernoulli(temperature, torch.tensor([1.0, -0.5]))
    assert agrees(cube.probs, (cube.sample((100_000,)) > 0.5).float())


@pytest.mark.parametrize("temperature", PERMITTED)
def test_log_space_is_finite_at_every_permitted_temperature(temperature):
    """In 10⁶ draws over all temperatures and both laws, no log-density and no gradient is NaN or infinite."""
    logits = (3 * torch.randn(8)).requires_grad_()
    for law, draw, density in (
        (GumbelSoftmax(temperature, logits), "rsample_log", "log_prob_of_log"),
        (RelaxedBernoulli(temperature, logits), "rsample_logit", "log_prob_of_logit"),
    ):
        value = getattr(law, draw)((1_000_000 // (2 * len(PERMITTED)),))
        log_density = getattr(law, density)(value)
        (gradient,) = torch.autograd.grad(log_density.sum() + law.rsample((100,)).sum(), logits)
        assert torch.isfinite(log_density).all()
        assert torch.isfinite(gradient).all()


def test_dirichlet_draws_and_gradients_are_finite_down_to_the_smallest_concentration():
    log_concentration = torch.full((4, 8), TEMPERATURES[0]).log().requires_grad_()
    law = dist.Dirichlet(log_concentration.exp())
    draw = law.rsample((5_000,))
    (gradient,) = torch.autograd.grad((draw * torch.randn(8)).sum(), log_concentration)
    assert torch.isfinite(draw).all()
    assert torch.isfinite(gradient).all()


def test_plain_float32_simplex_density_is_what_breaks():
    """Without log space the density is not finite at low temperature: the test above can fail."""
    law = dist.RelaxedOneHotCategorical(torch.tensor(0.05), logits=torch.zeros(8), validate_args=False)
    assert not torch.isfinite(law.log_prob(law.sample((10_000,)))).all()


def test_straight_through_is_one_hot_with_the_relaxed_gradient():
    logits = torch.randn(500, 3, requires_grad=True)
    torch.manual_seed(3)
    hard = StraightThrough(0.7, logits).rsample()
    torch.manual_seed(3)
    soft = GumbelSoftmax(0.7, logits).rsample()
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    weight = torch.randn(3)
    (ours,) = torch.autograd.grad((hard * weight).sum(), logits)
    (theirs,) = torch.autograd.grad((soft * weight).sum(), logits)
    assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("family", ["straight-through", "relaxed bernoulli", "mean field", "low rank", "laplace"])
def test_divergences_equal_large_monte_carlo(family):
    q, p = {
        "straight-through": lambda: [StraightThrough(1.0, torch.randn(3, 4)) for _ in range(2)],
        "relaxed bernoulli": lambda: [RelaxedBernoulli(0.5, torch.randn(3).double()) for _ in range(2)],
        "mean field": lambda: [
            MeanFieldNormal(torch.randn(6), torch.randn(6)).to_event(1),
            FixedNormal(torch.randn(6), torch.rand(6) + 0.5).to_event(1),
        ],
        "low rank": lambda: [
            dist.LowRankMultivariateNormal(torch.randn(6), torch.randn(6, 2), torch.rand(6) + 0.1),
            FixedNormal(torch.randn(6), torch.rand(6) + 0.5).to_event(1),
        ],
        "laplace": lambda: [
            MeanFieldNormal(torch.randn(6), torch.randn(6)).to_event(1),
            dist.Laplace(torch.zeros(6), torch.rand(6) + 0.5).to_event(1),
        ],
    }[family]()
    draw = q.sample((200_000,))
    ratio = q.log_prob(draw) - p.log_prob(draw)
    assert agrees(kl_divergence(q, p), ratio)
    assert not agrees(kl_divergence(q, p) * 1.05 + 0.02, ratio)


def test_class_index_is_categorical():
    logits, y = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    ours, theirs = ClassIndex(logits), dist.Categorical(logits=logits)
    assert torch.allclose(ours.log_prob(y), theirs.log_prob(y))
    assert torch.allclose(ours.log_prob(y.expand(4, 5)), theirs.log_prob(y.expand(4, 5)))
    assert torch.allclose(ours.probs, theirs.probs)
    assert torch.allclose(ours.entropy(), theirs.entropy())
    assert torch.allclose(ours.expand((2, 5)).log_prob(y), theirs.expand((2, 5)).log_prob(y))
    shares = torch.stack([(ours.sample((50_000,)) == k).float().mean(0) for k in range(3)], -1)
    assert torch.allclose(shares, theirs.probs, atol=0.02)


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
