"""Options: the names that editors see are those that a fit takes, and what each of them changes."""

from dataclasses import fields
from functools import partial
from types import SimpleNamespace
from typing import get_type_hints

import pytest
import torch

from pyro_nas.evidence.gaussian_tensor import GaussianTensor
from pyro_nas.inference import adam, bilevel, schedules, svi
from pyro_nas.inference.options import FitOptions, Options
from pyro_nas.models import Model, guides, priors, structures


def test_editors_see_the_options_that_there_are():
    assert get_type_hints(FitOptions) == get_type_hints(Options)


def test_every_option_has_a_test_of_what_it_changes():
    """By its name; what checkpoints hold is in test_loop too."""
    tests = "\n".join(name for name in globals() if name.startswith("test_"))
    assert [option.name for option in fields(Options) if option.name not in tests] == []


def test_a_misspelt_option_is_named(small_space, small_data):
    model = Model(small_space, num_data=40)
    with pytest.raises(ValueError, match=r"option: expected one of .* got 'epoch'. Did you mean 'epochs'"):
        svi.fit(model, guides.MeanField(model), small_data, epoch=3)


@pytest.fixture
def watched(small_space, small_data):
    """A function: fit a mean field of the small space, in batches of eight, and return what its steps saw.

    ``steps`` are runs of the network in training, ``validations`` others after the first step: x, γ, the type of the
    weights, τ and λ of each; ``draws`` the values of λ that were drawn.
    """

    def run(procedure=svi.fit, structure=None, prior=1.0, valid=None, **options):
        torch.manual_seed(0)
        model = Model(small_space, num_data=40, weights=priors.normal(0.5), structure=structure, complexity=prior)
        guide = guides.MeanField(model)
        seen = SimpleNamespace(steps=[], validations=[], inputs=[], model=model, guide=guide, records=None, draws=[])

        def look(network, inputs, keywords):
            values = SimpleNamespace(
                x=inputs[0], gamma=keywords["structure"]["structure"], weights=type(next(network.parameters())),
                temperature=model.temperature, complexity=model.complexity,
            )  # fmt: skip
            if model.training:
                seen.steps.append(values)
            elif seen.steps:
                seen.validations.append(values)

        model.network.register_forward_pre_hook(look, with_kwargs=True)
        model.register_forward_pre_hook(lambda _, inputs: seen.inputs.append(inputs) if model.training else None)
        if not isinstance(prior, float):
            draw = model.draw_complexity
            model.draw_complexity = lambda: seen.draws.append(draw()) or seen.draws[-1]
        data = (small_data,) if valid is None else (small_data, valid)
        seen.records = procedure(model, guide, *data, **{"epochs": 2, "batch_size": 8, **options}).records
        return seen

    return run


def test_epochs_and_batch_size_are_those_of_the_steps(watched):
    for epochs, batch_size, sizes in ((1, 8, [8] * 5), (3, 20, [20, 20] * 3), (1, 100, [40])):
        seen = watched(epochs=epochs, batch_size=batch_size)
        assert [len(step.x) for step in seen.steps] == sizes
        assert len(seen.records) == epochs


@pytest.mark.parametrize("name", ["temperature", "complexity"])
def test_temperature_and_complexity_follow_their_schedules_step_by_step(watched, name):
    """From the first to the last of ten steps; validation is measured at the end of the schedule."""
    schedule = schedules.geometric(2.0, 0.5)
    seen = watched(**{name: schedule}, valid=(torch.randn(4, 3), torch.tensor([0, 1, 0, 1])))
    assert [getattr(step, name) for step in seen.steps] == pytest.approx([schedule(k / 9) for k in range(10)])
    assert {round(getattr(other, name), 6) for other in seen.validations} == {0.5}
    assert [record[name] for record in seen.records] == pytest.approx([schedule(4 / 9), 0.5])
    other = {"temperature": "complexity", "complexity": "temperature"}[name]
    assert {getattr(step, other) for step in seen.steps} == {1.0}


@pytest.mark.parametrize("local_reparameterization", [False, True])
def test_local_reparameterization_hands_the_weights_on_as_mean_and_variance(watched, local_reparameterization):
    seen = watched(local_reparameterization=local_reparameterization)
    assert {issubclass(step.weights, GaussianTensor) for step in seen.steps} == {local_reparameterization}


def test_structure_per_example_gives_every_datum_its_own(watched):
    assert {step.gamma.shape for step in watched(structure_per_example=True).steps} == {(8, 2, 2)}
    assert {step.gamma.shape for step in watched().steps} == {(2, 2)}


def test_particles_are_runs_of_a_step_and_vectorize_particles_makes_them_one(watched):
    assert len(watched(particles=3).steps) == 30
    assert len(watched(particles=3, vectorize_particles=True).steps) == 10
    assert len(watched().steps) == 10


def test_enumerate_discrete_runs_every_structure_once_a_step(watched):
    seen = watched(structure=structures.categorical(), enumerate_discrete=True)
    assert len(seen.steps) == 40  # four structures
    for start in range(0, 40, 4):
        assert len({tuple(step.gamma.flatten().tolist()) for step in seen.steps[start : start + 4]}) == 4


def test_patience_ends_a_fit_after_so_many_epochs_without_a_better_one(watched, small_data):
    """At so high a rate the evidence of validation data falls from the start."""
    for patience in (1, 2):
        records = watched(epochs=30, patience=patience, valid=small_data, optimizer=adam(1.0)).records
        values = [record["valid_evidence"] for record in records]
        assert len(records) == values.index(max(values)) + 1 + patience < 30


