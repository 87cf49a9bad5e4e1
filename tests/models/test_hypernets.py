"""Hypernetworks over λ: their formulas, their estimators, and the closed form of a linear-Gaussian model for all λ."""

import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_nas import Evidence, Space
from pyro_nas.evidence import evaluate
from pyro_nas.evidence.effects import LocalReparameterization, Stratified
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, clipped, one_cycle, svi
from pyro_nas.models import Model, guides, hypernets, learned_priors, likelihoods, priors, structures

N, D, NOISE, PRIOR, LOW, HIGH = 60, 4, 0.7, 0.8, 0.1, 100.0
FORMS = {
    "linear": hypernets.Linear,
    "low rank": partial(hypernets.LowRank, hidden=5),
    "spline": partial(hypernets.Spline, bases=4),
}


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator) @ torch.randn(D, D, generator=generator)
    return x, x @ torch.randn(D, 1, generator=generator) + NOISE * torch.randn(N, 1, generator=generator)


def linear_gaussian(complexity=None):
    return Model(
        Space({(0, 1): {"linear": partial(nn.Linear, D, 1, bias=False)}}),
        num_data=N,
        weights=priors.normal(PRIOR),
        likelihood=likelihoods.gaussian(NOISE, learn=False),
        complexity=priors.log_uniform(LOW, HIGH) if complexity is None else complexity,
    )


def exact(x, y, m, v, complexity):
    """𝔏(λ) of N(m, diag v), each of shape (…, D), for λ of shape (…)."""
    gram = x.T @ x / NOISE**2
    residual = (y - x @ m.unsqueeze(-1)).square().sum((-2, -1)) / NOISE**2 + (gram.diagonal() * v).sum(-1)
    fit = -0.5 * residual - N * (torch.tensor(NOISE).log() + 0.5 * torch.tensor(2 * torch.pi).log())
    return fit - complexity * 0.5 * ((v + m**2) / PRIOR**2 - 1 - (v / PRIOR**2).log()).sum(-1)


def optimum(x, y, complexity):
    gram = x.T @ x / NOISE**2
    system = gram + complexity[:, None, None] / PRIOR**2 * torch.eye(D)
    m = torch.linalg.solve(system, (x.T @ y / NOISE**2).expand(len(complexity), D, 1))[..., 0]
    return exact(x, y, m, complexity[:, None] / (gram.diagonal() + complexity[:, None] / PRIOR**2), complexity)


def at(hypernet, complexity):
    values = hypernet.parameters_at(complexity)
    return values["loc.weights"], (2 * values["log_scale.weights"]).exp()


GRID = torch.logspace(-1, 2, 13)


def trained(make, seed, frozen=False):
    x, y = data(seed)
    torch.manual_seed(seed)
    hypernet = make(guides.MeanField(linear_gaussian()))
    if frozen:
        shown, hypernet.parameters_at = (
            hypernet.parameters_at,
            lambda complexity: shown(torch.full_like(complexity, 3.0)),
        )
    svi.fit(
        hypernet.model, hypernet, (x, y), epochs=1500, batch_size=N, optimizer=adam(0.05, betas=(0.9, 0.99)),
        scheduler=one_cycle(0.05, pct_start=0.1), particles=8, vectorize_particles=True, stratified=True,
        local_reparameterization=True, emphasis=lambda complexity: 1 / (1 + complexity), seed=seed,
    )  # fmt: skip
    return x, y, hypernet


def meets_the_closed_form(x, y, hypernet):
    with torch.no_grad():
        shortfall = optimum(x, y, GRID) - exact(x, y, *at(hypernet, GRID), GRID)
    assert (shortfall > -1e-2).all()
    return (shortfall / GRID)[GRID >= 1].max() <= 0.25 and shortfall.mean() <= 1.5


def reacts(hypernet, x, y):
    """Whether KL and E log-likelihood fall with λ, and d𝔏/dλ is −KL within 10 %, as at the optimum."""
    terms, slopes = [], []
    for complexity in GRID:
        complexity = complexity.clone().requires_grad_()
        value = exact(x, y, *at(hypernet, complexity), complexity)
        slopes.append(torch.autograd.grad(value, complexity)[0])
        m, v = at(hypernet, complexity.detach())
        fit = exact(x, y, m, v, 0.0)
        terms.append(torch.stack([fit, fit - exact(x, y, m, v, 1.0)]))
    fit, kl = torch.stack(terms).detach().T
    falling = bool((fit.diff() <= 0).all() and (kl.diff() < 0).all())
    return falling and bool(((torch.stack(slopes) / -kl - 1).abs() < 0.1).all())


