"""Plant single faults in the source by cosmic-ray, drawn evenly over its files, and count those that the tests find.

Usage: python tests/packaging/mutate.py [--count 300] [--seed 0] [--workers 2] (make mutate). What was tried is kept in
build/mutants: the same command goes on where it was stopped, and another count, seed or source starts anew. A fault
is tried on a copy of the checkout, by the fast tests that belong to its module and then those of the commands.
"""

from __future__ import annotations

import argparse
import ast
import filecmp
import hashlib
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "mutants"
COPIED = ("tests", "notebooks", "pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")
ROOMS = ("models", "inference")  # which an installed package has within pyro_nas
SECONDS = 1800  # after which a test run that goes on and on has found the fault
COMMANDS = ("tests/studies/test_protocols.py", "tests/studies")
GROUPS = {
    "commands and options": ("pyro_nas/studies/", "pyro_nas/__main__.py", "pyro_nas/inference/options.py"),
    "all": ("pyro_nas/",),
}
Place = tuple[int, int]  # line, column


def lay_out(folder: Path) -> None:
    """Copy the checkout, with the package as it is installed: PYTHONPATH=FOLDER takes it from there."""
    hidden = shutil.ignore_patterns("__pycache__", ".*")
    folder.mkdir(parents=True)
    for room in ("pyro_nas", *ROOMS):
        shutil.copytree(ROOT / room, folder / "pyro_nas" / (room if room in ROOMS else ""), ignore=hidden,
                        dirs_exist_ok=True)  # fmt: skip
    for part in COPIED:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=hidden)
        else:
            shutil.copy(ROOT / part, folder)


def sources(folder: Path) -> list[str]:
    """Return the modules of a copy that faults are planted in, by path, "pyro_nas/…"."""
    paths = sorted(path.relative_to(folder).as_posix() for path in (folder / "pyro_nas").rglob("*.py"))
    return [path for path in paths if not path.endswith("__init__.py")]


def unevaluated(text: str) -> list[tuple[Place, Place]]:
    """Return where annotations stand, which are not evaluated and so can hold no fault: (start, end) of each."""
    lines = text.splitlines()

    def place(line: int, offset: int) -> Place:  # the parser counts bytes
        return line, len(lines[line - 1].encode()[:offset].decode())

    places = []
    for node in ast.walk(ast.parse(text)):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(part, ast.expr):
                start, end = (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)
                places.append((place(*start), place(*end)))
    return places


def sample(faults: Mapping[str, Mapping[Place, Sequence[str]]], count: int, seed: int) -> list[str]:
    """Draw faults evenly over files: one of each in turn, at a place not drawn yet, of any kind that there is there.

    ``faults``: {path: {place: (name of a fault, …)}}; all of them where there are not as many places.
    """
    generator = random.Random(seed)
    queues = []
    for path in sorted(faults):
        places = sorted(faults[path])
        generator.shuffle(places)
        queues.append([generator.choice(sorted(faults[path][place])) for place in places])
    generator.shuffle(queues)
    drawn: list[str] = []
    while len(drawn) < count and any(queues):
        for queue in queues:
            if queue and len(drawn) < count:
                drawn.append(queue.pop())
    return drawn


def tests_of(path: str) -> list[str]:
    """Return the files of tests that look for a fault in this module: its own, then those of the commands."""
    modules = runpy.run_path(str(ROOT / "tests" / "packaging" / "test_mirror.py"))["modules"]()
    own = modules[path.removesuffix(".py").replace("/", ".")]
    first = [f"tests/{own}"] if own else []
    return list(dict.fromkeys([*first, *COMMANDS]))


def changed(folder: Path, plain: Path) -> list[str]:
    """Return the modules in which a copy differs from another."""
    return [path for path in sources(plain) if not filecmp.cmp(folder / path, plain / path, shallow=False)]


def attempt(folder: Path) -> int:
    """Run the tests of the one module of a copy that has a fault; return 0 where none of them fails."""
    (path,) = changed(folder, FOLDER / "plain")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--durations=0"]
    for file in tests_of(path):
        command = [sys.executable, "-m", "pytest", *options, file]
        if subprocess.run(command, cwd=folder, env=environment, check=False).returncode != 0:
            return 1
    return 0


def digest() -> str:
    """Return a checksum of the sources."""
    content = hashlib.sha256()
    for room in ("pyro_nas", *ROOMS):
        for path in sorted((ROOT / room).rglob("*.py")):
            content.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()


