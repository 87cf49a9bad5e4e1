"""DARTS of second order: the gradient through a step of the weights against finite differences."""

import pytest
import torch

from pyro_nas.evidence import Evidence
from pyro_nas.graph.families import cell_spaces
from pyro_nas.inference import darts, delayed
from pyro_nas.models import Model, guides, structures


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