@pytest.mark.parametrize("seed", [11, 12])
def test_the_spline_meets_the_closed_form_for_every_complexity_and_reacts_to_it(seed):
    x, y, hypernet = trained(partial(hypernets.Spline, bases=7), seed)
    assert meets_the_closed_form(x, y, hypernet)
    assert reacts(hypernet, x, y)


def test_without_its_input_it_does_neither():
    x, y, hypernet = trained(partial(hypernets.Spline, bases=7), 11, frozen=True)
    assert not meets_the_closed_form(x, y, hypernet)
    assert not reacts(hypernet, x, y)


@pytest.mark.parametrize("seed", [11, 12])
def test_the_linear_one_reaches_its_own_optimum(seed):
    """Its objective is exact and smooth: the optimum by L-BFGS on a fine grid of λ, started from zero."""
    x, y = data(seed)
    fine = torch.logspace(-1, 2, 400)
    best = torch.zeros(4, D, requires_grad=True)

    def objective():
        basis = torch.stack([torch.ones_like(fine), fine / 100], -1)
        m, log_scale = basis @ best[:2], basis @ best[2:]
        return -(exact(x, y, m, (2 * log_scale).exp(), fine) / (1 + fine)).mean()

    solver = torch.optim.LBFGS([best], max_iter=2000, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def closure():
        solver.zero_grad()
        value = objective()
        value.backward()
        return value

    solver.step(closure)
    _, _, hypernet = trained(hypernets.Linear, seed)
    with torch.no_grad():
        fresh = hypernets.Linear(guides.MeanField(linear_gaussian()))
        reached, start = ((exact(x, y, *at(one, fine), fine) / (1 + fine)).mean() for one in (hypernet, fresh))
        target = -objective()
    assert -1e-3 <= float(target - reached) <= 0.02 * float(target - start)


def sampled(hypernet, x, y, wrong, stratified, local, draws=1500):
    evidence = Evidence(
        hypernet.model, hypernet, 4, vectorize_particles=True, emphasis=wrong or (lambda c: 1 / (1 + c))
    )
    gradients = []
    for _ in range(draws):
        with (
            Stratified("complexity") if stratified else nullcontext(),
            LocalReparameterization() if local else nullcontext(),
        ):
            terms = evidence(x, y)
        found = torch.autograd.grad(terms.surrogate, list(hypernet.parameters()))
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    gradients = torch.stack(gradients).double()
    return gradients.mean(0), gradients.std(0) / draws**0.5


@pytest.mark.parametrize(("stratified", "local"), [(False, False), (True, False), (True, True)])
def test_gradients_over_the_prior_of_complexity_are_unbiased(stratified, local):
    x, y = data(3)
    torch.manual_seed(0)
    hypernet = hypernets.Linear(guides.MeanField(linear_gaussian(), 0.3), unit=10.0)
    with torch.no_grad():
        for value in hypernet.parameters():
            value[1].normal_(0, 0.1)
    fine = (torch.linspace(-1, 2, 20_001)[:-1] + 0.5 * 3 / 20_000) * torch.tensor(10.0).log()  # midpoints in log λ
    fine = fine.exp()
    exact_value = (exact(x, y, *at(hypernet, fine), fine) / (1 + fine)).mean()
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(exact_value, list(hypernet.parameters()))]).double()

    def unbiased(mean, error):
        return bool(((mean - truth).abs() < 4.5 * error + 1e-4).all())

    assert unbiased(*sampled(hypernet, x, y, None, stratified, local))
    assert not unbiased(*sampled(hypernet, x, y, torch.ones_like, stratified, local, 500))  # the emphasis missing
    assert not unbiased(*sampled(hypernet, x, y.roll(7, 0), None, stratified, local, 500))  # shuffled labels


def network(structure=None, weights=None, complexity=None):
    edges = {(0, 1): {n: dense(6, 5, n) for n in ("tanh", "relu")}, (1, 2): {"readout": dense(5, 3)}}
    complexity = priors.log_uniform(LOW, HIGH) if complexity is None else complexity
    weights = priors.normal(1.0) if weights is None else weights
    return Model(Space(edges), num_data=40, weights=weights, structure=structure, complexity=complexity)


