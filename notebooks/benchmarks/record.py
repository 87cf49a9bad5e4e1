"""Where benchmarks are kept: a JSON line a run, with the commit, the day and the machine beside the numbers."""

import datetime
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def append(name: str, measured: dict[str, Any], folder: Path = ROOT / "notebooks") -> None:
    """Append a run's numbers to ``name``.jsonl."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    when = {"commit": commit.stdout.strip() or None, "date": datetime.date.today().isoformat(), "machine": machine}
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**when, **measured}, ensure_ascii=False) + "\n")


def processor() -> str:
    """Return the processor's name, where it can be had, else its family."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
