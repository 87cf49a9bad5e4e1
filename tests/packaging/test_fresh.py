"""A machine that has run nothing yet: import, tests and a search start with empty caches, and print no warning."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LATER = ("arviz", "jsonargparse", "matplotlib", "sklearn", "torchmetrics", "torchvision")
FONTS = "Matplotlib is building the font cache; this may take a moment."  # said by slow machines, once


@pytest.fixture
def python(tmp_path):
    """Run Python in an empty folder, with an empty home and empty caches."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "PYTEST", "XDG"))}
    places = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for place in places.values():
        Path(place).mkdir()

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], env={**keep, **places}, cwd=tmp_path, capture_output=True, text=True
        )

    return run


def test_import_warns_of_nothing_and_loads_little(python):
    loaded = f"print(*[name for name in {LATER} if name in sys.modules])"
    found = python("-W", "error", "-c", f"import sys, pyro_nas; {loaded}")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.split() == []


def test_tests_start_on_a_day_on_which_arviz_warns(python, tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_import.py").write_text("def test_import():\n    import arviz\n")
    found = python("-m", "pytest", "test_import.py")
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
def test_a_search_prints_no_warning(python, tmp_path):
    flags = ["--data", "digits", "--epochs", "1", "--retrain_epochs", "1", "--out", str(tmp_path / "run")]
    found = python("-m", "pyro_nas", "search", *flags)
    assert [line for line in found.stderr.splitlines() if line != FONTS] == []
    assert found.returncode == 0
    assert (tmp_path / "run" / "posterior.nc").exists()


@pytest.mark.parametrize("target", ["test", "test-slow"])
def test_make_starts_tests_with_empty_caches(target):
    commands = subprocess.check_output(["make", "--dry-run", target], cwd=ROOT, text=True)
    (line,) = (line for line in commands.splitlines() if "-m pytest" in line)
    assert "CACHE=$(mktemp -d)" in line
    assert "XDG_CACHE_HOME=$CACHE " in line