@pytest.mark.parametrize("structure", ["gumbel_softmax", "categorical"])
@pytest.mark.parametrize("form", FORMS)
def test_particles_at_once_are_particles_one_by_one(form, structure):
    """With point masses and few draws of structure nothing is random but Γ: compare at the same Γ."""
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    torch.manual_seed(0)
    model = network(getattr(structures, structure)())
    hypernet = FORMS[form](guides.PointMass(model))
    complexities = torch.tensor([0.2, 3.0, 70.0])
    gamma = torch.eye(2)[torch.tensor([[0], [1], [1]])]  # (particle, edge, choice)
    with torch.no_grad():
        for value in hypernet.parameters():
            value.add_(0.3 * torch.randn_like(value))

    def terms(count, complexity, value):
        condition = {"complexity": complexity} if structure == "gumbel_softmax" else {"complexity": complexity, **value}
        return Evidence(model, poutine.condition(hypernet, condition), count, vectorize_particles=count > 1)(x, y)

    together = terms(3, complexities[:, None], {"structure": gamma[:, None]})
    single = [terms(1, c, {"structure": g}) for c, g in zip(complexities, gamma, strict=True)]
    likelihood = torch.stack([one.log_likelihood for one in single])
    assert torch.allclose(together.log_likelihood, likelihood.mean(), rtol=1e-4)
    assert torch.allclose(together.evidence, torch.stack([one.evidence for one in single]).mean(), rtol=1e-4)
    assert likelihood.std() > 0.1  # λ matters


@pytest.mark.parametrize(("unit", "options"), [(100, {}), (7, {"unit": 7.0})])
def test_formulas(unit, options):
    torch.manual_seed(0)
    model = network()
    complexity = torch.tensor([[0.5], [20.0]])
    linear = hypernets.Linear(guides.MeanField(model), **options)
    with torch.no_grad():
        linear.coefficients["loc/weights"].normal_()
    b3, b2 = linear.coefficients["loc/weights"]
    assert torch.allclose(linear.parameters_at(complexity)["loc.weights"], b3 + b2 * complexity[..., None] / unit)
    rank = hypernets.LowRank(guides.MeanField(model), hidden=7, **options)
    weight = next(i for i, name in enumerate(model.packing.names) if name.endswith("weight"))
    name, factors = model.packing.names[weight], rank.factors["loc/weights"][weight]
    h = torch.relu(factors.hidden[0].weight[:, 0] * 20.0 / unit + factors.hidden[0].bias)
    assert h.shape == (7,)
    first, second = (h @ part.weight.T + part.bias for part in factors.maps)
    found = model.packing.unpack(rank.parameters_at(torch.tensor(20.0))["loc.weights"])[name]
    base = model.packing.unpack(rank.base["loc/weights"])[name]
    assert torch.allclose(found, base + torch.outer(first, second), atol=1e-6)


def test_the_spline_of_scales_has_bases_of_its_own():
    """With one location and scale at every knot the spline is constant, however many knots there are."""
    for bases, scale_bases, options in ((5, 5, {}), (5, 3, {"scale_bases": 3}), (4, 6, {"scale_bases": 6})):
        hypernet = hypernets.Spline(guides.MeanField(network()), bases, **options)
        lengths = {name: len(value) for name, value in hypernet.coefficients.items()}
        assert lengths.pop("log_scale/weights") == scale_bases
        assert set(lengths.values()) == {bases}
        with torch.no_grad():
            hypernet.coefficients["log_scale/weights"].fill_(0.7)
            hypernet.coefficients["loc/weights"].fill_(0.3)
        for complexity in (1.0, 7.0, 100.0):  # the prior's τ is 1
            found = hypernet.parameters_at(torch.tensor(complexity))
            variance = complexity / (math.exp(0.7) + complexity)
            assert found["log_scale.weights"].unique().tolist() == pytest.approx([0.5 * math.log(variance)], abs=1e-5)
            assert found["loc.weights"].unique().tolist() == pytest.approx([0.3 * (1 - variance) ** 0.5], rel=1e-4)


