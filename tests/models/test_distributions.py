"""Densities and divergences of structure laws, against Monte Carlo, limits and torch's own."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_nas.models.distributions import (
    Dirichlet,
    GumbelSoftmax,
    RelaxedBernoulli,
    StraightThrough,
    relaxed_divergence,
)
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


SHARES = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
FAMILIES = {
    "gumbel-softmax": lambda temperature, shares: GumbelSoftmax(temperature, shares.log()),
    "relaxed bernoulli": lambda temperature, shares: RelaxedBernoulli(temperature, shares.logit()).to_event(1),
    "dirichlet": lambda temperature, shares: Dirichlet(3 * temperature * shares),
}


@pytest.mark.parametrize("temperature", [TEMPERATURES[0], 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_densities_at_draws_are_right_in_single_precision(family, temperature):
    """E_q p/q = 1 and E_q log q/p = KL(q ‖ p), which at one temperature is in closed form."""
    q, p = (FAMILIES[family](temperature, shares) for shares in SHARES)
    draw = q.rsample((20_000,))
    ratio = (p.log_prob(draw) - q.log_prob(draw)).double()
    assert agrees(1.0, ratio.exp())
    assert agrees(kl_divergence(q, p).double(), -ratio)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_copies_of_draws_the_density_is_that_of_the_numbers(family):
    q, p = (FAMILIES[family](2.0, shares) for shares in SHARES)
    draw = q.rsample((500,))
    assert torch.allclose(p.log_prob(draw), p.log_prob(draw.clone()), atol=1e-4)


def second_moments(concentration):
    total = concentration.sum(-1, keepdim=True)
    return concentration * (concentration + 1) / (total * (total + 1))


@pytest.mark.parametrize("temperature", [TEMPERATURES[0], 0.1, 1.0, 10.0])
def test_dirichlet_draws_have_its_moments_and_their_gradients(temperature):
    concentration = (3 * temperature * SHARES[0]).requires_grad_()
    law = Dirichlet(concentration.expand(60_000, 3))
    draw = law.rsample()
    assert agrees(SHARES[0], draw.detach())
    assert agrees(second_moments(concentration.detach()), draw.detach().square())
    for index in range(3):
        (exact,) = torch.autograd.grad(second_moments(concentration)[index], concentration)
        (each,) = torch.autograd.grad(draw[:, index].square().sum(), law.concentration, retain_graph=True)
        assert agrees(exact * concentration.detach(), each * concentration.detach())  # with respect to logarithms


def test_torchs_dirichlet_has_not():
    """In single precision a sparse law's draws are held at 1e-38: the tests above can fail."""
    q, p = (dist.Dirichlet(3 * TEMPERATURES[0] * shares) for shares in SHARES)
    draw = q.sample((20_000,))
    assert not agrees(1.0, (p.log_prob(draw) - q.log_prob(draw)).double().exp())


def test_dirichlet_draws_and_gradients_are_finite_down_to_the_smallest_concentration():
    log_concentration = torch.full((4, 8), 1e-6).log().requires_grad_()
    law = Dirichlet(log_concentration.exp())
    draw = law.rsample((5_000,))
    (gradient,) = torch.autograd.grad((draw * torch.randn(8)).sum(), log_concentration)
    assert torch.isfinite(draw).all()
    assert torch.isfinite(law.log_prob(draw)).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("concentration", [0.05, 1.0, 30.0])
def test_the_dirichlet_density_is_torchs_where_that_is_finite(concentration):
    alpha = concentration * (0.5 + torch.rand(2, 3, dtype=torch.double))
    value = dist.Dirichlet(torch.ones(2, 3, dtype=torch.double)).sample((50,))
    assert torch.allclose(Dirichlet(alpha).log_prob(value), dist.Dirichlet(alpha).log_prob(value))
    assert Dirichlet(alpha).expand((4, 2)).rsample((5,)).shape == (5, 4, 2, 3)


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
