"""The posterior over structures: probabilities of choices, entropies, and the most probable structures."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import beta

from pyro_nas import (
    Space,
    by_edge,
    choice_probabilities,
    draw,
    edge_entropies,
    probable_structures,
)
from pyro_nas.graph.primitives import skip
from pyro_nas.models import structures
from pyro_nas.reading.structure_posterior import largest


def test_probabilities_are_those_of_the_draws(build):
    for prior in (structures.gumbel_softmax(0.3), structures.categorical(), structures.straight_through(1.0)):
        _, guide = build(prior)
        exact = choice_probabilities(guide)["structure"]
        assert torch.allclose(exact, guide.structure["structure"].softmax(-1))
        hard = torch.nn.functional.one_hot(draw(guide, num_samples=4000)["structure"].argmax(-1), 2).float().mean(0)
        assert torch.allclose(hard, exact, atol=0.04)
    _, guide = build(structures.dirichlet(1.0))
    before = torch.get_rng_state()
    exact = choice_probabilities(guide)["structure"]
    assert torch.equal(torch.get_rng_state(), before)
    hard = torch.nn.functional.one_hot(draw(guide, num_samples=4000)["structure"].argmax(-1), 2).float().mean(0)
    assert torch.allclose(hard, exact, atol=0.04)


def test_a_law_that_depends_on_another_draw_is_averaged_over_it():
    """Also where that draw is discrete, and often the same twice, and where the law has no probabilities of its own."""
    towards = torch.tensor([[5.0, -5.0]])

    def switched(law):
        def guide():
            z = pyro.sample("z", law, infer={"is_auxiliary": True})
            logits = towards * (2 * z.reshape(-1)[0] - 1)
            pyro.sample("structure", dist.OneHotCategorical(logits=logits).to_event(1))

        return guide

    def spread():
        z = pyro.sample("z", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("structure", dist.Beta((5 * z).exp().expand(1, 1), 1.0).to_event(2))

    straight = dist.OneHotCategoricalStraightThrough(torch.tensor([0.5, 0.5]))
    for guide in (switched(dist.Bernoulli(0.5)), switched(straight), spread):
        assert choice_probabilities(guide, num_samples=1000)["structure"][0, 0].item() == pytest.approx(0.5, abs=0.05)


def test_a_discrete_law_that_depends_on_no_other_draw_is_exact_beside_discrete_draws():
    logits = torch.tensor([[1.0, 0.3]])

    def guide():
        pyro.sample("z", dist.Bernoulli(0.5), infer={"is_auxiliary": True})
        pyro.sample("structure", dist.OneHotCategorical(logits=logits).to_event(1))

    assert torch.equal(choice_probabilities(guide)["structure"], dist.OneHotCategorical(logits=logits).probs)


@pytest.mark.parametrize(("a", "b"), [(2.0, 3.0), (0.05, 0.04), (300.0, 280.0), (0.5, 1e-3), (1.0, 60.0), (1e-2, 1e-2)])
def test_of_two_choices_dirichlet_probabilities_are_those_of_a_beta_law(a, b):
    found = largest(torch.tensor([a, b], dtype=torch.double))
    assert found.tolist() == pytest.approx([beta.sf(0.5, a, b), beta.cdf(0.5, a, b)], rel=1e-6)


def test_of_more_choices_dirichlet_probabilities_are_those_of_draws():
    assert largest(torch.full((7,), 0.3, dtype=torch.double)).tolist() == pytest.approx([1 / 7] * 7)
    concentration = torch.tensor([0.5, 1.0, 4.0, 2.5], dtype=torch.double)
    found, count = largest(concentration), 200_000
    shares = torch.nn.functional.one_hot(dist.Dirichlet(concentration).sample((count,)).argmax(-1), 4).double().mean(0)
    assert ((found - shares).abs() < 4.5 * (found * (1 - found) / count).sqrt()).all()
    assert not torch.allclose(found, concentration / concentration.sum(), atol=0.05)  # the means are no such thing


def test_entropies(small_space):
    table = {"structure": torch.tensor([[0.5, 0.5], [1.0, 0.0]])}
    assert edge_entropies(small_space, table)["structure"].tolist() == pytest.approx([math.log(2), 0.0])
    assert by_edge(small_space, table)["structure 0→1"] == {"tanh": 0.5, "linear": 0.5}
    cube = Space({(0, 1): {"a": skip(), "b": skip()}}, restriction="cube")
    entropy = edge_entropies(cube, {"structure": torch.tensor([[0.5, 0.5]])})["structure"]
    assert entropy.tolist() == pytest.approx([2 * math.log(2)])


def test_most_probable_structures_equal_brute_force():
    space = Space({(i, i + 1): {"a": skip(), "b": skip(), "c": skip()} for i in range(4)})
    table = torch.randn(4, 3).softmax(-1)
    found = probable_structures(space, {"structure": table}, count=81)
    every = sorted(
        (math.prod(table[e, k].item() for e, k in enumerate(ks)) for ks in np.ndindex(3, 3, 3, 3)), reverse=True
    )
    assert [one.probability for one in found] == pytest.approx(every, rel=1e-5)
    assert sum(one.probability for one in found) == pytest.approx(1.0, rel=1e-5)
    for structure, log_probability in found:
        assert log_probability == pytest.approx((structure["structure"] * table).sum(-1).log().sum().item(), rel=1e-5)
    cube = Space({(0, 1): {"a": skip(), "b": skip()}}, restriction="cube")
    found = probable_structures(cube, {"structure": torch.tensor([[0.9, 0.2]])}, count=10)
    assert [one.probability for one in found] == pytest.approx([0.72, 0.18, 0.08, 0.02])


def test_the_most_probable_of_two_to_the_two_hundred_structures():
    """Primitive k of an edge on the cube is there with p_k: best is p > ½, then what is nearest to ½ flips."""
    space = Space({(0, 1): {f"p{k}": skip() for k in range(200)}}, restriction="cube")
    p = torch.linspace(0.01, 0.99, 200, dtype=torch.double).view(1, -1)
    odds = (p / (1 - p)).log().abs()[0].tolist()  # what a flip of each costs: smallest in the middle, in pairs
    found = probable_structures(space, {"structure": p}, count=200)
    best = torch.maximum(p, 1 - p).log().sum().item()
    assert found[0].log_probability == pytest.approx(best)
    assert torch.equal(found[0].structure["structure"], (p > 0.5).float())
    assert [one.log_probability for one in found[:3]] == pytest.approx([best, best - odds[99], best - odds[99]])
    assert [one.log_probability for one in found] == sorted((one.log_probability for one in found), reverse=True)
    assert len({tuple(one.structure["structure"][0].tolist()) for one in found}) == 200
    for structure, log_probability in found:
        gamma = structure["structure"].double()
        assert log_probability == pytest.approx((gamma * p + (1 - gamma) * (1 - p)).log().sum().item())


def test_probabilities_of_a_thousand_edges_do_not_underflow():
    space = Space({(i, i + 1): {f"p{k}": skip() for k in range(12)} for i in range(1000)})
    table = torch.full((1000, 12), 1 / 12, dtype=torch.double)
    table[7, :3] = torch.tensor([2.0, 1.5, 0.5]) / 12  # still sums to 1 with the last
    table[7, 3] = 0.0
    best, second, third = probable_structures(space, {"structure": table}, count=3)
    assert best.log_probability == pytest.approx(math.log(2.0) - 1000 * math.log(12.0), rel=1e-9)
    assert second.log_probability == pytest.approx(best.log_probability, rel=1e-9)
    assert best.structure["structure"][7, 0] == second.structure["structure"][7, 0] == 1
    assert third.log_probability == best.log_probability
    assert best.probability == 0.0  # which is why they are logarithms


def test_structures_of_probability_zero_come_last():
    space = Space({(0, 1): {"a": skip(), "b": skip()}, (1, 2): {"a": skip(), "b": skip()}})
    found = probable_structures(space, {"structure": torch.tensor([[1.0, 0.0], [0.25, 0.75]])}, count=9)
    assert [one.probability for one in found] == pytest.approx([0.75, 0.25, 0.0, 0.0])
    assert [one.log_probability for one in found][2:] == [-math.inf] * 2


def test_choice_probabilities_average_over_other_draws():
    first, second = torch.tensor([0.6, -0.2]), torch.tensor([[1.5, -0.7], [-1.0, 2.0]])

    def chain():
        z = pyro.sample("structure.z", dist.OneHotCategorical(logits=first))
        pyro.sample("structure.w", dist.OneHotCategorical(logits=z @ second))

    table = choice_probabilities(chain, num_samples=4000)
    truth = first.softmax(0) @ second.softmax(1)
    assert torch.allclose(table["structure.w"], truth, atol=0.03)
