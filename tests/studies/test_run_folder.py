"""The run folder: rows that are made once, and what stands there when a run goes on."""

import json

import pytest

from pyro_nas.studies.run_folder import RunFolder


def test_a_row_is_made_once_and_read_from_then_on(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"accuracy": 0.1 + 0.2, "choices": ("a", "b")}

    folder = RunFolder(tmp_path / "run", {"seed": 0}, resume=False)
    first = folder.row("rows/a.json", ("accuracy",), make)
    assert first == {"accuracy": 0.1 + 0.2, "choices": ["a", "b"]}  # as it is stored, and later read
    assert json.loads((tmp_path / "run" / "rows" / "a.json").read_text()) == first
    continued = RunFolder(tmp_path / "run", {"seed": 0}, resume=True)
    assert continued.row("rows/a.json", ("accuracy",), make) == first
    assert calls == [1]


def test_a_row_that_fails_leaves_no_file(tmp_path):
    def fail():
        raise ValueError("no row")

    folder = RunFolder(tmp_path / "run", {}, resume=False)
    with pytest.raises(ValueError, match="no row"):
        folder.row("rows/a.json", (), fail)
    assert not (tmp_path / "run" / "rows").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"choices": []}'])
def test_a_damaged_row_is_named_and_not_made_anew(content, tmp_path):
    folder = RunFolder(tmp_path / "run", {}, resume=False)
    path = tmp_path / "run" / "rows" / "a.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=r"a.json: expected .*Remove the file"):
        folder.row("rows/a.json", ("accuracy",), lambda: {"accuracy": 1.0})
    assert path.read_text() == content


def test_a_folder_in_use_is_refused_and_other_options_are_named(tmp_path):
    RunFolder(tmp_path / "run", {"seed": 0, "data": "digits"}, resume=False)
    with pytest.raises(FileExistsError, match="out: expected a new or empty folder"):
        RunFolder(tmp_path / "run", {"seed": 0, "data": "digits"}, resume=False)
    with pytest.raises(ValueError, match=r"resume: expected the options .* seed 0 → 1"):
        RunFolder(tmp_path / "run", {"seed": 1, "data": "digits"}, resume=True)
