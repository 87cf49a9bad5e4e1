"""Evidence along a path of gradient descent against the closed form of a quadratic, step by step.

y ~ N(Xw, s²I), w_0 ~ N(0, τ²I), H = XᵀX/(s²N): w_{t+1} = A w_t + c with A = I − βH and c = βXᵀy/(s²N), so that w_t is
N(m_t, C_t) with C_t = τ² A²ᵗ, and 𝔏_t = E log p(y | x, w_t) − λ KL(N(m_t, C_t) ‖ N(0, τ²I)).
"""

import contextlib
import gc
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import MultivariateNormal
from sklearn.datasets import load_diabetes
from torch import nn
from torch.distributions import kl_divergence

from pyro_nas import Space
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import NonFiniteLoss, trajectory
from pyro_nas.models import Model, likelihoods, priors

N, D, NOISE, PRIOR, RATE = 40, 3, 0.7, 0.75, 0.05


@pytest.fixture
def data():
    x = torch.randn(N, D) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.8, 0.5], [0.0, 0.0, 0.6]])
    return x.double(), (x @ torch.randn(D, 1) + NOISE * torch.randn(N, 1)).double()


def build(complexity=1.0, learn=False):
    space = Space({(0, 1): {"linear": partial(nn.Linear, D, 1, bias=False)}})
    likelihood = likelihoods.gaussian(NOISE, learn=learn)
    model = Model(space, num_data=N, weights=priors.normal(PRIOR), likelihood=likelihood, complexity=complexity)
    model.double().likelihood.log_noise.data.fill_(math.log(NOISE))  # to more digits than single precision has
    return model


def hessian(x):
    return x.T @ x / (NOISE**2 * N)


def path(x, y, steps):
    """Return m_t, A^t and the law of w_t for every step."""
    a = torch.eye(D).double() - RATE * hessian(x)
    c = RATE * (x.T @ y)[:, 0] / (NOISE**2 * N)
    mean, power, found = torch.zeros(D).double(), torch.eye(D).double(), []
    for _ in range(steps + 1):
        found.append((mean, power, MultivariateNormal(mean, PRIOR**2 * power @ power)))
        mean, power = a @ mean + c, a @ power
    return found


def prior():
    return MultivariateNormal(torch.zeros(D).double(), PRIOR**2 * torch.eye(D).double())


def log_likelihood(x, y, w):
    return dist.Normal(w @ x.T, NOISE).log_prob(y[:, 0]).sum(-1)


def follow(data, complexity):
    return trajectory.fit(
        build(complexity), data, steps=40, learning_rate=RATE, starts=200, log_determinant="exact", keep="end"
    )


def check_path(found, data, complexity):
    """Hold the records to q_t at the very draws, to 1e-6, and to the expectations under q_t within standard errors."""
    x, y = data
    truth = path(x, y, 40)
    mean, power, _ = truth[-1]
    first = torch.linalg.solve(power, (found.posterior["weights"] - mean).T).T  # the starts, by the inverse of the path
    for record, (mean, power, law) in zip(found.records, truth, strict=True):
        w = mean + first @ power.T
        values = log_likelihood(x, y, w) + complexity * (prior().log_prob(w) - law.log_prob(w))
        assert record["evidence"] == pytest.approx(float(values.mean()), abs=1e-6), "evidence"
        assert record["standard_error"] == pytest.approx(float(values.std()) / math.sqrt(200), rel=1e-6)
        assert record["entropy"] - found.records[0]["entropy"] == pytest.approx(
            float(law.entropy() - prior().entropy()), abs=1e-6
        ), "entropy"
        trace = float((x @ law.covariance_matrix @ x.T).trace()) / (2 * NOISE**2)
        expected = float(log_likelihood(x, y, mean)) - trace - complexity * float(kl_divergence(law, prior()))
        assert abs(record["evidence"] - expected) < 4.5 * record["standard_error"]
    assert first.mean().abs() < 4.5 * PRIOR / math.sqrt(200 * D)
    assert abs(found.records[0]["entropy"] - float(prior().entropy())) < 4.5 * math.sqrt(D / 2 / 200)


