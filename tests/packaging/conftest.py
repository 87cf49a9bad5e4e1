"""The package as it is installed: a copy in which models and inference lie inside pyro_nas."""

import shutil
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copied(tmp_path):
    """A folder with pyproject.toml and, in build/types as make lint lays it, the package."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = config["tool"]["setuptools"]["package-dir"]
    for package, folder in sorted(folders.items()):
        place = tmp_path / "build" / "types" / package.replace(".", "/")
        shutil.copytree(ROOT / folder, place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path
