"""Terms: sums of their parts, and means of several, by hand."""

import pytest
import torch

from pyro_nas.evidence.terms import COST, Terms, average


def made_up(scale=1.0):
    """log-likelihood −10, λ = 2: divergences 3 of weights, 1 and ½ of structures, and a cost of ¼, all × scale."""
    parts = {"weights": 3.0, "structure": 1.0, "structure.cell": 0.5, COST: 0.25}
    divergence = {name: torch.tensor(scale * value) for name, value in parts.items()}
    penalty = {name: 2 * value for name, value in divergence.items()}
    return Terms(torch.tensor(-10.0 * scale), divergence, penalty, torch.tensor(7.0 * scale))


def test_the_evidence_is_the_likelihood_less_the_penalties():
    terms = made_up()
    assert terms.evidence.item() == -10 - 2 * (3 + 1 + 0.5 + 0.25)
    assert terms.surrogate.item() == terms.evidence.item() + 7
    assert Terms(torch.tensor(-1.0)).evidence.item() == -1


def test_divergences_are_those_of_structures_or_of_all_else_but_the_cost():
    terms = made_up()
    assert terms.divergence_of(structure=True).item() == 1.5
    assert terms.divergence_of(structure=False).item() == 3
    assert Terms(torch.tensor(-1.0)).divergence_of(structure=True).item() == 0


def test_the_summary_has_divergences_without_the_complexity_and_the_cost_where_there_is_one():
    expected = {"evidence": -19.5, "log_likelihood": -10.0, "kl_weights": 3.0, "kl_structure": 1.5, "cost": 0.25}
    assert made_up().summary() == expected
    assert "cost" not in Terms(torch.tensor(-1.0)).summary()


def test_an_average_is_the_weighted_sum_of_each_term():
    joint = average([made_up(), made_up(3.0)], torch.tensor([0.25, 0.75]))
    single = made_up(0.25 + 3 * 0.75)
    assert joint.evidence.item() == pytest.approx(single.evidence.item())
    assert joint.surrogate.item() == pytest.approx(single.surrogate.item())
    assert joint.summary() == pytest.approx(single.summary())


def test_the_mean_over_particles_is_that_of_each_term():
    particles = Terms(
        torch.tensor([-1.0, -3.0]), {"weights": torch.tensor([1.0, 2.0])}, {"weights": torch.tensor([5.0, 7.0])}
    )
    assert particles.mean().evidence.item() == -2 - 6
    assert particles.mean().summary()["kl_weights"] == 1.5
    assert particles.mean().surrogate.item() == -8
