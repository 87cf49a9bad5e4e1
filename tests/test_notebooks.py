"""Notebooks: each runs in small, and is stored with the output of its source."""

import importlib.util
import json
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parent.parent


def source_cells(path):
    return [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]


NOTEBOOKS = {
    "quick_start": ({"epochs=40": "epochs=2", "(40, 120)": "(1, 2)", "epochs=60": "epochs=2",
                     "num_samples=200": "num_samples=20"},
                    ["test accuracy", "r_hat"]),
    "every_complexity": ({'"epochs": 120': '"epochs": 1', "draws=16": "draws=2", '"particles", 250': '"particles", 2'},
                         ["conditioned", "tuned", "optimum"]),
    "architecture_search": ({'"epochs": 40': '"epochs": 1', '"epochs": 100': '"epochs": 1',
                             '"epochs": 30': '"epochs": 1',
                             "num_samples=200": "num_samples=5", "num_samples=10": "num_samples=2",
                             '"max pool", "average pool", "skip", ': '"max pool", ', "rademacher(32": "rademacher(1",
                             "at, along)": "at, along, rademacher(1, seed=0))"},
                            ["entropy", "deleted_edges", "multiply-accumulates, "]),
    "structure_selection": ({"RESTARTS = 5": "RESTARTS = 1", '"epochs": 200': '"epochs": 2', "draws=8000": "draws=200",
                             "draws=400, warmup=100": "draws=5, warmup=5", "epochs=400": "epochs=2",
                             "epochs=300": "epochs=2", "epochs=800": "epochs=2", "epochs=1200": "epochs=2",
                             "* 16, initial": "* 1, initial", "((200, 0.1), (300, 0.03))": "((2, 0.1), (2, 0.03))",
                             "range(2000)": "range(50)", "draws=100)": "draws=5)"},
                            ["entropy_of_choice", "largest error", "nats  sum of", "formula 6.88", "planted 2"]),
    "model_evidence": ({'study("polynomials")': 'study("logistic", "--methods", "[laplace]", "--folds", "2")',
                        "epochs=600": "epochs=10",
                        'study("logistic")': "summary",
                        "powers=12, draws=120, warmup=40": "powers=1, draws=20, warmup=5", "STEPS = 1000": "STEPS = 2",
                        "epochs=1500": "epochs=2", "draws=3000": "draws=200"},
                       ["leave-one-out", "per weight", "13 powers", "three restarts", "Laplace: sd"]),
}  # fmt: skip
LONG = ("architecture_search", "model_evidence")
PICTURES = {"quick_start": 4, "every_complexity": 4, "architecture_search": 6, "structure_selection": 7,
            "model_evidence": 6}  # fmt: skip


def runner():
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_executed_are_the_notebooks():
    assert {path.stem for path in runner().SOURCES} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in NOTEBOOKS])
def test_notebooks_run(name):
    smaller, words = NOTEBOOKS[name]
    text = json.dumps(runner().execute(ROOT / "notebooks" / f"{name}.py", smaller))
    assert all(word in text for word in words)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stored_with_their_output(name):
    stored = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code] == source_cells(ROOT / "notebooks" / f"{name}.py")
    assert all(cell.execution_count for cell in code)
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) >= PICTURES[name]
    if name == "quick_start":
        assert len([line for cell in code for line in cell.source.splitlines() if line.strip()]) < 40
