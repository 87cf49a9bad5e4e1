"""Distinct structures: each round finds another; the repulsion against what it is worked out to be by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_nas import Space
from pyro_nas.graph.costs import CostTable
from pyro_nas.graph.enumeration import all_structures
from pyro_nas.graph.families.branches import branches, branches_data
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, svi
from pyro_nas.inference.distinct import repulsion, search
from pyro_nas.models import Model, cost_factors, guides, likelihoods, structures

DATA = branches_data()


def toy(seed, sign=1.0):
    """Three rounds on the toy: λ_struct = [0, 0, 0], [1, 0, 0], [1, 1, 0]."""
    space = branches()

    def build(table):
        torch.manual_seed(seed)
        table = CostTable(sign * table.fixed, {site: sign * c for site, c in table.tables.items()}, table.unit)
        model = Model(
            space, num_data=50, structure=structures.gumbel_softmax(0.5),
            likelihood=likelihoods.gaussian(0.5), cost=cost_factors.additive(table, 50.0),
        )  # fmt: skip
        return model, guides.MeanField(model)

    def fit(model, guide):
        svi.fit(model, guide, DATA, epochs=100, batch_size=50, optimizer=adam(0.1), structure_per_example=True,
                seed=seed)  # fmt: skip

    return search(space, build, fit, DATA, count=3, draws=50)


@pytest.mark.parametrize("seed", range(5))
def test_three_rounds_visit_three_structures_best_first(seed):
    found = toy(seed)
    chosen = [int(entry.structure["structure"][0].argmax()) for entry in found]
    assert sorted(chosen) == [0, 1, 2]
    assert chosen[0] == 1  # the branch that the data come from
    assert found[0].evidence > found[1].evidence >= found[2].evidence
    for entry, index in zip(found, chosen, strict=True):  # each with the guide that found it
        assert int(entry.guide.structure["structure"][0].argmax()) == index


def test_the_printed_sign_attracts():
    with pytest.raises(RuntimeError, match=r"fit 2 of 3: expected a structure that no earlier one found.*strength"):
        toy(0, sign=-1.0)


def share(space, one, other):
    """The share of edges that differ; on the cube of an edge's choices."""
    parts = []
    for site, choices in space.choices().items():
        different = (one[site] != other[site]).double()
        parts += (different.amax(-1) if choices.restriction.startswith("simplex") else different.mean(-1)).tolist()
    return sum(parts) / len(parts)


@pytest.mark.parametrize("restriction", ["simplex", "cube"])
def test_the_repulsion_is_the_share_of_edges_that_differ(restriction):
    space = Space(
        {
            (0, 1): {name: dense(2, 2) for name in "abc"},
            (0, 2): {name: dense(2, 2) for name in "abc"},
            (1, 2): {name: dense(2, 2) for name in "ab"},
        },
        restriction=restriction,
    )
    everything = list(all_structures(space))[::7]
    found = [everything[0], everything[-1]]
    table = repulsion(space, found, 1.5)
    for structure in everything:
        expected = -1.5 * sum(share(space, structure, other) for other in found)
        assert float(table(structure)) == pytest.approx(expected, abs=1e-6)
    assert float(repulsion(space, [], 1.5)(everything[0])) == 0.0


def test_a_model_written_by_hand_pays_by_a_factor():
    """One binary edge, a likelihood that prefers choice 0 by two nats: repelled by three, choice 1."""
    space = Space({(0, 1): {"a": dense(1, 1), "b": dense(1, 1)}})
    favour = torch.tensor([2.0, 0.0])

    def law(logits):
        return dist.OneHotCategorical(logits=logits).to_event(1)

    class OwnGuide(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(1, 2))

        def forward(self, x, y):
            pyro.sample("structure", law(self.logits))

    def build(table):
        def model(x, y):
            gamma = pyro.sample("structure", law(torch.zeros(1, 2)))
            pyro.factor("cost", -table({"structure": gamma}).float())
            pyro.sample("y", dist.Delta(y, log_density=(gamma[0] * favour).sum()), obs=y)

        return model, OwnGuide()

    def fit(model, guide):
        svi.fit(model, guide, data, epochs=150, optimizer=adam(0.1), enumerate_discrete=True)

    data = (torch.zeros(1, 1), torch.zeros(1))
    found = search(space, build, fit, data, count=2, strength=3.0, draws=500)
    assert [entry.structure["structure"].tolist() for entry in found] == [[[1.0, 0.0]], [[0.0, 1.0]]]
    # q ∝ exp(favour) of the first round, and exp(favour) with three nats against choice 0 in the second
    for entry, score in zip(found, ([2.0, 0.0], [-1.0, 0.0]), strict=True):
        q = torch.tensor(score).softmax(0)
        exact = (q * favour).sum() - (q * (2 * q).log()).sum()  # without the repulsion
        assert entry.evidence == pytest.approx(float(exact), abs=0.2)
    wrong = float((torch.tensor([-1.0, 0.0]).softmax(0) * (favour + torch.tensor([0.0, 3.0]))).sum())
    assert abs(found[1].evidence - wrong) > 1.0  # with it


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
