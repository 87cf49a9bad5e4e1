"""Benchmarks: each runs, and appends a line that says on what."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IN_SMALL = {
    "bench": "import steps as it; it.STEPS, it.WARM, it.growth = 1, 0, float",
    "bench_search": "import search as it; it.STEPS, it.WARM, it.BATCH = 1, 0, 2",
}
RATIOS = {
    "bench": lambda run: [row["ours/by hand"] for row in run["rows"]],
    "bench_search": lambda run: [run["VarDARTS/deterministic"], run["deterministic/by hand"]],
}


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "notebooks" / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_line_is_appended_and_says_on_what(tmp_path):
    append = runpy.run_path(str(ROOT / "notebooks" / "benchmarks" / "record.py"))["append"]
    for ratio in (0.5, 0.6):
        append("it", {"ratio": ratio}, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "it.jsonl").read_text().splitlines()]
    assert [line["ratio"] for line in lines] == [0.5, 0.6]
    assert all(line["date"] and line["machine"]["processor"] and line["machine"]["torch"] for line in lines)


@pytest.mark.parametrize("name", IN_SMALL)
def test_stored_runs_can_be_read(name):
    for line in (ROOT / "notebooks" / f"{name}.jsonl").read_text().splitlines():
        assert {"commit", "date", "machine"} <= set(json.loads(line))
        assert all(ratio > 0 for ratio in RATIOS[name](json.loads(line)))


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_SMALL)
def test_benchmarks_run(name):
    out = run(f"{IN_SMALL[name]}; it.append = lambda name, run: print(json.dumps(run)); import json; it.main()")
    assert all(ratio > 0 for ratio in RATIOS[name](json.loads(out.splitlines()[-1])))
