"""``pyro-nas complexity``: every λ from one training, against training at each λ (hypernetwork paper, §4)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pyro_nas import checks
from pyro_nas.data import load
from pyro_nas.files import read_json
from pyro_nas.reading.plots import save
from pyro_nas.studies import plots
from pyro_nas.studies.complexity.report import GRID, largest_gap, reaction, slope_ratios, summarise, tables
from pyro_nas.studies.complexity.rows import COMPLEXITIES, ROWS, STARTS, Row, Setting, measure, options, race, train
from pyro_nas.studies.run_folder import RunFolder

LARGE = 10_000  # data from which on the paper's sizes are meant


def study(models: Any, inference: Any) -> Callable[..., None]:
    """Return the command, made with the rooms ``models`` and ``inference``."""

    def complexity(
        data: str = "digits",
        root: str | None = None,
        protocol: str = "best",
        runs: int | None = None,
        epochs: int | None = None,
        hypernet_epochs: int | None = None,
        hidden: int = 50,
        draws: int = 32,
        speed: bool = False,
        seed: int = 0,
        device: str = "cpu",
        out: str = "runs/complexity",
        resume: bool = False,
    ) -> None:
        """Compare hypernetworks over the complexity λ with training at λ = 0.1, 1, 10 and 100, and prune the results.

        Network inputs–hidden–classes, N(0, 0.1²) weights. Writes tables 1 to 3 and figure 1 of the paper and a JSON
        file of each row of each run as it ends.

        Args:
            data: "digits", "mnist", "fashion-mnist", or an .npz file with arrays x and y (class indices).
            root: folder of the torchvision sets, downloaded there where absent.
            protocol: "paper", its six rows with its settings, or "best", direct training and our spline hypernetwork.
            runs: runs with seeds of their own; by default 5, for small sets 2.
            epochs: epochs of direct training at each λ; by default 25 ("paper") or 40 ("best"), for small sets 100.
            hypernet_epochs: epochs of a hypernetwork; by default 25 ("paper") or 86 ("best"), for small sets 300.
            hidden: ReLU units.
            draws: weight draws that the evidence averages.
            speed: also train directly at 13 values of λ, each up to the hypernetwork's evidence ("best", first run).
            seed: seed of the first run.
            device: "cpu", "cuda", …
            out: run folder, new or empty.
            resume: continue the study in that folder.
        """
        config = {
            name: value for name, value in locals().items() if name not in ("out", "resume", "models", "inference")
        }
        for name, value in {"runs": runs, "epochs": epochs, "hypernet_epochs": hypernet_epochs}.items():
            if value is not None:
                checks.integer(name, value, low=1)
        checks.integer("hidden", hidden, low=1)
        checks.integer("draws", draws, low=2)
        checks.seed(seed)
        rows = ROWS[checks.one_of("protocol", protocol, ROWS)]
        if speed and protocol != "best":
            raise ValueError("speed: expected protocol 'best' beside it, got 'paper'. Pass --protocol best.")
        place = checks.device("device", device)
        split = load(data, root)
        large = len(split.known[1]) >= LARGE
        runs = runs or (5 if large else 2)
        epochs = epochs or ((25 if protocol == "paper" else 40) if large else 100)
        hypernet_epochs = hypernet_epochs or ((25 if protocol == "paper" else 86) if large else 300)
        shared = {**options(protocol, inference), "progress": sys.stderr.isatty()}
        if not large:
            shared["batch_size"] = 64
        setting = Setting(
            split.known, split.test, split.classes, hidden, epochs, hypernet_epochs, draws, seed,
            place, STARTS[protocol], shared,
        )  # fmt: skip
        setting.model(1.0).check(*(part.to(place) for part in split.known))
        config["data_digest"] = split.digest()
        folder = RunFolder(out, config, resume)

        kept = {name: value for name, value in config.items() if name not in ("root", "device")}
        kept |= {"runs": runs, "epochs": epochs, "hypernet_epochs": hypernet_epochs}
        found = []
        for number in range(runs):
            setting = replace(setting, seed=seed + number)
            done: dict[str, Row] = {}
            results: dict[str, Any] = {}
            for name in rows:
                path = folder.path / "rows" / f"{seed + number}-{name.replace(' ', '_').replace(',', '')}.json"
                if path.exists() and not _needed(path.parent, rows, seed + number, name):
                    results[name] = read_json(path, "complexities", "updates", "seconds")
                    continue
                done[name] = train(name, setting, done)
                results[name] = measure(setting, done[name])
                if done[name].hypernet is not None:
                    results[name]["reaction"] = reaction(setting, done[name])
                if speed and number == 0 and done[name].hypernet is not None:
                    results[name]["race"] = race(setting, done[name], GRID)
                folder.write_json(f"rows/{path.name}", results[name])
                print(f"run {number + 1} of {runs}, {name}: {_line(results[name])}", flush=True)
            found.append(results)
        summary = summarise(found, rows)
        gaps = {name: largest_gap(summary, name) for name in rows if name != "direct"}
        text = tables(summary, published=protocol == "paper" and data == "mnist")
        reactions = {name: [run[name]["reaction"] for run in found] for name in rows if "reaction" in found[0][name]}
        folder.write_json(
            "summary.json",
            {"command": "pyro-nas complexity", "config": kept, "rows": summary, "largest_gap": gaps,
             "reaction": reactions,
             "slope_ratios": {name: [slope_ratios(one) for one in reacted] for name, reacted in reactions.items()},
             **({"race": found[0]["spline"]["race"]} if speed else {})},
        )  # fmt: skip
        folder.write_text("tables.md", text)
        curves = {name: {c: summary[name][str(c)]["pruning"] for c in COMPLEXITIES} for name in rows}
        folder.write_with("pruning.png", partial(save, plots.plot_pruning(curves)))
        print(text)
        print(f"run folder: {folder.path}")

    return complexity


def _needed(folder: Path, rows: tuple[str, ...], seed: int, name: str) -> bool:
    """Whether a finished row must be trained again, because one that goes on from it is not finished."""
    after = f"{name} + 1 epoch"
    return after in rows and not (folder / f"{seed}-{after.replace(' ', '_')}.json").exists()


def _line(result: dict[str, Any]) -> str:
    entries = result["complexities"].items()
    values = ", ".join(f"λ = {float(c):g}: 𝔏 {e['evidence']:.0f}, accuracy {e['accuracy']:.3f}" for c, e in entries)
    return f"{values}; {result['updates']} updates, {result['seconds']:.0f} s"
