"""Reading the posterior: probabilities, entropies, structures, predictions, ArviZ."""

import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from scipy.stats import beta
from sklearn.metrics import accuracy_score
from torch.distributions import biject_to, constraints

from pyro_nas import (
    Evidence,
    Space,
    by_edge,
    choice_probabilities,
    draw,
    edge_entropies,
    predict,
    probable_structures,
    to_arviz,
)
from pyro_nas.data import Batches, load
from pyro_nas.evidence import evaluate
from pyro_nas.graph.enumeration import all_structures
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.models import Model, guides, priors, structures
from pyro_nas.reading.metrics import classification_metrics
from pyro_nas.reading.posterior import mean_draw
from pyro_nas.reading.selection import shared_weight_score
from pyro_nas.reading.structure_posterior import largest


def build(space, structure=None):
    model = Model(space, num_data=40, weights=priors.normal(0.5), structure=structure)
    guide = guides.MeanField(model)
    guide.structure["structure"].data = torch.tensor([[1.0, -0.5], [0.2, 0.9]])
    return model, guide


def test_probabilities_are_those_of_the_draws(small_space):
    for prior in (structures.gumbel_softmax(0.3), structures.categorical(), structures.straight_through(1.0)):
        _, guide = build(small_space, prior)
        exact = choice_probabilities(guide)["structure"]
        assert torch.allclose(exact, guide.structure["structure"].softmax(-1))
        hard = torch.nn.functional.one_hot(draw(guide, num_samples=4000)["structure"].argmax(-1), 2).float().mean(0)
        assert torch.allclose(hard, exact, atol=0.04)
    _, guide = build(small_space, structures.dirichlet(1.0))
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


def test_weights_given_a_structure_are_read_at_the_most_probable_one(small_space):
    """A wrong variant, the means given any drawn structure, changes from call to call."""
    model = Model(small_space, num_data=40, weights=priors.normal(0.5))
    guide = guides.StructureConditioned(model)
    with torch.no_grad():
        guide.loc_shift["weights"].normal_()
    guide.structure["structure"].data = torch.tensor([[1.0, -0.5], [0.2, 0.9]])
    best = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(mean_draw(guide)["structure"][0], best)
    expected = guide.loc["weights"] + guide.code @ best.flatten() @ guide.loc_shift["weights"]
    for _ in range(3):
        assert torch.allclose(mean_draw(guide)["weights"][0], expected, atol=1e-6)
    other = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    given = mean_draw(poutine.condition(guide, data={"structure": other}))
    expected = guide.loc["weights"] + guide.code @ other.flatten() @ guide.loc_shift["weights"]
    assert torch.allclose(given["weights"][0], expected, atol=1e-6)


def test_sites_computed_from_auxiliary_ones_are_read_at_their_means(small_space, small_data):
    model = Model(small_space, num_data=40, weights=priors.normal(0.5))
    guide = AutoNormal(poutine.block(model, hide=["structure"]))
    guide(*small_data)
    assert torch.equal(mean_draw(guide, *small_data)["weights"][0], guide.median()["weights"])

    def skewed():
        law = dist.TransformedDistribution(
            dist.Normal(torch.tensor([0.5]), 2.0), [biject_to(constraints.interval(0, 1))]
        )
        pyro.sample("w", law.to_event(1))

    assert mean_draw(skewed)["w"].item() == pytest.approx(torch.tensor(0.5).sigmoid().item())

    class Meanless(dist.TorchDistribution):
        arg_constraints = {}  # noqa: RUF012
        has_rsample = True

        def rsample(self, sample_shape=()):
            return torch.zeros(sample_shape)

    zeros = torch.zeros(3)
    for law in (Meanless(validate_args=False), dist.Cauchy(zeros, 1.0).to_event(1), dist.HalfCauchy(zeros + 1)):
        with pytest.raises(ValueError, match="guide: expected laws with a finite mean, got"):
            mean_draw(lambda law=law: pyro.sample("w", law))


def test_structures_are_scored_with_the_weights_given_them(small_space, small_data):
    model = Model(small_space, num_data=40, weights=priors.normal(0.5))
    guide = guides.StructureConditioned(model)
    with torch.no_grad():
        guide.loc_shift["weights"].normal_()
    score, (x, y) = shared_weight_score(model, guide, small_data, small_data), small_data
    every = list(all_structures(small_space))

    def accuracies(weights_of):
        draws = ({**weights_of(one), "structure": one["structure"][None]} for one in every)
        return [float((predict(model, each, x).argmax(-1) == y).double().mean()) for each in draws]

    scores = [score(one) for one in every]
    assert scores == accuracies(lambda one: mean_draw(poutine.condition(guide, data=one)))
    assert scores != accuracies(lambda one: mean_draw(guide))


