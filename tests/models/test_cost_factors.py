"""Costs in a model: what they add against closed forms, the tilted posterior, a front from one search."""

import itertools
from contextlib import nullcontext
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, TensorDataset

from pyro_nas import Evidence, Space, choice_probabilities
from pyro_nas.graph.costs import CostTable
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.inference import adam, one_cycle, svi
from pyro_nas.models import Model, cost_factors, guides, hypernets, likelihoods, priors, structures

N, NOISE = 40, 1.0
FEATURES = {(0, 1): [0, 1, 2], (0, 2): [3, 4, 5]}
TABLE = CostTable(3.0, {"structure": torch.tensor([[5.0, 2.0, 0.0], [1.0, 4.0, 0.5]])}, "units")


class Feature(nn.Module):
    """x ↦ x_i."""

    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, x):
        return x[..., self.index, None]


def data(seed=2):
    generator = torch.Generator().manual_seed(seed)
    x, _ = torch.linalg.qr(torch.randn(N, 6, generator=generator))
    x = 0.4 * x * N**0.5  # orthogonal columns: the posteriors of the two edges are independent
    y = x @ torch.tensor([[0.6], [0.2], [0.0], [0.1], [0.6], [0.0]])
    return x, y + NOISE * torch.randn(N, 1, generator=generator)


def model(structure, cost=None, complexity=1.0):
    edges = {edge: {f"x{i}": partial(Feature, i) for i in indices} for edge, indices in FEATURES.items()}
    space = Space({**edges, (1, 2): {"skip": skip()}}, restriction=structure.restriction)
    likelihood = likelihoods.gaussian(NOISE, learn=False)
    return Model(space, num_data=N, structure=structure, likelihood=likelihood, cost=cost, complexity=complexity)


def enumerated():
    """All structures, (9, edge, choice), in the order of the flattened outer product."""
    one = torch.eye(3)
    return torch.stack([torch.stack([one[i], one[j]]) for i, j in itertools.product(range(3), range(3))])


def log_likelihoods(x, y):
    means = torch.stack([(x.view(N, 2, 3) * gamma).sum((-2, -1)) for gamma in enumerated()])
    return Normal(means, NOISE).log_prob(y[:, 0]).sum(-1)


def tilted(x, y, strength, complexity=1.0):
    """log p₀ − s C + log-likelihood / λ of each structure: what the optimum of 𝔏(λ) is proportional to."""
    return (
        log_likelihoods(x, y) / complexity - 2 * torch.tensor(3.0).log() - strength * TABLE({"structure": enumerated()})
    )


def test_the_additive_cost_and_its_gradient_in_the_logits():
    pair = model(structures.categorical(), cost_factors.additive(TABLE, 0.3), 2.0)
    guide = guides.MeanField(pair)
    guide.structure["structure"].data.normal_()
    terms = Evidence(pair, guide, enumerate_discrete=True)(*data())
    p, c = guide.structure["structure"].softmax(-1), TABLE.tables["structure"].float()
    assert torch.allclose(terms.divergence["cost"], 0.3 * (3.0 + (p * c).sum()))
    assert torch.allclose(terms.penalty["cost"], 2 * terms.divergence["cost"])
    (found,) = torch.autograd.grad(terms.penalty["cost"], list(guide.parameters()), retain_graph=True)
    assert torch.allclose(found, 2 * 0.3 * p * (c - (p * c).sum(-1, keepdim=True)), atol=1e-6)
    plain = model(structures.categorical(), complexity=2.0)
    free = Evidence(plain, guide, enumerate_discrete=True)(*data())
    assert torch.allclose(terms.log_likelihood, free.log_likelihood)  # the cost is no part of it
    assert torch.allclose(terms.evidence, free.evidence - terms.penalty["cost"])
    assert terms.summary().keys() - free.summary().keys() == {"cost"}
    assert terms.summary()["kl_structure"] == pytest.approx(free.summary()["kl_structure"])
    assert terms.summary()["kl_weights"] == 0


