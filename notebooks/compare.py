"""Architecture search on FashionMNIST at an equal budget of images, by many methods. Writes compare_BUDGET.json.

Usage: python notebooks/compare.py ROOT BUDGET [OUT], BUDGET "short" or "long"; a run that was cut off goes on in OUT.
"""

import json
import sys
from pathlib import Path

from pyro_nas.__main__ import main

METHODS = {
    "short": ["vardarts", "darts", "darts_second_order", "hard", "single_path", "random", "reinforce",
              "vardarts_point", "darts_posterior"],
    "long": ["vardarts", "random", "plain"],
}  # fmt: skip

if __name__ == "__main__":
    root, budget = sys.argv[1:3]
    out = Path(sys.argv[3] if len(sys.argv) > 3 else f"runs/compare-{budget}")
    flags = ["--data", "fashion-mnist", "--root", root, "--budget", budget, "--methods", json.dumps(METHODS[budget])]
    if main(["compare", *flags, "--out", str(out), "--resume", "true"]) != 0:
        sys.exit(1)
    stored = {**json.loads((out / "summary.json").read_text()), "command": "make compare ROOT=DIR"}
    Path(__file__).with_name(f"compare_{budget}.json").write_text(json.dumps(stored, indent=1) + "\n")
