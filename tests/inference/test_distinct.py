"""Distinct structures: each round finds another, best first, as the exact order of structures with known scores is."""

import math
from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_nas import Space
from pyro_nas.graph.families.branches import branches, branches_data
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.inference import adam, svi
from pyro_nas.inference.distinct import search
from pyro_nas.models import Model, cost_factors, guides, likelihoods, priors, structures
from pyro_nas.reading.conjugate import LinearRegression

DATA = branches_data()


def toy(seed, sign=1.0):
    """Three rounds on the toy: λ_struct = [0, 0, 0], [λ, 0, 0], [λ, λ, 0]."""
    space = branches()

    def build(repulsion):
        torch.manual_seed(seed)
        model = Model(
            space, num_data=50, structure=structures.gumbel_softmax(0.5), likelihood=likelihoods.gaussian(0.5),
            cost=cost_factors.additive(replace(repulsion, strengths=[sign * s for s in repulsion.strengths])),
        )  # fmt: skip
        return model, guides.MeanField(model)

    def fit(model, guide):
        svi.fit(model, guide, DATA, epochs=100, batch_size=50, optimizer=adam(0.1), structure_per_example=True,
                seed=seed)  # fmt: skip

    return search(space, build, fit, DATA, count=3, draws=50)


def modes(found):
    """The branch that each guide gives most of its mass."""
    return [int(entry.guide.structure["structure"][0].argmax()) for entry in found]


@pytest.mark.parametrize("seed", range(5))
def test_three_rounds_visit_three_structures_best_first(seed):
    found = toy(seed)
    chosen = [int(entry.structure["structure"][0].argmax()) for entry in found]
    assert sorted(chosen) == [0, 1, 2]
    assert chosen[0] == 1  # the branch that the data come from
    assert found[0].evidence > found[1].evidence >= found[2].evidence
    assert modes(found) == chosen  # each with the guide that found it


def test_the_printed_sign_attracts():
    """Fits come to the best structure again and again; the others come all the same."""
    found = toy(0, sign=-1.0)
    assert modes(found) == [1, 1, 1]
    assert sorted(int(entry.structure["structure"][0].argmax()) for entry in found) == [0, 1, 2]


class Rated:
    """Two edges of three primitives, structures of exact scores in nats, and pairs that are fitted in closed form.

    The likelihood of (a, b) is exp(scores[a, b]), the prior uniform; a guide is q(a) q(b). A fit ascends its evidence
    less what the structure pays, by q(a) ∝ exp(Σ_b q(b) value(a, b)) and the like in turns, a little at a time.
    """

    def __init__(self, scores):
        self.space = Space({(0, 1): {n: dense(1, 1) for n in "abc"}, (1, 2): {n: dense(1, 1) for n in "abc"}})
        self.scores, self.fits = scores, 0
        self.data = torch.zeros(1, 1), torch.zeros(1)

    def build(self, repulsion):
        def model(x, y):
            gamma = pyro.sample("structure", dist.OneHotCategorical(torch.ones(2, 3)).to_event(1))
            pyro.factor("cost", -repulsion({"structure": gamma}))
            pyro.sample("y", dist.Delta(y, log_density=gamma[0] @ self.scores @ gamma[1]), obs=y)

        class Guide(nn.Module):
            def __init__(self):
                super().__init__()
                self.logits = torch.zeros(2, 3)

            def forward(self, x, y):
                pyro.sample("structure", dist.OneHotCategorical(logits=self.logits).to_event(1))

        every = torch.stack([torch.eye(3)[[a, b]] for a in range(3) for b in range(3)])
        self.values = self.scores - repulsion({"structure": every}).view(3, 3)
        return model, Guide()

    def fit(self, model, guide):
        self.fits += 1
        for _ in range(100):
            first, second = guide.logits.softmax(-1)
            guide.logits += 0.1 * (torch.stack([self.values @ second, first @ self.values]) - guide.logits)

    def search(self, count, **options):
        return search(self.space, self.build, self.fit, self.data, count, draws=1, **options)

    def exact(self):
        """All structures with log p(D, Γ), best first: [(a, b, nats)]."""
        entries = [(a, b, float(self.scores[a, b]) - math.log(9)) for a in range(3) for b in range(3)]
        return sorted(entries, key=lambda entry: -entry[2])


def pairs(found):
    return [(*entry.structure["structure"].argmax(-1).tolist(), pytest.approx(entry.evidence, abs=1e-4))
            for entry in found]  # fmt: skip


@pytest.mark.parametrize("count", range(1, 10))
def test_the_best_structures_come_in_the_exact_order(count):
    """Neighbours of what was found among them: (0, 0), then (0, 1), (1, 0), (1, 1), …, as their scores have it."""
    first, second = torch.tensor([0.0, -5.0, -14.0]), torch.tensor([0.0, -3.0, -20.0])
    rated = Rated(first[:, None] + second + torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, -2.0]]))
    assert rated.exact()[:count] == pairs(rated.search(count))


@pytest.mark.parametrize("seed", range(10))
def test_all_structures_come_in_the_exact_order_whatever_their_scores(seed):
    rated = Rated(30 * torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))
    assert rated.exact() == pairs(rated.search(9))
    assert rated.exact() == pairs(rated.search(9, strength=1e-3))  # too weak: what is most probable of the rest


