"""REINFORCE: its gradient is unbiased, a baseline takes its variance away, and it finds the best structures."""

import math

import pytest
import torch

from pyro_nas.graph.enumeration import all_structures, key_of_structure
from pyro_nas.graph.families import cell_spaces
from pyro_nas.inference import evolution, random_search, reinforce


def draws_of_the_gradient(space, score, policy, baseline, count=4000):
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        structure = policy.sample(generator)
        reward = score(structure)
        table = reinforce.gradient(policy, structure, reward, baseline.value)
        baseline.update(reward)
        found.append(torch.cat([value.flatten() for value in table.values()]))
    return torch.stack(found)


class Constant:
    """A baseline that learns nothing."""

    def __init__(self, value):
        self.value = value

    def update(self, reward):
        pass


def exact_gradient(space, score, policy):
    leaves = {site: table.clone().requires_grad_() for site, table in policy.logits.items()}
    own = reinforce.Policy(space, leaves)
    expected = sum(own.log_probability(s).exp() * score(s) for s in all_structures(space))
    return torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(leaves.values()))])


def z_scores(draws, expected):
    return (draws.mean(0) - expected) / (draws.std(0) / len(draws) ** 0.5)


def test_the_reinforce_gradient_is_unbiased_and_a_baseline_takes_its_variance_away(toy):
    space, score = toy
    policy = reinforce.Policy.uniform(space)
    for table in policy.logits.values():
        table.normal_(generator=torch.Generator().manual_seed(1))
    expected = exact_gradient(space, score, policy)
    mean = sum(float(policy.log_probability(s).exp()) * score(s) for s in all_structures(space))
    baselines = (Constant(0.0), Constant(mean), reinforce.MovingBaseline())
    without, exact, moving = (draws_of_the_gradient(space, score, policy, b) for b in baselines)
    for found in (without, exact, moving):
        assert z_scores(found, expected).abs().max() < 4
    for found in (exact, moving):
        assert found.var(0).sum() < 0.1 * without.var(0).sum()


def test_a_baseline_that_knows_the_present_draw_is_biased(toy):
    """The wrong variant: half of the reward itself as baseline."""
    space, score = toy
    policy = reinforce.Policy.uniform(space)
    expected = exact_gradient(space, score, policy)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(4000):
        structure = policy.sample(generator)
        reward = score(structure)
        table = reinforce.gradient(policy, structure, reward - 10, (reward - 10) / 2)
        found.append(torch.cat([value.flatten() for value in table.values()]))
    assert z_scores(torch.stack(found), expected).abs().max() > 4


def test_the_moving_baseline_is_the_debiased_mean_of_the_past():
    baseline = reinforce.MovingBaseline(0.5)
    assert baseline.value == 0
    for reward, expected in ((8.0, 8.0), (2.0, (0.25 * 8 + 0.5 * 2) / 0.75), (5.0, (1 + 0.25 * 2 + 0.5 * 5) / 0.875)):
        baseline.update(reward)
        assert baseline.value == pytest.approx(expected)


def test_reinforce_ascends_the_expected_reward(toy):
    """From the uniform mean at least 80 % of the way to the best, and no structure is scored twice."""
    space, score = toy
    rewards = [score(structure) for structure in all_structures(space)]
    policy, scored = reinforce.search(space, score, 1500, lr=0.05)
    reached = sum(float(policy.log_probability(s).exp()) * score(s) for s in all_structures(space))
    middle = sum(rewards) / len(rewards)
    assert reached > middle + 0.8 * (max(rewards) - middle)
    assert scored[0].score == max(rewards)
    assert len({key_of_structure(entry.structure) for entry in scored}) == len(scored)


def test_steps_are_as_long_as_the_rate_says_and_each_is_reported(toy):
    """Of two steps the first has no past to compare with, so that both rates draw the same two structures."""
    space, score = toy
    seen, moved = [], {}
    for lr in (0.1, 0.2):
        seen.clear()
        policy, scored = reinforce.search(
            space, score, 2, lr=lr, seed=2, callback=lambda step, own, reward: seen.append((step, own, reward))
        )
        assert [step for step, _, _ in seen] == [0, 1]
        assert all(own is policy for _, own, _ in seen)
        assert {reward for _, _, reward in seen} == {entry.score for entry in scored}
        moved[lr] = torch.cat([table.detach().flatten() for table in policy.logits.values()])
    assert moved[0.1].any()
    assert torch.allclose(moved[0.2], 2 * moved[0.1])


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_rewards_are_compared_with_a_mean_of_past_ones_of_the_decay_asked_for(toy, monkeypatch, decay):
    space, score = toy
    found, rewards, gradient = [], [], reinforce.gradient

    def noted(policy, structure, reward, baseline):
        found.append(baseline)
        rewards.append(reward)
        return gradient(policy, structure, reward, baseline)

    monkeypatch.setattr(reinforce, "gradient", noted)
    reinforce.search(space, score, 6, decay=decay)
    for step in range(1, 6):
        weights = torch.tensor([decay ** (step - 1 - past) for past in range(step)])
        assert found[step] == pytest.approx(float((weights * torch.tensor(rewards[:step])).sum() / weights.sum()))
    assert found[0] == rewards[0]


def test_structures_that_cannot_be_scored_are_avoided_and_lose_nothing(toy):
    """The score of the planted structures is −∞: every search goes on, and a policy moves away from them."""
    space, score = toy
    values = sorted(score(structure) for structure in all_structures(space))
    middle = values[len(values) // 2]

    def partial(structure):
        return score(structure) if score(structure) >= middle else -math.inf

    policy, scored = reinforce.search(space, partial, 600, lr=0.05)
    assert all(torch.isfinite(table).all() for table in policy.logits.values())
    bad = sum(float(policy.log_probability(s).exp()) for s in all_structures(space) if partial(s) == -math.inf)
    assert bad < 0.15
    assert scored[0].score == values[-1]
    everything, _ = reinforce.search(space, lambda _: -math.inf, 5)
    assert all(not table.any() for table in everything.logits.values())
    assert random_search.search(space, partial, 1000)[-1].score == -math.inf
    assert evolution.search(space, partial, population=8, generations=4)[0].score >= middle


def test_a_policy_on_the_cube_has_bernoulli_laws():
    space = cell_spaces.fabric(1, 2, channels=2, scales=1, depth=3)
    policy = reinforce.Policy(space, {site: torch.full(c.shape, 0.7) for site, c in space.choices().items()})
    total = sum(float(policy.log_probability(s).exp()) for s in all_structures(space))
    assert total == pytest.approx(1.0, abs=1e-5)
    drawn = torch.stack([next(iter(policy.sample(torch.Generator().manual_seed(i)).values())) for i in range(2000)])
    assert torch.allclose(drawn.mean(0), torch.tensor(0.7).sigmoid().expand(2, 1), atol=0.05)