def plan(count: int, seed: int, workers: int) -> None:
    """Lay out the copies, and plant nothing yet: choose the faults that each worker will try."""
    from cosmic_ray.work_db import WorkDB, use_db

    wanted = {"count": count, "seed": seed, "workers": workers, "source": digest()}
    stored = FOLDER / "plan.json"
    if stored.exists() and json.loads(stored.read_text()) == wanted:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    lay_out(FOLDER / "plain")
    every = FOLDER / "every.sqlite"
    configuration(FOLDER / "plain")
    subprocess.run([tool(), "init", "mutants.toml", str(every)], cwd=FOLDER / "plain", check=True)
    with use_db(str(every), WorkDB.Mode.open) as database:
        items = {_name(item): item for item in database.work_items}
    faults: dict[str, dict[Place, list[str]]] = defaultdict(lambda: defaultdict(list))
    skipped = {path: unevaluated((FOLDER / "plain" / path).read_text()) for path in sources(FOLDER / "plain")}
    for name, item in items.items():
        (mutation,) = item.mutations
        path, place = mutation.module_path.as_posix(), tuple(mutation.start_pos)
        if not any(low <= place < high for low, high in skipped[path]):
            faults[path][place].append(name)
    drawn = sample(faults, count, seed)
    for worker in range(workers):
        lay_out(FOLDER / str(worker))
        configuration(FOLDER / str(worker))
        with use_db(str(FOLDER / f"{worker}.sqlite"), WorkDB.Mode.create) as database:
            database.add_work_items([items[name] for name in drawn[worker::workers]])
    stored.write_text(json.dumps(wanted))


def _name(item: Any) -> str:
    """Return a name of a fault that is the same whenever it is planned."""
    (mutation,) = item.mutations
    return f"{mutation.module_path.as_posix()} {mutation.operator_name} {mutation.occurrence}"


def tool() -> str:
    """Return the path of cosmic-ray."""
    return str(Path(sys.executable).with_name("cosmic-ray"))


def configuration(folder: Path) -> None:
    """Write what cosmic-ray is to know in a copy."""
    command = f"{sys.executable} {Path(__file__).resolve()} --attempt ."
    (folder / "mutants.toml").write_text(
        f"""[cosmic-ray]
module-path = {json.dumps(sources(folder))}
timeout = {SECONDS}.0
excluded-modules = []
test-command = "{command}"

[cosmic-ray.distributor]
name = "local"
"""
    )


def tried(workers: int) -> Iterator[tuple[Any, Any]]:
    """Yield each fault that was tried, and what came of it."""
    from cosmic_ray.work_db import WorkDB, use_db

    for worker in range(workers):
        with use_db(str(FOLDER / f"{worker}.sqlite"), WorkDB.Mode.open) as database:
            yield from list(database.completed_work_items)


def report(found: Iterable[tuple[str, bool, str]]) -> str:
    """Return the share of faults that tests found, of each group, and those that none did: (path, found, change)."""
    entries = list(found)
    lines = []
    for name, starts in GROUPS.items():
        group = [killed for path, killed, _ in entries if path.startswith(starts)]
        share = f", {100 * sum(group) / len(group):.1f} %" if group else ""
        lines.append(f"{name}: {sum(group)} of {len(group)} faults found{share}")
    survivors = [f"\n{path}\n{change}" for path, killed, change in sorted(entries) if not killed]
    return "\n".join([*lines, *survivors]) + "\n"


def main() -> int:
    """Plan, try what is left to try, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="only report what was tried so far")
    parser.add_argument("--attempt", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.attempt is not None:
        return attempt(chosen.attempt.resolve())
    if not chosen.report:
        plan(chosen.count, chosen.seed, chosen.workers)
        runs = []
        for worker in range(chosen.workers):
            restored(FOLDER / str(worker))
            command = [tool(), "exec", "mutants.toml", str(FOLDER / f"{worker}.sqlite")]
            runs.append(subprocess.Popen(command, cwd=FOLDER / str(worker)))
        codes = [run.wait() for run in runs]
        if any(codes):
            return 1
    entries = []
    for item, result in tried(chosen.workers):
        change = [line for line in (result.diff or "").splitlines() if not line.startswith(("---", "+++"))]
        entries.append((item.mutations[0].module_path.as_posix(), result.is_killed, "\n".join(change)))
    text = report(entries)
    (FOLDER / "report.txt").write_text(text)
    print(text)
    return 0


def restored(folder: Path) -> None:
    """Take back the fault that a run which was killed left in a copy."""
    for path in changed(folder, FOLDER / "plain"):
        shutil.copy(FOLDER / "plain" / path, folder / path)


if __name__ == "__main__":
    sys.exit(main())
