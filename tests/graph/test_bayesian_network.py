"""Bayesian networks: the model's density against the joint normal law, the posterior against enumeration."""

import itertools

import pytest
import torch

from pyro_nas import choice_probabilities
from pyro_nas.evidence.sites import Substitute, sample_sites
from pyro_nas.graph.families.bayesian_network import arrows, bayesian_network
from pyro_nas.inference import adam, one_cycle, svi
from pyro_nas.models import Model, guides, likelihoods, priors, structures

NODES, N, NOISE, PRIOR = 5, 500, 1.0, 1.0
PLANTED = {(0, 1): 0.8, (0, 2): -0.6, (1, 3): 0.7, (2, 3): 0.5, (3, 4): -0.8}


def planted(generator):
    """Return 500 rows of the planted network, and its weights (parent, child)."""
    weights = torch.zeros(NODES, NODES)
    for (parent, child), value in PLANTED.items():
        weights[parent, child] = value
    noise = NOISE * torch.randn(N, NODES, generator=generator)
    return noise @ torch.linalg.inv(torch.eye(NODES) - weights), weights


def build(prior):
    return Model(
        bayesian_network(NODES),
        num_data=N,
        weights=priors.normal(PRIOR),
        structure=prior,
        likelihood=likelihoods.gaussian(NOISE, learn=False),
    )


def log_likelihood(x, gamma, weights):
    model = build(structures.bernoulli())
    with Substitute({"structure": gamma, "weights": weights}):
        return float(sample_sites(model, (x, x))["y"]["fn"].log_prob(x).sum())


def test_the_model_is_the_density_of_the_joint_normal_law():
    x, _ = planted(torch.Generator().manual_seed(0))
    flat, gamma = torch.randn(10), (torch.rand(1, 10) > 0.5).float()
    weights = arrows(gamma * flat)  # the order of the arrows is that of the packed weights
    mixing = torch.linalg.inv(torch.eye(NODES) - weights)
    law = torch.distributions.MultivariateNormal(torch.zeros(NODES), NOISE**2 * mixing.T @ mixing)
    exact = float(law.log_prob(x).sum())
    assert log_likelihood(x, gamma, flat) == pytest.approx(exact, rel=1e-4)
    backwards = torch.distributions.MultivariateNormal(torch.zeros(NODES), NOISE**2 * mixing @ mixing.T)
    assert log_likelihood(x, gamma, flat) != pytest.approx(float(backwards.log_prob(x).sum()), rel=1e-3)


def enumerated(x):
    """P(arrow | D), (parent, child): the exact posterior over the 2^k parent sets of each node, one node at a time."""
    table = torch.zeros(NODES, NODES)
    x = x.double()
    for child in range(1, NODES):
        sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=child)), dtype=torch.double)
        features = x[:, :child] * sets[:, None]  # (set, datum, parent)
        covariance = NOISE**2 * torch.eye(N, dtype=torch.double) + PRIOR**2 * features @ features.mT
        law = torch.distributions.MultivariateNormal(torch.zeros(N, dtype=torch.double), covariance)
        table[:child, child] = (law.log_prob(x[:, child]).softmax(0) @ sets).float()
    return table


def fitted(x):
    """P(arrow) of a relaxed q(Γ): arrows that are not there get more of it than they have, up to a third."""
    torch.manual_seed(0)
    model = build(structures.relaxed_bernoulli(0.5))
    guide = guides.StructureConditioned(model, rank=10, initial_scale=0.3)
    svi.fit(
        model, guide, (x, x), epochs=1200, batch_size=N, optimizer=adam(0.05), scheduler=one_cycle(0.05, pct_start=0.1)
    )
    return arrows(choice_probabilities(guide)["structure"])


def check_recovered(probabilities, weights):
    """The most probable network is the planted one, and the planted arrows are nearly certain."""
    assert torch.equal((probabilities > 0.5).float(), (weights != 0).float())
    assert probabilities[weights != 0].min() > 0.9


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_the_planted_network_is_recovered(seed):
    x, weights = planted(torch.Generator().manual_seed(seed))
    exact, ours = enumerated(x), fitted(x)
    check_recovered(exact, weights)
    check_recovered(ours, weights)
    assert (ours - exact)[weights != 0].abs().max() < 0.1


def test_it_is_not_from_rows_without_it():
    generator = torch.Generator().manual_seed(0)
    x, weights = planted(generator)
    shuffled = torch.stack([column[torch.randperm(N, generator=generator)] for column in x.T], 1)
    with pytest.raises(AssertionError):  # no arrows
        check_recovered(enumerated(shuffled), weights)
    with pytest.raises(AssertionError):  # a wrong order of the nodes
        check_recovered(enumerated(x.flip(1)), weights)


def test_arrows_are_a_matrix_of_parents_and_children():
    assert list(bayesian_network(3).edges[0, 1]) == ["0→1", "0→2", "1→2"]
    matrix = arrows(torch.tensor([[[1.0, 2.0, 3.0]]]))
    assert matrix.tolist() == [[[0.0, 1.0, 2.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]]
    with pytest.raises(ValueError, match="nodes: expected an integer of at least 2"):
        bayesian_network(1)
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, 5\)"):
        build(structures.bernoulli())(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"gamma: expected shape .*number of arrows.*got .*\(1, 4\)"):
        arrows(torch.zeros(1, 4))
