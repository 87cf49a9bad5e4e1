"""Procedures of architecture search: DARTS of second order, REINFORCE, uniform paths, evolution, random search."""

import math

import pyro
import pytest
import torch

from pyro_nas import Network, Space
from pyro_nas.evidence import Evidence
from pyro_nas.evidence.effects import StructurePerExample
from pyro_nas.graph.enumeration import all_structures, count_structures, key_of_structure
from pyro_nas.graph.families import cell_spaces
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, bilevel, cosine, darts, delayed, evolution, random_search, reinforce, svi
from pyro_nas.models import Model, guides, structures

# DARTS of second order


def bilevel_problem():
    """Q and L of a small network in double precision, as functions of (w, Γ), with w and Γ."""
    torch.manual_seed(0)
    x, u = torch.randn(2, 12, 3, dtype=torch.double)
    y, v = torch.randn(2, 12, dtype=torch.double)
    weights = [torch.randn(4, 3, dtype=torch.double), torch.randn(4, dtype=torch.double)]
    structure = [torch.randn(2, dtype=torch.double)]

    def loss(w, g, x, y):
        gamma = g[0].softmax(-1)
        hidden = x @ w[0].T
        return ((gamma[0] * hidden.tanh() + gamma[1] * hidden.sin()) @ w[1] - y).square().mean()

    return (lambda w, g: loss(w, g, x, y)), (lambda w, g: loss(w, g, u, v)), weights, structure


def finite_differences(lower, upper, weights, structure, rate, width=1e-5):
    def value(g):
        leaves = [w.clone().requires_grad_() for w in weights]
        moved = torch.autograd.grad(lower(leaves, g), leaves)
        return upper([w - rate * step for w, step in zip(weights, moved, strict=True)], g)

    found = torch.zeros_like(structure[0])
    for k in range(len(found)):
        e = torch.zeros_like(found)
        e[k] = width
        found[k] = (value([structure[0] + e]) - value([structure[0] - e])).detach() / (2 * width)
    return found


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5])
def test_the_gradient_through_a_step_of_the_weights_equals_finite_differences(rate):
    lower, upper, weights, structure = bilevel_problem()
    expected = finite_differences(lower, upper, weights, structure, rate)
    w, g = ([value.clone().requires_grad_() for value in part] for part in (weights, structure))
    loss, (found,) = darts.unrolled_gradient(lambda: lower(w, g), lambda: upper(w, g), w, g, rate)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(w, weights, strict=True))
    assert loss.shape == ()
    if rate:
        _, (wrong,) = darts.unrolled_gradient(lambda: lower(w, g), lambda: upper(w, g), w, g, -rate)
        assert not torch.allclose(wrong, expected, rtol=1e-2)
        direct = torch.autograd.grad(upper(w, g), g)[0]
        assert not torch.allclose(direct, expected, rtol=1e-2)


def test_a_fit_of_second_order_makes_those_steps(small_space, small_data):
    """One step of the structure, by plain gradient ascent, against finite differences of the guide's own losses."""
    x, y = (small_data[0].double(), small_data[1])
    train, valid = (x[:20], y[:20]), (x[20:], y[20:])
    rate, lr = 0.3, 0.1

    def build():
        torch.manual_seed(1)
        prior = structures.dirichlet()
        model = Model(small_space, num_data=20, structure=prior, complexity=0.1).double()
        return model, guides.PointMass(model).double()

    def value(guide, model, table):
        with torch.no_grad():
            guide.structure["structure"].copy_(table)
        parameters = dict(guide.loc.named_parameters())
        loss = -Evidence(model, guide)(*train).surrogate / 20
        steps = torch.autograd.grad(loss, list(parameters.values()))
        before = [p.detach().clone() for p in parameters.values()]
        with torch.no_grad():
            for p, step in zip(parameters.values(), steps, strict=True):
                p -= rate * step
            result = -Evidence(model, guide)(*valid).surrogate / 20
            for p, old in zip(parameters.values(), before, strict=True):
                p.copy_(old)
        return float(result)

    model, guide = build()
    start = guide.structure["structure"].detach().clone()
    expected = torch.zeros_like(start)
    for index in range(start.numel()):
        e = torch.zeros_like(start).view(-1)
        e[index] = 1e-5
        up, down = (value(guide, model, start + sign * e.view_as(start)) for sign in (1, -1))
        expected.view(-1)[index] = (up - down) / 2e-5
    model, guide = build()
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=lr)  # noqa: E731
    options = {"optimizer": sgd, "structure_optimizer": sgd, "epochs": 1, "batch_size": 20}
    options["structure_scheduler"] = delayed(0.0)  # from the first step on
    darts.fit(model, guide, train, valid, rate=rate, **options)
    moved = (start - guide.structure["structure"].detach()) / lr
    assert torch.allclose(moved, expected, rtol=1e-4, atol=1e-7)


