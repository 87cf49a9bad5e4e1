"""Fits: checkpoints, turns, early stopping, failures, schedules; bit for bit where that is promised."""

import contextlib
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch.utils.data import DataLoader, TensorDataset

from pyro_nas import choice_probabilities
from pyro_nas.files import load_state, state_of, write_tensors
from pyro_nas.inference import NonFiniteLoss, adam, bilevel, delayed, one_cycle, schedules, svi
from pyro_nas.inference.checkpoint import Checkpoint, CorruptCheckpoint
from pyro_nas.inference.loop import _best_epoch
from pyro_nas.inference.state import split_parameters
from pyro_nas.models import Model, guides, likelihoods, priors, structures


def build(space, structure=None, seed=0, **options):
    torch.manual_seed(seed)
    model = Model(space, num_data=40, weights=priors.normal(0.5), structure=structure, **options)
    return model, guides.MeanField(model)


def fit(model, guide, data, procedure, **options):
    x, y = data
    options = {"epochs": 6, "batch_size": 8, "optimizer": adam(0.02), **options}
    if procedure == "svi":
        return svi.fit(model, guide, (x, y), (x[:8], y[:8]), **options).records
    return bilevel.fit(
        model, guide, (x[:24], y[:24]), (x[24:], y[24:]), structure_scheduler=delayed(), **options
    ).records


def state(model, guide):
    return {name: value.clone() for name, value in state_of(model, guide).items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("procedure", ["svi", "bilevel"])
@pytest.mark.parametrize("structure", [structures.gumbel_softmax(0.5), structures.categorical()])
def test_a_stopped_fit_continues_bit_for_bit(small_space, small_data, tmp_path, procedure, structure):
    settings = {"scheduler": one_cycle(0.02), "local_reparameterization": True, "patience": 4}
    if structure.temperature is not None:
        settings["temperature"] = schedules.geometric(1.0, 0.2)
    model, guide = build(small_space, structure)
    whole = fit(model, guide, small_data, procedure, **settings)
    expected = state(model, guide)

    def crash(record):
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    model, guide = build(small_space, structure)
    with pytest.raises(KeyboardInterrupt):
        fit(model, guide, small_data, procedure, checkpoint=tmp_path, callbacks=[crash], **settings)
    model, guide = build(small_space, structure, seed=99)  # what it was initialised with does not matter
    torch.randn(7)
    continued = fit(model, guide, small_data, procedure, checkpoint=tmp_path, resume=True, **settings)
    assert continued == whole
    assert same(state(model, guide), expected)


def test_two_fits_in_turns_end_where_each_ends_alone(small_space, small_data, tmp_path):
    flipped = (small_data[0].flip(0), small_data[1])
    alone = {}
    for name, data in (("a", small_data), ("b", flipped)):
        model, guide = build(small_space)
        fit(model, guide, data, "svi")
        alone[name] = state(model, guide)
    pairs = {"a": build(small_space), "b": build(small_space)}

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


def test_fits_leave_the_random_state_and_do_not_depend_on_it(small_space, small_data):
    results = []
    for junk in (1, 2):
        model, guide = build(small_space)
        torch.manual_seed(junk)
        before = torch.get_rng_state()
        fit(model, guide, small_data, "bilevel")
        assert torch.equal(torch.get_rng_state(), before)
        results.append(state(model, guide))
    assert same(*results)
    model, guide = build(small_space)
    fit(model, guide, small_data, "bilevel", seed=5)
    assert not same(state(model, guide), results[0])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "json", "json value", "missing", "not json"])
def test_a_damaged_checkpoint_is_refused(small_space, small_data, tmp_path, damage):
    model, guide = build(small_space)
    fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    tensors, position = next(tmp_path.glob("*.safetensors")), tmp_path / "checkpoint.json"
    content = bytearray(tensors.read_bytes())
    if damage == "truncated":
        tensors.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        tensors.write_bytes(content)
    elif damage == "missing":
        tensors.unlink()
    elif damage == "json":
        position.write_text(position.read_text()[:-40])
    elif damage == "json value":
        body = json.loads(position.read_text())
        body["position"]["history"][0]["evidence"] += 1.0
        position.write_text(json.dumps(body))
    else:
        position.write_bytes(b"\x80\x04\x95junk")
    name = "checkpoint.json" if "json" in damage else tensors.name
    before = state(model, guide)
    with pytest.raises(CorruptCheckpoint, match=name):
        fit(model, guide, small_data, "svi", checkpoint=tmp_path, resume=True, epochs=8)
    assert same(state(model, guide), before)


