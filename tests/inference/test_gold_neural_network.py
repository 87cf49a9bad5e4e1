"""A tiny Bayesian neural network, 1-10-1 tanh, against its stored gold standard: mean and sd of f on a grid.

``python tests/inference/test_gold_neural_network.py`` writes its JSON file (minutes): long chains of NUTS on a
potential written by hand, with the readout integrated out: chains in all 31 weights mix too slowly for short runs.
"""

import json
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from pyro.poutine import condition, trace

from pyro_nas import Space, draw
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, one_cycle, sampling, svi
from pyro_nas.models import Model, guides, likelihoods, priors
from pyro_nas.reading.conjugate import LinearRegression
from pyro_nas.reading.posterior import each_draw

GOLD = Path(__file__).parent / "gold_neural_network.json"
UNITS, NOISE = 10, 0.1
CHAINS, DRAWS, WARMUP = 4, 1000, 1000
GRID = torch.linspace(-3.4, 3.4, 25)[:, None]
GAP = GRID[:, 0].abs() < 0.8
WITH_DATA = (GRID[:, 0].abs() > 1) & (GRID[:, 0].abs() < 3)


def made_up_data():
    """Forty points of a sine, none of them within (−1, 1)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(1, 3, 20)
    x = torch.cat([-x.flip(0), x])[:, None]
    return x, torch.sin(1.5 * x) + NOISE * torch.randn(40, 1, generator=generator)


def hidden(x, z):
    """Return the hidden layer and a constant, times prior scales, (data, units + 1); z: 20 standard normal weights."""
    layer = torch.tanh(x * z[:UNITS] + z[UNITS:])
    return torch.cat([layer * UNITS**-0.5, torch.ones_like(x)], 1)


def readout(z, x, y, noise=NOISE):
    """Return the Cholesky factor of I + HᵀH / s² and Hᵀy / s², those of the readout's posterior."""
    design = hidden(x, z) / noise
    factor = torch.linalg.cholesky(torch.eye(UNITS + 1, dtype=z.dtype) + design.T @ design)
    return factor, design.T @ y / noise


def potential(z, x, y, noise=NOISE):
    """Return −log p(y, z) but for a constant."""
    factor, product = readout(z, x, y, noise)
    fit = torch.linalg.solve_triangular(factor, product, upper=False)
    return 0.5 * z.square().sum() + factor.diagonal().log().sum() - 0.5 * fit.square().sum()


def gold_chain(seed, draws=DRAWS, warmup=WARMUP, noise=NOISE):
    """Return mean and variance of f on the grid given each draw of the hidden layer, (draw, point) each."""
    x, y = (part.double() for part in made_up_data())

    torch.manual_seed(seed)
    kernel = NUTS(potential_fn=lambda sites: potential(sites["z"], x, y, noise), full_mass=True, max_tree_depth=5)
    start = {"z": torch.randn(2 * UNITS, dtype=torch.double)}
    sampler = MCMC(kernel, num_samples=draws, warmup_steps=warmup, initial_params=start, disable_progbar=True)
    sampler.run()
    return given_hidden(sampler.get_samples()["z"], x, y, noise)


def given_hidden(draws, x, y, noise):
    """Return mean and variance of f on the grid given each draw of the hidden layer, (draw, point) each."""
    means, variances = [], []
    for z in draws:
        factor, product = readout(z, x, y, noise)
        grid = hidden(GRID.double(), z)
        means.append((grid @ torch.cholesky_solve(product, factor))[:, 0])
        variances.append(torch.linalg.solve_triangular(factor, grid.T, upper=False).square().sum(0))
    return torch.stack(means), torch.stack(variances)


def moments(mean, variance):
    """Return mean and sd of f with their standard errors, given those of each draw, (chain, draw, point) each."""
    overall = mean.mean((0, 1))
    square = variance + (mean - overall).square()
    sd = square.mean((0, 1)).sqrt()
    mean_error, square_error = ((v.var((0, 1)) / effective_sample_size(v)).sqrt() for v in (mean, square))
    return {"mean": overall, "sd": sd, "mean_error": mean_error, "sd_error": square_error / (2 * sd)}


def write_gold(chains):
    mean, variance = (torch.stack(part) for part in zip(*chains, strict=True))
    gold = {"x": GRID[:, 0], **moments(mean, variance), "r_hat": split_gelman_rubin(mean)}
    rounded = {name: [round(v, 5) for v in value.tolist()] for name, value in gold.items()}
    size = {"chains": len(chains), "draws": mean.shape[1], "warmup": WARMUP}
    GOLD.write_text(json.dumps(size | rounded, indent=1) + "\n")


@pytest.fixture(scope="module")
def gold():
    return {n: torch.tensor(v) if isinstance(v, list) else v for n, v in json.loads(GOLD.read_text()).items()}


def network(noise=NOISE):
    space = Space({(0, 1): {"hidden": dense(1, UNITS, "tanh")}, (1, 2): {"readout": dense(UNITS, 1)}})
    likelihood = likelihoods.gaussian(noise, learn=False)
    return Model(space, num_data=40, weights=priors.normal(priors.fan_in()), likelihood=likelihood)


