"""What each command does with which rows, one thing after the other: fits, choices, recalibrations and tests.

Expected are the protocols that the commands' texts promise, written by hand; the recorder of conftest.py tells what was
done. ``{**FIT, …}`` are the settings of a fit that differ from the defaults of its options.
"""

import json
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pyro_nas import read_space
from pyro_nas.__main__ import main
from pyro_nas.data import load
from pyro_nas.evidence import evaluate
from pyro_nas.files import load_state
from pyro_nas.graph.families import cell_spaces, zoo
from pyro_nas.graph.space_files import write_space
from pyro_nas.models import Model, guides, priors
from pyro_nas.reading.metrics import classification_metrics
from pyro_nas.reading.posterior import mean_draw, predict
from pyro_nas.studies.compare import command
from pyro_nas.studies.compare import methods as method_making
from pyro_nas.studies.compare import rows as row_making
from pyro_nas.studies.compare.methods import METHODS
from pyro_nas.studies.compare.sizes import SIZES, Size
from pyro_nas.studies.complexity import command as complexity_command
from pyro_nas.studies.complexity.setting import GRID
from pyro_nas.studies.evidence import methods as ways
from pyro_nas.studies.evidence import problems
from pyro_nas.studies.evidence.examples import EXAMPLES
from pyro_nas.studies.search import command as search_command

TESTS = {"predict", "prune", "robustness", "cost"}  # what may see rows of the test part
KNOWN = "train + valid"


@pytest.fixture
def run(recorder, images_file, tmp_path):
    """A function: run a command on images with a recorder that knows their parts; return its run folder."""

    def go(command, *flags, valid_fraction=0.2, spoilt=False, name="run"):
        path, out = images_file(), tmp_path / name
        split = load(path, valid_fraction=valid_fraction)
        if spoilt:
            images_file(rows_of_test(path, split))
            split = load(path, valid_fraction=valid_fraction)
        recorder.start(train=split.train, valid=split.valid, test=split.test)
        assert main([command, "--data", path, *flags, "--out", str(out)]) == 0
        return out

    return go


def rows_of_test(path, split):
    """Return where rows of the test part stand in the file: one map of all values keeps their order."""
    stored = torch.as_tensor(np.load(path)["x"])[:, 0, 0, 0].argsort()
    order = torch.cat([x[:, 0, 0, 0] for x, _ in (split.train, split.valid, split.test)]).argsort()
    return stored[order >= len(order) - len(split.test[1])].tolist()


def check_that_only_tests_see_the_test_part(recorder):
    """Neither in what they were given nor in what the network ran on."""
    for event in recorder.events:
        assert event["do"] in TESTS or not {part for part, _ in event.rows} & {"test"}, event
    assert {doing for doing, part in recorder.ran if part == "test"} <= TESTS
    assert {part for _, part in recorder.ran} >= {"train", "test"}


SEARCH = ["--space", "layers", "--epochs", "2", "--retrain_epochs", "3", "--batch_size", "10", "--draws", "4"]
OF_LAYERS = {
    "complexity": 0.001, "weights": "LocationScale(FixedNormal, scale 0.125 to 1)", "guide": "MeanField", "start": 5,
    "seed": 5, "batch_size": 10, "local_reparameterization": True,
}  # fmt: skip  # scales of 64 inputs, and of biases
SEARCHED = {
    **OF_LAYERS, "do": "bilevel", "train": "train", "valid": "valid", "N": 38, "epochs": 2,
    "structure": "gumbel_softmax(temperature=1)", "temperature": (1.0, 0.316228, 0.1),
    "steps of weights": "Adam 0.02, one cycle to 0.02 at 2 of 8", "steps of structure": "Adam 0.1, still for 3",
}  # fmt: skip
RETRAINED = {
    **OF_LAYERS, "do": "svi", "train": KNOWN, "valid": None, "N": 48, "epochs": 3, "structure": None,
    "steps of all": "Adam 0.02, one cycle to 0.02 at 4 of 15",
}  # fmt: skip


