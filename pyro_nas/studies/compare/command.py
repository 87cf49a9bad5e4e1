"""``pyro-nas compare``: architecture search by many methods on one space, at an equal budget of processed images."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pyro_nas import checks
from pyro_nas.data import load
from pyro_nas.studies.compare.methods import METHODS
from pyro_nas.studies.compare.records import Machine, MethodSummary, Row
from pyro_nas.studies.compare.report import Rows, judged_by, machines, summarise, tables
from pyro_nas.studies.compare.rows import DESCRIBED, RETRAINED, latencies, plain_row, retrained_row, searched_row
from pyro_nas.studies.compare.sizes import SIZES, Size
from pyro_nas.studies.compare.task import Task, check_images
from pyro_nas.studies.run_folder import RunFolder

PLAIN = "plain"  # four convolutions and no search, trained for as long as VarDARTS searches and retrains
POSTERIORS = {"vardarts_point": False, "darts_posterior": True}  # what another row found, retrained the other way
NEEDED = {PLAIN: "vardarts", "vardarts_point": "vardarts", "darts_posterior": "darts"}  # the row that each goes by
ALL_METHODS = (*METHODS, *NEEDED)
DISCRETISATIONS = ("argmax", "sample", "best")


def compare(
    *,
    data: str = "digits",
    root: str | None = None,
    methods: Sequence[str] = ("vardarts", "darts", "single_path", "random"),
    seeds: Sequence[int] = (0, 1, 2),
    budget: str = "small",
    discretise: str = "argmax",
    device: str = "cpu",
    out: str = "runs/compare",
    resume: bool = False,
) -> None:
    """Compare ways to search an architecture: one space, data and budget of images, several seeds.

    Each method searches, with weights on one half of the training data and structure on the other (SNAS: both on
    all of them); what it found is retrained, larger, on all, and tested once. Writes a JSON file of each method ×
    seed as it ends, then tables and pictures.

    Args:
        data: "digits", "mnist", "fashion-mnist", or an .npz file with images x and classes y.
        root: folder of the torchvision sets, downloaded there where absent.
        methods: of "vardarts", "darts", "darts_second_order", "snas", "hard", "dirichlet", "single_path", "random",
            "reinforce"; "vardarts_point": what vardarts found retrained as all others are, by points;
            "darts_posterior": what darts found retrained as vardarts' is, with a posterior of weights and edges;
            "plain": four convolutions without a search, trained for as long as vardarts takes.
        seeds: one run of each method for each.
        budget: "small" (digits, minutes), "short" or "long" (28 × 28 images), or "full", the size of DARTS'
            published search, for a GPU; all edges of a cell are kept, where DARTS keeps two into each vertex.
        discretise: how probabilities become a structure: "argmax" of each edge, a "sample" of the posterior, or the
            "best" of ten samples by validation accuracy under the weights of the search.
        device: "cpu", "cuda", …
        out: run folder, new or empty.
        resume: continue the comparison in that folder, with these methods and seeds, which may be others.
    """
    methods, seeds = list(dict.fromkeys(methods)), list(dict.fromkeys(seeds))
    _check(methods, seeds, discretise)
    size = SIZES[checks.one_of("budget", budget, SIZES)]
    size = replace(size, mirrored=size.mirrored and data == "fashion-mnist")  # digits change by it
    task = _task(size, data, root, seeds[0], checks.device("device", device))
    config = {"data": data, "budget": budget, "discretise": discretise, "size": size.settings(),
              "task": task.settings(), "data_digest": task.split.digest()}  # fmt: skip
    with RunFolder(out, config, resume=resume) as folder:
        rows = _rows(folder, task, size, methods, seeds, discretise)
        _report(folder, task, size, {**config, "methods": methods, "seeds": seeds}, rows)


def _check(methods: Sequence[str], seeds: Sequence[int], discretise: str) -> None:
    """Raise ValueError for unknown or missing methods, bad seeds, and an unknown discretisation."""
    for method in methods:
        checks.one_of("methods", method, ALL_METHODS)
    for seed in seeds:
        checks.seed(seed)
    checks.one_of("discretise", discretise, DISCRETISATIONS)
    if not methods or not seeds:
        raise ValueError(f"methods: expected one or more, and one seed or more, got {methods} and {seeds}.")
    for method, needed in NEEDED.items():
        if method in methods and needed not in methods:
            raise ValueError(f"methods: expected {needed!r} beside {method!r}, which goes by it. Add it.")


def _task(size: Size, data: str, root: str | None, seed: int, device: torch.device) -> Task:
    """Load the data, check that the budget suits them, and return the task of the first seed."""
    split = load(data, root, valid_fraction=0.5)
    check_images(split, size.images, size.shifted + 1)
    space = size.searched(split.train[0].shape[1], split.classes)
    return Task(
        space, split, size.images, seed, device, size.batch_size, children=size.children, progress=sys.stderr.isatty()
    )


def _rows(
    folder: RunFolder, task: Task, size: Size, methods: Sequence[str], seeds: Sequence[int], discretise: str
) -> dict[str, list[Row]]:
    """Return the rows of each method, one a seed, made where the folder does not have them."""
    names = {(method, seed): f"rows/{method}-{seed}.json" for method in methods for seed in seeds}
    _check_order({key: folder.path / name for key, name in names.items()})
    rows: dict[str, list[Row]] = {method: [] for method in methods}
    for seed in seeds:
        for method in sorted(methods, key=lambda name: name in NEEDED):
            needed = rows[NEEDED[method]][-1] if method in NEEDED else None
            make = partial(_made, replace(task, seed=seed), size, method, needed, discretise)
            row = folder.row(names[method, seed], ("machine", *_fields(method)), make)
            rows[method].append(row)
            print(f"{method}, seed {seed}: {_line(row)}", flush=True)
    return rows


def _made(task: Task, size: Size, method: str, needed: Row | None, discretise: str) -> Row:
    """Make the row of a method, ``needed`` being the one that it goes by."""
    if needed is None:
        made = searched_row(task, size, method, discretise)
    elif method == PLAIN:
        made = plain_row(task, size, needed)
    else:
        made = retrained_row(task, size, needed, posterior=POSTERIORS[method])
    machine: Machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "device": str(task.device)}
    return {**made, "machine": machine}


def _check_order(paths: Mapping[tuple[str, int], Path]) -> None:
    """Raise where a stored row goes by another that is no longer there: made again, it need not be the same."""
    for (method, seed), path in paths.items():
        needed = paths.get((NEEDED.get(method, ""), seed))
        if needed and path.exists() and not needed.exists():
            raise ValueError(
                f"{path}: expected {needed.name} beside it, by which it goes, got none. Restore that file, or remove "
                "this one too, to make both again."
            )


def _fields(method: str) -> tuple[str, ...]:
    """Return what a row of this method holds."""
    return (*RETRAINED, *(() if method == PLAIN else DESCRIBED), *(("searched",) if method in METHODS else ()))


def _line(row: Row) -> str:
    seconds = row["retrain"]["seconds"] + (row["search"]["seconds"] if "search" in row else 0.0)
    return f"accuracy {row['test'][judged_by(row)]['accuracy']:.4f}, {seconds:.0f} s"


def _report(folder: RunFolder, task: Task, size: Size, config: Mapping[str, object], rows: Rows) -> None:
    """Measure latencies, all rows together; write and print the summary."""
    every = [row for made in rows.values() for row in made]
    for row, latency in zip(every, latencies(task, size, every), strict=True):
        row["cost"]["latency"] = latency
    summary = summarise(rows)
    text = tables(summary) + machines(every)
    folder.write_json(
        "summary.json", {"command": "pyro-nas compare", "config": config, "methods": summary, "rows": rows}
    )
    folder.write_text("tables.md", text)
    _draw(folder, task, rows, summary)
    print(text)
    print(f"run folder: {folder.path}")


def _draw(folder: RunFolder, task: Task, rows: Rows, summary: Mapping[str, MethodSummary]) -> None:
    """Write a picture of what each method found with the first seed, and one of robustness."""
    from pyro_nas.reading.plots import plot_architecture, save  # matplotlib is imported where it is used
    from pyro_nas.studies.plots import plot_robustness

    for method, made in rows.items():
        if "structure" in made[0]:
            structure = {site: torch.tensor(table) for site, table in made[0]["structure"].items()}
            folder.write_with(f"{method}.png", partial(save, plot_architecture(task.space, structure)))
    folder.write_with("robustness.png", partial(save, plot_robustness(summary)))