def on_the_grid(model, draws):
    """Return f on the grid at each draw, (draw, point)."""
    values = [condition(model, data=one)(GRID)[:, 0] for one in each_draw(draws)]
    return torch.stack(values).detach().double()


def test_the_gold_is_long_and_its_chains_agree(gold):
    assert (gold["chains"], gold["draws"], gold["warmup"]) == (CHAINS, DRAWS, WARMUP)
    assert gold["r_hat"].max() < 1.02
    assert (gold["mean_error"] < 0.05 * gold["sd"]).all()
    assert torch.allclose(gold["x"], GRID[:, 0], atol=1e-5)


def spread_of_marginal(noise):
    """Return the sd over w of log p(y, w) − log p(readout | hidden, y) − log p(y, hidden), by the model and by hand."""
    x, y = made_up_data()
    model, values = network(noise), []
    for _ in range(20):
        z, u = torch.randn(2 * UNITS, dtype=torch.double), torch.randn(UNITS + 1, dtype=torch.double)
        w = torch.cat([z, u[:UNITS] * UNITS**-0.5, u[UNITS:]]).float()
        joint = trace(condition(model, data={"weights": w})).get_trace(x, y).log_prob_sum().detach()
        posterior = LinearRegression(hidden(x.double(), z), y[:, 0], NOISE).posterior
        values.append(joint - posterior.log_prob(u) + potential(z, x.double(), y.double()))
    return torch.stack(values).std()


def test_the_gold_is_of_the_model():
    """Bayes' rule for the readout given the hidden layer leaves a constant, whatever the weights are."""
    assert spread_of_marginal(NOISE) < 0.05  # of terms of some 10⁴ in single precision
    assert spread_of_marginal(0.3) > 10


def collapsed(x, y, noise=NOISE):
    """The network as a Pyro model of its hidden layer alone: y ~ N(0, s²I + HHᵀ), the readout integrated out."""
    z = pyro.sample("z", dist.Normal(x.new_zeros(2 * UNITS), 1.0).to_event(1))
    layer = hidden(x, z)
    law = dist.MultivariateNormal(x.new_zeros(len(x)), noise**2 * torch.eye(len(x)).to(x) + layer @ layer.T)
    pyro.sample("y", law, obs=y[:, 0])


def spread_of_collapsed(noise):
    """Return the sd over z of log p(y, z) by Pyro's model and by hand."""
    x, y = (part.double() for part in made_up_data())
    values = [
        trace(condition(collapsed, data={"z": z})).get_trace(x, y, noise).log_prob_sum() + potential(z, x, y)
        for z in torch.randn(20, 2 * UNITS, dtype=torch.double)
    ]
    return torch.stack(values).std()


def test_the_collapsed_model_is_the_gold_s():
    assert spread_of_collapsed(NOISE) < 1e-6
    assert spread_of_collapsed(0.3) > 10


def check_against(gold, noise):
    """Hold a short run of ours to the gold, means and sds within 4.5 standard errors at every point."""
    x, y = (part.double() for part in made_up_data())
    runs = sampling.nuts(partial(collapsed, noise=noise), (x, y), draws=80, warmup=60, chains=2, seed=CHAINS)
    chains = [given_hidden(chain["z"], x, y, noise) for chain in runs.chains]
    found = moments(*(torch.stack(part) for part in zip(*chains, strict=True)))
    for name in ("mean", "sd"):
        error = (found[f"{name}_error"].square() + gold[f"{name}_error"].square()).sqrt()
        assert ((found[name] - gold[name]).abs() < 4.5 * error).all(), name


@pytest.mark.slow
def test_a_short_run_meets_the_gold(gold):
    check_against(gold, NOISE)


@pytest.mark.slow
def test_a_run_with_another_noise_does_not(gold):
    with pytest.raises(AssertionError):
        check_against(gold, 0.3)


@pytest.fixture(scope="module")
def mean_fields():
    """f on the grid under mean-field fits from three starts."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = network()
        guide = guides.MeanField(model)
        svi.fit(
            model, guide, made_up_data(), epochs=1500, batch_size=40, seed=seed, local_reparameterization=True,
            optimizer=adam(0.02), scheduler=one_cycle(0.03, pct_start=0.1),
        )  # fmt: skip
        found.append(on_the_grid(model, draw(guide, num_samples=1000)))
    return found


def check_known_faults(gold, sd):
    """One spread for all x: in the gap too small by 1.25 or more, where the data are too large by 1.4 or more."""
    ratio = sd / gold["sd"]
    assert ratio[GAP].mean() < 1 / 1.25
    assert ratio[WITH_DATA].mean() > 1.4


def test_mean_field_has_its_known_faults(gold, mean_fields):
    """Measured over these starts: 0.67 to 0.76 times the gold's sd in the gap, 1.6 to 1.8 times where the data are."""
    for f in mean_fields:
        check_known_faults(gold, f.std(0))
        assert (f.mean(0) - gold["mean"])[WITH_DATA].abs().max() < NOISE  # its means are not what is wrong
        with pytest.raises(AssertionError):
            check_known_faults(gold, f.std(0) * torch.where(GAP, 1.6, 1.0))
    with pytest.raises(AssertionError):
        check_known_faults(gold, gold["sd"])


if __name__ == "__main__":
    write_gold([gold_chain(seed) for seed in range(CHAINS)])
