"""Repulsion: what it is worked out to be by hand at every structure, and its mean under independent edges."""

import pytest
import torch

from pyro_nas import Space
from pyro_nas.graph.enumeration import all_structures, key_of_structure
from pyro_nas.graph.primitives import skip
from pyro_nas.graph.repulsion import Repulsion

EDGES = {(0, 1): "abc", (0, 2): "abc", (1, 2): "ab"}


def space_of(restriction):
    return Space({edge: {name: skip() for name in names} for edge, names in EDGES.items()}, restriction=restriction)


@pytest.mark.parametrize("restriction", ["simplex", "cube"])
def test_it_is_paid_at_the_structures_alone(restriction):
    space = space_of(restriction)
    everything = list(all_structures(space))
    found = [everything[0], everything[1], everything[-1]]  # two of them neighbours
    repulsion = Repulsion(space.choices(), found, [1.5, 2.0, 0.25])
    paid = dict(zip(map(key_of_structure, found), [1.5, 2.0, 0.25], strict=True))
    for structure in everything:
        assert float(repulsion(structure)) == paid.get(key_of_structure(structure), 0.0)
    assert float(Repulsion(space.choices(), [], [])(everything[0])) == 0.0


@pytest.mark.parametrize("restriction", ["simplex", "cube"])
def test_of_probabilities_it_is_the_mean_of_independent_edges(restriction):
    """C(E Γ) = Σ strength_j P(Γ_j), and of several γ at once one each, with a gradient."""
    space = space_of(restriction)
    everything = list(all_structures(space))
    found, several = everything[3::7][:9], {}
    for site, choices in space.choices().items():
        table = torch.rand(4, *choices.shape, dtype=torch.double)
        several[site] = (table / table.sum(-1, keepdim=True) if restriction == "simplex" else table).requires_grad_()

    def probability(structure, index):
        total = 1.0
        for site, gamma in structure.items():
            table = several[site][index]
            share = (table * gamma).sum(-1) if restriction == "simplex" else torch.where(gamma == 1, table, 1 - table)
            total = total * share.prod()
        return total

    strengths = [1.0 + index for index in range(len(found))]
    expected = torch.stack(
        [
            sum(strength * probability(one, index) for one, strength in zip(found, strengths, strict=True))
            for index in range(4)
        ]
    )
    cost = Repulsion(space.choices(), found, strengths)(several)
    torch.testing.assert_close(cost, expected)
    tables = list(several.values())
    for mine, theirs in zip(
        torch.autograd.grad(cost.sum(), tables), torch.autograd.grad(expected.sum(), tables), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_structures_of_another_space_are_refused():
    space = space_of("simplex")
    with pytest.raises(ValueError, match=r"structures\[0\]: expected γ of the shapes .*'structure.2': \(1, 2\)"):
        Repulsion(space.choices(), [{"structure": torch.eye(3)}], [1.0])
    with pytest.raises(ValueError, match=r"strengths\[0\]: expected a finite number"):
        Repulsion(space.choices(), [next(all_structures(space))], [float("nan")])
    with pytest.raises(ValueError, match="strengths: expected 0, one a structure, got 1"):
        Repulsion(space.choices(), [], [1.0])
