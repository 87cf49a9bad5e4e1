"""A saved run: its predictions on data as they are stored are those of the run, and other files are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pyro_nas.__main__ import main
from pyro_nas.reading.metrics import classification_metrics
from pyro_nas.studies import load_run
from pyro_nas.studies.search.saved_run import MODEL, WEIGHTS

SMALL = ["--epochs", "2", "--retrain_epochs", "5", "--draws", "3", "--space", "layers"]


def wine():
    """Features of scales far from 1, as they would be stored."""
    generator = np.random.default_rng(0)
    y = np.arange(150) % 3
    scale, centre = 10.0 ** np.arange(-2, 3), np.array([100.0, -5.0, 0.0, 3.0, 1e3])
    x = centre + scale * (generator.normal(size=(150, 5)) + 3.0 * np.eye(3, 5)[y])
    return x.astype(np.float32), y


def stored_test_part(x, y):
    """The test part of a file or of digits: a fifth, stratified, drawn once for all."""
    kept = train_test_split(np.arange(len(y)), test_size=0.2, random_state=0, stratify=y)[1]
    return torch.as_tensor(x[kept]), torch.as_tensor(y[kept])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on a file and on digits: {name: folder}."""
    root = tmp_path_factory.mktemp("runs")
    x, y = wine()
    np.savez(root / "wine.npz", x=x, y=y)
    data = {"wine": str(root / "wine.npz"), "digits": "digits"}
    for name, source in data.items():
        assert main(["search", *SMALL, "--data", source, "--out", str(root / name)]) == 0
    return {name: root / name for name in data}


@pytest.mark.parametrize("name", ["wine", "digits"])
def test_predictions_on_stored_data_give_the_test_figures_of_the_run(name, runs):
    x, y = stored_test_part(*(wine() if name == "wine" else load_digits(return_X_y=True)))  # of digits (data, 64)
    run = load_run(runs[name])
    before = torch.get_rng_state()
    found = classification_metrics(run.predict(x), y)
    assert torch.equal(torch.get_rng_state(), before)
    stored = json.loads((runs[name] / "summary.json").read_text())["test"]["derived"]
    assert found == stored
    assert classification_metrics(run.predict((x - 1) * 1.1), y) != stored
    assert run.class_names == tuple("012" if name == "wine" else "0123456789")
    if name == "wine":
        assert stored["accuracy"] > 0.6
        assert run.sd.flatten()[4] / run.sd.flatten()[3] == pytest.approx(10, rel=0.2)


def test_data_of_another_size_are_refused(runs):
    with pytest.raises(ValueError, match=r"x: expected data of shape \(data, …\), 5 numbers each, got .*\(2, 6\)"):
        load_run(runs["wine"]).predict(torch.zeros(2, 6))


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, "config.json"])
def test_files_of_another_run_and_changed_ones_are_refused(name, runs, tmp_path):
    shutil.copytree(runs["wine"], tmp_path / "run")
    shutil.copy(runs["digits"] / name, tmp_path / "run" / name)
    message = r"(model.json|weights.safetensors): expected '.*', got '.*': the file of another"
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path / "run")
    content = bytearray((runs["wine"] / name).read_bytes())
    content[len(content) // 2] ^= 8
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: expected sha256 .*truncated or changed"):
        load_run(tmp_path / "run")


def test_a_folder_without_a_finished_search_is_named(runs, tmp_path):
    with pytest.raises(ValueError, match=r"folder: expected a run, with a config.json, got '.*'"):
        load_run(tmp_path)
    shutil.copy(runs["wine"] / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"folder: expected a finished search, .*--resume true"):
        load_run(tmp_path)
