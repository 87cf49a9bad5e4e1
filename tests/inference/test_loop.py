"""The loop: fits in parts and in turns, early stopping, schedules; bit for bit where that is promised."""

import contextlib
import itertools
import math
from functools import partial

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from pyro_nas import Space
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, bilevel, one_cycle, schedules, svi
from pyro_nas.inference.loop import _best_epoch
from pyro_nas.models import Model, guides, likelihoods, structures


@pytest.mark.parametrize("procedure", ["svi", "bilevel"])
@pytest.mark.parametrize("structure", [structures.gumbel_softmax(0.5), structures.categorical()])
def test_a_stopped_fit_continues_bit_for_bit(procedure, structure, small_data, tmp_path, build, fit, state, same):
    settings = {"scheduler": one_cycle(0.02), "local_reparameterization": True, "patience": 4}
    if structure.temperature is not None:
        settings["temperature"] = schedules.geometric(1.0, 0.2)
    model, guide = build(structure)
    whole = fit(model, guide, small_data, procedure, **settings)
    expected = state(model, guide)

    def crash(record):
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    model, guide = build(structure)
    with pytest.raises(KeyboardInterrupt):
        fit(model, guide, small_data, procedure, checkpoint=tmp_path, callbacks=[crash], **settings)
    model, guide = build(structure, seed=99)  # what it was initialised with does not matter
    torch.randn(7)
    continued = fit(model, guide, small_data, procedure, checkpoint=tmp_path, resume=True, **settings)
    assert continued == whole
    assert same(state(model, guide), expected)


def test_two_fits_in_turns_end_where_each_ends_alone(small_data, tmp_path, build, fit, state, same):
    flipped = (small_data[0].flip(0), small_data[1])
    alone = {}
    for name, data in (("a", small_data), ("b", flipped)):
        model, guide = build()
        fit(model, guide, data, "svi")
        alone[name] = state(model, guide)
    pairs = {"a": build(), "b": build()}

    class Pause(Exception):
        pass

    def pause(record):
        raise Pause

    for _ in range(6):
        for name, data in (("a", small_data), ("b", flipped)):
            model, guide = pairs[name]
            with contextlib.suppress(Pause):
                fit(
                    model, guide, data, "svi", checkpoint=tmp_path / name, resume=True, callbacks=[_after_saving(pause)]
                )
    for name in alone:
        assert same(state(*pairs[name]), alone[name])
    assert not same(alone["a"], alone["b"])
    assert len(pyro.get_param_store()) == 0


def _after_saving(pause):
    """Raise in the epoch after the first of this call, whose checkpoint is then on disk."""
    seen = []

    def callback(record):
        seen.append(record)
        if len(seen) == 2:
            pause(record)

    return callback


def test_fits_leave_the_random_state_and_do_not_depend_on_it(small_data, build, fit, state, same):
    results = []
    for junk in (1, 2):
        model, guide = build()
        torch.manual_seed(junk)
        before = torch.get_rng_state()
        fit(model, guide, small_data, "bilevel")
        assert torch.equal(torch.get_rng_state(), before)
        results.append(state(model, guide))
    assert same(*results)
    model, guide = build()
    fit(model, guide, small_data, "bilevel", seed=5)
    assert not same(state(model, guide), results[0])


def test_early_stopping_returns_to_the_best_epoch(small_data, build, state, same):
    model, guide = build()
    x, y = small_data
    states = []
    history = svi.fit(
        model, guide, (x[:20], y[:20]), (x[20:], y[20:]), epochs=200, batch_size=20, optimizer=adam(0.3), patience=3,
        callbacks=[lambda record: states.append(state(model, guide))],
    ).records  # fmt: skip
    evidences = [record["valid_evidence"] for record in history]
    best = max(range(len(history)), key=evidences.__getitem__)
    assert len(history) == best + 4 < 200
    assert history[-1]["stopped"]
    assert same(state(model, guide), states[best])


def test_callbacks_stop_and_schedules_run(small_data, build, fit):
    model, guide = build()
    history = fit(
        model, guide, small_data, "svi", callbacks=[lambda record: record["epoch"] == 2],
        temperature=schedules.linear(2.0, 1.0), complexity=schedules.warm_up(4.0, 0.5),
    )  # fmt: skip
    assert len(history) == 3
    assert [round(record["temperature"], 3) for record in history] == [1.862, 1.69, 1.517]
    assert (
        history[0]["complexity"] < history[1]["complexity"] < history[2]["complexity"] == pytest.approx(3.862, abs=1e-2)
    )
    assert schedules.geometric(1.0, 0.01)(0.5) == pytest.approx(0.1)
    assert schedules.constant(3.0)(0.2) == 3.0


def test_a_fit_that_a_callback_stopped_continues_where_it_was(small_data, tmp_path, build, fit, state, same):
    model, guide = build()
    whole = fit(model, guide, small_data, "bilevel")
    expected = state(model, guide)
    model, guide = build()
    fit(model, guide, small_data, "bilevel", checkpoint=tmp_path, callbacks=[lambda record: record["epoch"] == 2])
    assert fit(model, guide, small_data, "bilevel", checkpoint=tmp_path, resume=True) == whole
    assert same(state(model, guide), expected)