def test_the_multiplicative_loss_and_its_gradient():
    x, y = (part.double() for part in data())
    pair = model(structures.gumbel_softmax(0.7), cost_factors.multiplicative(TABLE, 0.2, 0.6)).double()
    guide = guides.PointMass(pair).double()
    logits = guide.structure["structure"]
    logits.data.normal_()

    def formula(logits):
        gamma = logits.softmax(-1)
        fit = Normal((x.view(N, 2, 3) * gamma).sum((-2, -1)), NOISE).log_prob(y[:, 0]).sum()
        return fit * 0.2 * (3.0 + (gamma * TABLE.tables["structure"]).sum()).log() ** 0.6

    terms = Evidence(pair, guide)(x, y)
    assert torch.allclose(terms.log_likelihood, formula(logits))
    (found,) = torch.autograd.grad(terms.log_likelihood, logits)
    step = 1e-5 * torch.eye(6, dtype=torch.double).view(6, 2, 3)
    differences = torch.stack([formula(logits + s) - formula(logits - s) for s in step]).view(2, 3) / 2e-5
    assert torch.allclose(found, differences, atol=1e-6)


COSTS = {"additive": cost_factors.additive(TABLE, 0.3), "multiplicative": cost_factors.multiplicative(TABLE)}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_other_estimators_agree(cost, elbo):
    prior = structures.gumbel_softmax(0.7)
    pair, plain = model(prior, COSTS[cost], 2.0), model(prior, complexity=2.0)
    guide = guides.MeanField(pair)

    def both(model):
        losses = []
        for estimate in (
            lambda: -Evidence(model, guide)(*data()).evidence,
            lambda: elbo().differentiable_loss(model, guide, *data()),
        ):
            torch.manual_seed(3)
            losses.append(estimate())
        return torch.stack(losses)

    ours, theirs = both(pair) - both(plain)
    assert torch.allclose(ours, theirs, rtol=1e-4)
    assert ours.abs() > 0.1


@pytest.mark.parametrize("cost", COSTS)
def test_particles_at_once_are_particles_one_by_one(cost):
    pair = model(structures.gumbel_softmax(), COSTS[cost], priors.log_uniform(0.1, 10.0))
    hypernet = hypernets.Linear(guides.PointMass(pair), unit=1.0)
    for value in hypernet.parameters():
        value.data.normal_()

    def terms(complexity):
        conditioned = poutine.condition(hypernet, {"complexity": complexity})
        count = complexity.numel()
        return Evidence(pair, conditioned, count, vectorize_particles=count > 1)(*data())

    together, single = terms(torch.tensor([[0.2], [1.0], [7.0]])), [terms(torch.tensor(c)) for c in (0.2, 1.0, 7.0)]
    for name in ("evidence", "log_likelihood"):
        assert torch.allclose(getattr(together, name), torch.stack([getattr(t, name) for t in single]).mean())
    if cost == "additive":
        assert torch.allclose(together.penalty["cost"], torch.stack([t.penalty["cost"] for t in single]).mean())


@pytest.mark.parametrize("cost", COSTS)
def test_the_score_function_is_unbiased(cost):
    pair = model(structures.categorical(), COSTS[cost], 2.0)
    guide = guides.MeanField(pair)
    guide.structure["structure"].data.normal_()

    def gradient(**options):
        surrogate = Evidence(pair, guide, **options)(*data()).surrogate
        return torch.autograd.grad(surrogate, list(guide.parameters()))[0]

    drawn = torch.stack([gradient(particles=50, vectorize_particles=True) for _ in range(60)])
    error = drawn.std(0) / 60**0.5
    assert ((drawn.mean(0) - gradient(enumerate_discrete=True)).abs() < 4 * error + 1e-3).all()


def test_a_structure_an_example_pays_the_mean():
    gamma = torch.rand(7, 2, 3).softmax(-1)
    with poutine.trace() as trace:
        assert cost_factors.additive(TABLE, 0.3)({"structure": gamma}) == 1.0
    factor = trace.trace.nodes["cost"]["fn"].log_prob(torch.empty(0))
    assert torch.allclose(factor, -0.3 * TABLE({"structure": gamma.mean(0)}).float())


def fitted(x, y, complexity):
    pair = model(structures.categorical(), cost_factors.additive(TABLE, 0.4), complexity)
    guide = guides.MeanField(pair)
    svi.fit(
        pair, guide, (x, y), epochs=120, batch_size=N, optimizer=adam(0.2), scheduler=one_cycle(0.2),
        enumerate_discrete=True,
    )  # fmt: skip
    table = choice_probabilities(guide)["structure"]
    return (table[0][:, None] * table[1]).flatten(), Evidence(pair, guide, enumerate_discrete=True)(x, y).evidence


