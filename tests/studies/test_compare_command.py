"""The commands compare and rank: every method, a kill in the middle, tables, errors before the first step."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pyro_nas.__main__ import main
from pyro_nas.data import load
from pyro_nas.files import write_sealed
from pyro_nas.graph.costs import total_cost
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.enumeration import all_structures, random_structure
from pyro_nas.graph.families import cell_spaces
from pyro_nas.graph.families.cell_spaces import NAS_BENCH_201
from pyro_nas.inference import svi
from pyro_nas.models import guides, structures
from pyro_nas.reading.batch_normalization import recalibrated
from pyro_nas.reading.posterior import draw, mean_draw, predict
from pyro_nas.reading.structure_posterior import choice_probabilities
from pyro_nas.studies.compare import command
from pyro_nas.studies.compare import rows as row_making
from pyro_nas.studies.compare.command import NEEDED, POSTERIORS
from pyro_nas.studies.compare.methods import METHODS, discretised, hard, score_of
from pyro_nas.studies.compare.report import collapse, summarise, tables
from pyro_nas.studies.compare.retraining import DRAWS, retrain
from pyro_nas.studies.compare.rows import retrained, searched_robustness
from pyro_nas.studies.compare.sizes import SIZES, Size
from pyro_nas.studies.compare.task import Count, Task
from pyro_nas.studies.run_folder import owner, stored_config

NAMES = ("skip", "convolution 1", "max pool")


def tiny(inputs, outputs, channels=2):
    return cell_spaces.darts(inputs, outputs, channels, cells=2, nodes=1, primitives=NAMES, stem_channels=2)


SIZE = Size(3000, 1, tiny, tiny, batch_size=128, children=2, shifted=1, mirrored=False)

SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from pyro_nas.studies.compare.sizes import SIZES
from test_compare_command import SIZE
SIZES["small"] = SIZE
from pyro_nas.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "small", SIZE)


def test_every_method_writes_its_row_and_the_tables(small, tmp_path, capsys):
    out = tmp_path / "run"
    methods = [*METHODS, *NEEDED]
    assert main(["compare", "--methods", json.dumps(methods), "--seeds", "[3]", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["methods"]) == methods
    for name in methods:
        row = json.loads((out / "rows" / f"{name}-3.json").read_text())
        assert 0 <= row["test"]["point"]["accuracy"] <= 1
        assert row["retrain"]["images"] >= 1437
        assert row["cost"]["parameters"] > 0 < summary["methods"][name]["cost"]["latency"]["mean"]
        posterior = name in ("vardarts", "darts_posterior")
        assert set(row["test"]) == ({"point", "posterior"} if posterior else {"point"})
        if name in POSTERIORS:
            other = json.loads((out / "rows" / f"{NEEDED[name]}-3.json").read_text())
            assert {part for part in row if row[part] == other[part]} >= {"search", "derived", "choices"}
            assert row["test"] != other["test"]
            assert "searched" not in row  # it searched nothing of its own
        elif name != "plain":
            most = 10_000 if name == "single_path" else 1500  # which scores a few structures however small the budget
            assert abs(row["search"]["images"] - 3000) < most, name
            if name == "random":
                assert 2 <= row["search"]["images"] / (718 + 719) < 3  # two children, trained and scored, and checks
            assert set(row["choices"].values()) <= set(NAMES)
            found, derived = (
                torch.cat([torch.tensor(t) for t in row[key].values()]) for key in ("structure", "derived")
            )
            assert torch.equal(derived, torch.eye(len(NAMES))[found.argmax(-1)])
            assert torch.allclose(found.sum(-1), torch.ones(len(found)), atol=1e-5)
            softly = name not in ("single_path", "random")  # which find a structure; points are weights of a mixture
            assert (found.max() < 1) == softly, name
            for measured in (row["test"]["point"], row["searched"]):
                assert set(measured["robustness"]["deleted_edges"]) == {"0.0", "0.1", "0.3", "0.5"}
            clean = row["searched"]["robustness"]["attack"]["0.0"]
            assert row["searched"]["robustness"]["noise"]["0.0"] == clean
        else:
            assert row["test"]["point"]["robustness"]["deleted_edges"] == {}
        assert name in printed
    drawn = {f"{name}.png" for name in (*METHODS, *POSTERIORS)}
    assert {p.name for p in out.glob("*.png")} == drawn | {"robustness.png"}
    cells = [line.split(" | ") for line in (out / "tables.md").read_text().splitlines() if "| vardarts, " in line]
    assert [line[-1] for line in cells[:2]] == ["1 |", f"{DRAWS} |"]  # networks that a prediction averages


def test_images_of_a_file_are_compared_too(small, tmp_path):
    """They are standardised, so that their range is not [−1, 1]."""
    generator = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = generator.integers(0, 50, (120, 1, 8, 8)) + 100 * (y[:, None, None, None] == np.arange(8)[:, None] // 3)
    np.savez(tmp_path / "mine.npz", x=x.astype(np.uint8), y=y)
    flags = ["--data", str(tmp_path / "mine.npz"), "--methods", '["hard"]', "--seeds", "[0]"]
    assert main(["compare", *flags, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["config"]["size"]["images"] == 3000


@pytest.mark.slow
def test_a_comparison_that_is_killed_continues_without_repeating_a_row(tmp_path):
    out = tmp_path / "run"
    script = SCRIPT.format(folder=os.path.dirname(__file__))
    command = [sys.executable, "-c", script, "compare", "--methods", '["hard","random"]', "--seeds", "[0,1]"]
    command += ["--out", str(out), "--resume", "true"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "rows" / "hard-0.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.read_bytes() for path in (out / "rows").glob("*.json")}
    assert 0 < len(done) < 4
    assert not (out / "summary.json").exists()
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(list((out / "rows").glob("*.json"))) == 4
    assert all((out / "rows" / name).read_bytes() == content for name, content in done.items())
    assert "random" in finished.stdout


def test_a_comparison_goes_on_with_other_methods_and_seeds(small, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["compare", "--methods", '["hard"]', "--seeds", "[0]", "--out", str(out)]) == 0
    before = (out / "rows" / "hard-0.json").read_bytes()
    more = ["--methods", '["random","hard"]', "--seeds", "[0,1]", "--resume", "true"]
    assert main(["compare", *more, "--out", str(out)]) == 0
    assert (out / "rows" / "hard-0.json").read_bytes() == before
    summary = json.loads((out / "summary.json").read_text())
    assert {method: len(rows) for method, rows in summary["rows"].items()} == {"random": 2, "hard": 2}
    assert summary["config"]["seeds"] == [0, 1]
    path = out / "rows" / "hard-1.json"
    stored = json.loads(path.read_text())
    of = stored.pop("seal").partition(" of ")[2]
    for part in ("searched", "structure", "cost"):
        write_sealed(path, {name: value for name, value in stored.items() if name != part}, of)
        capsys.readouterr()
        assert main(["compare", *more, "--out", str(out)]) == 2
        assert re.search(rf"hard-1.json: expected .*'{part}'.*Remove it", capsys.readouterr().err)
    other = {**stored["machine"], "threads": stored["machine"]["threads"] + 1}
    write_sealed(path, {**stored, "machine": other}, of)
    assert "not comparable" not in (out / "tables.md").read_text()
    assert main(["compare", *more, "--out", str(out)]) == 0
    assert "The seconds are not comparable: rows were made with threads" in (out / "tables.md").read_text()


def test_a_row_is_not_kept_without_the_one_that_it_goes_by(tmp_path):
    paths = {(method, seed): tmp_path / f"{method}-{seed}.json" for method in ("vardarts", "plain") for seed in (0, 1)}
    for key in (("vardarts", 0), ("plain", 0), ("vardarts", 1)):
        paths[key].touch()
    command._check_order(paths)
    paths["vardarts", 0].unlink()
    with pytest.raises(ValueError, match=r"plain-0.json: expected vardarts-0.json beside it"):
        command._check_order(paths)


@pytest.mark.parametrize("budget", ["small", "short", "long", "full"])
def test_a_budget_retrains_what_it_searched_larger(budget):
    size = SIZES[budget]
    searched, larger, x = size.searched(1, 10), size.retrained(1, 10), torch.zeros(2, 1, 28, 28)
    assert {site: c.primitives for site, c in searched.choices().items()} == {
        site: c.primitives for site, c in larger.choices().items()
    }
    structure = random_structure(searched, torch.Generator().manual_seed(0))
    counts = [total_cost(derive(space, structure), x, "parameters") for space in (searched, larger)]
    assert 0 < counts[0] < counts[1]


def test_single_path_trains_under_uniform_paths_and_keeps_them(monkeypatch):
    split, fit = load("digits", valid_fraction=0.5), svi.fit
    task = Task(tiny(1, 10), split, 3000, 0, torch.device("cpu"))
    seen = []

    def watched(model, guide, *data, **options):
        fit(model, guide, *data, **options)
        seen.append(choice_probabilities(guide))

    monkeypatch.setattr(svi, "fit", watched)
    METHODS["single_path"](task)
    assert len(seen) == 1
    for table in seen[0].values():
        assert torch.equal(table, torch.full_like(table, 1 / len(NAMES)))


def rank_cells():
    names = ["zero", "convolution 3"]
    return list(all_structures(cell_spaces.nas_bench_201_cell(8, nodes=3, primitives=names)))


def test_rank_orders_all_cells_and_continues(tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["rank", "--methods", '["random","hard"]', "--seeds", "[0,1]", "--images", "3000", "--epochs", "2"]
    flags += ["--primitives", '["zero","convolution 3"]', "--out", str(out)]
    assert main(flags) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["cells"] == len(summary["accuracy"]) == len(list((out / "cells").glob("*-0.json"))) == 8
    # cells whose output no path of convolutions reaches know nothing of x
    convolutions = [cell["structure.cell"][:, 1].tolist() for cell in rank_cells()]
    reached = [bool(direct or (first and second)) for first, direct, second in convolutions]
    assert [accuracy > 0.2 for accuracy in summary["accuracy"]] == reached
    (out / "cells" / "3-1.json").unlink()
    (out / "summary.json").unlink()
    before = (out / "cells" / "2-1.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*flags, "--resume", "true"]) == 0
    assert (out / "cells" / "2-1.json").stat().st_mtime_ns == before
    assert json.loads((out / "summary.json").read_text()) == summary
    assert "ranks among 8" in capsys.readouterr().out

    def store(name, row):
        write_sealed(out / name, row, owner(stored_config(out), name))

    # ranks and correlations by hand: an edge with a convolution adds so much accuracy, probabilities of two kinds
    for seed in (0, 1):
        for number, cell in enumerate(rank_cells()):
            accuracy = 0.1 + 0.01 * seed + float(cell["structure.cell"][:, 1] @ torch.tensor([0.4, 0.2, 0.1]))
            store(f"cells/{number}-{seed}.json", {"accuracy": accuracy})
        soft, vertex = ([0.9, 0.8, 0.7], [1, 0, 0]) if seed == 0 else ([0.1, 0.2, 0.3], [0, 1, 1])
        for method, convolution in {"hard": soft, "random": vertex}.items():
            table = {"structure.cell": [[1 - p, p] for p in convolution]}
            store(f"searches/{method}-{seed}.json", {"structure": table})
    assert main([*flags, "--resume", "true"]) == 0
    found = json.loads((out / "summary.json").read_text())["methods"]
    assert [entry["rank"] for entry in found["hard"]] == [1, 8]
    assert [entry["rank"] for entry in found["random"]] == [4, 5]
    assert [entry["accuracy"] for entry in found["random"]] == pytest.approx([0.505, 0.405])
    swapped = 1 - 6 * 2 / (8 * 63)  # the first edge alone is worth more than the two others, its odds less
    assert [entry["spearman"] for entry in found["hard"]] == pytest.approx([swapped, -swapped])
    assert [entry["spearman"] for entry in found["random"]] == [None, None]


def test_images_are_counted_in_every_pass():
    split = load("digits", valid_fraction=0.5)
    task = Task(tiny(1, 10), split, 3000, 0, torch.device("cpu"))
    model = task.model()
    with Count(model) as count:
        model(split.train[0][:10])
        model(split.train[0][:7])
    model(split.train[0][:100])
    assert count.images == 17


def test_structures_are_scored_with_statistics_of_their_own():
    """A wrong variant, the supernet's running statistics, scores differently and leaves them changed."""
    split = load("digits", valid_fraction=0.5)
    task = Task(tiny(1, 10, 4), split, 3000, 0, torch.device("cpu"))
    model = task.model(structures.categorical())
    guide = guides.PointWeights(model)
    svi.fit(model, guide, split.train, **task.fit_options(8))
    before = {name: value.clone() for name, value in model.named_buffers()}
    score = score_of(task, model, guide)
    drawn = [random_structure(task.space, torch.Generator().manual_seed(seed)) for seed in range(4)]
    scores = [score(structure) for structure in drawn]
    assert len(set(scores)) > 1
    x, y = (part[:1024] for part in split.valid)
    weights = {site: value for site, value in mean_draw(guide).items() if site not in model.choices}
    wrong = [predict(model, {**weights, **{s: t[None] for s, t in one.items()}}, x).argmax(-1) for one in drawn]
    assert scores != [float((found == y).double().mean()) for found in wrong]
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert scores == [score(structure) for structure in drawn]


