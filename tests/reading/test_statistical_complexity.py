"""Complexities of a posterior against quadrature, optimisation and networks counted by hand."""

import math
from functools import partial

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from pyro_nas import Space
from pyro_nas.graph.enumeration import all_structures
from pyro_nas.graph.families.branches import branches
from pyro_nas.graph.primitives import dense, skip, zero
from pyro_nas.models import Model, guides, structures
from pyro_nas.reading.pruning import parametric_complexity
from pyro_nas.reading.statistical_complexity import complexities, differential_entropy, operational_complexity


def check_parametric(complexity):
    """The least divergence over the prior's variances, found by optimisation."""
    mean, sd = {"w": torch.tensor([0.0, 0.3, -2.0])}, {"w": torch.tensor([0.1, 1.5, 0.4])}
    log_scale = torch.zeros(3, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = kl_divergence(Normal(mean["w"].double(), sd["w"].double()), Normal(0.0, log_scale.exp())).sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert complexity(mean, sd) == pytest.approx(float(loss().detach()), rel=1e-5)


def test_parametric_complexity_is_the_optimised_minimum():
    check_parametric(parametric_complexity)
    with pytest.raises(AssertionError):  # Graves' ratio itself, without the logarithm
        check_parametric(lambda mean, sd: float((mean["w"] / sd["w"]).square().sum() / 2))


def guide_of(prior, logits, restriction="simplex"):
    choices = {name: dense(2, 2) for name in "abc"[: logits.shape[-1]]}
    space = Space({(0, 1): choices, (1, 2): choices}, restriction=restriction)
    guide = guides.MeanField(Model(space, num_data=5, structure=prior))
    with torch.no_grad():
        guide.structure["structure"].copy_(logits)
    return guide


def check_entropy(guide, exact):
    value, error = differential_entropy(guide, num_samples=4000)["structure"]
    assert 0 < error < 0.02 * max(5.0, abs(exact))
    assert abs(value - exact) < 5 * error


def entropy_of_pair(logit, temperature):
    """Quadrature over the logit z of γ: −∫ p log p dz, plus the mean of log dγ/dz."""
    z = torch.linspace(-60, 60, 200_001, dtype=torch.double) / temperature
    score = logit - temperature * z
    log_p = math.log(temperature) - softplus(score) - softplus(-score)
    integrand = log_p.exp() * (-log_p - softplus(z) - softplus(-z))
    return float(torch.trapezoid(integrand, z))


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 5.0])
def test_differential_entropy_meets_quadrature(temperature):
    logits = torch.tensor([[0.0, 0.0], [0.9, -0.4]])
    exact = entropy_of_pair(0.0, temperature) + entropy_of_pair(1.3, temperature)
    if temperature == 1.0:
        assert entropy_of_pair(0.0, 1.0) == pytest.approx(0.0, abs=1e-6)  # uniform on (0, 1)
    guide = guide_of(structures.gumbel_softmax(temperature), logits)
    check_entropy(guide, exact)
    of_logits = sum(2 - math.log(temperature) for _ in logits)  # the density of the logits instead
    with pytest.raises(AssertionError):
        check_entropy(guide, of_logits)
    cube = guide_of(structures.relaxed_bernoulli(temperature), torch.tensor([[0.0], [1.3]]), "cube")
    check_entropy(cube, exact)


def test_differential_entropy_of_three_choices_meets_quadrature():
    n, temperature, logits = 400, 1.5, torch.tensor([0.8, 0.0, -0.5], dtype=torch.double)
    u = (torch.arange(n, dtype=torch.double) + 0.5) / n
    first, share = torch.meshgrid(u, u, indexing="ij")
    gamma = torch.stack([first, (1 - first) * share, (1 - first) * (1 - share)], -1)
    log_p = structures.gumbel_softmax(temperature).distribution(logits, temperature).log_prob(gamma)
    weight = log_p.exp() * (1 - first) / n**2  # the second coordinate goes from 0 to 1 − the first
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-3)
    check_entropy(guide_of(structures.gumbel_softmax(temperature), logits.float()), -2 * float((weight * log_p).sum()))


