"""The Indian buffet prior: moments, normalisation and exchangeability; a network with a truncated buffet."""

import itertools
import math
from collections import Counter

import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.distributions import Poisson

from pyro_nas import Evidence, Space, choice_probabilities, draw, predict
from pyro_nas.evidence import evaluate
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, one_cycle, svi
from pyro_nas.models import Model, buffet, guides, likelihoods

ALPHA, BETA = 1.3, 2.0


@pytest.fixture(scope="module")
def cascades():
    torch.manual_seed(0)
    return [buffet.sample(6, ALPHA, BETA, maximal_depth=10_000) for _ in range(2000)]


def widths_follow(cascades, alpha, beta):
    """Hold the mean widths of layers 2 to 5, each given the layer before it, to their formula."""
    for layer in range(4):
        shapes = [matrices[layer].shape for matrices in cascades if len(matrices) > layer]
        assert len(shapes) > 500
        excess = torch.tensor([
            width - alpha * sum(beta / (beta + k - 1) for k in range(1, customers + 1)) for customers, width in shapes
        ])  # fmt: skip
        assert excess.mean().abs() <= 3 * excess.std() / len(shapes) ** 0.5, layer + 2


def test_mean_widths_of_layers_two_to_five_are_those_of_the_formula(cascades):
    widths_follow(cascades, ALPHA, BETA)
    law = buffet.IndianBuffet(6, ALPHA, BETA)
    assert law.expected_dishes == pytest.approx(ALPHA * sum(BETA / (BETA + k - 1) for k in range(1, 7)))


@pytest.mark.parametrize(("alpha", "beta"), [(ALPHA, BETA + 1), (ALPHA, BETA - 1), (ALPHA * BETA, BETA)])
def test_wrong_widths_are_seen(cascades, alpha, beta):
    with pytest.raises(AssertionError):
        widths_follow(cascades, alpha, beta)


def test_connections_of_a_layer_are_alpha_a_unit(cascades):
    for layer in range(4):
        matrices = [cascade[layer] for cascade in cascades if len(cascade) > layer]
        excess = torch.stack(
            [m.sum() - buffet.IndianBuffet(len(m), ALPHA, BETA).expected_connections for m in matrices]
        )
        error = excess.std() / len(matrices) ** 0.5
        assert excess.mean().abs() <= 3 * error
        wide = torch.stack([m.sum() - buffet.IndianBuffet(len(m), ALPHA, BETA).expected_dishes for m in matrices])
        assert wide.mean().abs() > 3 * error  # not one a dish


def matrices_of(customers, dishes):
    """One matrix of each class: a multiset of histories with a one each."""
    histories = [history for history in itertools.product((0.0, 1.0), repeat=customers) if any(history)]
    for columns in itertools.combinations_with_replacement(histories, dishes):
        yield torch.tensor(columns).reshape(dishes, customers).T


def width_probability(customers, dishes, alpha, beta):
    """P(dishes): a Poisson law, since every customer's number of new dishes is one."""
    mean = alpha * sum(beta / (beta + j) for j in range(customers))
    return (
        Poisson(torch.tensor(mean, dtype=torch.double)).log_prob(torch.tensor(dishes, dtype=torch.double)).exp().item()
    )


def check_normalisation(log_prob, tolerance=1e-9):
    """Sum the probabilities of one layer's classes and of two layers', given the widths and over all of them."""
    total = 0.0
    for dishes in range(13):
        found = sum(log_prob([matrix]).exp().item() for matrix in matrices_of(2, dishes))
        assert found == pytest.approx(width_probability(2, dishes, ALPHA, BETA), rel=tolerance)
        total += found
    assert total == pytest.approx(1.0, abs=1e-5)
    found = sum(
        log_prob([first, second, torch.zeros(3, 0)]).exp().item()
        for first in matrices_of(3, 2)
        for second in matrices_of(2, 3)
    )
    steps = [(3, 2), (2, 3), (3, 0)]
    assert found == pytest.approx(math.prod(width_probability(*s, ALPHA, BETA) for s in steps), rel=tolerance)


def test_probabilities_of_all_structures_sum_to_one():
    check_normalisation(lambda matrices: buffet.log_prob(matrices, ALPHA, BETA))


def repeated(matrix):
    _, counts = torch.unique(matrix, dim=1, return_counts=True)
    return torch.lgamma(counts.double() + 1).sum()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda matrices: buffet.log_prob(matrices, ALPHA, BETA + 1),
        lambda matrices: buffet.log_prob(matrices, ALPHA, BETA) + sum(map(repeated, matrices)),  # not of classes
    ],
)
def test_wrong_probabilities_do_not(wrong):
    with pytest.raises(AssertionError):
        check_normalisation(wrong)


def class_of(matrix):
    return tuple(sorted(tuple(column) for column in matrix.T.tolist()))


