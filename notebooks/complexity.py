"""The complexity study on MNIST by the command line, two to three hours. Writes complexity_{paper,best,speed}.json.

Usage: python notebooks/complexity.py ROOT [OUT]; a study that was cut off goes on in OUT.
"""

import json
import platform
import sys
from pathlib import Path

import torch

from pyro_nas.__main__ import main

STUDIES = {
    "paper": ["--protocol", "paper"],
    "best": ["--protocol", "best", "--runs", "8"],
    "speed": ["--protocol", "best", "--runs", "1", "--speed", "true", "--hypernet_epochs", "18"],
}

if __name__ == "__main__":
    root, out = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "runs/complexity")
    for name, flags in STUDIES.items():
        fixed = ["complexity", "--data", "mnist", "--root", root, "--out", str(out / name), "--resume", "true"]
        if main([*fixed, *flags]) != 0:
            sys.exit(1)
        summary = json.loads((out / name / "summary.json").read_text())
        machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        stored = {**summary, "command": "make complexity ROOT=DIR", "machine": machine}
        Path(__file__).with_name(f"complexity_{name}.json").write_text(json.dumps(stored, indent=1) + "\n")