def test_a_schedule_is_resumed_with_its_own_epochs_only(small_data, tmp_path, build, fit):
    """With others τ would go back."""
    settings = {"temperature": schedules.geometric(1.0, 0.1)}
    model, guide = build()
    fit(model, guide, small_data, "svi", checkpoint=tmp_path, **settings)
    with pytest.raises(ValueError, match="epochs: expected 30 steps, those of the schedules, got 60"):
        fit(model, guide, small_data, "svi", checkpoint=tmp_path, resume=True, **{**settings, "epochs": 12})


def test_records_that_are_not_finite_are_kept_and_never_the_best(small_space, tmp_path):
    x = torch.randn(20, 3)
    model = Model(small_space, num_data=20, likelihood=likelihoods.gaussian(1.0, learn=False))
    guide = guides.MeanField(model)
    train, valid = (x, x[:, :2]), (x[:1], torch.full((1, 2), 1e20))
    options = {"batch_size": 10, "checkpoint": tmp_path}
    history = svi.fit(model, guide, train, valid, epochs=2, **options).records
    assert history[-1]["valid_evidence"] == -math.inf
    longer = svi.fit(model, guide, train, valid, epochs=3, resume=True, **options).records
    assert longer[:2] == history
    assert len(longer) == 3
    assert _best_epoch([{"valid_evidence": value} for value in (math.nan, -3.0, -2.0, math.nan)]) == 2


