"""Stepper: what a step does to gradients and learning rates, and losses that are not finite."""

import math
from functools import partial

import pyro
import pytest
import torch
from torch import nn

from pyro_nas.evidence import Evidence
from pyro_nas.inference import NonFiniteLoss, clipped, cosine, delayed, one_cycle, svi
from pyro_nas.inference.options import Options
from pyro_nas.inference.stepper import Stepper
from pyro_nas.models import Model, guides


def test_clipped_gradients():
    value = nn.Parameter(torch.zeros(2))
    optimizer = clipped(partial(torch.optim.SGD, lr=1.0), 0.5)([value])
    (value * torch.tensor([3.0, -0.2])).sum().backward()
    optimizer.step()
    assert torch.allclose(value, torch.tensor([-0.5, 0.2]))


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


def test_a_loss_that_turns_nan_stops_with_step_and_site_and_keeps_the_last_good_state(
    small_data, build, fit, state, same
):
    model, guide = build()
    states = []

    def poison(record):
        states.append(state(model, guide))
        if record["epoch"] == 2:
            guide.log_scale["weights"].data[0] = float("nan")
            states.append(None)

    with pytest.raises(NonFiniteLoss, match=r"step 15: .*weights"):
        fit(model, guide, small_data, "svi", callbacks=[poison])
    model, guide = build()
    x, y = small_data
    bad = torch.full_like(x, 1e30)
    fit(model, guide, small_data, "svi", epochs=2)
    good = state(model, guide)
    with pytest.raises(NonFiniteLoss, match=r"step \d+: .*y \(the likelihood\)"):
        svi.fit(model, guide, (bad * 1e8 * 0 + 3e38, y), epochs=2, batch_size=8)
    assert same(state(model, guide), good)


def test_learning_rates_of_the_schedules_are_their_formulas():
    """Over ten steps: still for the first three; from the rate to 0 by a half wave; up to the highest and down."""

    def rates(factory):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler, found = factory(optimizer, 10), []
        for _ in range(10):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    assert rates(delayed(0.3)) == [0.0] * 3 + [1.0] * 7
    assert rates(cosine()) == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])
    found = rates(one_cycle(2.0))
    highest = found.index(max(found))
    assert max(found) == pytest.approx(2.0, rel=0.1)
    assert found[: highest + 1] == sorted(found[: highest + 1])
    assert found[highest:] == sorted(found[highest:], reverse=True)


def test_a_step_ascends_the_evidence_per_datum(small_space, small_data):
    """Plain gradient ascent: θ + lr ∇𝔏/N, its gradient cut to the norm that is asked for."""
    model = Model(small_space, num_data=40)
    guide = guides.PointMass(model)
    parameters = {"loc": guide.loc["weights"]}
    before = guide.loc["weights"].detach().clone()
    (gradient,) = torch.autograd.grad(Evidence(model, guide)(*small_data).surrogate, [guide.loc["weights"]])
    for norm in (None, 0.01):
        with torch.no_grad():
            guide.loc["weights"].copy_(before)
        sgd, options = partial(torch.optim.SGD, lr=0.5), Options(max_gradient_norm=norm)
        Stepper(Evidence(model, guide), parameters, 40, 1, sgd, None, options)(0, *small_data)
        step = 0.5 * gradient / 40 if norm is None else 0.5 * norm * gradient / gradient.norm()
        assert torch.allclose(guide.loc["weights"].detach(), before + step, atol=1e-6)


SCHEDULES = torch.optim.lr_scheduler
PYRO_SCHEDULE = pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1.0}, "gamma": 0.1})
REFUSED = {
    "made already": ("optimizer", torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), "functools.partial"),
    "of Pyro": ("optimizer", pyro.optim.Adam({"lr": 0.1}), r"functools.partial\(torch.optim.Adam, lr=0.01\)"),
    "with line search": ("optimizer", torch.optim.LBFGS, "steps along a gradient, got LBFGS"),
    "of others": (
        "optimizer", lambda parameters: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), "got one of others"),
    "plateau": ("scheduler", SCHEDULES.ReduceLROnPlateau, "ReduceLROnPlateau, which follows a loss. Stop by patience"),
    "plateau of an optimizer": (
        "scheduler", lambda optimizer, steps: SCHEDULES.ReduceLROnPlateau(optimizer), "which follows a loss"),
    "class": ("scheduler", SCHEDULES.ExponentialLR, "would take the number of steps for its gamma. Pass lambda"),
    "step class": ("scheduler", SCHEDULES.StepLR, r"its step_size. .* StepLR\(optimizer, step_size=…\)"),
    "of Pyro's": ("scheduler", PYRO_SCHEDULE, "one_cycle"),
    "number": ("scheduler", 0.1, "a function of the optimizer and the number of steps"),
    "of nothing": ("scheduler", lambda optimizer, steps: None, "a schedule of torch, got None"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_optimizers_and_schedules_that_cannot_step_are_refused_before_the_first_step(name, small_space, small_data):
    argument, value, message = REFUSED[name]
    model = Model(small_space, num_data=40)
    guide = guides.MeanField(model)
    before = guide.loc["weights"].clone()
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}: expected .*{message}"):
        svi.fit(model, guide, small_data, epochs=1, **{argument: value})
    assert torch.equal(guide.loc["weights"], before)


def test_a_class_whose_second_argument_is_the_number_of_steps_is_a_schedule(small_space, small_data):
    model = Model(small_space, num_data=40)
    svi.fit(model, guides.MeanField(model), small_data, epochs=2, scheduler=SCHEDULES.CosineAnnealingLR)


def test_the_weight_of_a_batch_scales_its_loss(small_space, small_data):
    model = Model(small_space, num_data=40)
    guide = guides.MeanField(model)
    parameters = dict(guide.named_parameters())
    gradients = []
    for weight in (1.0, 0.25):
        sgd = partial(torch.optim.SGD, lr=1e-9)
        stepper = Stepper(Evidence(model, guide), parameters, 40, 1, sgd, None, Options(), lambda y, w=weight: w)
        torch.manual_seed(1)
        stepper(0, *small_data)
        gradients.append(guide.loc["weights"].grad.clone())
    torch.testing.assert_close(0.25 * gradients[0], gradients[1])