def test_a_checkpoint_of_another_model_is_refused(small_space, small_data, tmp_path):
    model, guide = build(small_space)
    fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    other = guides.LowRankNormal(model)
    with pytest.raises(ValueError, match="expected the tensors of this model and guide"):
        fit(model, other, small_data, "svi", checkpoint=tmp_path, resume=True)


def test_a_checkpoint_is_not_overwritten(small_space, small_data, tmp_path):
    model, guide = build(small_space)
    fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="resume=True"):
        fit(model, guide, small_data, "svi", checkpoint=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_the_newest_whole_checkpoint_survives_a_kill_between_its_two_files(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"a": torch.ones(2)}, {"epoch": 1})
    (tmp_path / "checkpoint-0000000000000000.safetensors").write_bytes(b"half of the next one")
    tensors, position = checkpoint.load()
    assert torch.equal(tensors["a"], torch.ones(2))
    assert position == {"epoch": 1}
    checkpoint.save({"a": torch.zeros(2)}, {"epoch": 2})
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_loss_that_turns_nan_stops_with_step_and_site_and_keeps_the_last_good_state(small_space, small_data):
    model, guide = build(small_space)
    states = []

    def poison(record):
        states.append(state(model, guide))
        if record["epoch"] == 2:
            guide.log_scale["weights"].data[0] = float("nan")
            states.append(None)

    with pytest.raises(NonFiniteLoss, match=r"step 15: .*weights"):
        fit(model, guide, small_data, "svi", callbacks=[poison])
    model, guide = build(small_space)
    x, y = small_data
    bad = torch.full_like(x, 1e30)
    fit(model, guide, small_data, "svi", epochs=2)
    good = state(model, guide)
    with pytest.raises(NonFiniteLoss, match=r"step \d+: .*y \(the likelihood\)"):
        svi.fit(model, guide, (bad * 1e8 * 0 + 3e38, y), epochs=2, batch_size=8)
    assert same(state(model, guide), good)


def test_early_stopping_returns_to_the_best_epoch(small_space, small_data):
    model, guide = build(small_space)
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


def test_callbacks_stop_and_schedules_run(small_space, small_data):
    model, guide = build(small_space)
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


def test_a_fit_that_a_callback_stopped_continues_where_it_was(small_space, small_data, tmp_path):
    model, guide = build(small_space)
    whole = fit(model, guide, small_data, "bilevel")
    expected = state(model, guide)
    model, guide = build(small_space)
    fit(model, guide, small_data, "bilevel", checkpoint=tmp_path, callbacks=[lambda record: record["epoch"] == 2])
    assert fit(model, guide, small_data, "bilevel", checkpoint=tmp_path, resume=True) == whole
    assert same(state(model, guide), expected)


def test_a_schedule_is_resumed_with_its_own_epochs_only(small_space, small_data, tmp_path):
    """With others τ would go back."""
    settings = {"temperature": schedules.geometric(1.0, 0.1)}
    model, guide = build(small_space)
    fit(model, guide, small_data, "svi", checkpoint=tmp_path, **settings)
    with pytest.raises(ValueError, match="epochs: expected 30 steps, those of the schedules, got 60"):
        fit(model, guide, small_data, "svi", checkpoint=tmp_path, resume=True, **{**settings, "epochs": 12})


def test_a_validation_loader_of_fixed_order_is_seen_whole(small_space, small_data):
    """Two steps an epoch, five validation batches: the steps of five epochs see each twice."""
    x, y = small_data
    seen = []

    class Watched(torch.utils.data.TensorDataset):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    valid = torch.utils.data.DataLoader(Watched(x[:20], y[:20]), batch_size=4)
    model, guide = build(small_space)
    bilevel.fit(model, guide, (x, y), valid, epochs=5, batch_size=20, measure_validation=False)
    assert set(seen) == set(range(20))


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


