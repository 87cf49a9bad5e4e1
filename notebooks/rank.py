"""All 125 cells of a small space on digits, and where each method's choice stands among them. Writes rank.json.

Usage: python notebooks/rank.py [OUT]; a run that was cut off goes on in OUT.
"""

import json
import sys
from pathlib import Path

from pyro_nas.__main__ import main

if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/rank")
    if main(["rank", "--out", str(out), "--resume", "true"]) != 0:
        sys.exit(1)
    stored = {**json.loads((out / "summary.json").read_text()), "command": "make rank"}
    Path(__file__).with_name("rank.json").write_text(json.dumps(stored, indent=1) + "\n")