def test_search_fits_weights_and_structure_apart_retrains_on_both_and_tests_once(run, recorder):
    run("search", *SEARCH, "--seed", "5")
    measured = {"do": "evaluate", "draws": 8, "seed": 5}
    tested = [{"do": "predict", "data": "test", "draws": 4, "seed": 5}, {"do": "metrics", "labels": "test"}]
    terms = [{**measured, "data": "train"}, {**measured, "data": KNOWN}]
    assert recorder.events == [SEARCHED, RETRAINED, *terms, *tested, *tested]
    sizes = [event.pair[0].packing.size for event in recorder.of("bilevel", "svi")]
    assert sizes == [3 * (64 * 64 + 64) + 64 * 3 + 3, 64 * 64 + 64 + 64 * 3 + 3]  # three activations, then one
    check_that_only_tests_see_the_test_part(recorder)


OTHER = {"local_reparameterization": None}  # of a guide that is asked for without it
OPTIONS_OF_SEARCH = [  # flags, what they change in both fits, and in the search alone
    (["--guide", "low_rank"], {**OTHER, "guide": "LowRankNormal"}, {}),
    (["--guide", "point_mass"], {**OTHER, "guide": "PointMass"}, {}),
    (["--guide", "point_weights"], {**OTHER, "guide": "PointWeights"}, {}),
    (["--guide", "structure_conditioned"], {"guide": "StructureConditioned"}, {}),
    (["--weights", "laplace"], {"weights": "LocationScale(Laplace, scale 0.0884 to 0.707)"}, {}),
    (["--weights", "relevance_determination"], {"weights": "RelevanceDetermination()"}, {}),
    (["--prior_gain", "0.5"], {"weights": "LocationScale(FixedNormal, scale 0.0625 to 0.5)"}, {}),
    (["--complexity", "0.5"], {"complexity": 0.5}, {}),
    (["--structure", "dirichlet"], {}, {"structure": "dirichlet(temperature=1)", "temperature": None}),
    (["--structure", "categorical"], {}, {"structure": "categorical()", "temperature": None}),
    (["--structure", "straight_through"], {}, {"structure": "straight_through(temperature=1)"}),
    (["--lr", "0.3"], {}, {"steps of weights": "Adam 0.3, one cycle to 0.3 at 2 of 8"}),
    (["--structure_lr", "0.3"], {}, {"steps of structure": "Adam 0.3, still for 3"}),
    (["--seed", "8"], {"seed": 8, "start": 8}, {}),
]


@pytest.mark.parametrize(("flags", "both", "alone"), OPTIONS_OF_SEARCH, ids=lambda value: " ".join(value))
def test_options_of_search_reach_its_fits(run, recorder, monkeypatch, flags, both, alone):
    """Each changes what it names, in the fits that it is for, and nothing else."""
    monkeypatch.setattr(search_command, "report", lambda *_: None)
    run("search", *SEARCH, "--seed", "5", *flags)
    retrained = {"steps of all": "Adam 0.3, one cycle to 0.3 at 4 of 15"} if "--lr" in flags else {}
    changed = {**SEARCHED, **both, **alone}, {**RETRAINED, **both, **retrained}
    assert recorder.events == [
        {name: value for name, value in fit.items() if value is not None or name in ("valid", "structure")}
        for fit in changed
    ]


@pytest.mark.parametrize("structure", ["straight_through", "dirichlet", "categorical"])
@pytest.mark.parametrize(
    ("guide", "weights"),
    [("low_rank", "laplace"), ("point_mass", "normal"), ("structure_conditioned", "relevance_determination")],
)
def test_options_combine(run, recorder, structure, guide, weights):
    """Three options together change what each of them does alone, and the run comes to its end."""
    named = {"structure": structure, "guide": guide, "weights": weights}
    flags = [text for name, value in named.items() for text in (f"--{name}", value)]
    out = run("search", *SEARCH, "--seed", "5", *flags)
    both, alone = {}, {}
    for changed, in_both, in_search in OPTIONS_OF_SEARCH:
        if changed[1] in named.values():
            both, alone = {**both, **in_both}, {**alone, **in_search}
    fits = {**SEARCHED, **both, **alone}, {**RETRAINED, **both}
    for found, plain in zip(recorder.of("bilevel", "svi"), fits, strict=True):
        assert found == {name: value for name, value in plain.items() if value is not None or name in found}
    assert [event["draws"] for event in recorder.of("predict")] == [4, 4]
    assert json.loads((out / "summary.json").read_text())["seed"] == 5