@pytest.mark.parametrize("seed", range(10))
def test_the_best_of_scores_that_the_edges_nearly_share_come_in_the_exact_order(seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [20 * torch.randn(*size, generator=generator) for size in ((3, 1), (1, 3))]
    rated = Rated(sum(parts) + 6 * torch.randn(3, 3, generator=generator))
    for count in (2, 4):
        assert rated.exact()[:count] == pairs(rated.search(count))


def test_fits_go_on_until_one_brings_nothing_better():
    rated = Rated(torch.tensor([0.0, -5.0, -14.0])[:, None] + torch.tensor([0.0, -3.0, -20.0]))
    rated.search(2)
    assert rated.fits >= 3
    rated.fits = 0
    rated.search(9)  # all there are
    assert rated.fits >= 9


def test_the_evidence_at_a_structure_is_that_of_its_weights():
    """y = γ_a w_a x_a + γ_b w_b x_b, and w given γ at its posterior: log p(D, Γ), to what q(w | Γ) draws."""
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    y = x[:, :1] + 0.5 * torch.randn(20, 1, generator=torch.Generator().manual_seed(1))
    exact = [LinearRegression(x[:, k, None], y[:, 0], 0.5, 1.0) for k in range(2)]
    means = torch.stack([one.posterior.mean[0] for one in exact]).float()
    scales = torch.stack([one.posterior.stddev[0] for one in exact]).float()
    space = Space({(0, 1): {"a": dense(1, 1), "b": dense(1, 1)}})
    prior = torch.tensor([[0.75, 0.25]])

    def build(repulsion):
        def model(x, y):
            gamma = pyro.sample("structure", dist.OneHotCategorical(prior).to_event(1))
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("cost", -repulsion({"structure": gamma}))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(x @ (gamma[0] * w), 0.5), obs=y[:, 0])

        def guide(x, y):
            gamma = pyro.sample("structure", dist.OneHotCategorical(1 - 0.9 * repulsed(repulsion)).to_event(1))
            there = gamma[0] == 1  # the other weight keeps its prior
            law = dist.Normal(torch.where(there, means, 0.0), torch.where(there, scales, 1.0))
            pyro.sample("w", law.to_event(1))

        return model, guide

    def repulsed(repulsion):
        return sum((one["structure"] for one in repulsion.structures), torch.tensor([[0.0, 0.5]]))

    found = search(space, build, lambda model, guide: None, (x, y), count=2, draws=200)
    assert [int(entry.structure["structure"].argmax()) for entry in found] == [0, 1]
    for entry, one, share in zip(found, exact, prior[0].tolist(), strict=True):
        # E log-likelihood of a draw has variance: (x·x σ²/s²)² / 2 + (…)
        assert entry.evidence == pytest.approx(one.log_evidence + math.log(share), abs=0.2)


class Column(nn.Module):
    """x ↦ w x_k."""

    def __init__(self, index):
        super().__init__()
        self.index, self.weight = index, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.weight * x[:, self.index, None]


@pytest.mark.slow
def test_structures_of_a_linear_model_come_in_the_order_of_their_exact_evidence():
    """Two edges of three columns each, with mean-field weights: nine evidences in closed form, several nats apart."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 6, generator=generator)
    true = torch.tensor([1.0, 0.7, 0.2, 0.9, 0.5, 0.1])
    y = (x * true).sum(-1, keepdim=True) + 0.5 * torch.randn(40, 1, generator=generator)
    ends = {(1, 3): {"skip": skip()}, (2, 3): {"skip": skip()}}
    choices = [{f"x{k}": partial(Column, k) for k in ks} for ks in ((0, 1, 2), (3, 4, 5))]
    space = Space({(0, 1): choices[0], (0, 2): choices[1], **ends})

    def build(repulsion):
        torch.manual_seed(0)
        model = Model(
            space, num_data=40, weights=priors.normal(1.0), structure=structures.categorical(),
            likelihood=likelihoods.gaussian(1.0, learn=False), cost=cost_factors.additive(repulsion),
        )  # fmt: skip
        return model, guides.MeanField(model, 0.1)

    def fit(model, guide):
        svi.fit(model, guide, (x, y), epochs=150, batch_size=40, optimizer=adam(0.05), enumerate_discrete=True)

    exact = {
        (a, b): LinearRegression(x[:, [a, 3 + b]], y[:, 0], 1.0).log_evidence - math.log(9)
        for a in range(3) for b in range(3)
    }  # fmt: skip
    order = sorted(exact, key=lambda pair: -exact[pair])
    found = search(space, build, fit, (x, y), count=4)
    assert [tuple(entry.structure["structure"].argmax(-1).tolist()) for entry in found] == order[:4]
    for entry, pair in zip(found, order, strict=False):  # a mean field of 150 steps is below, by a nat
        assert -1.5 < entry.evidence - exact[pair] < 0.3


def test_bad_input_is_refused_before_the_first_fit():
    def never(*args):
        raise AssertionError

    for wrong, message in (
        ({"count": 4}, "count: expected at most the 3 structures of the space, got 4"),
        ({"count": 0}, "count: expected an integer of at least 1"),
        ({"strength": -1.0}, "strength: expected a finite number.*attract"),
        ({"draws": 0}, "draws: expected an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            search(branches(), never, never, DATA, **{"count": 2, **wrong})
    with pytest.raises(TypeError, match="fit: expected a procedure"):
        search(branches(), never, None, DATA, 2)
    with pytest.raises(ValueError, match="space: expected one with open choices"):
        search(Space({(0, 1): {"a": dense(1, 1)}}), never, never, DATA, 1)