def test_second_order_needs_draws_with_gradients(small_space, small_data):
    model = Model(small_space, num_data=40, structure=structures.categorical())
    with pytest.raises(ValueError, match="draws of the structure that carry gradients"):
        darts.fit(model, guides.PointWeights(model), small_data, small_data, rate=0.1, epochs=1)


def test_batch_normalisation_counts_only_the_steps_of_the_weights(small_images):
    space = cell_spaces.nas_bench_201(1, 3, channels=2, repeats=1, nodes=2, stages=1)
    model = Model(space, num_data=24, structure=structures.dirichlet(), complexity=0.01)
    darts.fit(model, guides.PointMass(model), small_images, small_images, rate=0.1, epochs=3, batch_size=8)
    counts = {int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {9}


# REINFORCE


def toy():
    space = Space({(0, 1): {n: dense(2, 2) for n in "abc"}, (1, 2): {n: dense(2, 2) for n in "de"}})
    rewards = {}
    generator = torch.Generator().manual_seed(3)
    for structure in all_structures(space):
        rewards[key_of_structure(structure)] = 10.0 + float(torch.rand((), generator=generator))
    return space, lambda structure: rewards[key_of_structure(structure)]


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


def test_the_reinforce_gradient_is_unbiased_and_a_baseline_takes_its_variance_away():
    space, score = toy()
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


def test_the_baseline_of_the_evidence_takes_the_variance_of_its_score_away():
    """REINFORCE as the bilevel search runs it. The wrong variant is the same without memory of past rewards."""
    space = Space({(0, 1): {n: dense(2, 3) for n in "ab"}, (1, 2): {n: dense(3, 3) for n in "cd"}})
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 2, generator=generator), torch.randint(3, (40,), generator=generator)
    torch.manual_seed(0)
    model = Model(space, num_data=4000, structure=structures.categorical())
    guide = guides.PointWeights(model)

    def gradients(forget):
        torch.manual_seed(1)
        evidence, found = Evidence(model, guide), []
        for _ in range(500):
            if forget:
                evidence.baseline.zero_()
            found.append(torch.autograd.grad(evidence(x, y).surrogate, list(guide.structure.parameters()))[0].flatten())
        return torch.stack(found[20:])

    without, with_baseline = gradients(True), gradients(False)
    difference = without.mean(0) - with_baseline.mean(0)
    assert (difference / (without.var(0) / len(without)).sqrt()).abs().max() < 4
    assert with_baseline.var(0).sum() < 0.1 * without.var(0).sum()


def test_a_baseline_that_knows_the_present_draw_is_biased():
    """The wrong variant: half of the reward itself as baseline."""
    space, score = toy()
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


def test_reinforce_ascends_the_expected_reward():
    """From the uniform mean at least 80 % of the way to the best, and no structure is scored twice."""
    space, score = toy()
    rewards = [score(structure) for structure in all_structures(space)]
    policy, scored = reinforce.search(space, score, 1500, lr=0.05)
    reached = sum(float(policy.log_probability(s).exp()) * score(s) for s in all_structures(space))
    middle = sum(rewards) / len(rewards)
    assert reached > middle + 0.8 * (max(rewards) - middle)
    assert scored[0].score == max(rewards)
    assert len({key_of_structure(entry.structure) for entry in scored}) == len(scored)