def test_a_refused_fit_leaves_random_state_and_validation_alone(small_data, build):
    model, guide = build()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="missing"):
        svi.fit(model, lambda x, y: None, small_data)
    with pytest.raises(ValueError, match="discrete sites, got none"):
        svi.fit(model, guide, small_data, enumerate_discrete=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert pyro.poutine.util.is_validation_enabled()


def test_a_finished_fit_resumes_at_its_last_temperature_and_complexity(small_space, small_data, tmp_path):
    options = {
        "temperature": schedules.geometric(1.0, 0.2),
        "complexity": schedules.warm_up(1.0),
        "checkpoint": tmp_path,
    }
    for resume in (False, True):
        model = Model(small_space, num_data=40)
        svi.fit(model, guides.MeanField(model), small_data, epochs=2, resume=resume, **options)
        assert (model.temperature, model.complexity) == (pytest.approx(0.2), pytest.approx(1.0))


def test_early_stopping_compares_epochs_at_the_schedules_end(small_space, small_data):
    model = Model(small_space, num_data=40)
    history = svi.fit(
        model, guides.MeanField(model), small_data, small_data, epochs=30, batch_size=8, patience=2,
        optimizer=adam(0.01), complexity=schedules.warm_up(1.0, 1.0),
    ).records  # fmt: skip
    assert len(history) > 5
    assert model.complexity == pytest.approx(1.0)


def test_schedulers_with_number_keys_and_loaders_with_generators_resume(small_space, small_data, tmp_path):
    def parts(folder):
        torch.manual_seed(0)
        model = Model(small_space, num_data=40)
        guide = guides.MeanField(model)
        loader = DataLoader(TensorDataset(*small_data), 10, shuffle=True, generator=torch.Generator().manual_seed(3))
        options = {
            "epochs": 4,
            "scheduler": lambda optimizer, steps: torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 10]),
            "checkpoint": folder,
        }
        return model, guide, loader, options

    model, guide, loader, options = parts(tmp_path / "whole")
    svi.fit(model, guide, loader, **options)
    expected = guide.loc["weights"].detach().clone()

    def crash(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    model, guide, loader, options = parts(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        svi.fit(model, guide, loader, callbacks=[crash], **options)
    model, guide, loader, options = parts(tmp_path / "parts")
    svi.fit(model, guide, loader, resume=True, **options)
    assert torch.equal(guide.loc["weights"], expected)


def test_callbacks_may_draw_and_change_modes_without_changing_the_fit(state, same):
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    noisy = Space({(0, 1): {"a": partial(Noisy, 3, 3), "b": dense(3, 3)}, (1, 2): {"out": dense(3, 2)}})

    def fitted(**options):
        torch.manual_seed(0)
        model = Model(noisy, num_data=40)
        guide = guides.MeanField(model)
        svi.fit(model, guide, (x, y), epochs=3, batch_size=10, **options)
        return state(model, guide)

    def draws(record):
        torch.randn(record["epoch"] + 1)
        torch.manual_seed(99)

    expected = fitted()
    assert same(fitted(callbacks=[draws]), expected)
    assert same(fitted(callbacks=[draws, lambda record: MODELS[-1].eval() and None]), expected)


MODELS = []


class Noisy(torch.nn.Linear):
    """A linear map of inputs of which half are dropped, in training."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        MODELS.append(self)

    def forward(self, x):
        return super().forward(torch.nn.functional.dropout(x, 0.5, self.training))


@pytest.mark.parametrize("where", ["loader", "sampler", "batch sampler", "dataset"])
def test_a_fit_resumes_with_generators_of_samplers_and_datasets(where, small_data, tmp_path, build, state, same):
    class Jittered(Dataset):
        def __init__(self):
            self.generator = torch.Generator().manual_seed(5)

        def __len__(self):
            return 40

        def __getitem__(self, index):
            return small_data[0][index] + 0.1 * torch.randn(3, generator=self.generator), small_data[1][index]

    def loader():
        generator, data = torch.Generator().manual_seed(3), TensorDataset(*small_data)
        if where == "loader":
            return DataLoader(data, 8, shuffle=True, generator=generator)
        sampler = RandomSampler(data, generator=generator)
        if where == "sampler":
            return DataLoader(data, 8, sampler=sampler)
        if where == "batch sampler":
            return DataLoader(data, batch_sampler=BatchSampler(sampler, 8, drop_last=False))
        return DataLoader(Jittered(), 8)

    def stop(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    model, guide = build()
    svi.fit(model, guide, loader(), epochs=4, checkpoint=tmp_path / "whole")
    expected = state(model, guide)
    model, guide = build()
    with pytest.raises(KeyboardInterrupt):
        svi.fit(model, guide, loader(), epochs=4, checkpoint=tmp_path / "parts", callbacks=[stop])
    model, guide = build(seed=7)
    svi.fit(model, guide, loader(), epochs=4, checkpoint=tmp_path / "parts", resume=True)
    assert same(state(model, guide), expected)


LEFTOVERS = {
    "leftover in fixed order": lambda data: DataLoader(data, 10),
    "leftover at random": lambda data: DataLoader(data, 10, shuffle=True),
    "sizes that the data decide": lambda data: DataLoader(data, batch_sampler=[[0], [1, 2], [*range(3, 11)]]),
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_an_epoch_of_unequal_batches_moves_as_all_data_at_once_do(name):
    """One epoch in K batches is K steps of all data, to first order in the rate of SGD.

    A leftover of one datum, weighted as a whole batch, would pull ten times as hard.
    """
    x, y = torch.randn(11, 3), 5 * torch.randn(11, 1)
    loader = LEFTOVERS[name](TensorDataset(x, y))
    space = Space({(0, 1): {"linear": partial(nn.Linear, 3, 1, bias=False)}})
    moves = []
    for source, steps in ((loader, 1), ((x, y), len(loader))):
        torch.manual_seed(0)
        model = Model(space, num_data=11, likelihood=likelihoods.gaussian(1.0, learn=False))
        guide = guides.PointMass(model)
        start = guide.loc["weights"].detach().clone()
        svi.fit(model, guide, source, optimizer=partial(torch.optim.SGD, lr=1e-4), epochs=steps)
        moves.append(guide.loc["weights"].detach() - start)
    torch.testing.assert_close(moves[0], moves[1], rtol=1e-3, atol=1e-7)


def test_the_record_of_unequal_batches_is_of_all_data(small_space):
    """At a rate that moves nothing, the record's log-likelihood is Σ log p(y_i | x_i, w)."""
    x, y = torch.randn(11, 3), torch.arange(11) % 2
    model = Model(Space({(0, 1): {"linear": partial(nn.Linear, 3, 2)}}), num_data=11)
    guide = guides.PointMass(model)
    loader = DataLoader(TensorDataset(x, y), 5)
    fit = svi.fit(model, guide, loader, optimizer=partial(torch.optim.SGD, lr=1e-30), epochs=1)
    whole = svi.fit(model, guide, (x, y), optimizer=partial(torch.optim.SGD, lr=1e-30), epochs=1)
    assert fit.records[0]["log_likelihood"] == pytest.approx(whole.records[0]["log_likelihood"], rel=1e-5)


def test_a_loader_is_gone_through_once_an_epoch(small_space):
    """Beside its own batches one more, the first, whatever looks at it: checks, the first pass, records."""
    x, y = torch.randn(12, 3), torch.arange(12) % 2
    loaded = []

    class Recorded(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            loaded.append(index)
            return x[index], y[index]

    model = Model(small_space, num_data=12)
    svi.fit(model, AutoNormal(model), DataLoader(Recorded(), 4), epochs=3)
    assert loaded == [0, 1, 2, 3, *range(12), *range(12), *range(12)]
    loaded.clear()
    guide = guides.MeanField(model)
    bilevel.fit(model, guide, (x, y), DataLoader(Recorded(), 4), epochs=2, batch_size=6, measure_validation=False)
    assert loaded == [0, 1, 2, 3, *range(8), *range(8, 12), *range(4)]  # two batches an epoch, on from the last


@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal])
def test_the_record_of_an_autoguide_takes_one_run_of_it(kind, small_space, small_data, monkeypatch):
    model = Model(small_space, num_data=40)
    guide = kind(model)
    runs, forward = [], type(guide).forward

    def counted(self, *args, **kwargs):
        runs.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", counted)
    counts = []
    svi.fit(model, guide, small_data, epochs=3, callbacks=[lambda record: counts.append(len(runs))])
    assert [after - before for before, after in itertools.pairwise(counts)] == [2, 2]  # a step and a record
