"""The mirror: tests lie as the modules do, a file of its name for every module, which goes through it."""

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ELSEWHERE = {  # module: the file of its tests, where that is not of its name
    "pyro_nas.__main__": "studies/test_command_line.py",  # the table of commands, which is what that file runs
    "pyro_nas.studies.rank": "studies/test_compare_command.py",  # ranks by the methods that compare has
    "pyro_nas.studies.search.saved_run": "studies/test_saved_run.py",  # what a run left
    "pyro_nas.studies.fit_arguments": None,  # types alone: mypy is its test
    **dict.fromkeys(  # the parts of a command are tested by running it
        ["pyro_nas.studies.search.command", "pyro_nas.studies.search.report", "pyro_nas.studies.search.settings"],
        "studies/test_command_line.py",
    ),
}


def modules():
    """All modules by name: {name: the file of its tests}, in the folder of its wing, or beside the folders."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    tests = {}
    for package, folder in packages.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.stem == "__init__":
                continue
            parts = [*package.split("."), *path.relative_to(ROOT / folder).with_suffix("").parts]
            wing = "" if len(parts) == 2 else f"{parts[1]}/"
            command = f"{parts[2]}_command" if wing == "studies/" and len(parts) == 4 else parts[-1]
            tests[".".join(parts)] = f"{wing}test_{command}.py"
    return tests | {name: file for name, file in ELSEWHERE.items() if name in tests}


def imported(text):
    """The modules that a file names in its imports, those of the objects that it imports among them."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pyro_nas"):
            names.add(node.module)
            source = importlib.import_module(node.module)
            for alias in node.names:
                names.add(f"{node.module}.{alias.name}")
                names.add(getattr(getattr(source, alias.name, None), "__module__", ""))
    return names


def missing(tests, folder):
    """The modules without a file of tests in a folder."""
    return sorted(name for name, file in tests.items() if file is not None and not (folder / file).is_file())


def test_every_module_has_a_file_of_tests():
    assert missing(modules(), ROOT / "tests") == []


def test_a_module_without_one_is_found(tmp_path):
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "test_zoo.py").touch()
    tests = {"pyro_nas.graph.families.zoo": "graph/test_zoo.py", "pyro_nas.data": "test_data.py"}
    assert missing(tests, tmp_path) == ["pyro_nas.data"]


@pytest.mark.parametrize(
    "name", [name for name, file in modules().items() if file is not None and not name.startswith("pyro_nas.studies")]
)
def test_that_file_goes_through_the_module(name):
    text = (ROOT / "tests" / modules()[name]).read_text()
    assert name in imported(text)
    assert "\ndef test_" in text


def test_all_wings_and_the_root_are_looked_at():
    expected = {
        "pyro_nas.data": "test_data.py",
        "pyro_nas.files.atomic": "files/test_atomic.py",
        "pyro_nas.graph.families.zoo": "graph/test_zoo.py",
        "pyro_nas.models.priors": "models/test_priors.py",
        "pyro_nas.inference.svi": "inference/test_svi.py",
        "pyro_nas.studies.compare.rows": "studies/test_compare_command.py",
        "pyro_nas.studies.tables": "studies/test_tables.py",
    }
    assert expected.items() <= modules().items()
    assert set(ELSEWHERE) <= set(modules())  # no exception is left of a module that is gone