@pytest.mark.parametrize("complexity", [1.0, 5.0])
def test_the_evidence_on_a_quadratic_is_its_closed_form_at_every_step(data, complexity):
    check_path(follow(data, complexity), data, complexity)


@pytest.mark.parametrize("complexity", [1.0, 5.0])
@pytest.mark.parametrize("wrong", ["sign", "no change", "curvature of the prior too", "labels"])
def test_wrong_variants_are_not(data, complexity, wrong, monkeypatch):
    given = data
    if wrong == "labels":
        given = (data[0], data[1].roll(7, 0))
    else:
        right, shift = trajectory._change, RATE / N / PRIOR**2
        change = {
            "sign": lambda eigenvalues: -right(eigenvalues),
            "no change": lambda eigenvalues: 0.0 * right(eigenvalues),
            "curvature of the prior too": lambda eigenvalues: right(eigenvalues + shift),
        }[wrong]
        monkeypatch.setattr(trajectory, "_change", change)
    found = follow(given, complexity)
    monkeypatch.undo()
    with pytest.raises(AssertionError, match=r"evidence|entropy"):
        check_path(found, data, complexity)


def check_bound(data, factor=1.0):
    """Hold the change of the entropy to t(−β tr H − β² tr H²), with the variance that random signs give it."""
    x, steps, starts, probes = data[0], 30, 20, 20
    run = partial(trajectory.fit, build(), data, steps=steps, learning_rate=RATE, starts=starts, every=10)
    bound, exact = run(probes=probes), run(log_determinant="exact")
    curved = RATE * hessian(x)
    assert torch.linalg.eigvalsh(curved).max() < 0.68
    product = curved + factor * curved @ curved
    off = product - product.diagonal().diag()
    for low, high in zip(bound.records[1:], exact.records[1:], strict=True):
        error = math.sqrt(2 * float(off.square().sum()) * low["step"] / (starts * probes))
        change = low["entropy"] - bound.records[0]["entropy"]
        assert abs(change + low["step"] * float(product.trace())) < 4.5 * error
        assert low["entropy"] < high["entropy"] - 4.5 * error
        assert low["log_likelihood"] == pytest.approx(high["log_likelihood"])  # the path is the same


def test_the_bound_is_below_the_exact_by_its_closed_form(data):
    check_bound(data)


@pytest.mark.parametrize("factor", [0.5, 0.0, 2.0])
def test_other_orders_of_the_taylor_series_are_not_the_bound(data, factor):
    """½ is the second-order term itself, which is no bound."""
    with pytest.raises(AssertionError):
        check_bound(data, factor)


def same_gram(count):
    """Data whose batches of one size all have the same H: one x, many y."""
    x = torch.tensor([[1.0, -0.5, 2.0]]).double().expand(count, D)
    return x, torch.randn(count, 1).double()


def unscaled(x, y):
    w = pyro.sample("weights", dist.Normal(torch.zeros(D).double(), PRIOR).to_event(1))
    pyro.sample("y", dist.Normal(x @ w[:, None], NOISE).to_event(2), obs=y)


def test_a_batch_counts_as_all_data():
    data = same_gram(N)
    run = partial(trajectory.fit, steps=20, learning_rate=RATE, every=20, log_determinant="exact", keep="end")
    whole, parts = run(build(), data), run(build(), data, batch_size=10)
    assert not torch.allclose(whole.posterior["weights"], parts.posterior["weights"], atol=1e-3)
    _, power, _ = path(*data, 20)[-1]
    changes = [found.records[-1]["entropy"] - found.records[0]["entropy"] for found in (whole, parts)]
    assert changes == pytest.approx([float(torch.linalg.slogdet(power).logabsdet)] * 2, abs=1e-6)
    wrong = run(unscaled, data, batch_size=10)  # a model that does not scale its batches
    assert abs(wrong.records[-1]["entropy"] - wrong.records[0]["entropy"] - changes[0]) > 0.5
    for one, other in zip(run(unscaled, data).records, whole.records, strict=True):
        assert one == pytest.approx(other)  # any Pyro callable


