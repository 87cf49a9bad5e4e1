"""Examples in docstrings print what they say."""

import doctest
import importlib
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules():
    """All modules by name, with their text: {name: text}. (pkgutil does not see models and inference in a checkout.)"""
    found = {}
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for package, folder in folders.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path.read_text()
    return found


def failures(module):
    """What the examples of a module print otherwise than they say."""
    report = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in doctest.DocTestFinder().find(module):
        runner.run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("name", [name for name, text in modules().items() if ">>>" in text])
def test_examples_print_what_they_say(name):
    assert failures(importlib.import_module(name)) == ""


def test_all_three_folders_are_looked_at():
    assert {"pyro_nas", "pyro_nas.graph.space", "pyro_nas.models.priors", "pyro_nas.inference.svi"} <= set(modules())


@pytest.mark.parametrize(("printed", "right"), [("2", True), ("3", False)])
def test_a_wrong_example_is_found(printed, right):
    module = types.ModuleType("example", f">>> 1 + 1\n{printed}\n")
    assert (failures(module) == "") is right