def test_structures_that_cannot_be_scored_are_avoided_and_lose_nothing():
    """The score of the planted structures is −∞: every search goes on, and a policy moves away from them."""
    space, score = toy()
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


# Uniform paths, evolution, random search


def test_uniform_paths_are_uniform_and_run_one_primitive_an_edge(small_images):
    """SPOS: svi.fit with the structure's law held at its uniform prior; χ² of the paths that were run."""
    sizes = {"channels": 2, "repeats": 1, "nodes": 3, "stages": 1}
    space = cell_spaces.nas_bench_201(1, 3, **sizes, primitives=("skip", "convolution 1"))
    model = Model(space, num_data=24, structure=structures.categorical(), complexity=0.01)
    guide = guides.PointWeights(model)
    guide.structure.requires_grad_(False)
    runs = {}

    def count(name):
        def hook(*_):
            runs[name] = runs.get(name, 0) + 1

        return hook

    (cell,) = (part for part in model.network.modules() if isinstance(part, Network) and part.space.name == "cell")
    for name, module in cell.edges.items():
        for kind, part in module.items():
            part.register_forward_hook(count((name, kind)))
    before = guide.structure["structure/cell"].clone()
    svi.fit(model, guide, small_images, epochs=200, batch_size=12)
    assert torch.equal(before, guide.structure["structure/cell"])
    by_edge = {}
    for (edge, _), number in runs.items():
        by_edge.setdefault(edge, []).append(number)
    steps = 400
    for numbers in by_edge.values():
        assert steps <= sum(numbers) <= steps + 6  # and the passes that check and collect before the first step
        assert sum((n - sum(numbers) / 2) ** 2 / (sum(numbers) / 2) for n in numbers) < 10.8  # χ²₁, p = 0.001


def test_random_search_draws_distinct_structures_uniformly():
    names = ("zero", "skip", "convolution 1")
    space = cell_spaces.nas_bench_201(1, 2, channels=2, repeats=1, nodes=3, primitives=names)
    counts = {}
    for seed in range(300):
        for entry in random_search.search(space, lambda _: 0.0, 9, seed):
            key = key_of_structure(entry.structure)
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == count_structures(space) == 27
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 54.1  # χ²₂₆, p = 0.001, and here it is smaller
    everything = random_search.search(space, lambda s: float(s["structure.cell"][0, 1]), 1000)
    assert len(everything) == 27
    assert [entry.score for entry in everything] == [1.0] * 9 + [0.0] * 18


def test_evolution_finds_a_planted_structure_with_few_evaluations():
    """On 15 625 cells, a score that counts agreements with a planted one; random search of as many is far behind."""
    space = cell_spaces.nas_bench_201(1, 2, channels=2, repeats=1)
    planted = random_search.distinct(space, 1, torch.Generator().manual_seed(5))[0]["structure.cell"]
    calls = []

    def score(structure):
        calls.append(key_of_structure(structure))
        return float((structure["structure.cell"] * planted).sum())

    scored = evolution.search(space, score, population=30, generations=10, parents=8, seed=1)
    assert len(calls) == len(set(calls)) == len(scored) == 300
    assert scored[0].score == 6
    found = sum(random_search.search(space, score, 300, seed)[0].score == 6 for seed in range(5))
    assert found <= 1
    wins = sum(evolution.search(space, score, population=30, generations=10, parents=8, seed=s)[0].score == 6
               for s in range(3))  # fmt: skip
    assert wins == 3


def test_evolution_searches_a_small_space_exhaustively_and_stops_when_converged():
    space, score = toy()
    assert len(evolution.search(space, score, population=3, generations=2)) == 6
    calls = evolution.search(space, score, population=2, generations=2, parents=1)
    assert 2 <= len(calls) <= 4


# One structure per example