def test_draws_are_those_of_the_last_step_and_of_the_peak(data):
    x, y = data
    run = partial(trajectory.fit, build(), data, data, steps=100, learning_rate=RATE, log_determinant="exact", every=7)
    end, peak = run(keep="end"), run()
    assert [record["step"] for record in end.records] == [*range(0, 100, 7), 100]
    assert peak.records == end.records
    highest = max(peak.records, key=lambda record: record["evidence"])
    assert 0 < highest["step"] < 100
    for fit, record in ((end, end.records[-1]), (peak, highest)):
        assert fit.evidence == record["evidence"]
        assert fit.posterior["weights"].shape == (10, D)
        values = log_likelihood(x, y, fit.posterior["weights"])
        assert record["log_likelihood"] == pytest.approx(float(values.mean()))
        assert record["valid_log_likelihood"] == record["log_likelihood"]  # of the same data
    assert not torch.allclose(end.posterior["weights"], peak.posterior["weights"], atol=1e-3)


# A positive site


def of_scale(x, y):
    s = pyro.sample("s", dist.LogNormal(torch.tensor(0.2).double(), 0.5))
    pyro.sample("y", dist.Normal(s.log() * x, 0.3).to_event(2), obs=y)


def of_its_logarithm(x, y):
    u = pyro.sample("u", dist.Normal(torch.tensor(0.2).double(), 0.5))
    pyro.sample("y", dist.Normal(u * x, 0.3).to_event(2), obs=y)


def check_positive():
    x = torch.randn(20, 1).double()
    data = (x, 0.7 * x + 0.3 * torch.randn(20, 1).double())
    run = partial(trajectory.fit, train=data, steps=10, learning_rate=0.02, log_determinant="exact", keep="end")
    constrained, real = run(of_scale), run(of_its_logarithm)
    for one, other in zip(constrained.records, real.records, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert torch.allclose(constrained.posterior["s"], real.posterior["u"].exp())


def test_a_positive_site_moves_in_its_logarithm():
    check_positive()


def test_without_its_jacobian_the_evidence_is_another(monkeypatch):
    right = trajectory.LogDensity.terms

    def without(self, vector, x, y):
        likelihood, prior = right(self, vector, x, y)
        return likelihood, prior - (vector.sum() if "s" in self.transforms else 0.0)

    monkeypatch.setattr(trajectory.LogDensity, "terms", without)
    with pytest.raises(AssertionError):
        check_positive()


# Memory


def tensors_alive(steps, leak=None):
    """Return how many tensors are alive in the model's run of a late step."""
    calls, alive = 0, 0

    def counted(x, y):
        nonlocal calls, alive
        calls += 1
        if calls == steps:
            gc.collect()
            alive = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
        if leak is not None:
            leak.append(torch.zeros(()))
        return unscaled(x, y)

    trajectory.fit(counted, same_gram(N), steps=steps, learning_rate=RATE, starts=3, every=5)
    return alive


def test_memory_does_not_grow_with_steps():
    counts = [tensors_alive(steps) for steps in (50, 500)]
    assert counts[1] <= counts[0] + 5
    leaks = [tensors_alive(steps, []) for steps in (20, 70)]  # what keeps a tensor a step is seen
    assert leaks[1] > leaks[0] + 40


def test_no_graph_hangs_on_the_weights(data, monkeypatch):
    """The learned noise of the likelihood would pull one along, a piece a step, were gradients on."""
    run = partial(trajectory.fit, build(learn=True), data, steps=3, learning_rate=RATE)
    assert not run().posterior["weights"].requires_grad
    monkeypatch.setattr(trajectory.torch, "no_grad", contextlib.nullcontext)
    with pytest.warns(UserWarning, match="requires_grad=True"):
        assert run().posterior["weights"].requires_grad


# A real regression set


def diabetes(split):
    """Return 40 training and 402 held-out data, standardised by the training part."""
    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(split))
    parts = []
    for values in (x, y[:, None]):
        train, held = values[order[:N]], values[order[N:]]
        parts.append([(part - train.mean(0)) / train.std(0) for part in (train, held)])
    return (parts[0][0], parts[1][0]), (parts[0][1], parts[1][1])