POINTS = ["--guide", "point_mass", "--structure", "dirichlet", "--batch_size", "16", "--epochs", "2",
          "--retrain_epochs", "2", "--draws", "2", "--complexity", "0.01"]  # fmt: skip


def test_figures_of_a_search_are_recomputed_from_its_run_folder(run, recorder, tmp_path):
    """Nothing of a point guide is drawn: figures are equal, those of the retrained network from its files alone."""
    write_space(zoo.cells(1, 3, channels=2, nodes=1), tmp_path / "space.json")
    out = run("search", *POINTS, "--space", str(tmp_path / "space.json"))
    summary = json.loads((out / "summary.json").read_text())
    known = tuple(torch.cat(parts) for parts in zip(recorder.parts["train"], recorder.parts["valid"], strict=True))
    x, y = recorder.parts["test"]
    model = Model(
        read_space(out / "architecture.json"), num_data=48, weights=priors.normal(priors.fan_in()), complexity=0.01
    )
    guide = guides.PointMass(model)
    load_state(out / "weights.safetensors", model, guide)
    searched, retrained = (event.pair for event in recorder.of("bilevel", "svi"))
    for name, pair in {"posterior_predictive": searched, "derived": (model, guide)}.items():
        assert summary["test"][name] == classification_metrics(predict(pair[0], mean_draw(pair[1]), x), y)
    for name, terms in (
        ("derived", evaluate(model, guide, known)),
        ("search", evaluate(*searched, recorder.parts["train"])),
    ):
        assert {term: summary["evidence"][name][term] for term in terms} == pytest.approx(terms, rel=1e-5)
    assert summary["parameters"]["derived"] == sum(value.numel() for value in retrained[0].network.parameters())
    table = summary["probabilities"]["structure.cell 0→1"]
    chosen = max(table, key=lambda name: table[name])
    assert list(model.space.edges[1, 2]["cell"].edges[0, 1]) == [chosen]
    history = json.loads((out / "history.json").read_text())
    assert [record["epoch"] for record in history] == [0, 1]
    assert (
        list(summary["probabilities"]["structure.cell 0→1"].values()) == history[-1]["structure"]["structure.cell"][0]
    )


def test_nothing_that_a_search_fits_or_chooses_depends_on_the_test_part(run, recorder):
    """With other images there all is the same but the metrics of the test."""
    flags = [*SEARCH, "--guide", "point_weights"]
    plain = run("search", *flags, name="plain")
    spoilt = run("search", *flags, name="spoilt", spoilt=True)
    weights, others = (load_file(out / "weights.safetensors") for out in (plain, spoilt))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    first, second = (json.loads((out / "summary.json").read_text()) for out in (plain, spoilt))
    assert {name for name in first if first[name] != second[name]} == {"test", "seconds"}
    for name in ("posterior_predictive", "derived"):
        assert first["test"][name]["log_likelihood"] != second["test"][name]["log_likelihood"]


def tiny(inputs, outputs, channels=2):
    names = ("skip", "convolution 1", "max pool")
    return cell_spaces.darts(inputs, outputs, channels, cells=2, nodes=1, primitives=names, stem_channels=2)


@pytest.fixture
def small(monkeypatch):
    """A comparison of 24 rows to train on, 24 to validate, and a budget of eight times as many."""
    size = Size(192, 2, tiny, partial(tiny, channels=3), batch_size=12, children=2, shifted=1, mirrored=False)
    monkeypatch.setitem(SIZES, "small", size)
    monkeypatch.setattr(zoo, "convolutions", partial(zoo.convolutions, channels=(2, 2)))
    for module, name, value in (
        (method_making, "CALIBRATED", 8),
        (method_making, "SCORED", 7),
        (row_making, "CALIBRATED", 8),
        (row_making, "ATTACKED", 6),
        (row_making, "ATTACKED_SEARCHED", 5),
        (row_making, "LATENCY_BATCH", 3),
        (row_making, "LATENCY_ROUNDS", 1),
        (row_making, "FRACTIONS", (0.0, 0.5)),
        (row_making, "REPETITIONS", 2),
    ):
        monkeypatch.setattr(module, name, value)
    return size


OF_CELLS = {"complexity": 0.003, "weights": "LocationScale(FixedNormal, scale 0.333 to 1)", "start": 3, "seed": 3,
            "batch_size": 12}  # fmt: skip
