"""The wings: an import against the plan, and a misspelt name of models or inference, are found by make lint."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ("pyro_nas", "models", "inference") for path in (ROOT / room).rglob("*.py"))
LAYERS = "Each wing knows only those below it, and models and inference never each other"
GRAPH = "Graph knows nothing of probability"
STUDIES = "Nothing imports the studies but the command line"
PLANTED = {  # file, import, contract that breaks
    "graph → evidence": ("graph/space.py", "from pyro_nas.evidence import Terms", LAYERS),
    "graph → Pyro": ("graph/families/zoo.py", "import pyro.distributions as dist", GRAPH),
    "evidence → reading": ("evidence/sites.py", "def late():\n    from pyro_nas.reading import posterior", LAYERS),
    "reading → models": ("reading/posterior.py", "from pyro_nas.models.priors import normal", LAYERS),
    "evidence → models": ("evidence/packing.py", "import pyro_nas.models", LAYERS),
    "models → inference": ("models/priors.py", "from pyro_nas import inference", LAYERS),
    "models → studies": ("models/model.py", "import pyro_nas.studies.rank", LAYERS),
    "inference → models": ("inference/svi.py", "from pyro_nas.models import guides as known", LAYERS),
    "inference → studies": ("inference/loop.py", "from pyro_nas.studies import rank", LAYERS),
    "studies → command line": ("studies/rank.py", "from pyro_nas.__main__ import main", LAYERS),
    "package → studies": ("__init__.py", "from pyro_nas import studies", STUDIES),
}  # fmt: skip


def lint_imports(folder):
    program = str(Path(sys.executable).with_name("lint-imports"))
    return subprocess.run(
        [program, "--no-cache", "../../pyproject.toml"], cwd=folder / "build/types", capture_output=True, text=True
    )


def commands(target):
    """What make runs for a target."""
    return subprocess.check_output(["make", "--dry-run", target], cwd=ROOT, text=True)


def test_the_plan_is_kept(copied):
    found = lint_imports(copied)
    assert found.returncode == 0, found.stdout
    assert "BROKEN" not in found.stdout


@pytest.mark.parametrize("breach", PLANTED)
def test_a_forbidden_import_is_found(copied, breach):
    file, line, contract = PLANTED[breach]
    path = copied / "build/types/pyro_nas" / file
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    found = lint_imports(copied)
    assert found.returncode == 1, found.stdout
    assert f"{contract} BROKEN" in found.stdout
    module = "pyro_nas." + file.removesuffix(".py").replace("/", ".").replace(".__init__", "")
    assert module.replace("pyro_nas.__init__", "pyro_nas") in found.stdout


def test_make_lint_runs_what_these_tests_run():
    assert "lint-imports --no-cache ../../pyproject.toml" in commands("lint")
    assert "mypy -p pyro_nas" in commands("lint")


def test_only_models_samples_and_only_inference_steps():
    for path in SOURCES:
        wing = path.relative_to(ROOT).parts[0]
        assert wing == "models" or "pyro.sample(" not in path.read_text(), path
        assert wing == "inference" or ".step()" not in path.read_text(), path


def rooms_of(tree):
    """Names in a module that stand for models, for inference, or for a module of theirs: {name: room}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pyro_nas", "pyro_nas.models", "pyro_nas.inference"):
            for alias in node.names:
                room = f"{node.module}.{alias.name}".split(".")[1]
                if room in ("models", "inference") and alias.name.islower():
                    names[alias.asname or alias.name] = room
    return names


def misspelt(text):
    """A module's text with an x behind the first attribute that it takes of each room: (text, {room: attribute})."""
    tree = ast.parse(text)
    names, first = rooms_of(tree), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            first.setdefault(names[node.value.id], node)
    lines = text.encode().splitlines(keepends=True)  # ast counts columns in bytes
    for node in sorted(first.values(), key=lambda node: (node.end_lineno, node.end_col_offset), reverse=True):
        line = lines[node.end_lineno - 1]
        lines[node.end_lineno - 1] = line[: node.end_col_offset] + b"x" + line[node.end_col_offset :]
    return b"".join(lines).decode(), {room: f"{node.attr}x" for room, node in first.items()}


@pytest.mark.slow
def test_a_misspelt_name_in_a_study_is_found(copied):
    planted = {}
    for path in sorted((copied / "build/types/pyro_nas/studies").rglob("*.py")):
        text, attributes = misspelt(path.read_text())
        path.write_text(text)
        planted.update({(str(path.relative_to(copied)), room): name for room, name in attributes.items()})
    assert {room for _, room in planted} == {"models", "inference"}
    found = subprocess.run([sys.executable, "-m", "mypy", "-p", "pyro_nas"], cwd=copied, capture_output=True, text=True)
    assert found.returncode == 1, found.stderr
    lines = found.stdout.splitlines()
    for (file, _), name in planted.items():
        assert any(line.startswith(file) and f'{name}"' in line for line in lines), (file, name)
