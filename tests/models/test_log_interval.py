"""Laws of λ on an interval, by quadrature and by draws."""

import pytest
import torch

from pyro_nas.models import priors
from pyro_nas.models.log_interval import LogInterval

LOW, HIGH = 0.1, 100.0


def test_the_log_uniform_law_is_one_of_them():
    assert isinstance(priors.log_uniform(LOW, HIGH), LogInterval)
    assert priors.log_uniform(LOW, HIGH).icdf(torch.tensor(0.5)) == pytest.approx((LOW * HIGH) ** 0.5)


def test_the_arcsine_prior_visits_both_ends():
    law = priors.log_interval(LOW, HIGH, ends=1.0)
    draws = law.sample((20_000,))
    place = (draws.log() - torch.tensor(LOW).log()) / torch.tensor(HIGH / LOW).log()
    grid = torch.linspace(0.05, 0.95, 10)
    shares = (place[:, None] < grid).double().mean(0)
    expected = torch.asin(grid.sqrt()) * 2 / torch.pi  # the distribution function of Beta(½, ½)
    assert ((shares - expected).abs() < 4.5 * (expected * (1 - expected) / 20_000).sqrt()).all()
    assert ((shares - grid).abs() > 0.02).any()  # it is not uniform


@pytest.mark.parametrize("ends", [0.0, 0.5, 1.0])
def test_laws_on_an_interval_are_consistent(ends):
    law = priors.log_interval(LOW, HIGH, ends)
    inside = torch.logspace(-0.9, 1.9, 4001, dtype=torch.double)
    density = torch.trapezoid(law.log_prob(inside).exp(), inside)
    assert torch.allclose(density, law.cdf(inside[-1]) - law.cdf(inside[0]), atol=1e-4)
    places = torch.linspace(0, 1, 11)
    assert torch.allclose(law.cdf(law.icdf(places)), places, atol=2e-3)
    assert law.log_prob(torch.tensor([0.05, 200.0])).tolist() == [-torch.inf, -torch.inf]
    shares = (law.sample((20_000,))[:, None] < law.icdf(places[1:-1])).double().mean(0)
    assert ((shares - places[1:-1]).abs() < 4.5 * (places[1:-1] * (1 - places[1:-1]) / 20_000).sqrt()).all()


def test_the_divergence_of_laws_on_an_interval_is_zero_for_the_same_one_only():
    law = priors.log_interval(0.1, 1.0)
    assert torch.distributions.kl_divergence(law, priors.log_interval(0.1, 1.0)) == 0
    for other in (priors.log_interval(1.0, 10.0), priors.log_interval(0.1, 2.0), priors.log_interval(0.1, 1.0, 1.0)):
        with pytest.raises(NotImplementedError):
            torch.distributions.kl_divergence(law, other)


def test_an_interval_too_wide_for_its_numbers_is_refused():
    for low, high in ((1e-20, 1e20), (1e-50, 1.0)):
        with pytest.raises(ValueError, match=r"^high: expected low and high / low within single precision"):
            priors.log_interval(low, high)