@pytest.mark.parametrize(("method", "draws"), [("vardarts", 5), ("darts", 1), ("single_path", 1), ("random", 1)])
def test_a_searched_network_is_attacked_as_the_search_left_it(method, draws):
    """Each draw with statistics of its own: wrong variants, those of the training or of all draws, give others."""
    split = load("digits", valid_fraction=0.5)
    seed = 2**63 - 1  # the largest
    task = Task(tiny(1, 10, 4), split, 3000, seed, torch.device("cpu"), batch_size=64, children=2)
    found = METHODS[method](task)
    model, x, y = found.model, *split.test
    before = {name: value.clone() for name, value in model.named_buffers()}
    attack = searched_robustness(task, found)["robustness"]["attack"]
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert {len(value) for value in found.draws.values()} == {draws}
    right, wrong = [], []
    calibrating = tuple(part[:512] for part in split.train)
    for index in range(draws):
        single = {site: value[index : index + 1] for site, value in found.draws.items()}
        with recalibrated(model, single, calibrating):
            right.append(float((predict(model, single, x).argmax(-1) == y).double().mean()))
        with recalibrated(model, found.draws, calibrating) if draws > 1 else nullcontext():
            wrong.append(float((predict(model, single, x).argmax(-1) == y).double().mean()))
    assert attack["0.0"] == pytest.approx(sum(right) / draws)
    assert right != wrong
    assert attack["0.3"] < attack["0.0"]


