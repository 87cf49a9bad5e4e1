"""The command line, the run folder, resuming after kill -9."""

import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import arviz as az
import matplotlib.image
import numpy as np
import pytest
import torch

from pyro_nas import Space, derive, predict, read_space
from pyro_nas.__main__ import main
from pyro_nas.data import load
from pyro_nas.files import load_state
from pyro_nas.graph.families import zoo
from pyro_nas.graph.primitives import dense, flatten
from pyro_nas.graph.space_files import write_space
from pyro_nas.inference.loop import Session
from pyro_nas.models import Model, guides, priors
from pyro_nas.reading.posterior import draw
from pyro_nas.studies.search.command import derived_space, epochs_of

ROOT = Path(__file__).parents[2]
SMALL = ["--epochs", "3", "--retrain_epochs", "3", "--draws", "3", "--space", "layers"]
FILES = [
    "architecture.json", "architecture.png", "history.png", "posterior.nc", "structure.png", "summary.json",
    "model.json", "weights.safetensors",
]  # fmt: skip


def numbers(folder):
    """Return the summary without what a clock measured."""
    summary = json.loads((Path(folder) / "summary.json").read_text())
    assert set(summary.pop("seconds")) == {"search", "retrain", "test"}
    return summary


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["search", *SMALL, "--seed", "3", "--out", str(out)]) == 0
    return out


def test_run_folder(run):
    assert set(FILES) <= {path.name for path in run.iterdir()}
    summary = numbers(run)
    assert {"data", "seed", "test", "probabilities", "entropy", "evidence", "parameters"} <= set(summary)
    for name in ("posterior_predictive", "derived"):
        assert summary["test"][name]["accuracy"] > 0.8
        assert summary["test"][name]["calibration_error"] < 0.2
        assert -1 < summary["test"][name]["log_likelihood"] < 0
    for table in summary["probabilities"].values():
        assert sum(table.values()) == pytest.approx(1.0, abs=1e-5)
    ranked = [math.exp(entry["log_probability"]) for entry in summary["probable_structures"]]
    (table,) = summary["probabilities"].values()
    assert ranked == pytest.approx(sorted(table.values(), reverse=True))
    terms = summary["evidence"]["search"]
    assert terms["evidence"] == pytest.approx(
        terms["log_likelihood"] - 0.001 * (terms["kl_weights"] + terms["kl_structure"]), rel=1e-4
    )
    posterior = az.from_netcdf(str(run / "posterior.nc"))["posterior"]
    assert posterior["structure"].shape == (1, 1000, 1, 3)
    for picture in ("architecture.png", "structure.png", "history.png"):
        pixels = matplotlib.image.imread(run / picture)
        assert pixels.shape[0] > 100
        assert pixels[..., :3].std() > 0.01


def test_the_run_folder_gives_the_network_back(run):
    space = read_space(run / "architecture.json")
    assert space.choices() == {}
    split = load("digits")
    model = Model(space, num_data=len(split.known[1]), weights=priors.normal(priors.fan_in()))
    guide = guides.MeanField(model)
    load_state(run / "weights.safetensors", model, guide)
    x, y = split.test
    accuracy = (predict(model, draw(guide, num_samples=30), x).argmax(-1) == y).double().mean().item()
    assert accuracy == pytest.approx(numbers(run)["test"]["derived"]["accuracy"], abs=0.06)
    assert sum(p.numel() for p in model.network.parameters()) == numbers(run)["parameters"]["derived"]


