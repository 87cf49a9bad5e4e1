"""The structure-selection toy: its functions, its data, and how its posterior moves with λ and temperature."""

import pytest
import torch

from pyro_nas import Network, draw, read_space, write_space
from pyro_nas.graph.families.branches import branches, branches_data
from pyro_nas.inference import adam, svi
from pyro_nas.models import Model, guides, likelihoods, structures

RESTARTS = 5


def test_the_family_is_the_formula(tmp_path):
    write_space(branches(), tmp_path / "space.json")
    for space in (branches(), read_space(tmp_path / "space.json")):
        network = Network(space)
        w = {name: torch.randn_like(value) for name, value in network.named_parameters()}
        network.load_state_dict(w)
        x, gamma = torch.randn(6, 11), torch.tensor([[0.2, 0.3, 0.5]])
        constant, first_bias, first_weight, bias, weight = (
            next(value for name, value in sorted(w.items()) if part in name)
            for part in ("constant", "1-2.dense.0.bias", "1-2.dense.0.weight", "complex.0.bias", "complex.0.weight")
        )
        simple = torch.tanh(first_weight * x[:, :1] + first_bias)
        expected = 0.2 * constant + 0.3 * simple + 0.5 * torch.tanh(x @ weight.T + bias)
        assert sum(value.numel() for value in w.values()) == 1 + 2 + 12
        assert torch.allclose(network(x, structure={"structure": gamma}), expected, atol=1e-6)
        assert not torch.allclose(network(x, structure={"structure": gamma.flip(-1)}), expected, atol=1e-2)


def test_the_data_are_noisy_tanh():
    x, y = branches_data(20_000, seed=3)
    residual = y - x[:, :1].tanh()
    assert x.shape == (20_000, 11)
    assert float(residual.std()) == pytest.approx(0.5, abs=5 * 0.5 / 40_000**0.5)
    assert abs(float(residual.mean())) < 5 * 0.5 / 20_000**0.5
    assert torch.equal(branches_data(seed=1)[1], branches_data(seed=1)[1])
    for wrong in ({"size": 0}, {"inputs": 1}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected an integer"):
            branches_data(**wrong)
    with pytest.raises(ValueError, match="inputs: expected an integer of at least 2"):
        branches(1)


def cell(complexity, temperature):
    """One cell of the grid: draws of γ, (restart, draw, branch)."""
    x, y = branches_data()
    result = []
    for seed in range(RESTARTS):
        torch.manual_seed(seed)
        model = Model(
            branches(), num_data=50, structure=structures.gumbel_softmax(temperature),
            likelihood=likelihoods.gaussian(0.5, learn=False), complexity=complexity,
        )  # fmt: skip
        guide = guides.MeanField(model)
        svi.fit(model, guide, (x, y), epochs=200, batch_size=50, optimizer=adam(0.05), structure_per_example=True,
                seed=seed)  # fmt: skip
        result.append(draw(guide, num_samples=200)["structure"][:, 0])
    return torch.stack(result)


def check_less(smaller, larger):
    """The mean over restarts is less by more than two standard errors, those of the restarts' spread."""
    error = ((smaller.var() + larger.var()) / RESTARTS).sqrt()
    assert larger.mean() - smaller.mean() > 2 * error


@pytest.fixture(scope="module")
def strong_prior():
    return cell(1.0, 3.0)


@pytest.fixture(scope="module")
def strong_likelihood():
    return cell(0.03, 3.0)


def test_a_strong_prior_leaves_less_on_the_complex_branch(strong_prior, strong_likelihood):
    prior, likelihood = (mass.mean(1)[:, 2] for mass in (strong_prior, strong_likelihood))
    check_less(prior, likelihood)
    assert prior.std() < likelihood.std()  # and restarts agree, which they do not where the complex branch can overfit
    with pytest.raises(AssertionError):
        check_less(likelihood, prior)


def test_a_strong_likelihood_leaves_less_on_the_constant(strong_prior, strong_likelihood):
    prior, likelihood = (mass.mean(1)[:, 0] for mass in (strong_prior, strong_likelihood))
    check_less(likelihood, prior)
    with pytest.raises(AssertionError):
        check_less(prior, likelihood)


def test_a_high_temperature_draws_near_the_centre(strong_prior):
    hot, cold = (
        (gamma - 1 / 3).norm(dim=-1).mean(1) for gamma in (cell(1.0, 30.0), cell(1.0, 0.3))
    )  # distance from the centre, (restart,)
    warm = (strong_prior - 1 / 3).norm(dim=-1).mean(1)
    check_less(hot, warm)
    check_less(warm, cold)
    assert (hot < 0.15).all()  # of at most √(2/3) = 0.82, at a vertex
    assert (cold > 0.6).all()