def test_a_structure_per_example_has_the_same_expectation_and_less_variance(small_space, small_data):
    torch.manual_seed(0)
    model = Model(small_space, num_data=40, structure=structures.gumbel_softmax(0.5), complexity=1.0)
    guide = guides.PointWeights(model)
    with torch.no_grad():
        guide.structure["structure"].normal_()
    evidence = Evidence(model, guide)

    def estimates(each):
        found = []
        for _ in range(600):
            if each:
                with StructurePerExample(40):
                    terms = evidence(*small_data)
            else:
                terms = evidence(*small_data)
            (gradient,) = torch.autograd.grad(terms.surrogate, [guide.structure["structure"]])
            found.append(torch.cat([terms.evidence.detach()[None], gradient.flatten()]))
        return torch.stack(found)

    shared, own = estimates(False), estimates(True)
    error = (shared.var(0) / len(shared) + own.var(0) / len(own)).sqrt()
    assert ((shared.mean(0) - own.mean(0)) / error).abs().max() < 4
    assert own[:, 0].var() < 0.2 * shared[:, 0].var()


@pytest.mark.parametrize("prior", ["gumbel_softmax", "straight_through", "dirichlet"])
@pytest.mark.parametrize("procedure", [svi.fit, bilevel.fit])
def test_fits_draw_a_structure_per_example(small_images, prior, procedure):
    space = cell_spaces.nas_bench_201(1, 3, channels=2, repeats=1, nodes=2, stages=1)
    model = Model(space, num_data=24, structure=getattr(structures, prior)(), complexity=0.1)
    guide = guides.MeanField(model)
    data = (small_images, small_images) if procedure is bilevel.fit else (small_images,)
    history = procedure(
        model, guide, *data, epochs=2, batch_size=8, structure_per_example=True, optimizer=adam(0.01)
    ).records
    assert torch.isfinite(torch.tensor(history[-1]["evidence"]))


def test_a_structure_per_example_needs_a_closed_form_and_draws_of_its_own(small_space, small_data):
    """Otherwise log q − log p would be summed over the data, or every example would see one point."""
    model = Model(small_space, num_data=40, structure=structures.dirichlet(0.7))
    with pytest.raises(ValueError, match="structure_per_example: expected a guide that draws a structure"):
        svi.fit(model, guides.PointMass(model), small_data, epochs=1, structure_per_example=True)

    class Other(guides.PointWeights):
        def draw_structure(self, site):
            return pyro.sample(site, structures.gumbel_softmax(0.5).distribution(self.structure[site], 0.5).to_event(1))

    with pytest.raises(ValueError, match="structure_per_example: expected a divergence in closed form"):
        svi.fit(model, Other(model), small_data, epochs=1, structure_per_example=True)
    model = Model(small_space, num_data=40)
    with pytest.raises(ValueError, match="structure_per_example: expected draws that do not depend on the structure"):
        svi.fit(model, guides.StructureConditioned(model), small_data, epochs=1, structure_per_example=True)
    with pytest.raises(ValueError, match="structure_per_example: expected no vectorize_particles"):
        svi.fit(model, guides.PointWeights(model), small_data, structure_per_example=True, vectorize_particles=True)


def test_a_score_that_is_no_number_is_refused():
    space, _ = toy()
    for find in (
        lambda score: random_search.search(space, score, 3),
        lambda score: evolution.search(space, score, population=2, generations=2),
        lambda score: reinforce.search(space, score, 3),
    ):
        for value in ("nan", "inf"):
            with pytest.raises(ValueError, match=f"score: expected a number of every structure, got {value}"):
                find(lambda _, value=value: float(value))


def test_a_structure_per_example_needs_reparameterised_draws(small_space, small_data):
    model = Model(small_space, num_data=40, structure=structures.categorical())
    with pytest.raises(ValueError, match="structure_per_example: expected a guide that draws a structure"):
        svi.fit(model, guides.PointWeights(model), small_data, epochs=1, structure_per_example=True)


def test_the_cosine_schedule_ends_at_its_last_rate(small_space, small_data):
    model = Model(small_space, num_data=40)
    rates = []

    def sgd(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.register_step_post_hook(lambda own, *_: rates.append(own.param_groups[0]["lr"]))
        return optimizer

    options = {"optimizer": sgd, "scheduler": cosine(0.02), "epochs": 5, "batch_size": 20}
    svi.fit(model, guides.MeanField(model), small_data, **options)
    expected = [0.02 + 0.04 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert rates == pytest.approx(expected)
