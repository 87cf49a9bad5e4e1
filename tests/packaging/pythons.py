"""Try the wheel on each supported Python, in a fresh environment outside the checkout (make test-pythons).

Usage: python tests/packaging/pythons.py [--pythons 3.12 3.13] [--tests tests/graph …]; an interpreter that is absent is
named. Each environment takes 6 GB of a temporary folder while it is tried.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("pyro_nas", "models", "inference", "pyproject.toml", "README.md", "LICENSE")
PYTHONS: dict[str, dict[str, str]] = {  # what a Python installs instead of what constraints.txt says
    "3.11": {},
    "3.12": {"arviz": "arviz>=1"},
    "3.13": {},
}
OF_THE_CHECKOUT = ("tests/packaging", "tests/test_notebooks.py", "tests/test_readme.py")  # test more than the wheel
HIDDEN = shutil.ignore_patterns("__pycache__", ".*", "*.ipynb")


def interpreter(version: str) -> str | None:
    """Return the path of a Python of this version, in PATH or of pyenv, that starts."""
    kept = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [shutil.which(f"python{version}"), *kept.glob(f"versions/{version}.*/bin/python{version}")]
    for path in filter(None, candidates):
        if subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return str(path)
    return None


def build_wheel(folder: Path) -> Path:
    """Build the wheel in a folder, from a copy of the sources: what an earlier build left does not get in."""
    source = folder / "source"
    source.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=HIDDEN)
        else:
            shutil.copy(ROOT / part, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def constraints(instead: dict[str, str]) -> Iterator[str]:
    """Yield the lines of constraints.txt, some of them replaced."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        yield instead.get(line.split("==")[0], line)


def attempt(python: str, wheel: Path, instead: dict[str, str], tests: Sequence[str], folder: Path) -> None:
    """Install the wheel, run the tests on it and a short search; raise CalledProcessError where one fails."""
    for part in ("tests", "notebooks"):
        shutil.copytree(ROOT / part, folder / part, ignore=HIDDEN)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "constraints.txt").write_text("\n".join(constraints(instead)))
    hidden = ("PYTHONPATH", "PIP_CONSTRAINT", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"OMP_NUM_THREADS": "1"}

    def run(*command: str | Path, **more: str) -> None:
        print("$", *command, flush=True)
        subprocess.run(command, cwd=folder, env={**environment, **more}, check=True)

    run(python, "-m", "venv", ".venv")
    own = folder / ".venv" / "bin" / "python"
    run(own, "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", f"{wheel}[dev]", *instead.values())
    fresh = {"XDG_CACHE_HOME": str(folder / "cache")}
    chosen = tests or ["tests", *(f"--ignore={path}" for path in OF_THE_CHECKOUT)]
    run(own, "-m", "pytest", "-m", "not slow", "--numprocesses", "2", "--dist", "worksteal", *chosen, **fresh)
    flags = ["--data", "digits", "--epochs", "2", "--retrain_epochs", "2", "--out", "run"]
    run(own.with_name("pyro-nas"), "search", *flags, **fresh)


def main() -> int:
    """Try all; return 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pythons", nargs="*", choices=list(PYTHONS), default=list(PYTHONS))
    parser.add_argument("--tests", nargs="*", default=[], help="by default all fast ones")
    chosen = parser.parse_args()
    outcomes = {}
    with tempfile.TemporaryDirectory() as place:
        wheel = build_wheel(Path(place))
        for version in chosen.pythons:
            python = interpreter(version)
            if python is None:
                outcomes[version] = "absent, not tried"
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    attempt(python, wheel, PYTHONS[version], chosen.tests, Path(folder))
                    outcomes[version] = "passed"
                except subprocess.CalledProcessError as error:
                    outcomes[version] = f"failed: {error}"
    for version, outcome in outcomes.items():
        instead = ", ".join(PYTHONS[version].values())
        print(f"Python {version}{f' with {instead}' if instead else ''}: {outcome}")
    return int(any(outcome.startswith("failed") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