def test_edges_of_a_posterior_are_present_at_random_and_stay_so():
    """Edges into sums with the probability asked for, those into the concatenation always; each example by itself."""
    split = load("digits", valid_fraction=0.5)
    task = Task(tiny(1, 10), split, 3000, 0, torch.device("cpu"))
    structure = random_structure(task.space, torch.Generator().manual_seed(0))
    model, guide, _ = retrain(
        task, replace(SIZE, presence=0.7), derive(task.space, structure), posterior=True, epochs=1
    )
    drawn = draw(guide, num_samples=400)
    assert set(model.choices) == {"structure.normal", "structure.reduction"}
    for site, choices in model.choices.items():
        present = drawn[site].round().mean(0)[:, 0]
        for (_, vertex), share in zip(choices.edges, present.tolist(), strict=True):
            assert share == 1 if vertex == 3 else abs(share - 0.7) < 4 * (0.21 / 400) ** 0.5
        assert float((drawn[site] - drawn[site].round()).abs().mean()) < 0.05
        assert torch.equal(mean_draw(guide)[site], torch.ones(1, 3, 1))


def test_edges_become_rarer_while_a_posterior_is_retrained(monkeypatch):
    """In a straight line, prior and posterior alike, so that structure costs nothing."""
    split, fit = load("digits", valid_fraction=0.5), svi.fit
    task = Task(tiny(1, 10), split, 3000, 0, torch.device("cpu"))
    structure, shares, terms = random_structure(task.space, torch.Generator().manual_seed(0)), [], []

    def watched(model, guide, train, callbacks, **options):
        def look(record):
            drawn = draw(guide, num_samples=400)["structure.normal"].round()
            shares.append(float(drawn[:, [edge[1] != 3 for edge in model.choices["structure.normal"].edges]].mean()))
            terms.append(record["kl_structure"])

        fit(model, guide, train, callbacks=[look, *callbacks], **options)

    monkeypatch.setattr(svi, "fit", watched)
    retrain(task, replace(SIZE, presence=0.4), derive(task.space, structure), posterior=True, epochs=3)
    assert all(abs(share - expected) < 0.05 for share, expected in zip(shares, (0.8, 0.6, 0.4), strict=True))
    assert max(map(abs, terms)) < 1e-4


