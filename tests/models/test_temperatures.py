"""Temperatures: a τ that is learned has its whole gradient."""

import math

import pytest
import torch
from torch.distributions import kl_divergence

from pyro_nas.models.distributions import GumbelSoftmax, RelaxedBernoulli
from pyro_nas.models.temperatures import log_temperature, same_temperature

LAWS = {
    "gumbel": (GumbelSoftmax, torch.tensor([0.7, 0.2, 0.1])),
    "bernoulli": (RelaxedBernoulli, torch.tensor([0.7, 0.2, 0.1])),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_density_has_the_gradient_of_its_temperature(name):
    """Against a difference quotient; without the term (K − 1) log τ it would lack (K − 1) / τ."""
    kind, value = LAWS[name]
    value, logits = value.double(), torch.tensor([0.3, -1.0, 0.2]).double()
    temperature = torch.tensor(0.8, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(kind(temperature, logits).log_prob(value).sum(), temperature)
    step = 1e-5
    up, down = (kind(0.8 + sign * step, logits).log_prob(value).sum() for sign in (1, -1))
    assert gradient.item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_a_temperature_that_is_learned_alone_has_a_gradient_of_the_divergence(name):
    """At equal τ the closed form has none, but KL(q ‖ p) does change where q's τ alone does."""
    kind, logits = LAWS[name][0], torch.tensor([0.3, -1.0, 0.2]).double()
    temperature = torch.tensor(0.8, dtype=torch.double, requires_grad=True)
    q, p = kind(temperature, logits), kind(0.8, torch.zeros(3).double())
    assert kl_divergence(q, p).requires_grad
    one = torch.tensor(0.8, dtype=torch.double, requires_grad=True)
    assert not kl_divergence(kind(one, logits), kind(one, torch.zeros(3).double())).requires_grad


def test_temperatures_are_numbers_or_scalars():
    assert log_temperature(0.5) == math.log(0.5)
    assert log_temperature(torch.tensor(0.5)).item() == pytest.approx(math.log(0.5))
    with pytest.raises(ValueError, match=r"^temperature: expected a number or a tensor of shape \(\), got .*\(2,\)"):
        GumbelSoftmax(torch.ones(2), torch.zeros(2, 3))
    assert same_temperature(0.5, 0.5)
    assert same_temperature(torch.tensor(0.5), 0.5)
    assert not same_temperature(0.5, 0.6)
    assert not same_temperature(torch.tensor(0.5, requires_grad=True), 0.5)