@pytest.mark.parametrize("procedure", [svi.fit, bilevel.fit])
def test_measure_validation_is_a_pass_over_the_validation_data(watched, small_data, procedure):
    for measured in (True, False):
        seen = watched(procedure, valid=small_data, measure_validation=measured)
        assert ["valid_evidence" in record for record in seen.records] == [measured] * 2
        assert sum(len(run.x) for run in seen.validations) == (80 if measured else 0)


def test_callbacks_get_each_record_and_may_stop(watched):
    got = []
    seen = watched(epochs=5, callbacks=[got.append, lambda record: record["epoch"] == 1])
    assert got == seen.records
    assert [record["epoch"] for record in got] == [0, 1]


def test_a_checkpoint_is_continued_where_resume_says_so(watched, tmp_path):
    whole = watched(epochs=4)
    watched(epochs=2, checkpoint=tmp_path)
    rest = watched(epochs=4, checkpoint=tmp_path, resume=True)
    assert len(rest.steps) == 10
    assert rest.records == whole.records
    with pytest.raises(FileExistsError, match="checkpoint: expected a folder without a checkpoint"):
        watched(checkpoint=tmp_path)


def test_seed_decides_batches_and_draws(watched):
    first, again, other = (watched(seed=seed) for seed in (3, 3, 4))
    for name in ("x", "gamma"):
        drawn = [torch.cat([getattr(step, name) for step in seen.steps]) for seen in (first, again, other)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
    assert first.records == again.records


@pytest.mark.parametrize("procedure", [svi.fit, bilevel.fit])
def test_max_gradient_norm_bounds_each_step(watched, small_data, procedure):
    """Of plain gradient descent at rate 1: of weights and, of a bilevel fit, of structure by itself."""
    moves = {}

    def sgd(name):
        def make(parameters):
            optimizer, before = torch.optim.SGD(parameters, lr=1.0), []

            def keep(*_):
                before[:] = [value.detach().clone() for value in parameters]

            def note(*_):
                steps = torch.cat([(v - b).flatten() for v, b in zip(parameters, before, strict=True)])
                moves.setdefault(name, []).append(float(steps.detach().norm()))

            optimizer.register_step_pre_hook(keep)
            optimizer.register_step_post_hook(note)
            return optimizer

        return make

    def longest(**options):
        moves.clear()
        both = procedure is bilevel.fit
        more = {"structure_optimizer": sgd("structure"), "structure_scheduler": schedules_off} if both else {}
        watched(procedure, valid=small_data if both else None, optimizer=sgd("weights"), **more, **options)
        return {name: max(steps) for name, steps in moves.items()}

    free = longest()
    for norm in (0.01, 0.002):
        assert all(length == pytest.approx(norm, rel=1e-3) for length in longest(max_gradient_norm=norm).values())
    assert all(length > 0.01 for length in free.values())
    assert longest(max_gradient_norm=1e6) == free


def schedules_off(optimizer, steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def test_progress_shows_a_bar_of_the_epochs(watched, capsys):
    watched(progress=True)
    assert "2/2" in capsys.readouterr().err
    watched()
    assert capsys.readouterr().err == ""


SEVERAL = {"particles": 4, "vectorize_particles": True}


def test_dealt_particles_have_a_share_of_the_batch_each(watched):
    """All of the batch once; without it all particles have all of it."""
    seen = watched(prior=priors.log_uniform(0.1, 100.0), dealt=True, **SEVERAL)
    for (x, y), step in zip(seen.inputs, range(10), strict=True):
        assert (x[0].shape, y.shape) == ((4, 2, 3), (4, 2)), step
    assert len(torch.cat([x[0].reshape(-1, 3) for (x, _) in seen.inputs[:5]]).unique(dim=0)) == 40
    assert {x.shape for x, _ in watched(prior=priors.log_uniform(0.1, 100.0), **SEVERAL).inputs} == {(8, 3)}


@pytest.mark.parametrize("stratified", [True, False])
def test_stratified_particles_have_complexities_of_equally_probable_parts(watched, stratified):
    law = priors.log_uniform(0.1, 100.0)
    seen = watched(prior=law, stratified=stratified, epochs=4, **SEVERAL)
    drawn = [value for value in seen.draws if value.numel() == 4]
    strata = [sorted((law.cdf(value).flatten() * 4).floor().tolist()) for value in drawn]
    assert (strata.count([0, 1, 2, 3]) >= 20) == stratified


def test_emphasis_weighs_what_is_ascended(watched):
    """Plain gradient descent: no step where it is 0, twice the step where it is 2."""
    law, sgd = priors.log_uniform(0.1, 100.0), partial(torch.optim.SGD, lr=1e-3)
    start = watched(epochs=1, batch_size=40, prior=law, optimizer=partial(torch.optim.SGD, lr=0.0), **SEVERAL)
    moved = {}
    for factor in (0.0, 1.0, 2.0):
        options = {"emphasis": lambda value, factor=factor: factor * torch.ones_like(value), "optimizer": sgd}
        seen = watched(epochs=1, batch_size=40, prior=law, **options, **SEVERAL)
        moved[factor] = (seen.guide.loc["weights"] - start.guide.loc["weights"]).detach()
    assert not moved[0.0].any()
    assert moved[1.0].any()
    assert torch.allclose(moved[2.0], 2 * moved[1.0], rtol=1e-3, atol=1e-6)


def test_augmentation_changes_training_data_alone(watched, small_data):
    seen = watched(augmentation=lambda x: x + 100, valid=small_data)
    assert all(bool((step.x > 50).all()) for step in seen.steps)
    assert all(bool((run.x < 50).all()) for run in seen.validations)
    assert sum(len(run.x) for run in seen.validations) == 80