def test_draws_have_the_probabilities_of_their_classes():
    law, count = buffet.IndianBuffet(2, ALPHA, BETA), 5000
    seen = Counter(class_of(law.sample()) for _ in range(count))

    def scores(other):
        probabilities = {
            class_of(matrix): other.log_prob(matrix).exp().item() for k in range(4) for matrix in matrices_of(2, k)
        }
        return [(seen[c] / count - p) / (p * (1 - p) / count) ** 0.5 for c, p in probabilities.items()]

    assert max(map(abs, scores(law))) < 4.5
    assert max(map(abs, scores(buffet.IndianBuffet(2, ALPHA, BETA + 1)))) > 4.5


def test_probability_does_not_depend_on_the_order_of_units_and_the_program_has_it(cascades):
    cascade = max(cascades[:100], key=lambda matrices: matrices[0].numel())
    value = buffet.log_prob(cascade, ALPHA, BETA)
    shuffled = [matrix[torch.randperm(len(matrix))][:, torch.randperm(matrix.shape[1])] for matrix in cascade]
    assert not all(torch.equal(*pair) for pair in zip(cascade, shuffled, strict=True))
    assert buffet.log_prob(shuffled, ALPHA, BETA) == pytest.approx(value.item(), rel=1e-9)
    other = [torch.ones_like(cascade[0]), *cascade[1:]]
    assert buffet.log_prob(other, ALPHA, BETA) != pytest.approx(value.item(), abs=0.1)
    values = {f"structure.{m}": matrix for m, matrix in enumerate(cascade, 1)}
    trace = poutine.trace(poutine.condition(buffet.sample, data=values)).get_trace(6, ALPHA, BETA)
    assert trace.log_prob_sum().item() == pytest.approx(value.item(), rel=1e-6)


def test_bad_input_of_the_buffet_is_named():
    for arguments, name in [((0, 1.0, 1.0), "visible"), ((3, 0.0, 1.0), "alpha"), ((3, 1.0, -1.0), "beta")]:
        with pytest.raises(ValueError, match=name):
            buffet.sample(*arguments)
    with pytest.raises(ValueError, match=r"maximal_depth: expected a structure of at most 3 layers"):
        buffet.sample(10, 8.0, 1.0, maximal_depth=3)
    with pytest.raises(ValueError, match=r"matrices: .*\(2, 2\), \(3, 1\)"):
        buffet.log_prob([torch.ones(2, 2), torch.ones(3, 1)], 1.0, 1.0)
    with pytest.raises(ValueError, match="matrices"):
        buffet.log_prob([], 1.0, 1.0)
    law = buffet.IndianBuffet(2, 1.0, 1.0)
    for matrix in (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.full((2, 1), 0.5), torch.ones(3, 1), torch.ones(2)):
        with pytest.raises(ValueError, match="connections: expected zeros and ones"):
            law.log_prob(matrix)
    with pytest.raises(ValueError, match="sample_shape"):
        law.sample((3,))


INPUTS, UNITS, PLANTED, NOISE, SIZE = 4, 10, 2, 0.2, 300