HALVES = {**OF_CELLS, "do": "bilevel", "train": "train", "valid": "valid", "N": 24, "epochs": 4,
          "measure_validation": False, "steps of weights": "Adam 0.01, one cycle to 0.01 at 2 of 8",
          "steps of structure": "Adam 0.05, still for 3"}  # fmt: skip
ANNEALED = {"temperature": (1.0, 0.447214, 0.2)}
BY_POINTS = {"guide": "PointWeights"}
ALONE = {**OF_CELLS, **BY_POINTS, "do": "svi", "train": "train", "valid": None, "N": 24}  # without the validation part
SCORE = {"do": "score", "data": "valid[:7]", "calibration": "train[:8]"}
SEARCHES = {
    "vardarts": [{**HALVES, **ANNEALED, "structure": "gumbel_softmax(temperature=1)", "guide": "MeanField"}],
    "darts": [{**HALVES, "structure": "dirichlet(temperature=1)", "guide": "PointMass"}],
    "darts_second_order": [
        {**HALVES, "do": "darts", "structure": "dirichlet(temperature=1)", "guide": "PointMass", "rate": 0.01,
         "epochs": 2, "steps of weights": "Adam 0.01, one cycle to 0.01 at 0 of 4",
         "steps of structure": "Adam 0.05, still for 2"}
    ],
    "snas": [
        {**ALONE, **ANNEALED, "train": KNOWN, "N": 48, "structure": "gumbel_softmax(temperature=1)", "epochs": 4,
         "structure_per_example": True, "steps of all": "Adam 0.01, one cycle to 0.01 at 4 of 16"}
    ],
    "hard": [{**HALVES, **ANNEALED, **BY_POINTS, "structure": "straight_through(temperature=1)"}],
    "dirichlet": [{**HALVES, **BY_POINTS, "structure": "dirichlet(temperature=1)"}],
    "reinforce": [{**HALVES, **BY_POINTS, "structure": "categorical()"}],
    "single_path": [
        {**ALONE, "structure": "categorical()", "epochs": 6, "steps of all": "Adam 0.01, one cycle to 0.01 at 3 of 12"},
        {"do": "evolution", "population": 2, "generations": 4, "parents": 2, "seed": 3},
        *[SCORE] * 8,
    ],
    "random": [
        {"do": "random search", "count": 2, "seed": 3},
        *[
            {**ALONE, "structure": None, "epochs": 3, "steps of all": "Adam 0.01, one cycle to 0.01 at 1 of 6"},
            {"do": "accuracy", "data": "valid[:7]", "draws": 1},
        ] * 2,
    ],
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_methods_of_compare_fit_weights_on_one_half_and_choose_by_the_other(recorder, images_file, small, method):
    """At one budget: 192 images are four epochs of 48, or fewer where a step takes more passes, or scores cost some."""
    task = command._task(small, images_file(), None, 3, torch.device("cpu"))
    recorder.start(train=task.split.train, valid=task.split.valid, test=task.split.test)
    METHODS[method](task)
    assert recorder.events == SEARCHES[method]
    assert {part for _, part in recorder.ran} == {"train", "valid"}


@pytest.mark.parametrize(("how", "scored"), [("argmax", 0), ("sample", 0), ("best", 10)])
def test_what_compare_chooses_of_a_posterior_is_discretised_as_asked_for(
    recorder, images_file, small, monkeypatch, how, scored
):
    """By the highest probabilities, by a draw, or by the best of ten draws on the validation part."""
    task = command._task(small, images_file(), None, 3, torch.device("cpu"))
    recorder.start(train=task.split.train, valid=task.split.valid, test=task.split.test)
    monkeypatch.setattr(row_making, "searched_robustness", lambda *_: {})
    monkeypatch.setattr(row_making, "retrained", lambda *_, **options: options)
    row = command._made(task, small, "hard", None, how)
    scores = recorder.events[1:]
    assert recorder.events[0] == SEARCHES["hard"][0]
    assert all(event == SCORE for event in scores)
    assert len(scores) <= scored
    assert bool(scores) == bool(scored)
    found, derived = (
        torch.cat([torch.tensor(table) for table in row[key].values()]) for key in ("structure", "derived")
    )
    best = torch.eye(3)[found.argmax(-1)]
    assert found.max() < 1
    assert torch.equal(derived, best) == (how == "argmax")
    assert row["posterior"] is False
    assert row["machine"]["device"] == "cpu"


def test_rows_of_compare_retrain_on_both_halves_and_are_tested_then(run, recorder, small):
    """Of the posterior and of points; the plain network's epochs are a matter of seconds."""
    methods = ["vardarts", "plain", "vardarts_point"]
    out = run("compare", "--methods", json.dumps(methods), "--seeds", "[3]", valid_fraction=0.5)
    known, test = (recorder.values(*parts) for parts in (("train", "valid"), ("test",)))
    low, high = float(min(known.min(), test.min())), float(max(known.max(), test.max()))
    robustness = {"do": "robustness", "fractions": (0.0, 0.5), "low": low, "high": high, "repetitions": 2, "seed": 6}
    shifted = ("composed", {"parts": (("shifted", {"pixels": 1, "fill": float(known.min())}),)})
    retraining = {**OF_CELLS, "do": "svi", "train": KNOWN, "valid": None, "N": 48, "epochs": 2, "structure": None,
                  "augmentation": shifted, "steps of all": "Adam 0.005, one cycle to 0.005 at 2 of 8"}  # fmt: skip
    posterior = {**retraining, "guide": "MeanField", "structure": "relaxed_bernoulli(temperature=0.05)",
                 "structure_per_example": True}  # fmt: skip
    costs = [{"do": "cost", "data": "test[:3]", "kind": kind} for kind in ("parameters", "multiply_accumulates")]
    searched = [{"do": "recalibrate", "data": "train[:8]", "draws": 1}, {**robustness, "data": "test[:5]", "draws": 1}]

    def tested(draws, fractions=(0.0, 0.5)):
        prediction = {"do": "predict", "data": "test", "draws": draws, "seed": 3}
        attacked = {**robustness, "data": "test[:6]", "draws": draws, "fractions": fractions}
        return [prediction, {"do": "metrics", "labels": "test"}, attacked]

    brief = {"epochs": 1, "steps of all": "Adam 0.005, one cycle to 0.005 at 0 of 4"}
    plain = {**retraining, **BY_POINTS, "weights": "LocationScale(FixedNormal, scale 0.236 to 1)"}
    (timed,) = [event for event in recorder.of("svi") if event["weights"] == plain["weights"]][1:]
    timed.update({name: plain[name] for name in ("epochs", "steps of all")})
    assert recorder.events == [
        *SEARCHES["vardarts"], *searched * 5, posterior, *tested(1), *tested(10), *costs,
        {**posterior, **brief}, {**plain, **brief}, plain, *tested(1, ()), *costs,
        {**retraining, **BY_POINTS}, *tested(1), *costs,
        *[{"do": "cost", "data": "test[:3]", "kind": "latency"}] * 3,
    ]  # fmt: skip
    check_that_only_tests_see_the_test_part(recorder)
    check_summary_of_compare(out)


def check_summary_of_compare(out):
    """Each number of the summary is the mean over the rows of the run folder, with their standard deviation."""
    summary = json.loads((out / "summary.json").read_text())["methods"]
    for method, entry in summary.items():
        row = json.loads((out / "rows" / f"{method}-3.json").read_text())
        assert entry["test"].keys() == row["test"].keys()
        for name, tested in row["test"].items():
            for metric in ("accuracy", "calibration_error", "log_likelihood"):
                assert entry["test"][name][metric] == {"mean": tested[metric], "sd": 0.0}
        assert entry["retrain"]["images"] == {"mean": 48 * row["retrain"]["epochs"], "sd": 0.0}


def test_rank_trains_every_cell_on_both_halves_and_searches_as_compare_does(run, recorder, small):
    flags = ["--methods", '["hard", "random"]', "--seeds", "[3, 4]", "--images", "192", "--epochs", "2"]
    out = run("rank", *flags, "--primitives", '["zero", "convolution 1"]', valid_fraction=0.5)
    cells, found = [], {"hard": [], "random": []}
    for seed in (3, 4):
        seeds = {"start": seed, "seed": seed, "batch_size": 64}
        trained = {**ALONE, **seeds, "train": KNOWN, "N": 48, "epochs": 2, "structure": None,
                   "steps of all": "Adam 0.01, one cycle to 0.01 at 0 of 2"}  # fmt: skip
        tested = [{"do": "predict", "data": "test", "draws": 1, "seed": seed}, {"do": "metrics", "labels": "test"}]
        cells += [trained, *tested] * 8
        steps = {"steps of weights": "Adam 0.01, one cycle to 0.01 at 0 of 4",
                 "steps of structure": "Adam 0.05, still for 2"}  # fmt: skip
        found["hard"].append({**SEARCHES["hard"][0], **seeds, **steps})
        search, child, scored = SEARCHES["random"][:3]
        child = {**child, **seeds, "epochs": 1, "steps of all": "Adam 0.01, one cycle to 0.01 at 0 of 1"}
        found["random"] += [
            {**search, "count": 6, "seed": seed},
            *[child, scored] * 6,
        ]  # eight children of 31 images each would be more than the budget
    assert recorder.events == [*cells, *found["hard"], *found["random"]]
    check_that_only_tests_see_the_test_part(recorder)
    summary = json.loads((out / "summary.json").read_text())
    stored = [[json.loads((out / "cells" / f"{cell}-{seed}.json").read_text())["accuracy"] for seed in (3, 4)]
              for cell in range(8)]  # fmt: skip
    assert summary["accuracy"] == pytest.approx([sum(values) / 2 for values in stored])


COMPLEXITIES = (0.1, 1.0, 10.0, 100.0)
MEASURED = [{"do": "evaluate", "data": KNOWN, "draws": 2}, {"do": "prune", "data": "test", "draws": 1}] * 4
REACTION = [{"do": "evaluate", "data": KNOWN, "draws": 8}] * 13


def protocol_of_complexity(name, seed):
    """The events of the rows of a protocol, as the command and the paper describe them."""
    fit = {"do": "svi", "train": KNOWN, "valid": None, "N": 48, "weights": "LocationScale(FixedNormal, scale 0.1)",
           "structure": None, "start": seed, "seed": seed, "batch_size": 64}  # fmt: skip
    if name == "paper":
        fit["steps of all"] = "Adam 0.0005, clipped to 1"
        several = {"particles": 5, "vectorize_particles": True}
        hypernetworks = {"low rank": {"guide": "LowRank"}, "linear": {"guide": "Linear", **several}}
    else:
        fit |= {"local_reparameterization": True, "steps of all": "Adam 0.003, one cycle to 0.003 at 0 of 2"}
        several = {"particles": 8, "vectorize_particles": True, "stratified": True, "batch_size": 128,
                   "emphasis": tuple(round((1 + at / 0.3) ** -0.5, 6) for at in (0.0, 0.5, 1.0)),
                   "steps of all": "Adam 0.006, one cycle to 0.006 at 0 of 3"}  # fmt: skip
        hypernetworks = {"spline": {"guide": "Spline", **several}}
    direct = [{**fit, "guide": "MeanField", "complexity": at, "epochs": 2} for at in COMPLEXITIES]
    one = [{**fit, "guide": "MeanField", "complexity": at, "epochs": 1} for at in COMPLEXITIES]
    events = [*direct, *MEASURED, *([*one, *MEASURED] if name == "paper" else [])]
    for settings in hypernetworks.values():
        events += [{**fit, **settings, "complexity": "prior", "epochs": 3}, *MEASURED, *REACTION]
        events += [*one, *MEASURED] if name == "paper" else []
    return [{**event, "seed": seed} if event["do"] == "evaluate" else event for event in events]


@pytest.mark.parametrize(("protocol", "runs"), [("paper", 1), ("best", 2)])
def test_complexity_trains_on_all_known_data_and_prunes_on_the_test_part(run, recorder, monkeypatch, protocol, runs):
    """A race, of the first run alone, is of the hypernetwork's seconds over all values of λ."""
    monkeypatch.setattr(complexity_command, "race", lambda setting, hypernet, seconds, grid: [setting.seed, *grid])
    flags = ["--protocol", protocol, "--runs", str(runs), "--epochs", "2", "--hypernet_epochs", "3", "--hidden", "3"]
    flags += ["--speed", "true"] if protocol == "best" else []
    out = run("complexity", *flags, "--draws", "2", "--seed", "5")
    assert {event.pair[0].packing.size for event in recorder.of("svi")} == {64 * 3 + 3 + 3 * 3 + 3}
    seeds = range(5, 5 + runs)
    assert recorder.events == [event for seed in seeds for event in protocol_of_complexity(protocol, seed)]
    check_that_only_tests_see_the_test_part(recorder)
    summary = json.loads((out / "summary.json").read_text())
    assert summary.get("race") == ([5, *GRID] if protocol == "best" else None)
    for name, row in summary["rows"].items():
        file = name.replace(" ", "_").replace(",", "")
        rows = [json.loads((out / "rows" / f"{seed}-{file}.json").read_text()) for seed in seeds]
        assert ["race" in entry for entry in rows] == [name == "spline", False][:runs]
        for at in map(str, COMPLEXITIES):
            for metric in ("evidence", "accuracy", "mean_accuracy", "stability", "parametric_complexity"):
                values = [entry["complexities"][at][metric] for entry in rows]
                assert row[at][metric]["mean"] == pytest.approx(sum(values) / runs)
                assert row[at][metric]["sd"] == pytest.approx(abs(values[0] - values[-1]) / 2**0.5, abs=1e-9)


def test_evidence_holds_out_what_it_scores_and_shows_all_data_to_every_way(recorder, tmp_path, monkeypatch):
    for module, name, value in (
        (problems, "RESTARTS", 2), (problems, "EPOCHS", 3), (problems, "DRAWS", 50), (ways, "STARTS", 3),
        (ways, "STEPS", 4), (ways, "PARTICLES", 20), (ways, "POINTS", {1: 9, 2: 9, 3: 9}),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    family = EXAMPLES["logistic"](12, 2.0, 5)
    recorder.start(all=family.problems["intercept, x1, x2"].data)
    flags = ["--example", "logistic", "--size", "12", "--scale", "2", "--folds", "3", "--seed", "5"]
    assert main(["evidence", *flags, "--out", str(tmp_path / "run")]) == 0
    expected = []
    for problem in family.problems.values():
        every = {"data": "all", "N": 12, "seed": 5}
        for seed in (5, 6):
            expected += [
                {"do": "svi", "train": "all", "valid": None, "N": 12, "complexity": 1.0, "structure": None,
                 "weights": "LocationScale(FixedNormal, scale 2)", "guide": "MeanField", "start": seed, "seed": seed,
                 "batch_size": 12, "epochs": 3, "local_reparameterization": True,
                 "steps of all": "Adam 0.05 (0.9, 0.99), one cycle to 0.1 at -1 of 3"},
                {"do": "evaluate", "data": "all", "draws": 300, "seed": seed},
            ]  # fmt: skip
        expected.append({"do": "evaluate", "data": "all", "draws": 300, "seed": 6})  # the best one, by new draws
        expected.append({"do": "weigh", "data": "all", "draws": 50, "seed": 5})
        expected += [{"do": "laplace", **every, "curvature": kind} for kind in ("full", "diagonal")]
        expected.append({"do": "trajectory", **every, "steps": 4, "starts": 3, "log_determinant": "exact",
                         "learning_rate": 6 / problem.curvature})  # fmt: skip
        for _ in range(3):
            expected.append({"do": "laplace", "data": "8 of all", "N": 8, "seed": 5})
            expected.append({"do": "density", "data": "4 of all", "draws": 200})
        expected.append({"do": "laplace", **every})  # whose axes the grid of the exact value has
    assert recorder.events == expected
    folds = [(a.rows, b.rows) for a, b in pairwise(recorder.events) if b["do"] == "density"]
    assert all(fitted | held == folds[0][0] | folds[0][1] and not fitted & held for fitted, held in folds)
    assert all(len(frozenset().union(*(held for _, held in folds[k : k + 3]))) == 12 for k in (0, 3, 6))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name, row in summary["models"].items():
        stored = tmp_path / "run" / "rows" / f"{name.replace(', ', '-')}.json"
        assert json.loads(stored.read_text()).items() >= row.items()
    logs = torch.tensor([row["estimates"]["elbo"]["value"] for row in summary["models"].values()], dtype=torch.double)
    assert list(summary["posterior"]["elbo"].values()) == pytest.approx((logs.exp() / logs.exp().sum()).tolist())