@pytest.mark.parametrize("complexity", [1.0, 2.0])
def test_the_posterior_is_the_tilted_one(complexity):
    x, y = data()
    found, evidence = fitted(x, y, complexity)
    exact = tilted(x, y, 0.4, complexity)
    assert 0.1 < exact.softmax(0).max() < 0.9  # a posterior with something to get wrong
    assert torch.allclose(found.double(), exact.softmax(0), atol=0.01)
    assert torch.allclose(evidence.double(), complexity * exact.logsumexp(0), atol=0.05)


@pytest.mark.parametrize("wrong", ["outside λ", "sign", "labels"])
def test_wrong_variants_are_not(wrong, monkeypatch):
    x, y = data()
    exact = tilted(x, y, 0.4, 2.0).softmax(0)

    def forward(self, structure):
        with poutine.scale(scale=0.5) if wrong == "outside λ" else nullcontext():
            pyro.factor("cost", (self.strength if wrong == "sign" else -self.strength) * self.of(structure))
        return 1.0

    monkeypatch.setattr(cost_factors.Additive, "forward", forward)
    found, _ = fitted(x, y.roll(5, 0) if wrong == "labels" else y, 2.0)
    assert not torch.allclose(found.double(), exact, atol=0.03)


GRID = torch.tensor([0.5, 1.0, 2.0, 5.0, 20.0])


def front(steps=600, frozen=False):
    """Expected cost and log-likelihood of q(Γ | λ) at each λ of the grid, of one search, and the exact ones."""
    x, y = data()
    pair = model(structures.categorical(), cost_factors.additive(TABLE, 0.8), priors.log_uniform(0.5, 20.0))
    hypernet = hypernets.Spline(guides.MeanField(pair), bases=6)
    if frozen:
        shown, hypernet.parameters_at = (
            hypernet.parameters_at,
            lambda complexity: shown(torch.full_like(complexity, 1.0)),
        )
    repeated = DataLoader(TensorDataset(x, y), batch_size=N, sampler=[*range(N)] * steps)
    svi.fit(
        pair, hypernet, repeated, epochs=1, optimizer=adam(0.1), scheduler=one_cycle(0.1), particles=128,
        vectorize_particles=True, stratified=True, emphasis=lambda complexity: 1 / complexity,
    )  # fmt: skip
    exact = torch.stack([tilted(x, y, 0.8, float(c)) for c in GRID]).softmax(-1).float()
    with torch.no_grad():
        rows = hypernet.parameters_at(GRID)["structure.structure"].softmax(-1)
    found = (rows[:, 0, :, None] * rows[:, 1, None]).flatten(1)
    values = torch.stack([TABLE({"structure": enumerated()}).float(), log_likelihoods(x, y)], -1)
    return found @ values, exact @ values


def test_one_search_gives_the_front_of_accuracy_against_cost():
    found, exact = front()
    assert (found.diff(dim=0) < 0).all()  # as λ rises, the cost falls, and so does the likelihood
    assert torch.allclose(found, exact, atol=1.2)
    assert exact[0, 0] - exact[-1, 0] > 5


def test_without_its_input_it_does_not():
    found, exact = front(100, frozen=True)
    assert not (found.diff(dim=0) < 0).all()
    assert not torch.allclose(found, exact, atol=1.2)


SMALL = Space({(0, 1): {"a": dense(3, 2), "b": dense(3, 2)}})
OTHER = CostTable(3.0, {"structure": torch.ones(3, 2)}, "units")
CHEAP = CostTable(0.25, {"structure": torch.tensor([[0.5, 2.0]])}, "milliseconds")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cost_factors.additive({"structure": 1.0}), TypeError, "table: expected a CostTable, .*measure"),
        (lambda: cost_factors.additive(OTHER, -1.0), ValueError, "strength: expected .* got -1.0"),
        (lambda: cost_factors.multiplicative(OTHER, 0.0), ValueError, "alpha: expected"),
        (lambda: Model(SMALL, num_data=2, cost=OTHER), TypeError, "cost: expected one of models.cost_factors"),
        (
            lambda: Model(SMALL, num_data=2, cost=cost_factors.additive(OTHER)),
            ValueError,
            "cost: expected .* table .*measure",
        ),
        (
            lambda: Model(SMALL, num_data=2, cost=cost_factors.multiplicative(CHEAP)),
            ValueError,
            "cost: expected more than 1 milliseconds .* got 0.75 for the cheapest. Use a smaller unit",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