def test_latency_is_that_of_an_image_and_the_least_of_rounds_in_which_all_run(monkeypatch):
    split = load("digits", valid_fraction=0.5)
    task = Task(tiny(1, 10), split, 3000, 0, torch.device("cpu"))
    times = {"a": iter([640.0, 320.0, 960.0, 700.0, 500.0]), "b": iter([128.0, 64.0, 640.0, 256.0, 320.0])}
    order = []

    def timed(network, sample, kind):
        assert (kind, len(sample), torch.equal(sample, split.test[0][:64])) == ("latency", 64, True)
        order.append(network)
        return next(times[network])

    monkeypatch.setattr(row_making, "architecture_of", lambda task, size, derived: derived)
    monkeypatch.setattr(row_making, "total_cost", timed)
    assert row_making.latencies(task, SIZE, [{"derived": "a"}, {"derived": "b"}]) == [5.0, 1.0]
    assert order == ["a", "b"] * 5


def test_the_plain_network_takes_the_epochs_that_fit_into_the_time(monkeypatch):
    """Ten epochs and half their time of search, each as long as three of its own: 45."""
    split = load("digits", valid_fraction=0.5)
    task = Task(tiny(1, 10), split, 3000, 0, torch.device("cpu"))
    derived = random_structure(task.space, torch.Generator().manual_seed(0))
    other = {
        "derived": {site: table.tolist() for site, table in derived.items()},
        "search": {"seconds": 50.0},
        "retrain": {"epochs": 10, "seconds": 100.0},
    }
    timed = []

    def timing(task, size, network, posterior, epochs):
        timed.append((posterior, epochs))
        return None, None, 6.0 if posterior else 2.0

    monkeypatch.setattr(row_making, "retrain", timing)
    monkeypatch.setattr(row_making, "retrained", lambda task, size, network, **options: options)
    assert row_making.plain_row(task, SIZE, other) == {"posterior": False, "epochs": 45}
    assert timed == [(True, 1), (False, 1)]