@pytest.fixture(scope="module")
def planted():
    """Data of a network with two hidden units, of two connections each."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * SIZE, INPUTS, generator=generator)
    hidden = torch.tanh(x @ torch.tensor([[1.5, -1.5, 0, 0], [0, 0, 1.5, 1.5]]).T + torch.tensor([0.5, -0.5]))
    y = hidden @ torch.tensor([[1.5], [-1.5]]) + NOISE * torch.randn(2 * SIZE, 1, generator=generator)
    return (x[:SIZE], y[:SIZE]), (x[SIZE:], y[SIZE:])


def build(seed=0, network=buffet.BuffetNetwork, **options):
    torch.manual_seed(seed)
    likelihood = likelihoods.gaussian(NOISE, learn=False)
    model = network(INPUTS, UNITS, 1, num_data=SIZE, alpha=0.5, likelihood=likelihood, **options)
    return model, buffet.BuffetGuide(model)


def fit(model, guide, train, **options):
    settings = {"epochs": 60, "batch_size": 30, "optimizer": adam(0.1), "scheduler": one_cycle(0.1), **options}
    svi.fit(model, guide, train, **settings)


def units_of(guide):
    return buffet.expected_units(choice_probabilities(guide)["structure"]).item()


def error_of(model, guide, data):
    x, y = data
    return (predict(model, draw(guide), x) - y).square().mean().sqrt().item()


def finds_the_planted_width(guide):
    assert abs(units_of(guide) - PLANTED) <= 2  # mean field shares a unit's work between two at times


def test_a_fit_finds_about_the_planted_units_and_predicts_as_well_as_the_dense_net(planted):
    train, test = planted
    pairs = [build(seed) for seed in range(2)]
    for seed, pair in enumerate(pairs):
        fit(*pair, train, seed=seed, structure_per_example=True)
    model, guide = max(pairs, key=lambda pair: evaluate(*pair, train, draws=20)["evidence"])
    finds_the_planted_width(guide)
    structures = draw(guide, num_samples=1000)["structure"]
    active = (structures > 0.5).any(-2).sum(-1).double()  # units with a connection in a draw
    assert (active.mean() - units_of(guide)).abs() <= 4.5 * active.std() / 1000**0.5

    space = Space({(0, 1): {"hidden": dense(INPUTS, UNITS, "tanh")}, (1, 2): {"readout": dense(UNITS, 1)}})
    full = Model(space, num_data=SIZE, likelihood=likelihoods.gaussian(NOISE, learn=False))
    everything = guides.MeanField(full)
    fit(full, everything, train)
    assert error_of(model, guide, test) <= 1.1 * error_of(full, everything, test)
    constant = (test[1] - train[1].mean()).square().mean().sqrt().item()
    assert constant > 4 * error_of(model, guide, test)


class WithoutSticks(buffet.BuffetNetwork):
    """Every connection is there with probability one half, however many units there are."""

    def prior_logits(self, sticks):
        return 0 * super().prior_logits(sticks)


def test_a_fit_without_sticks_misses_the_planted_width(planted):
    model, guide = build(network=WithoutSticks)
    fit(model, guide, planted[0], structure_per_example=True)
    with pytest.raises(AssertionError):
        finds_the_planted_width(guide)


def test_sticks_have_the_mean_and_the_probabilities_of_their_law():
    model, _ = build()
    sticks = torch.distributions.Beta(0.5, 1.0).sample((40_000, UNITS)).double()
    pi = model.prior_logits(sticks)[:, 0].sigmoid()
    assert torch.allclose(pi, sticks.cumprod(-1), atol=1e-5)
    pi = pi[:, :4]
    error = pi.std(0) / 40_000**0.5
    exact = (0.5 / 1.5) ** torch.arange(1.0, 5.0)
    assert ((pi.mean(0) - exact).abs() <= 4.5 * error).all()
    assert ((pi.mean(0) - exact * 0.5 / 1.5).abs() > 4.5 * error).all()  # off by one stick


def test_units_without_connections_are_off_and_their_number_is_exact():
    model, guide = build()
    x = torch.randn(5, INPUTS)
    weights = guide.loc.detach()
    off = torch.zeros(INPUTS, UNITS)
    named = model.packing.unpack(weights)
    some = off.clone()
    some[1, 3] = 1.0
    for connections in (off, some):
        values = {"structure": connections, "weights": weights}
        outputs = poutine.condition(model, data=values)(x)
        hidden = torch.tanh(x @ (connections * named["hidden"]) + named["bias"]) * connections.any(0)
        assert torch.allclose(outputs, hidden @ named["readout"] + named["readout_bias"], atol=1e-6)
        always = torch.tanh(x @ (connections * named["hidden"]) + named["bias"])  # biases of units that are off
        assert not torch.allclose(outputs, always @ named["readout"] + named["readout_bias"], atol=1e-2)
    probabilities = torch.tensor([[0.5, 0.0], [0.2, 0.0]])
    assert buffet.expected_units(probabilities).item() == pytest.approx(1 - 0.5 * 0.8)


def test_particles_at_once_are_particles_one_by_one_and_other_guides_do(planted):
    (x, y), _ = planted
    model, guide = build(activation=torch.relu)
    with torch.no_grad():
        one_by_one = torch.stack([Evidence(model, guide)(x, y).evidence for _ in range(200)])
        at_once = torch.stack(
            [Evidence(model, guide, particles=20, vectorize_particles=True)(x, y).evidence for _ in range(20)]
        )
    error = (one_by_one.var() / 200 + at_once.var() / 20).sqrt()
    assert (one_by_one.mean() - at_once.mean()).abs() <= 4.5 * error
    assert error < 0.2 * one_by_one.mean().abs()
    assert [*draw(guide, num_samples=2)] == ["sticks", "structure", "weights"]
    history = svi.fit(model, AutoNormal(model), (x, y), epochs=1).records
    assert math.isfinite(history[-1]["evidence"])


def test_bad_input_of_the_network_is_named(planted):
    (x, y), _ = planted
    for options, name in [
        ({"alpha": 0.0}, "alpha"),
        ({"temperature": math.nan}, "temperature"),
        ({"num_data": 0}, "num_data"),
        ({"scale": -1.0}, "scale"),
    ]:
        with pytest.raises(ValueError, match=name):
            buffet.BuffetNetwork(3, 4, 1, **{"num_data": 5, **options})
    with pytest.raises(TypeError, match="likelihood"):
        buffet.BuffetNetwork(3, 4, 1, num_data=5, likelihood=3)
    with pytest.raises(TypeError, match="activation"):
        buffet.BuffetNetwork(3, 4, 1, num_data=5, activation="tanh")
    for shape, name in [((0, 4, 1), "inputs"), ((3, 0, 1), "units"), ((3, 4, 0), "outputs")]:
        with pytest.raises(ValueError, match=name):
            buffet.BuffetNetwork(*shape, num_data=5)
    with pytest.raises(TypeError, match="model: expected a BuffetNetwork"):
        buffet.BuffetGuide(lambda: None)
    model, guide = build()
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, 4\)"):
        fit(model, guide, (x[:, :3], y))
    with pytest.raises(ValueError, match="y: expected shape"):
        fit(model, guide, (x, y[:, 0]))
