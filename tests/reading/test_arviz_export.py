"""ArviZ: draws with named edges and choices, restarts as chains; its diagnostics where they are known."""

import arviz as az
import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_nas import Space, draw, read_space, to_arviz, write_space
from pyro_nas.graph.primitives import dense
from pyro_nas.models import Model, guides, priors
from pyro_nas.reading.arviz_export import mean_error, pareto_smoothed, r_hat, restarts_r_hat


def test_arviz_has_named_edges_and_choices_and_restarts_as_chains(small_space, tmp_path, build):
    chains = []
    for _ in range(3):
        _, guide = build()
        chains.append(draw(guide, num_samples=50))
    data = to_arviz(chains, small_space, weights=True)
    gamma = data["posterior"]["structure"]
    assert gamma.shape == (3, 50, 2, 4)
    assert list(gamma.coords["structure edge"].values) == ["0→1", "0→2"]
    assert list(gamma.coords["structure choice"].values) == ["tanh", "linear", "relu", "skip"]
    chosen = gamma.sel({"structure edge": "0→2", "structure choice": "skip"}).values
    assert np.allclose(chosen[1], chains[1]["structure"][:, 1, 1].numpy())
    assert np.isnan(gamma.sel({"structure edge": "0→2", "structure choice": "tanh"}).values).all()
    assert "weights" in data["posterior"]
    data.to_netcdf(str(tmp_path / "posterior.nc"))
    again = az.from_netcdf(str(tmp_path / "posterior.nc"))
    assert np.allclose(again["posterior"]["structure"].values, gamma.values, equal_nan=True)
    table = az.summary(to_arviz(chains, small_space), var_names=["structure"])
    assert {"r_hat", "ess_bulk"} <= set(table.columns)
    single = to_arviz(chains[0], small_space)
    assert single["posterior"]["structure"].shape[:2] == (1, 50)


def test_diagnostics_of_independent_draws_are_their_closed_forms():
    """r̂ = 1 where chains agree; the error of a mean is sd/√n, here within a tenth."""
    draws = 2 * torch.randn(4, 2000)
    assert mean_error(draws) == pytest.approx(2 / 8000**0.5, rel=0.1)
    assert r_hat(draws) == pytest.approx(1.0, abs=0.01)
    assert r_hat(draws + torch.tensor([[0.0], [0.0], [0.0], [4.0]])) > 1.2


def test_r_hat_of_restarts_is_the_largest_of_a_site():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 500, 2, 2, generator=generator)
    first, second = first.double(), second.double()
    alike = restarts_r_hat([{"w": first, "z": first[:, 0, 0]}, {"w": second, "z": second[:, 0, 0]}])
    assert alike["w"] == max(r_hat(torch.stack([first[:, i, j], second[:, i, j]])) for i in (0, 1) for j in (0, 1))
    assert alike["z"] == r_hat(torch.stack([first[:, 0, 0], second[:, 0, 0]]))
    assert max(alike.values()) < 1.01
    other = second.clone()
    other[:, 1, 0] += 3.0
    apart = restarts_r_hat([{"w": first}, {"w": other}])
    assert apart == {"w": r_hat(torch.stack([first[:, 1, 0], other[:, 1, 0]]))}
    assert apart["w"] > 1.5
    still = torch.ones(500, 1)
    assert restarts_r_hat([{"s": still}, {"s": still}]) == {"s": 1.0}
    assert restarts_r_hat([{"s": still}, {"s": 0 * still}])["s"] > 1e3
    with pytest.raises(ValueError, match="restarts: expected the draws of two restarts or more, got 1"):
        restarts_r_hat([{"s": still}])
    with pytest.raises(ValueError, match="the same sites and shapes in every chain"):
        restarts_r_hat([{"s": still}, {"t": still}])


def test_smoothed_weights_sum_to_one_and_know_their_tail():
    """Weights u^(−k) of uniform u have a Pareto tail of shape k."""
    uniform = torch.rand(2, 20_000, dtype=torch.double)
    log_weights = -torch.tensor([[0.3], [0.9]]) * uniform.log()
    smoothed, k = pareto_smoothed(log_weights)
    assert torch.allclose(smoothed.exp().sum(-1), torch.ones(2, dtype=torch.double))
    assert k.tolist() == pytest.approx([0.3, 0.9], abs=0.1)


def test_names_with_slashes_and_dots_are_written_and_read(tmp_path):
    """NetCDF takes what is between slashes for groups; a network has "/" for "." in the names of its modules."""
    space = Space({(0, 1): {"a.b": dense(3, 2), "a/c": dense(3, 2)}})
    model = Model(space, num_data=4, weights=priors.each(unit_normal))
    draws = draw(guides.MeanField(model), num_samples=3)
    data = to_arviz(draws, space, weights=True)
    data.to_netcdf(str(tmp_path / "posterior.nc"))
    again = az.from_netcdf(str(tmp_path / "posterior.nc"))["posterior"]
    assert list(again["structure"].coords["structure choice"].values) == ["a.b", "a/c"]
    for name in model.packing.names:
        assert np.allclose(again[f"weights.{name}".replace("/", ":")].values[0], draws[f"weights.{name}"].numpy())
    write_space(space, tmp_path / "space.json")
    assert read_space(tmp_path / "space.json") == space


def unit_normal(name, shape):
    return dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))