def check_stopping(records, peak):
    """Hold a stop to the held-out likelihood in nats a datum, which a path to its end and one of no step both lose.

    Near means within 0.25 of the best step's. At the start it is more than 1 below the best, at the end more than 0.5,
    and fewer than a third of the steps are near: neither an end nor a random step passes.
    """
    held = torch.tensor([record["valid_log_likelihood"] for record in records]) / N
    lost = held.max() - held
    assert lost[0] > 1
    assert lost[-1] > 0.5
    assert (lost < 0.25).float().mean() < 1 / 3
    assert 0 < peak < len(records) - 1
    assert lost[peak] < 0.25


@pytest.mark.parametrize("split", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_bound_peaks_where_training_should_stop(split):
    train, held = diabetes(split)
    space = Space({(0, 1): {"tanh": dense(10, 10, "tanh")}, (1, 2): {"readout": dense(10, 1)}})
    model = Model(
        space, num_data=N, weights=priors.normal(priors.fan_in()), likelihood=likelihoods.gaussian(0.5, learn=False)
    )
    records = trajectory.fit(model, train, held, steps=1000, learning_rate=0.02, every=10, seed=split).records
    evidence = torch.tensor([record["evidence"] for record in records])
    entropy = torch.tensor([record["entropy"] for record in records])
    check_stopping(records, int(evidence.argmax()))
    likelihood = torch.tensor([record["log_likelihood"] for record in records])
    for wrong in (evidence - 2 * entropy, likelihood):  # the entropy with the wrong sign; the fit to the training data
        with pytest.raises(AssertionError):
            check_stopping(records, int(wrong.argmax()))


# Errors


def test_bad_input_is_named(data):
    choice = Space({(0, 1): {"a": partial(nn.Linear, D, 1), "b": partial(nn.Linear, D, 1)}})
    searched = Model(choice, num_data=N, likelihood=likelihoods.gaussian(NOISE)).double()

    def fit(model=None, train=data, valid=None, **options):
        trajectory.fit(model or build(), train, valid, **{"steps": 2, "learning_rate": RATE, **options})

    calls = {
        r"model: expected real latent sites.*\['structure'\]": lambda: fit(searched),
        r"model: expected real latent sites.*\['complexity'\]": lambda: fit(build(priors.log_uniform(0.1, 1.0))),
        "steps: expected": lambda: fit(steps=0),
        "starts: expected an integer of at least 2.*standard error": lambda: fit(starts=1),
        "probes: expected": lambda: fit(probes=0),
        "every: expected": lambda: fit(every=0),
        "learning_rate: expected": lambda: fit(learning_rate=0.0),
        "batch_size: expected": lambda: fit(batch_size=0),
        "log_determinant: expected one of.*Did you mean 'exact'": lambda: fit(log_determinant="exakt"),
        "seed: expected": lambda: fit(seed=-1),
        "train x: expected finite": lambda: fit(train=(data[0] / 0, data[1])),
        "valid x: expected as many": lambda: fit(valid=(data[0][:3], data[1])),
        "y: expected shape": lambda: fit(valid=(data[0], data[1][:, 0])),
    }
    for message, call in calls.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    with pytest.raises(ValueError, match=r"learning_rate: expected all eigenvalues of β H below 1, got .* at step 0"):
        fit(learning_rate=1e3, log_determinant="exact")
    with pytest.raises(NonFiniteLoss, match=r"step \d+: the evidence of a start is not finite. Lower learning_rate"):
        fit(learning_rate=1e60, steps=10)


def test_the_random_state_is_left_alone_and_the_seed_decides(data):
    model, before = build(), torch.get_rng_state()
    one, same, other = (
        trajectory.fit(model, data, steps=3, learning_rate=RATE, batch_size=7, seed=seed).records for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other
    assert torch.equal(before, torch.get_rng_state())