def test_the_same_seed_gives_the_same_numbers_in_another_process_also_after_kill_9(run, tmp_path):
    command = [sys.executable, "-m", "pyro_nas", "search", *SMALL, "--seed", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process
    out = tmp_path / "whole"
    subprocess.run([*command, "--out", str(out)], check=True, cwd=ROOT, env=environment, capture_output=True)
    assert numbers(out) == numbers(run)
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, "--out", str(out)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (out / "search" / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "summary.json").exists()
    subprocess.run(
        [*command, "--out", str(out), "--resume", "true"], check=True, cwd=ROOT, env=environment, capture_output=True
    )
    assert numbers(out) == numbers(run)


def test_a_terminal_without_arrows_ends_no_run(monkeypatch):
    """cp1252, that of Windows, has neither λ nor →: they are printed as question marks."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit, match="0"):
        main(["search", "--help"])
    print("edge → probability")
    stream.flush()
    assert stream.buffer.getvalue().decode("cp1252").splitlines()[-1] == "edge ? probability"


def test_what_the_end_of_a_search_needs_is_tried_before_its_start(monkeypatch, tmp_path, capsys):
    def missing(*args):
        raise ImportError("no NetCDF here")

    def never(*args, **options):
        raise AssertionError

    monkeypatch.setattr("pyro_nas.reading.arviz_export.to_arviz", missing)
    monkeypatch.setattr("pyro_nas.inference.bilevel.fit", never)
    assert main(["search", *SMALL, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "posterior.nc: expected a machine that can write NetCDF, at the end of the run, got ImportError" in message
    assert not (tmp_path / "out").exists()


def test_a_network_is_derived_where_no_primitive_is_probable():
    """On the cube: of two edges in a row the output's has two primitives of 0.4 and 0.3; without either it has none."""
    edges = {(0, 1): {n: dense(2, 2) for n in "ab"}, (1, 2): {n: dense(2, 2) for n in "ab"}}
    space = Space(edges, restriction="cube")
    table = torch.tensor([[0.9, 0.1], [0.4, 0.3]])
    with pytest.raises(ValueError, match="no primitive is left on any edge into 2"):
        derive(space, {"structure": table})
    derived = derived_space(space, {"structure": table})
    assert {edge: list(primitives) for edge, primitives in derived.edges.items()} == {(0, 1): ["a"], (1, 2): ["a"]}
    wide = derived_space(space, {"structure": torch.tensor([[0.9, 0.8], [0.4, 0.9]])})
    assert {edge: list(primitives) for edge, primitives in wide.edges.items()} == {(0, 1): ["a+b"], (1, 2): ["b"]}


def test_a_damaged_run_is_refused(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    tensors = next((copy / "search").glob("*.safetensors"))
    content = bytearray(tensors.read_bytes())
    content[200] ^= 4
    tensors.write_bytes(content)
    assert main(["search", *SMALL, "--seed", "3", "--out", str(copy), "--resume", "true"]) == 2
    message = capsys.readouterr().err
    assert tensors.name in message
    assert "sha256" in message
    assert main(["search", *SMALL, "--seed", "4", "--out", str(copy), "--resume", "true"]) == 2
    assert "seed 3 → 4" in capsys.readouterr().err


def test_a_space_that_changed_in_its_file_is_refused_with_what_changed(tmp_path, capsys):
    def write(activation):
        edges = {(0, 1): {"flatten": flatten()}, (1, 2): {"a": dense(64, 10, activation), "b": dense(64, 10)}}
        write_space(Space(edges), tmp_path / "space.json")

    out = tmp_path / "out"
    flags = ["search", *SMALL[:-2], "--space", str(tmp_path / "space.json"), "--out", str(out), "--resume", "true"]
    write("tanh")
    assert main(flags) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write("gelu")
    assert main(flags) == 2
    assert "space.edges[1].primitives.a.arguments.activation 'tanh' → 'gelu'. Resume" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    write("tanh")
    assert main(flags) == 0


def test_a_search_of_another_seed_is_not_taken(run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(run, out)
    for name in ("retrain", "config.json"):
        (shutil.rmtree if name == "retrain" else Path.unlink)(out / name)
    for name in FILES:
        (out / name).unlink()
    flags = ["search", *SMALL, "--seed", "4", "--out", str(out), "--resume", "true"]
    assert main(flags) == 2  # a folder without a configuration is no run
    assert "out: expected a new or empty folder" in capsys.readouterr().err
    assert main([*flags[:-4], "--out", str(tmp_path / "other")]) == 0
    shutil.rmtree(tmp_path / "other" / "search")
    shutil.copytree(run / "search", tmp_path / "other" / "search")
    assert main([*flags[:-3], str(tmp_path / "other"), "--resume", "true"]) == 2
    assert "checkpoint: expected the fit that" in (message := capsys.readouterr().err)
    assert "fit.options.seed 3 → 4" in message


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_one_line_that_says_how_to_go_on(number, status, run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "a folder"
    arguments = ["search", *SMALL, "--seed", "3", "--out", str(out)]
    epoch = Session._epoch

    def signalled(session, count, *rest):
        if count == 1:
            os.kill(os.getpid(), number)
        return epoch(session, count, *rest)

    before = signal.signal(number, signal.default_int_handler)  # a shell starts what it puts aside with SIGINT ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_epoch", signalled)
            assert main(arguments) == status
    finally:
        signal.signal(number, before)
    command = shlex.join(["pyro-nas", *arguments, "--resume", "true"])
    said = f"pyro-nas: stopped by {signal.Signals(number).name}. To continue: {command}\n"
    assert capsys.readouterr().err == said
    assert sorted(path.name for path in out.rglob("*")) == ["checkpoint.safetensors", "config.json", "search"]
    assert main(shlex.split(command)[1:]) == 0
    assert numbers(out) == numbers(run)


def test_handlers_of_signals_are_left_as_they_were_and_resume_is_said_once(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("pyro_nas.__main__.auto_cli", lambda *args, **options: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["rank", "--resume", "true"]) == 143
    assert capsys.readouterr().err.endswith("To continue: pyro-nas rank --resume true\n")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_npz_and_a_space_from_a_file(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = np.eye(3)[y] @ rng.normal(0, 2, (3, 5)) + 0.3 * rng.normal(size=(300, 5))
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    write_space(zoo.layers(5, 3, width=16, depth=2), tmp_path / "space.json")
    flags = ["--data", str(tmp_path / "mine.npz"), "--space", str(tmp_path / "space.json"), "--epochs", "20"]
    assert main(["search", *flags, "--retrain_epochs", "20", "--out", str(tmp_path / "out")]) == 0
    assert numbers(tmp_path / "out")["test"]["derived"]["accuracy"] > 0.9


def test_a_space_on_the_cube(tmp_path):
    edges = {
        (0, 1): {"flatten": flatten(), "skip": flatten()},
        (1, 2): {"a": dense(64, 10), "b": dense(64, 10, "tanh")},
    }
    write_space(Space(edges, restriction="cube"), tmp_path / "space.json")
    flags = ["--space", str(tmp_path / "space.json"), "--structure", "relaxed_bernoulli", "--epochs", "2"]
    assert main(["search", *flags, "--retrain_epochs", "1", "--draws", "2", "--out", str(tmp_path / "out")]) == 0
    best = numbers(tmp_path / "out")["probable_structures"][0]["choices"]
    assert set(best) == {"structure 0→1", "structure 1→2"}


def test_configuration_files(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["search", "--epochs", "7", "--print_config"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "epochs: 7" in text
    (tmp_path / "config.yaml").write_text(re.sub("epochs: .*", "epochs: 1", text).replace("auto", "layers"))
    out = tmp_path / "out"
    assert main(["search", "--config", str(tmp_path / "config.yaml"), "--draws", "2", "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["epochs"] == 1


def test_large_sets_get_fewer_epochs_unless_told():
    def data(size):
        return torch.zeros(size, 1), torch.zeros(size)

    assert [epochs_of(None, data(size)) for size in (1000, 10_000, 48_000)] == [60, 10, 3]
    assert epochs_of(7, data(48_000)) == 7


@pytest.mark.slow
@pytest.mark.skipif(
    "PYRO_NAS_ROOT" not in os.environ, reason="PYRO_NAS_ROOT, a folder with torchvision's sets, is not set"
)
@pytest.mark.parametrize("data", ["mnist", "fashion-mnist"])
def test_torchvision_sets(data, tmp_path):
    flags = ["--data", data, "--root", os.environ["PYRO_NAS_ROOT"], "--epochs", "1", "--retrain_epochs", "1"]
    flags += ["--space", "layers", "--batch_size", "256", "--draws", "3", "--complexity", "0.1"]
    assert main(["search", *flags, "--out", str(tmp_path / "out")]) == 0
    assert numbers(tmp_path / "out")["test"]["derived"]["accuracy"] > 0.7


def test_the_command_line_takes_tiny_numbers_as_zero(capsys):
    torch.set_flush_denormal(False)
    tiny = torch.ones(8, dtype=torch.int32).view(torch.float32)
    assert (tiny * 1).view(torch.int32).any()
    try:
        assert main(["rank", "--data", "nothing"]) == 2
        assert not (tiny * 1).view(torch.int32).any()
    finally:
        torch.set_flush_denormal(False)


def test_torch_runs_on_one_thread_here():
    """The bit-for-bit test compares with a process of one thread."""
    assert torch.get_num_threads() == 1
