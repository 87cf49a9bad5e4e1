"""The complexity study from the command line: its files, resuming, and how a trained hypernetwork reacts to λ."""

import json
from pathlib import Path

import matplotlib.image
import pytest

from pyro_nas.__main__ import main
from pyro_nas.complexity_report import GRID, PUBLISHED, slope_ratios, summarise, tables
from pyro_nas.complexity_rows import COMPLEXITIES, ROWS

SMALL = ["complexity", "--epochs", "3", "--hypernet_epochs", "3", "--hidden", "6", "--draws", "2", "--runs", "2"]


def numbers(folder):
    """Return the rows without what a clock measured."""
    found = {path.name: json.loads(path.read_text()) for path in (folder / "rows").iterdir()}
    for row in found.values():
        row.pop("seconds")
        row.pop("race", None)
    return found


@pytest.mark.parametrize("protocol", ROWS)
def test_a_study_and_its_continuation(protocol, tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = [*SMALL, "--protocol", protocol]
    assert main([*flags, "--out", str(whole)]) == 0
    text = capsys.readouterr().out
    assert {path.name for path in whole.iterdir()} == {
        "config.json", "pruning.png", "rows", "summary.json", "tables.md"}  # fmt: skip
    assert (whole / "tables.md").read_text() in text
    assert matplotlib.image.imread(whole / "pruning.png").std() > 0.01
    assert len(numbers(whole)) == 2 * len(ROWS[protocol])
    summary = json.loads((whole / "summary.json").read_text())
    assert set(summary["rows"]) == set(ROWS[protocol])
    for row in summary["rows"].values():
        for complexity in COMPLEXITIES:
            entry = row[str(complexity)]
            assert len(entry["pruning"]) == 10
            mean = sum(level["mean"] for level in entry["pruning"]) / 10
            assert entry["mean_accuracy"]["mean"] == pytest.approx(mean)
            terms = entry["log_likelihood"]["mean"] - complexity * entry["kl_weights"]["mean"]
            assert entry["evidence"]["mean"] == pytest.approx(terms, rel=1e-4)
    # the same after an interruption in the middle of the second run
    assert main([*flags, "--out", str(broken)]) == 0
    for name in ("summary.json", "tables.md", "pruning.png"):
        (broken / name).unlink()
    for path in sorted((broken / "rows").glob("1-*"))[1:]:
        path.unlink()
    assert main([*flags, "--out", str(broken), "--resume", "true"]) == 0
    assert numbers(broken) == numbers(whole)


def test_a_damaged_row_is_named(tmp_path, capsys):
    assert main([*SMALL[:-1], "1", "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "out" / "rows" / "0-direct.json").write_text("{")
    assert main([*SMALL[:-1], "1", "--out", str(tmp_path / "out"), "--resume", "true"]) == 2
    assert "0-direct.json" in capsys.readouterr().err


def test_published_numbers_stand_in_brackets():
    metrics = ("mean_accuracy", "stability", "evidence", "accuracy")
    values = {str(complexity): dict.fromkeys(metrics, 0.5) for complexity in COMPLEXITIES}
    row = {"updates": 7, "seconds": 1.0, "complexities": values}
    summary = summarise([{"direct": row}], ["direct"])
    assert "[-128929]" in tables(summary, published=True)
    assert "[7458976000]" in tables(summary, published=True)
    assert "[" not in tables(summary, published=False)
    assert set(PUBLISHED) == set(ROWS["paper"])


def check_slopes(factor, power=-0.7):
    """Of KL = λ^power and the 𝔏 whose slope is −KL, the former times a factor."""
    reacted = {
        str(at): {"evidence": -(at ** (power + 1)) / (power + 1), "kl_weights": factor * at**power, "kl_structure": 0.0}
        for at in GRID
    }
    ratios = slope_ratios(reacted)
    assert list(ratios) == [str(at) for at in GRID[1:-1]]
    assert all(abs(ratio - 1) < 1e-3 for ratio in ratios.values())


def test_slopes_are_minus_the_divergence():
    check_slopes(1.0)
    check_slopes(1.0, power=-1.5)
    with pytest.raises(AssertionError):
        check_slopes(1.05)


def test_the_stored_hypernetworks_react_to_the_complexity():
    """KL and E log p(y | x, w) fall with λ in every run, and d𝔏/dλ is −KL within a tenth."""
    stored = json.loads((Path(__file__).parent.parent / "notebooks" / "complexity_best.json").read_text())
    assert len(stored["reaction"]["spline"]) == 5
    for reacted, ratios in zip(stored["reaction"]["spline"], stored["slope_ratios"]["spline"], strict=True):
        for term in ("kl_weights", "log_likelihood"):
            values = [entry[term] for entry in reacted.values()]
            assert values == sorted(values, reverse=True)
        assert len(ratios) == 11
        assert all(abs(ratio - 1) < 0.1 for ratio in ratios.values())