def test_a_posterior_is_discretised_in_three_ways():
    split = load("digits", valid_fraction=0.5)
    task = Task(tiny(1, 10, 4), split, 3000, 0, torch.device("cpu"))
    found = hard(task)
    assert discretised(task, found, "argmax") is found
    sample, best = discretised(task, found, "sample"), discretised(task, found, "best")
    for one in (sample, best):
        assert all(set(table.flatten().tolist()) == {0.0, 1.0} for table in one.structure.values())
    score = score_of(task, found.model, found.guide)
    assert score(best.structure) >= score(sample.structure)
    assert sample.images == found.images < best.images
    assert (best.images - found.images) % (512 + len(split.valid[1])) == 0


def test_collapse_counts_by_hand():
    one = {"a 0→1": "skip", "a 1→2": "max pool", "b 0→1": "convolution 3", "b 1→2": "skip", "b 0→2": "zero"}
    other = {"a 0→1": "skip", "a 1→2": "average pool", "b 0→1": "convolution 3", "b 1→2": "zero", "b 0→2": "zero"}
    assert collapse([one, other]) == {
        "a": {"edges": 2, "skip": 1.0, "pool": 1.0, "zero": 0.0, "agreement": 0.5},
        "b": {"edges": 3, "skip": 0.5, "pool": 0.0, "zero": 1.5, "agreement": pytest.approx(2 / 3)},
    }
    assert collapse([one])["a"]["agreement"] is None


