"""Five searches on digits by the command line: test accuracy and calibration, mean and sd. Writes digits.json."""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from pyro_nas.__main__ import main

SEEDS = range(5)


def spread(values: list[float]) -> dict[str, float]:
    """Return mean and standard deviation."""
    return {"mean": round(statistics.mean(values), 4), "sd": round(statistics.stdev(values), 4)}


if __name__ == "__main__":
    summaries = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            if main(["search", "--data", "digits", "--seed", str(seed), "--out", f"{folder}/{seed}"]) != 0:
                sys.exit(1)
            summaries.append(json.loads(Path(folder, str(seed), "summary.json").read_text()))
    result = {
        "command": "make digits",
        "seeds": list(SEEDS),
        "test": {
            name: {
                metric: spread([run["test"][name][metric] for run in summaries])
                for metric in summaries[0]["test"][name]
            }
            for name in summaries[0]["test"]
        },
        "seconds": {phase: spread([run["seconds"][phase] for run in summaries]) for phase in summaries[0]["seconds"]},
        "parameters": {
            name: spread([float(run["parameters"][name]) for run in summaries]) for name in summaries[0]["parameters"]
        },
        "choices": [
            {edge: max(table, key=table.get) for edge, table in run["probabilities"].items()} for run in summaries
        ],
    }
    Path(__file__).with_name("digits.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["test"], indent=1))