def test_differential_entropy_of_a_dirichlet_is_its_own():
    logits = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.2, 0.3]])
    exact = float(torch.distributions.Dirichlet(logits.exp()).entropy().sum())
    check_entropy(guide_of(structures.dirichlet(), logits), exact)


def test_differential_entropy_leaves_the_random_state_and_refuses_what_has_no_density():
    guide = guide_of(structures.gumbel_softmax(), torch.zeros(2, 2))
    state = torch.get_rng_state()
    differential_entropy(guide)
    assert torch.equal(state, torch.get_rng_state())
    for prior in (structures.categorical(), structures.straight_through()):
        with pytest.raises(ValueError, match=r"guide: expected a relaxed law at 'structure'.*edge_entropies"):
            differential_entropy(guide_of(prior, torch.zeros(2, 2)))
    point = guides.PointMass(guide.model)
    with pytest.raises(ValueError, match=r"guide: expected a relaxed law"):
        differential_entropy(point)
    with pytest.raises(ValueError, match="num_samples: expected an integer of at least 2"):
        differential_entropy(guide, num_samples=1)


def test_operational_complexity_of_a_network_counted_by_hand(small_space):
    x = torch.zeros(4, 3)
    first, second = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    dense_3, readout = 3 * 3 + 3, 3 * 2 + 2
    big = operational_complexity(small_space, {"structure": first}, x)
    assert big == {
        "parameters": 3 * dense_3 + readout,
        "vertices": 4,
        "edges": 4,
        "floating_point_operations": 2 * (3 * 9 + 6),
    }
    small = operational_complexity(small_space, {"structure": second}, x)
    assert small["parameters"] == big["parameters"] - dense_3
    draws = {"structure": torch.stack([first, first, second])}
    assert operational_complexity(small_space, draws, x) == big  # by the majority


def test_cells_are_unfolded_and_a_zero_is_no_edge():
    cell = Space({(0, 1): {"a": dense(2, 2)}, (1, 2): {"b": dense(2, 2)}, (0, 2): {"c": skip()}})
    joint = Space({(0, 2): {"a": skip()}, (1, 2): {"b": skip()}}, inputs=(0, 1))
    space = Space(
        {
            (0, 1): {"cell": cell},
            (0, 2): {"skip": skip(), "zero": zero()},
            (1, 3): {"s": skip()},
            (2, 3): {"s": skip()},
        },
        aggregations={3: joint},
    )
    x = torch.zeros(1, 2)
    rows = [operational_complexity(space, structure, x) for structure in all_structures(space)]
    # 0 → inner → 1 and 0 → 1, then 0 → 2, 1 → 3, 2 → 3, of which the last two end in the inputs of a cell of two edges
    assert [(row["vertices"], row["edges"]) for row in rows] == [(7, 8), (7, 7)]


def test_a_branch_that_does_not_look_at_its_input_is_counted():
    found = [operational_complexity(branches(), {"structure": row[None]}, torch.randn(4, 11)) for row in torch.eye(3)]
    assert [entry["parameters"] for entry in found] == [1, 2, 12]
    assert [entry["floating_point_operations"] for entry in found] == [0, 2, 22]


def test_the_table_has_each_complexity(small_space):
    model = Model(small_space, num_data=5)
    x = torch.zeros(4, 3)
    table = complexities(small_space, guides.MeanField(model), model.packing, x)
    assert table["entropy_of_choice"] == pytest.approx(2 * math.log(2), rel=1e-5)  # nothing is known yet
    assert table["parametric"] > 0
    assert abs(table["differential_entropy"]) < 5 * table["differential_entropy_standard_error"]  # uniform
    assert table["vertices"] == 4
    hard = Model(small_space, num_data=5, structure=structures.categorical())
    assert "differential_entropy" not in complexities(small_space, guides.MeanField(hard), hard.packing, x)
    with pytest.raises(ValueError, match="guide: expected a law of the weights"):
        complexities(small_space, guides.PointWeights(model), model.packing, x)


def test_a_guide_of_conditioned_weights_is_refused(small_space):
    model = Model(small_space, num_data=5)
    guide = guides.StructureConditioned(model)
    torch.nn.init.normal_(guide.loc_shift["weights"])
    with pytest.raises(ValueError, match="guide: expected a law of the weights"):
        complexities(small_space, partial(guide), model.packing, torch.zeros(4, 3))