def test_relative_improvement_over_random_search():
    def row(accuracy):
        metrics = {"accuracy": accuracy, "calibration_error": 0.0}
        return {"test": {"point": metrics}, "retrain": {"seconds": 1}, "cost": {"latency": 1}}

    summary = summarise({"random": [row(0.8), row(0.9)], "plain": [row(0.9), row(0.95)]})
    assert summary["plain"]["over_random"] == pytest.approx((0.925 - 0.85) / 0.85)
    assert summary["random"]["over_random"] == 0
    assert summary["plain"]["test"]["point"]["accuracy"]["sd"] == pytest.approx(0.0353553, abs=1e-6)


def test_a_seed_whose_cell_is_dead_has_no_curve_of_deleted_edges(tmp_path):
    """An all-zero cell leaves no edge to delete; the tables then have no such curve for the method."""
    space, split = cell_spaces.nas_bench_201_cell(2, 3), load("digits", valid_fraction=0.5)
    task = Task(space, split, 3000, 0, torch.device("cpu"))
    whole = partial(cell_spaces.nas_bench_201, channels=2, repeats=1, nodes=3, stages=1)
    size = replace(SIZE, retrained=whole, presence=1.0)
    rows = []
    for name in ("zero", "skip"):
        place = NAS_BENCH_201.index(name)
        structure = {"structure.cell": torch.eye(5)[[place] * 3]}
        rows.append(retrained(task, size, derive(whole(1, 10), structure), posterior=True))
        rows[-1]["cost"]["latency"] = 1.0
    curves = [row["test"]["posterior"]["robustness"]["deleted_edges"] for row in rows]
    assert curves[0] == {}
    assert len(curves[1]) == 4
    for order in (rows, rows[::-1]):
        summary = summarise({"hard": order})
        assert summary["hard"]["test"]["posterior"]["robustness"]["deleted_edges"] == {}
        assert "hard, posterior | " in tables(summary)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", '["vardart"]'], "methods: expected one of .* Did you mean 'vardarts'"),
        (["--methods", '["plain"]'], "methods: expected 'vardarts' beside 'plain'"),
        (["--methods", "[]"], "methods: expected one or more"),
        (["--seeds", "[-1]"], "seed: expected an integer of at least 0"),
        (["--budget", "smal"], "budget: expected one of .* Did you mean 'small'"),
        (["--device", "gpu"], "device: expected a device of this machine"),
        (["--data", "mnist"], "root: expected the folder"),
    ],
)
def test_errors_come_before_the_first_step(flags, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["compare", "--out", str(out), *flags]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((40, 3), 2, "data: expected images"),
        ((40, 1, 1, 8), 2, "data: expected images .* sides of at least 2"),
        ((40, 1, 8, 8), 1, "data: expected two classes or more"),
        ((4000, 1, 4, 4), 2, "images: expected a budget of 6400 or more"),
    ],
)
def test_data_are_checked_before_the_first_step(small, shape, classes, message, tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=shape)
    np.savez(tmp_path / "mine.npz", x=x, y=np.arange(len(x)) % classes)
    assert main(["compare", "--data", str(tmp_path / "mine.npz"), "--out", str(tmp_path / "run")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_rows_of_other_settings_are_not_taken(small, tmp_path, capsys, monkeypatch):
    flags = ["compare", "--methods", '["hard"]', "--seeds", "[0]", "--out", str(tmp_path / "run"), "--resume", "true"]
    assert main(flags) == 0
    monkeypatch.setitem(SIZES, "small", replace(SIZE, retrain_lr=0.1))
    assert main(flags) == 2
    assert "resume: expected the options" in capsys.readouterr().err