def test_a_bilevel_fit_refuses_parameters_that_serve_both(small_space, small_data):
    """Also beside parameters of the weights alone: the structure's steps would move the weights, on validation data."""

    class Shared(guides.MeanField):
        def __init__(self, model):
            super().__init__(model)
            self.code = torch.nn.Parameter(torch.ones(()))

        def draw_structure(self, site):
            return pyro.sample(site, self.model.structure_law(site, self.structure[site] * self.code))

        def draw_weights(self, structure):
            law = dist.Normal(self.loc["weights"] * self.code, self.log_scale["weights"].exp())
            return {"weights": pyro.sample("weights", law.to_event(1))}

    x, y = small_data
    model = Model(small_space, num_data=40)
    with pytest.raises(ValueError, match=r"parameters of its own for the structure, got \['guide.code'\]"):
        bilevel.fit(model, Shared(model), (x, y), (x, y), epochs=1)
    bilevel.fit(model, guides.StructureConditioned(model), (x, y), (x, y), epochs=1)


def test_a_refused_fit_leaves_random_state_and_validation_alone(small_space, small_data):
    model, guide = build(small_space)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="missing"):
        svi.fit(model, lambda x, y: None, small_data)
    with pytest.raises(ValueError, match="discrete sites, got none"):
        svi.fit(model, guide, small_data, enumerate_discrete=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert pyro.poutine.util.is_validation_enabled()


def test_parameters_keep_their_order_in_every_process():
    """Optimisers, and so checkpoints, number what they keep of each by it; that of a set is another in each process."""
    named = {f"guide.{index}": torch.zeros((), requires_grad=True) for index in range(16)}

    def guide():
        for index, value in enumerate(named.values()):
            pyro.sample(f"{'structure' if index % 2 else 'weights'}.{index}", dist.Normal(value, 1.0))

    weights, structure = split_parameters(guide, (), named)
    assert list(weights) == list(named)[::2]
    assert list(structure) == list(named)[1::2]


def test_data_come_as_datasets_and_loaders_too(small_space, small_data):
    for source in (TensorDataset(*small_data), DataLoader(TensorDataset(*small_data), 8, shuffle=True)):
        model, guide = build(small_space)
        history = svi.fit(model, guide, source, source, epochs=2, batch_size=8).records
        assert len(history) == 2


def test_hand_written_models_and_guides(small_data):
    """A model and a guide without any class of this package; plain functions keep parameters where they put them."""
    x, y = small_data

    def model(x, y=None):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        structure = pyro.sample("structure", dist.Dirichlet(torch.ones(1, 2)).to_event(1))
        logits = structure[0, 0] * (x @ weights) + structure[0, 1] * (x[:, 0] * x[:, 1])
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=4 * logits), obs=None if y is None else y.float())

    class OwnGuide(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.zeros(3))
            self.concentration = PyroParam(torch.ones(1, 2), dist.constraints.positive)

        def forward(self, x, y=None):
            pyro.sample("structure", dist.Dirichlet(self.concentration).to_event(1))
            pyro.sample("weights", dist.Delta(self.loc).to_event(1))

    guide = OwnGuide()
    history = bilevel.fit(
        model, guide, (x[:20], y[:20]), (x[20:], y[20:]), epochs=80, structure_optimizer=adam(0.05),
        structure_scheduler=delayed(0.0),
    ).records  # fmt: skip
    assert history[-1]["evidence"] > history[0]["evidence"]
    assert choice_probabilities(guide, x)["structure"][0, 1] > 0.7
    assert len(pyro.get_param_store()) == 0

    def plain(x, y=None):
        loc = pyro.param("loc", torch.zeros(3))
        concentration = pyro.param("concentration", torch.ones(1, 2), dist.constraints.positive)
        pyro.sample("structure", dist.Dirichlet(concentration).to_event(1))
        pyro.sample("weights", dist.Delta(loc).to_event(1))

    svi.fit(model, plain, (x, y), epochs=20, optimizer=adam(0.05))
    assert pyro.param("concentration")[0, 1] > 1.1
    pyro.clear_param_store()


def test_weights_files_restore_a_fit(small_space, small_data, tmp_path):
    model, guide = build(small_space)
    fit(model, guide, small_data, "svi")
    write_tensors(tmp_path / "weights.safetensors", state_of(model, guide))
    other = build(small_space, seed=3)
    load_state(tmp_path / "weights.safetensors", *other)
    assert same(state(*other), state(model, guide))
    with pytest.raises(ValueError, match="expected the tensors of this model and guide"):
        load_state(tmp_path / "weights.safetensors", model, guides.LowRankNormal(model))
