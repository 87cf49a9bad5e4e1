"""Pruning, stability and parametric complexity against what can be worked out by hand."""

import pytest
import torch

from pyro_nas import Space
from pyro_nas.graph.primitives import dense
from pyro_nas.models import Model, guides, likelihoods
from pyro_nas.reading.posterior import accuracy, draw, mean_draw, predict
from pyro_nas.reading.pruning import (
    masks,
    moments,
    parametric_complexity,
    prune,
    pruning_curve,
    relative_density,
    stability,
)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    model = Model(Space({(0, 1): {"a": dense(4, 5, "relu")}, (1, 2): {"b": dense(5, 3)}}), num_data=10)
    guide = guides.MeanField(model)
    with torch.no_grad():
        guide.loc["weights"].normal_()
        guide.log_scale["weights"].normal_(-2)
    return model, guide


def test_relative_density_is_in_logs(pair):
    model, guide = pair
    mean, sd = moments(guide, model.packing)
    assert list(mean) == model.packing.names
    assert torch.equal(model.packing.pack(mean), guide.loc["weights"])
    name = next(iter(mean))
    law = torch.distributions.Normal(mean[name], sd[name])
    expected = law.log_prob(torch.zeros(())) - law.log_prob(mean[name])
    assert torch.allclose(relative_density(mean, sd)[name], expected, atol=1e-3)
    far = relative_density({"w": torch.tensor([40.0, 41.0])}, {"w": torch.ones(2)})["w"]
    assert far[0] > far[1]  # ρ itself is 0 for both
    assert far.exp().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("biases", [False, True])
def test_masks_take_the_share_with_the_highest_density(pair, scope, biases):
    model, guide = pair
    scores = relative_density(*moments(guide, model.packing))
    for fraction in (0.0, 0.1, 0.3, 0.9, 1.0):
        keep = masks(scores, fraction, scope, biases=biases)
        chosen = [name for name in scores if biases or scores[name].dim() > 1]
        for name in scores.keys() - set(chosen):
            assert keep[name].all()
        groups = [[name] for name in chosen] if scope == "layer" else [chosen]
        for group in groups:
            kept = torch.cat([keep[name].flatten() for name in group])
            values = torch.cat([scores[name].flatten() for name in group])
            assert int((~kept).sum()) == int(fraction * len(kept) + 1e-9)
            if kept.any() and not kept.all():
                assert values[~kept].min() >= values[kept].max()


def test_scopes_differ_and_ties_are_stable():
    scores = {"a": torch.tensor([[-1.0, -2.0]]), "b": torch.tensor([[-3.0, -4.0]])}
    assert not masks(scores, 0.5, "global")["a"].any()
    assert masks(scores, 0.5, "layer")["b"].tolist() == [[False, True]]
    assert masks({"a": torch.zeros(2, 2)}, 0.5)["a"].tolist() == [[False, False], [True, True]]


def test_pruned_weights_are_zero_and_nothing_else_changes(pair):
    model, guide = pair
    draws = draw(guide, num_samples=3)
    keep = masks(relative_density(*moments(guide, model.packing)), 0.5)
    pruned = prune(draws, keep, model.packing)
    flat = model.packing.pack(keep)
    assert (pruned["weights"][:, ~flat] == 0).all()
    assert torch.equal(pruned["weights"][:, flat], draws["weights"][:, flat])


def test_the_curve_is_that_of_networks_pruned_by_hand(pair):
    model, guide = pair
    x = torch.randn(200, 4)
    y = predict(model, mean_draw(guide), x).argmax(-1)  # unpruned it is right on all
    scores = relative_density(*moments(guide, model.packing))
    curve = pruning_curve(model, mean_draw(guide), scores, x, y)
    assert curve[0] == 1.0
    weights = model.packing.unpack(guide.loc["weights"].detach())
    by_hand = {n: w * masks(scores, 0.9)[n] for n, w in weights.items()}
    hidden = torch.relu(x @ by_hand[model.packing.names[0]].T + by_hand[model.packing.names[1]])
    outputs = hidden @ by_hand[model.packing.names[2]].T + by_hand[model.packing.names[3]]
    assert curve[9] == pytest.approx(float((outputs.argmax(-1) == y).float().mean()))
    assert stability(curve) == pytest.approx(curve[0] / curve[9])
    backwards = {name: -score for name, score in scores.items()}  # the weights that matter go first
    assert sum(pruning_curve(model, mean_draw(guide), backwards, x, y)) < sum(curve)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("biases", [True, False])
def test_the_curve_has_the_levels_scope_and_biases_asked_for(pair, scope, biases):
    model, guide = pair
    x, y = torch.randn(300, 4), torch.randint(3, (300,))
    scores, draws = relative_density(*moments(guide, model.packing)), draw(guide, num_samples=2)
    kept = [masks(scores, level, scope, biases=biases) for level in (0.2, 0.6, 1.0)]
    expected = [accuracy(model, prune(draws, keep, model.packing), x, y) for keep in kept]
    assert pruning_curve(model, draws, scores, x, y, (0.2, 0.6, 1.0), scope=scope, biases=biases) == expected
    other = pruning_curve(model, draws, scores, x, y, (0.2, 0.6, 1.0), scope=scope, biases=not biases)
    assert other != expected


def test_parametric_complexity_is_the_least_divergence_over_prior_variances(pair):
    model, guide = pair
    mean, sd = moments(guide, model.packing)
    variances = torch.logspace(-6, 4, 20_000, dtype=torch.double)
    least = 0.0
    for name in mean:
        m, v = mean[name].double().flatten()[:, None], sd[name].double().flatten()[:, None] ** 2
        kl = 0.5 * ((v + m**2) / variances - 1 + (variances / v).log())
        least += float(kl.min(-1).values.sum())
    assert parametric_complexity(mean, sd) == pytest.approx(least, rel=1e-4)


def test_a_curve_of_a_model_without_classes_is_refused():
    model = Model(Space({(0, 1): {"a": dense(3, 2)}}), num_data=40, likelihood=likelihoods.gaussian(1.0))
    draws = draw(guides.MeanField(model), num_samples=2)
    scores = model.packing.unpack(draws["weights"][0])
    with pytest.raises(ValueError, match=r"^model: expected a likelihood of classes"):
        pruning_curve(model, draws, scores, torch.randn(5, 3), torch.arange(5) % 2)