def test_the_spline_at_its_ends_between_them_and_outside():
    torch.manual_seed(0)
    hypernet = hypernets.Spline(guides.MeanField(network()), bases=4)
    with torch.no_grad():
        for value in hypernet.coefficients.values():
            value.normal_()
    amplitude, log_gain = (hypernet.coefficients[f"{name}/weights"] for name in ("loc", "log_scale"))

    def expected(weights, complexity):
        a, g = torch.tensor(weights) @ amplitude, (torch.tensor(weights) @ log_gain).exp()
        variance = complexity / (g + complexity / 1.0)  # the prior's τ is 1
        return {"loc.weights": a * (g / (g + complexity)).sqrt(), "log_scale.weights": 0.5 * variance.log()}

    middle, end = [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]
    for complexity, weights in ((10**0.5, middle), (1.0, [1 / 9, 2 / 3, 2 / 9, 0.0]), (100.0, end), (1e4, end)):
        found, right = hypernet.parameters_at(torch.tensor(complexity)), expected(weights, complexity)
        assert all(torch.allclose(found[name], right[name], rtol=1e-4, atol=1e-5) for name in right)
        for name in right:  # and by the derivative written out, the same as by torch's own
            derivatives = [torch.autograd.grad(part[name].sin().sum(), [amplitude, log_gain], allow_unused=True,
                                               retain_graph=True) for part in (found, right)]  # fmt: skip
            for mine, theirs in zip(*derivatives, strict=True):
                assert torch.allclose(mine, torch.zeros_like(mine) if theirs is None else theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_it_starts_as_its_guide_and_is_fixed_to_one(form):
    torch.manual_seed(0)
    guide = guides.MeanField(network())
    hypernet = FORMS[form](guide)
    if form != "low rank":  # whose factors start at random
        start = hypernet.parameters_at(torch.tensor(10**0.5))
        assert all(torch.allclose(start[name], value, atol=1e-4) for name, value in guide.named_parameters())
    model, fixed = hypernet.at(7.0)
    assert model.complexity == 7.0
    assert fixed.model is model
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    at_seven = poutine.condition(hypernet, data={"complexity": torch.tensor(7.0)})
    values = []
    for pair in ((model, fixed), (hypernet.model, at_seven)):
        torch.manual_seed(3)
        values.append(evaluate(*pair, (x, y), draws=3)["evidence"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    svi.fit(model, fixed, (x, y), epochs=1)  # a plain guide, that can be tuned; the hypernetwork stays
    assert not torch.equal(fixed.loc["weights"], hypernet.parameters_at(torch.tensor(7.0))["loc.weights"])


def test_parameter_updates_are_counted_as_the_paper_does():
    edges = {(0, 1): {"hidden": dense(784, 50, "relu")}, (1, 2): {"readout": dense(50, 10)}}

    def model(complexity):
        return Model(Space(edges), num_data=70, weights=priors.normal(0.1), complexity=complexity)

    def updates(pair, **options):
        x, y = torch.randn(70, 784), torch.randint(0, 10, (70,))
        return svi.fit(*pair, (x, y), epochs=1, batch_size=64, **options).records[-1]["updates"] // 2  # two steps

    steps = 938
    plain = model(1.0)
    one = updates((plain, guides.MeanField(plain)), optimizer=clipped(adam(5e-4), 1.0))
    hyper = model(priors.log_uniform(LOW, HIGH))
    rank = updates((hyper, hypernets.LowRank(guides.MeanField(hyper))))
    linear = updates((hyper, hypernets.Linear(guides.MeanField(hyper))), particles=5, vectorize_particles=True)
    counts = [4 * 25 * one, 4 * one, 25 * rank, 25 * rank + one, 25 * linear, 25 * linear + one]
    published = [7458976000, 298359040, 4165376600, 4239966360, 3729488000, 3804077760]
    assert [count * steps for count in counts] == published


@pytest.mark.parametrize("local", [False, True])
def test_particles_at_once_have_the_mean_of_particles_one_by_one(local):
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    torch.manual_seed(0)
    model = network(structures.gumbel_softmax(0.7), priors.normal(0.5))
    hypernet = hypernets.Spline(guides.MeanField(model, 0.3))

    def draws(particles, at_once, effect):
        evidence = Evidence(model, hypernet, particles, vectorize_particles=at_once)
        with torch.no_grad(), effect():
            return torch.stack([evidence(x, y).log_likelihood for _ in range(400)]).double()

    effect = LocalReparameterization if local else nullcontext
    samples = [draws(5, False, nullcontext), draws(5, True, effect), draws(5, True, lambda: Shifted())]
    means, errors = zip(*((s.mean(), s.std() / 20) for s in samples), strict=True)
    distances = [abs(means[0] - means[i]) / (errors[0] ** 2 + errors[i] ** 2).sqrt() for i in (1, 2)]
    assert distances[0] < 4.5
    assert distances[1] > 4.5  # every particle at the smallest λ


class Shifted(poutine.messenger.Messenger):
    """Draw λ at the low end."""

    def _pyro_sample(self, msg):
        if msg["name"] == "complexity" and not msg["done"]:
            msg["value"], msg["done"] = torch.full(msg["fn"].shape(), LOW), True


def test_the_spline_of_a_hierarchical_prior_is_its_own_state():
    torch.manual_seed(0)
    weights = priors.relevance_determination(0.5)
    ours, other = (hypernets.Spline(guides.MeanField(network(weights=weights))) for _ in range(2))
    other.load_state_dict(ours.state_dict())
    found, again = (one.parameters_at(torch.tensor(2.0)) for one in (ours, other))
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_in_double_precision():
    model = network().double()
    hypernet = hypernets.Spline(guides.MeanField(model)).double()
    x, y = torch.randn(40, 6, dtype=torch.double), torch.randint(0, 3, (40,))
    terms = Evidence(model, hypernet, 3, vectorize_particles=True)(x, y)
    assert terms.evidence.dtype == torch.double
    assert torch.isfinite(terms.evidence)


def test_autoguides_draw_a_prior_on_an_interval():
    model = network(complexity=priors.log_uniform(1.0, 2.0))
    guide = pyro.infer.autoguide.AutoNormal(model, init_scale=1.0)
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    history = svi.fit(model, guide, (x, y), epochs=3).records
    assert torch.isfinite(torch.tensor(history[-1]["evidence"]))
    assert all(1.0 <= guide(x, y)["complexity"].item() <= 2.0 for _ in range(20))


def test_the_spline_of_a_learned_prior_takes_any_scale():
    model = network(weights=learned_priors.learned_normal(0.1))
    hypernet = hypernets.Spline(guides.MeanField(model))
    with torch.no_grad():
        hypernet.coefficients["log_scale/weights"].fill_(0.5)
        model.weights.log_scale.fill_(0.5)
    assert torch.allclose(hypernet.parameters_at(torch.tensor(3.0))["log_scale.weights"], torch.tensor(0.5))


def test_the_spline_of_an_unbounded_prior_has_one_range():
    ends = set()
    for seed in range(2):
        torch.manual_seed(seed)
        hypernet = hypernets.Spline(guides.MeanField(network(complexity=pyro.distributions.LogNormal(0.0, 1.5))))
        ends.add((hypernet.log_low, hypernet.log_high))
    (found,) = ends
    assert found == pytest.approx((-1.5 * 3.71902, 1.5 * 3.71902), rel=1e-3)  # the normal's quantile 1 − 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_a_complexity_of_another_type_and_one_that_is_not_above_zero(form):
    torch.manual_seed(0)
    hypernet = FORMS[form](guides.PointMass(network()))
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))

    def evidence(complexity):
        return Evidence(hypernet.model, poutine.condition(hypernet, {"complexity": torch.tensor(complexity)}))(x, y)

    torch.manual_seed(1)
    single = evidence(10.0).evidence
    torch.manual_seed(1)
    with pyro.validation_enabled(False):
        assert torch.allclose(evidence(np.float64(10.0)).evidence.float(), single)
        for wrong in (-1.0, 0.0, float("nan")):
            with pytest.raises(ValueError, match=f"^complexity: expected λ above 0, got \\[{wrong}\\]"):
                evidence(wrong)


def test_enumeration_takes_one_complexity_for_all_structures():
    torch.manual_seed(0)
    model = network(structures.categorical())
    hypernet = hypernets.Linear(guides.PointWeights(model))
    with torch.no_grad():
        for value in hypernet.parameters():
            value.add_(torch.randn_like(value))
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    torch.manual_seed(5)
    complexity = model.draw_complexity()
    at_one = poutine.condition(hypernet, {"complexity": complexity})
    torch.manual_seed(5)  # λ is drawn first
    found = Evidence(model, hypernet, enumerate_discrete=True)(x, y).evidence
    assert torch.allclose(found, Evidence(model, at_one, enumerate_discrete=True)(x, y).evidence)


def test_the_spline_of_a_prior_with_another_mean_does_not_shrink_to_zero():
    prior = priors.each(lambda name, shape: pyro.distributions.Normal(5.0, 1.0).expand(shape).to_event(len(shape)))
    hypernet = hypernets.Spline(guides.MeanField(network(weights=prior)))
    assert not any(name.startswith("precision") for name, _ in hypernet.named_buffers())
    ends = hypernet.parameters_at(torch.tensor([LOW, HIGH]))
    assert all(torch.equal(value[0], value[1]) for value in ends.values())


@pytest.mark.parametrize("initial_scale", [1e-5, 0.3, 5.0])
def test_the_spline_starts_where_it_can_learn(initial_scale):
    torch.manual_seed(0)
    guide = guides.MeanField(network(), initial_scale)  # the prior's τ is 1
    start = hypernets.Spline(guide).parameters_at(torch.tensor(10**0.5))
    assert torch.allclose(start["loc.weights"], guide.loc["weights"], atol=1e-5)
    scale = torch.full_like(start["log_scale.weights"], min(initial_scale, 0.9**0.5))
    assert torch.allclose(start["log_scale.weights"].exp(), scale, rtol=1e-4)
