"""The rooms: models and inference never import each other, and pyro_nas imports neither but in __main__."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = {"pyro_nas.__main__"}
FORBIDDEN = {
    "models": {"pyro_nas.inference", *COMMANDS},
    "inference": {"pyro_nas.models", *COMMANDS},
    "pyro_nas": {"pyro_nas.models", "pyro_nas.inference", *COMMANDS},
}


def imported(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def breaches(room: str, source: str) -> set[str]:
    return {name for name in imported(source) for bad in FORBIDDEN[room] if name == bad or name.startswith(bad + ".")}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_do_not_import_against_the_plan(room):
    files = [path for path in (ROOT / room).rglob("*.py") if path.name != "__main__.py"]
    assert files
    assert {path.name: bad for path in files if (bad := breaches(room, path.read_text()))} == {}


def test_a_breach_is_seen():
    assert breaches("models", "from pyro_nas.inference import svi")
    assert breaches("pyro_nas", "from pyro_nas import models")
    assert breaches("inference", "import pyro_nas.models.guides as g")


def test_only_models_samples_and_only_inference_steps():
    for room in ("pyro_nas", "inference"):
        for path in (ROOT / room).rglob("*.py"):
            assert "pyro.sample(" not in path.read_text(), path
    for room in ("pyro_nas", "models"):
        for path in (ROOT / room).rglob("*.py"):
            assert ".step()" not in path.read_text(), path