def test_structures_that_run_no_batch_normalisation_are_scored(small_data):
    def normalised():
        return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))

    space = Space({(0, 1): {"normalised": normalised, "plain": dense(3, 2)}})
    model = Model(space, num_data=40, weights=priors.normal(0.5), structure=structures.categorical())
    score = shared_weight_score(model, guides.PointWeights(model), small_data, small_data)
    assert all(0 <= score(one) <= 1 for one in all_structures(space))


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
    assert [p for _, p in found] == pytest.approx(every, rel=1e-5)
    assert sum(p for _, p in found) == pytest.approx(1.0, rel=1e-5)
    for structure, p in found[:5]:
        assert p == pytest.approx((structure["structure"] * table).sum(-1).prod().item(), rel=1e-5)
    cube = Space({(0, 1): {"a": skip(), "b": skip()}}, restriction="cube")
    found = probable_structures(cube, {"structure": torch.tensor([[0.9, 0.2]])}, count=10)
    assert [p for _, p in found] == pytest.approx([0.72, 0.18, 0.08, 0.02])


def test_predictions_average_over_weights_and_structures(small_space, small_data):
    model, guide = build(small_space)
    draws, x = draw(guide, num_samples=7), small_data[0]
    parts = [predict(model, {name: value[i : i + 1] for name, value in draws.items()}, x) for i in range(7)]
    assert torch.allclose(predict(model, draws, x), torch.stack(parts).mean(0), atol=1e-6)
    assert torch.allclose(predict(model, draws, x, batch_size=3), torch.stack(parts).mean(0), atol=1e-6)
    assert not torch.allclose(parts[0], parts[1])


def test_metrics():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]) * 1.0000001
    y = torch.tensor([0, 1, 1, 1])
    metrics = classification_metrics(probabilities, y)
    assert metrics["accuracy"] == accuracy_score(y, probabilities.argmax(-1)) == 0.5
    assert metrics["calibration_error"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.6) / 4, abs=1e-5)
    assert metrics["log_likelihood"] == pytest.approx(np.log([0.9, 0.2, 0.7, 0.4]).mean(), abs=1e-5)


def test_evaluate_has_a_standard_error(small_space, small_data):
    model, guide = build(small_space)
    batches = Batches("train", small_data, 7, torch.device("cpu"))
    result = evaluate(model, guide, batches, draws=50)
    direct = torch.tensor([Evidence(model, guide)(*small_data).summary()["evidence"] for _ in range(400)])
    error = math.hypot(result["standard_error"], direct.std().item() / 20)
    assert abs(result["evidence"] - direct.mean().item()) < 4.5 * error
    assert result["evidence"] == pytest.approx(
        result["log_likelihood"] - result["kl_weights"] - result["kl_structure"], rel=1e-4
    )


def test_batches_cover_everything_once():
    x = torch.arange(23.0)[:, None]
    batches = Batches("train", (x, torch.arange(23)), 5, torch.device("cpu"))
    seen = [y for _, y in batches]
    assert len(seen) == len(batches) == 5
    assert {len(y) for y in seen} == {4, 5}
    assert sorted(torch.cat(seen).tolist()) == list(range(23))
    assert all(torch.equal(part[:, 0].long(), y) for part, y in batches)


def test_arviz_has_named_edges_and_choices_and_restarts_as_chains(small_space, tmp_path):
    chains = []
    for _ in range(3):
        _, guide = build(small_space)
        chains.append(draw(guide, num_samples=50))
    data = to_arviz(chains, small_space, weights=True)
    gamma = data["posterior"]["structure"]
    assert gamma.shape == (3, 50, 2, 4)
    assert list(gamma.coords["structure edge"].values) == ["0→1", "0→2"]
    assert list(gamma.coords["structure choice"].values) == ["tanh", "linear", "relu", "skip"]
    chosen = gamma.sel({"structure edge": "0→2", "structure choice": "skip"}).values
    assert np.allclose(chosen[1], chains[1]["structure"][:, 1, 1].numpy())
    assert np.isnan(gamma.sel({"structure edge": "0→2", "structure choice": "tanh"}).values).all()
    assert "weights" in data["posterior"]
    data.to_netcdf(str(tmp_path / "posterior.nc"))
    again = az.from_netcdf(str(tmp_path / "posterior.nc"))
    assert np.allclose(again["posterior"]["structure"].values, gamma.values, equal_nan=True)
    table = az.summary(to_arviz(chains, small_space), var_names=["structure"])
    assert {"r_hat", "ess_bulk"} <= set(table.columns)
    single = to_arviz(chains[0], small_space)
    assert single["posterior"]["structure"].shape[:2] == (1, 50)


def test_splits_are_disjoint_stratified_and_standardised(tmp_path):
    split = load("digits")
    parts = [split.train, split.valid, split.test]
    assert sum(len(y) for _, y in parts) == 1797
    rows = [{tuple(row.tolist()) for row in x.flatten(1)} for x, _ in parts]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    assert all(torch.bincount(y, minlength=10).min() > 20 for _, y in parts)
    assert split.train[0].shape[1:] == (1, 8, 8)
    assert split.train[0].min() == -1
    assert split.train[0].max() == 1
    assert torch.equal(load("digits").test[1], split.test[1])
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(5, 3, (100, 4)), y=rng.integers(0, 3, 100))
    split = load(str(tmp_path / "d.npz"))
    assert torch.allclose(split.train[0].mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(split.train[0].std(0), torch.ones(4), atol=1e-4)
    assert len(split.test[1]) == 20
