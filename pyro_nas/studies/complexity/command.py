"""``pyro-nas complexity``: every λ from one training, against training at each λ (hypernetwork paper, §4)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NamedTuple

from pyro_nas import checks
from pyro_nas.data import Split, load
from pyro_nas.studies.complexity.measures import Row, measure, reaction, slope_ratios
from pyro_nas.studies.complexity.protocols import ROWS, STARTS, options_of, train
from pyro_nas.studies.complexity.race import race
from pyro_nas.studies.complexity.report import largest_gap, pruning_curves, summarise, tables
from pyro_nas.studies.complexity.setting import GRID, Setting
from pyro_nas.studies.complexity.training import Trained
from pyro_nas.studies.fit_arguments import FitArguments
from pyro_nas.studies.run_folder import RunFolder

LARGE = 10_000  # data from which on the paper's sizes are meant


def complexity(
    *,
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
    study = Study(
        data=data, root=root, protocol=protocol, runs=runs, epochs=epochs, hypernet_epochs=hypernet_epochs,
        hidden=hidden, draws=draws, speed=speed, seed=seed, device=device,
    )  # fmt: skip
    run(study, out, resume=resume)


@dataclass(frozen=True, kw_only=True)
class Study:
    """The options of the command that its result depends on: what config.json holds."""

    data: str
    root: str | None
    protocol: str
    runs: int | None
    epochs: int | None
    hypernet_epochs: int | None
    hidden: int
    draws: int
    speed: bool
    seed: int
    device: str


class Budget(NamedTuple):
    """Runs and epochs, those asked for or what the size of the data suggests."""

    runs: int
    epochs: int
    hypernet_epochs: int


def run(study: Study, out: str, *, resume: bool) -> None:
    """Train and measure all rows of all runs that the folder ``out`` does not have, and report them."""
    _check(study)
    split = load(study.data, study.root)
    budget = _budget(study, large=len(split.known[1]) >= LARGE)
    setting = _setting(study, split, budget)
    setting.model(1.0).check(*(part.to(setting.device) for part in split.known))
    config = {**asdict(study), "data_digest": split.digest()}
    shared = {name: value for name, value in config.items() if name not in ("root", "device")}
    with RunFolder(out, config, resume=resume) as folder:
        runs = [_rows(folder, study, replace(setting, seed=study.seed + n), n, budget.runs) for n in range(budget.runs)]
        _report(folder, {**shared, **budget._asdict()}, runs, speed=study.speed)


def _check(study: Study) -> None:
    """Raise ValueError for numbers out of range, an unknown protocol, and a race without a spline to race against."""
    for name in ("runs", "epochs", "hypernet_epochs"):
        if getattr(study, name) is not None:
            checks.integer(name, getattr(study, name), low=1)
    checks.integer("hidden", study.hidden, low=1)
    checks.integer("draws", study.draws, low=2)
    checks.seed(study.seed)
    checks.one_of("protocol", study.protocol, ROWS)
    if study.speed and study.protocol != "best":
        raise ValueError("speed: expected protocol 'best' beside it, got 'paper'. Pass --protocol best.")
    checks.device("device", study.device)


def _budget(study: Study, *, large: bool) -> Budget:
    direct, hypernet = (25, 25) if study.protocol == "paper" else (40, 86)
    runs, epochs, hypernet_epochs = (5, direct, hypernet) if large else (2, 100, 300)
    return Budget(study.runs or runs, study.epochs or epochs, study.hypernet_epochs or hypernet_epochs)


def _setting(study: Study, split: Split, budget: Budget) -> Setting:
    """Return the setting of the first run."""
    options: FitArguments = {**options_of(study.protocol), "progress": sys.stderr.isatty()}
    if len(split.known[1]) < LARGE:
        options["batch_size"] = 64
    return Setting(
        split.known, split.test, split.classes, study.hidden, budget.epochs, budget.hypernet_epochs, study.draws,
        study.seed, checks.device("device", study.device), STARTS[study.protocol], options,
    )  # fmt: skip


def _rows(folder: RunFolder, study: Study, setting: Setting, number: int, runs: int) -> dict[str, Row]:
    """Return the rows of one run, made where the folder does not have them."""
    done: dict[str, Trained] = {}
    rows = {}
    for name in ROWS[study.protocol]:
        make = partial(_made, setting, name, done, f"run {number + 1} of {runs}", raced=study.speed and number == 0)
        path = f"rows/{setting.seed}-{name.replace(' ', '_').replace(',', '')}.json"
        rows[name] = folder.row(path, ("complexities", "updates", "seconds"), make)
    return rows


def _made(setting: Setting, name: str, done: dict[str, Trained], label: str, *, raced: bool) -> Row:
    """Train a row, ``done`` being those of this run that are trained already, and measure it."""
    trained = train(name, setting, done)
    row = measure(setting, trained)
    if trained.hypernet is not None:
        row["reaction"] = reaction(setting, trained.hypernet)
        if raced:
            row["race"] = race(setting, trained.hypernet, trained.seconds, GRID)
    print(f"{label}, {name}: {_line(row)}", flush=True)
    return row


def _line(row: Row) -> str:
    entries = row["complexities"].items()
    values = ", ".join(f"λ = {float(c):g}: 𝔏 {e['evidence']:.0f}, accuracy {e['accuracy']:.3f}" for c, e in entries)
    return f"{values}; {row['updates']} updates, {row['seconds']:.0f} s"


def _report(folder: RunFolder, config: Mapping[str, object], runs: Sequence[Mapping[str, Row]], *, speed: bool) -> None:
    """Write and print the summary."""
    from pyro_nas.reading.plots import save  # matplotlib is imported where it is used
    from pyro_nas.studies.plots import plot_pruning

    rows = tuple(runs[0])
    summary = summarise(runs, rows)
    reactions = {name: [run[name]["reaction"] for run in runs] for name in rows if "reaction" in runs[0][name]}
    folder.write_json(
        "summary.json",
        {"command": "pyro-nas complexity", "config": config, "rows": summary,
         "largest_gap": {name: largest_gap(summary, name) for name in rows if name != "direct"},
         "reaction": reactions,
         "slope_ratios": {name: [slope_ratios(reacted) for reacted in made] for name, made in reactions.items()},
         **({"race": runs[0]["spline"]["race"]} if speed else {})},
    )  # fmt: skip
    text = tables(summary)
    folder.write_text("tables.md", text)
    figure = plot_pruning({name: pruning_curves(row) for name, row in summary.items()})
    folder.write_with("pruning.png", partial(save, figure))
    print(text)
    print(f"run folder: {folder.path}")
