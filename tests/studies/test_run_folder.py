"""The run folder: rows that are made once, what stands there when a run goes on, and whose it is."""

import json
import os
import shutil

import pytest
import torch

from pyro_nas.files import LOCK, read_sealed, read_tensors
from pyro_nas.studies import run_folder
from pyro_nas.studies.run_folder import CONFIG, RunFolder, owner, stored_config


def test_a_row_is_made_once_and_read_from_then_on(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"accuracy": 0.1 + 0.2, "choices": ("a", "b")}

    with RunFolder(tmp_path / "run", {"seed": 0}, resume=False) as folder:
        first = folder.row("rows/a.json", ("accuracy",), make)
    assert first == {"accuracy": 0.1 + 0.2, "choices": ["a", "b"]}  # as it is stored, and later read
    stored = json.loads((tmp_path / "run" / "rows" / "a.json").read_text())
    assert stored.pop("seal").endswith("/rows/a.json")
    assert stored == first
    with RunFolder(tmp_path / "run", {"seed": 0}, resume=True) as continued:
        assert continued.row("rows/a.json", ("accuracy",), make) == first
    assert calls == [1]


def test_a_row_that_fails_leaves_no_file(tmp_path):
    def fail():
        raise ValueError("no row")

    with RunFolder(tmp_path / "run", {}, resume=False) as folder, pytest.raises(ValueError, match="no row"):
        folder.row("rows/a.json", (), fail)
    assert os.listdir(tmp_path / "run") == [CONFIG]


@pytest.mark.parametrize("content", ["{", "[]", '{"choices": []}', ""])
def test_a_damaged_row_is_named_and_not_made_anew(content, tmp_path):
    with RunFolder(tmp_path / "run", {}, resume=False) as folder:
        path = tmp_path / "run" / "rows" / "a.json"
        path.parent.mkdir()
        path.write_text(content)
        with pytest.raises(ValueError, match=r"a.json: expected .*Remove it to make it again"):
            folder.row("rows/a.json", ("accuracy",), lambda: {"accuracy": 1.0})
        assert path.read_text() == content


def test_rows_of_another_run_or_another_name_or_without_a_field_are_refused(tmp_path):
    for seed in (0, 1):
        with RunFolder(tmp_path / str(seed), {"seed": seed}, resume=False) as folder:
            for name in "ab":
                folder.row(f"rows/{name}.json", (), lambda seed=seed: {"accuracy": seed / 2})
    rows = [tmp_path / str(seed) / "rows" / f"{name}.json" for seed in (0, 1) for name in "ab"]
    content = rows[0].read_bytes()
    with RunFolder(tmp_path / "0", {"seed": 0}, resume=True) as folder:
        for other in rows[1:]:
            rows[0].write_bytes(other.read_bytes())
            with pytest.raises(ValueError, match=r"a.json: expected '.*/rows/a.json', got '.*': the file of another"):
                folder.row("rows/a.json", (), dict)
        rows[0].write_bytes(content)
        assert folder.row("rows/a.json", ("accuracy",), dict) == {"accuracy": 0.0}
        with pytest.raises(ValueError, match=r"a.json: expected a JSON object with \['spread'\]"):
            folder.row("rows/a.json", ("spread",), dict)


def entered(*args, **options):
    """Enter a run folder that is to be refused."""
    with RunFolder(*args, **options):
        pass


def test_a_folder_in_use_is_refused_and_other_options_are_listed(tmp_path, monkeypatch):
    run = tmp_path / "run"
    config = {"seed": 0, "data": "digits", "space": {"edges": [{"primitives": {"a": "tanh"}}]}}
    in_use = pytest.raises(BlockingIOError, match=rf"out: expected .*in use by process {os.getpid()}")
    with RunFolder(run, config, resume=False), in_use:
        entered(run, config, resume=True)
    with pytest.raises(FileExistsError, match=r"out: expected a new or empty folder, .*resume the run there"):
        entered(run, config, resume=False)
    other = {**config, "seed": 1, "space": {"edges": [{"primitives": {"a": "gelu"}}]}}
    message = r"resume: expected the options that .* got seed 0 → 1, space.edges\[0\].primitives.a 'tanh' → 'gelu'\. Re"
    with pytest.raises(ValueError, match=message):
        entered(run, other, resume=True)
    monkeypatch.setattr(run_folder, "versions", lambda: {**stored_config(run)["versions"], "torch": "1.0"})
    with pytest.raises(ValueError, match=r"got versions.torch '.*' → '1.0'"):
        entered(run, config, resume=True)
    assert os.listdir(run) == [CONFIG]


def test_other_files_are_no_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"out: expected a new or empty folder, got '.*run'. Name another.$"):
            entered(run, {}, resume=resume)
    with pytest.raises(FileExistsError, match="out: expected a folder, got the file"):
        entered(run / "notes.txt", {}, resume=True)
    assert os.listdir(run) == ["notes.txt"]
    with pytest.raises(ValueError, match=r"folder: expected a run, with a config.json"):
        stored_config(run)


@pytest.mark.parametrize("resume", [False, True])
def test_a_kill_while_the_configuration_is_written_leaves_a_folder_to_begin_in(resume, tmp_path, monkeypatch):
    def kill(descriptor):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)  # nothing runs after a kill
        with pytest.raises(KeyboardInterrupt):
            entered(run, {"seed": 0}, resume=False)
    (run / LOCK).write_text("1234567")  # whose process is dead
    assert len(os.listdir(run)) == 2
    entered(run, {"seed": 0}, resume=resume)
    assert os.listdir(run) == [CONFIG]
    assert stored_config(run)["seed"] == 0


def test_files_say_whose_they_are(tmp_path):
    weights = {"w": torch.ones(2)}
    with RunFolder(tmp_path, {"seed": 0}, resume=False) as folder:
        folder.write_sealed("model.json", {"a": 1})
        folder.write_tensors("weights.safetensors", weights)
        folder.write_json("summary.json", {"b": 2})
        folder.write_text("table.md", "λ")
        folder.write_with("curve.png", lambda path: path.write_bytes(path.suffix.encode()))
    config = stored_config(tmp_path)
    assert config == folder.config
    assert read_sealed(tmp_path / "model.json", of=owner(config, "model.json")) == {"a": 1}
    found = read_tensors(tmp_path / "weights.safetensors", owner(config, "weights.safetensors"))
    assert torch.equal(found["w"], weights["w"])
    assert owner({**config, "seed": 1}, "model.json") != owner(config, "model.json")
    assert json.loads((tmp_path / "summary.json").read_text()) == {"b": 2}
    assert (tmp_path / "table.md").read_text() == "λ"
    assert (tmp_path / "curve.png").read_bytes() == b".png"
    assert len(os.listdir(tmp_path)) == 6
