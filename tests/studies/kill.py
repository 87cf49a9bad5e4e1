"""Kills and damage: what ``make kill`` does to runs of all five commands, and what has to be left of them.

A run is killed by signal 9, at a moment or at a write to the disk, and continued until it ends: its numbers, weights
and files are to be those of a run that nothing happened to, no row or epoch made twice. A finished run is continued, or
loaded, after a bit of a file was flipped, the file cut off, or another put in its place: that is to be refused, in
words that name it, or to change nothing. Ends with status 1 where anything else happened.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from pyro_nas.__main__ import main
from pyro_nas.graph.families import cell_spaces, zoo
from pyro_nas.graph.space_files import write_space
from pyro_nas.inference.loop import Session
from pyro_nas.studies import load_run
from pyro_nas.studies.compare.sizes import SIZES, Size
from pyro_nas.studies.evidence import problems

CLOCK = ("seconds", "latency", "machine", "seal")  # what a clock measured, and what is made of it
NOT_COMPARED = {"posterior.nc", "tables.md", "table.md", "robustness.png"}  # dates or seconds are in them
NAMES = ("skip", "convolution 1")
MOST = 10  # things that are wrong, after which no more is killed
LATER = ("sklearn.model_selection", "pyro_nas.reading.arviz_export", "pyro_nas.reading.plots", "pyro_nas.studies.plots",
         "arviz", "h5netcdf", "torchmetrics.classification")  # fmt: skip
EVENTS = ("fsync", "replace", "mkdir", "open")  # calls of os, at which a run is killed


def tiny(inputs: int, outputs: int, channels: int = 2) -> object:
    """A space of cells that are trained in no time."""
    return cell_spaces.darts(inputs, outputs, channels, cells=2, nodes=1, primitives=NAMES, stem_channels=2)


def prepare(folder: Path) -> dict[str, list[str]]:
    """Write data and a space, make all that takes long small, and return the arguments of each command."""
    torch.set_num_threads(1)
    SIZES["small"] = Size(400, 1, tiny, partial(tiny, channels=3), batch_size=50, children=2, retrain_lr=0.01)
    problems.RESTARTS, problems.EPOCHS, problems.DRAWS = 2, 5, 50
    generator = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = (generator.normal(size=(90, 5)) + 3 * np.eye(3, 5)[y]).astype(np.float32)
    images = (generator.normal(size=(90, 1, 6, 6)) + y[:, None, None, None]).astype(np.float32)
    np.savez(folder / "table.npz", x=x, y=y)
    np.savez(folder / "images.npz", x=images, y=y)
    write_space(zoo.layers(5, 3, width=4, depth=2), folder / "space.json")
    table, images_file, space = (str(folder / name) for name in ("table.npz", "images.npz", "space.json"))
    some = ["--methods", '["hard","random"]']
    return {
        "search": ["--data", table, "--space", space, "--epochs", "3", "--retrain_epochs", "3", "--draws", "2"],
        "compare": ["--data", images_file, *some, "--seeds", "[0]"],
        "rank": ["--data", images_file, *some, "--seeds", "[0]", "--images", "400", "--epochs", "1",
                 "--primitives", '["zero","convolution 1"]'],
        "complexity": ["--data", table, "--epochs", "1", "--hypernet_epochs", "1", "--hidden", "3", "--draws", "2",
                       "--runs", "1"],
        "evidence": ["--example", "logistic", "--size", "12", "--folds", "2", "--methods", '["laplace","elbo"]'],
    }  # fmt: skip


class Process:
    """A command in a process of its own, forked from this one, which has imported all; its output in a file."""

    def __init__(self, arguments: list[str], out: Path, log: Path, kill_at: int = 0, *, resume: bool = True):
        self.log, self.start = log, time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run([*arguments, "--out", str(out), "--resume", str(resume).lower()], kill_at)

    def _run(self, arguments: list[str], kill_at: int) -> None:
        status = 70  # of an error that is raw
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        events = Events(kill_at)
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException as error:
            print(f"Traceback: {error!r}")
        print(f"events {events.count}", flush=True)
        sys.stderr.flush()
        os._exit(status)

    def wait(self, seconds: float | None = None) -> tuple[int, str, float]:
        """Kill it after so many seconds, where given; return its status, −9 where that landed, output and seconds."""
        while seconds is not None and time.monotonic() - self.start < seconds:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        if seconds is not None:
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return status, self.log.read_text(errors="replace"), time.monotonic() - self.start


class Events:
    """Counts the calls by which a process changes the disk, kills it before or after one of them, and logs epochs."""

    def __init__(self, kill_at: int):
        self.count, self.kill_at = 0, kill_at
        for name in EVENTS:
            setattr(os, name, self._watched(getattr(os, name)))
        epoch = Session._epoch

        def logged(session: Session, number: int, *args: object) -> object:
            print(f"epoch {session.options.checkpoint} {number}", flush=True)
            return epoch(session, number, *args)

        Session._epoch = logged

    def _watched(self, call: Callable[..., object]) -> Callable[..., object]:
        def watched(*args: object, **options: object) -> object:
            self.count += 1
            if self.count == self.kill_at and self.kill_at % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **options)
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return watched


def numbers(value: object) -> object:
    """JSON values without what a clock measured."""
    if isinstance(value, dict):
        return {name: numbers(item) for name, item in value.items() if name not in CLOCK and "seconds" not in name}
    return [numbers(item) for item in value] if isinstance(value, list) else value


def left(out: Path) -> dict[str, object]:
    """All files of a run by name: JSON as numbers, the rest as bytes, and None where dates are in it."""
    found: dict[str, object] = {}
    for path in sorted(path for path in out.rglob("*") if not path.is_dir()):
        name = str(path.relative_to(out))
        content = path.read_bytes()
        found[name] = None if path.name in NOT_COMPARED else content
        if path.suffix == ".json":
            found[name] = numbers(json.loads(content))
    return found | {f"{path.relative_to(out)}/": None for path in out.rglob("*") if path.is_dir()}


def done(out: Path) -> tuple[dict[Path, bytes], set[str]]:
    """What is not to be made again: rows, and the epochs of checkpoints."""
    rows = [path for name in ("rows", "cells", "searches") for path in (out / name).glob("*.json")]
    epochs = set()
    for path in out.glob("*/checkpoint.safetensors"):
        position = json.loads(safetensors.torch.load_file(path)["position"].numpy().tobytes())
        epochs |= {f"epoch {path.parent} {record['epoch']}" for record in position["history"]}
    return {path: path.read_bytes() for path in rows}, epochs


class Trial:
    """The runs in a folder, those that nothing happened to among them, and what went wrong."""

    def __init__(self, folder: Path, seed: int):
        self.start = time.monotonic()
        for part in LATER:  # once for all processes: they take longer than the runs
            importlib.import_module(part)
        self.folder, self.random, self.wrong = folder, random.Random(seed), []
        self.arguments = {name: [name, *options] for name, options in prepare(folder).items()}
        self.whole = {name: folder / name for name in self.arguments}
        self.seconds, self.events = {}, {}
        for name, arguments in self.arguments.items():
            status, text, self.seconds[name] = Process(arguments, self.whole[name], folder / "log").wait()
            assert status == 0, text
            self.events[name] = int(re.findall(r"events (\d+)", text)[-1])
            other = Process([*arguments, *self.other_seed(name)], self.other(name), folder / "log").wait()
            assert other[0] == 0, other[1]
        self.expected = {name: left(out) for name, out in self.whole.items()}

    def other(self, name: str) -> Path:
        """The folder of the same command with another seed."""
        return self.folder / f"{name} of another seed"

    def other_seed(self, name: str) -> list[str]:
        """The arguments of another seed; rows of the others are told apart by it."""
        return ["--seeds", "[1]"] if name in ("compare", "rank") else ["--seed", "1"]

    def kill(self, name: str) -> int:
        """Kill a run, and go on with it, until it ends; return how many kills landed."""
        out, landed = self.folder / "killed", 0
        shutil.rmtree(out, ignore_errors=True)
        kept: tuple[dict[Path, bytes], set[str]] = ({}, set())
        while True:
            again = landed == 0 or self.random.random() < 0.3
            at = self.random.randint(1, self.events[name]) if again and self.random.random() < 0.5 else 0
            seconds = self.random.uniform(0, self.seconds[name]) if again and not at else None
            process = Process(self.arguments[name], out, self.folder / "log", at, resume=landed > 0)
            status, text, _ = process.wait(seconds)
            where = f"{name}, {f'event {at}' if at else seconds}"
            if [path for path, content in kept[0].items() if path.read_bytes() != content]:
                self.wrong.append(f"{where}: rows were made again")
            if kept[1] & set(text.splitlines()):
                self.wrong.append(f"{where}: epochs were made again, {kept[1] & set(text.splitlines())}")
            if status != -signal.SIGKILL:
                break
            landed, kept = landed + 1, done(out)
        if status != 0:
            self.wrong.append(f"{where}: refused with status {status}, {text}")
        elif (found := left(out)) != self.expected[name]:
            different = {
                file for file in found | self.expected[name] if found.get(file) != self.expected[name].get(file)
            }
            self.wrong.append(f"{where}: other results or files, {sorted(different)}")
        return landed

    def damage(self, kind: str) -> str:
        """Damage a file of a finished run, continue or load it, and return what came of it."""
        name = self.random.choice(list(self.whole))
        out = self.folder / "damaged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.whole[name], out)
        given = [Path(part) for part in self.arguments[name] if part.endswith((".npz", "space.json"))]
        read = [p for p in out.rglob("*") if p.suffix in (".json", ".safetensors")]
        read = [p for p in read if p.name not in ("summary.json", "architecture.json", "history.json")] + given
        path = self.random.choice(sorted(read))
        before = path.read_bytes()
        path.write_bytes(self.damaged(kind, name, out, path))
        try:
            return self.judged(kind, name, out, path) if path.read_bytes() != before else "the same file"
        finally:
            path.write_bytes(before)

    def damaged(self, kind: str, name: str, out: Path, path: Path) -> bytes:
        """The content of a file with a bit flipped, cut off, or of another file of its kind."""
        content = path.read_bytes()
        if kind == "truncation":
            return content[: self.random.randrange(len(content))]
        if kind == "flip":
            place = self.random.randrange(8 * len(content))
            flipped = content[place // 8] ^ 1 << place % 8
            return content[: place // 8] + bytes([flipped]) + content[place // 8 + 1 :]
        if path.suffix == ".npz":
            return next(p for p in self.folder.glob("*.npz") if p != path).read_bytes()
        others = [p for p in [*out.rglob(f"*{path.suffix}"), *self.other(name).rglob(f"*{path.suffix}")] if p != path]
        return self.random.choice(sorted(others)).read_bytes()

    def judged(self, kind: str, name: str, out: Path, path: Path) -> str:
        """What comes of a run with a damaged file: refused, or nothing has changed; all else is wrong."""
        where = f"{kind} of {name}, {path.name}"
        if path.name in ("model.json", "weights.safetensors") or (name == "search" and path.name == "config.json"):
            try:
                load_run(out)
            except (ValueError, OSError) as error:
                return self.refused(where, path, str(error))
            self.wrong.append(f"{where}: loaded")
            return "silent"
        status, text, _ = Process(self.arguments[name], out, self.folder / "log").wait()
        if status == 2 and "Traceback" not in text:
            return self.refused(where, path, next((line for line in text.splitlines() if "error: " in line), ""))
        if status == 0 and left(out) == self.expected[name]:
            return "nothing changed"
        self.wrong.append(f"{where}: status {status}, {text[-500:]}")
        return "raw" if status else "silent"

    def refused(self, where: str, path: Path, message: str) -> str:
        """Note an error that does not say which file is wrong: its name, or what of its content differs."""
        content = {".npz": "data", "space.json": "got space.", "config.json": "resume: "}
        named = (path.name, content.get(path.suffix, path.name), content.get(path.name, path.name), "checkpoint")
        if not any(text in message for text in named):
            self.wrong.append(f"{where}: an error that does not name it, {message}")
        return "refused"


def run(count: int, flips: int, truncations: int, swaps: int, seed: int) -> list[str]:
    """Kill and damage so many times, print what came of it, and return what was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        trial, landed = Trial(Path(folder), seed), Counter()
        names = list(trial.whole)
        while sum(landed.values()) < count and len(trial.wrong) < MOST:
            name = names[len(landed) % len(names)] if len(landed) < len(names) else min(names, key=landed.__getitem__)
            landed[name] += trial.kill(name)
            print(f"{name}: {landed[name]} killed, {time.monotonic() - trial.start:.0f} s", file=sys.stderr, flush=True)
        print(f"kills that landed: {sum(landed.values())}, {dict(landed)}", flush=True)
        for kind, number in (("flip", flips), ("truncation", truncations), ("swap", swaps)):
            print(f"{kind}s: {dict(Counter(trial.damage(kind) for _ in range(number)))}", flush=True)
    return trial.wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for option, number in {"count": 100, "flips": 400, "truncations": 100, "swaps": 50, "seed": 0}.items():
        parser.add_argument(f"--{option}", type=int, default=number)
    failures = run(**vars(parser.parse_args()))
    print("\n".join(failures) or "nothing was wrong")
    sys.exit(bool(failures))
