"""The wheel: every package and py.typed are in it, nothing else is, and its version is the package's."""

import runpy
import tomllib
import zipfile
from pathlib import Path

import pytest

import pyro_nas

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def packages():
    """Every folder with an __init__.py, by the name under which it is imported."""
    for package, folder in SETUPTOOLS["package-dir"].items():
        for path in (ROOT / folder).rglob("__init__.py"):
            yield ".".join([package, *path.parent.relative_to(ROOT / folder).parts])


def test_every_package_is_listed():
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages())


def test_every_folder_of_modules_is_a_package():
    for folder in SETUPTOOLS["package-dir"].values():
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


@pytest.mark.slow
def test_the_wheel_has_all_of_the_package_and_no_more(tmp_path):
    wheel = runpy.run_path(str(Path(__file__).with_name("pythons.py")))["build_wheel"](tmp_path)
    assert wheel.name.split("-")[:2] == ["pyro_nas", pyro_nas.__version__]
    modules = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"pyro_nas/py.typed"}
    for package, folder in SETUPTOOLS["package-dir"].items():
        for path in (ROOT / folder).rglob("*.py"):
            expected.add(f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder)}")
    assert modules == expected
