"""``pyro-nas compare``: architecture search by many methods on one space, at an equal budget of processed images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyro_nas import checks
from pyro_nas.data import load
from pyro_nas.files import read_json, write_json
from pyro_nas.reading.plots import plot_architecture, save
from pyro_nas.studies import plots
from pyro_nas.studies.compare.methods import METHODS
from pyro_nas.studies.compare.report import machines, summarise, tables, way
from pyro_nas.studies.compare.rows import (
    FOUND,
    RETRAINED,
    Size,
    again,
    architecture_of,
    latencies,
    retrain,
    retrained,
    row,
)
from pyro_nas.studies.compare.task import Task, check_images
from pyro_nas.studies.run_folder import RunFolder

PLAIN = "plain"  # four convolutions and no search, trained for as long as VarDARTS searches and retrains
AGAIN = {"vardarts_point": False, "darts_posterior": True}  # what another row found, retrained the other way
AFTER = {PLAIN: "vardarts", "vardarts_point": "vardarts", "darts_posterior": "darts"}  # and the row that they need
ROWS = (*METHODS, *AFTER)
DISCRETISATIONS = ("argmax", "sample", "best")
PRIMITIVES = (
    "max pool",
    "average pool",
    "skip",
    "convolution 1",
    "convolution 3",
    "single separable 3",
    "single separable 5",
)


def comparison(models: Any, inference: Any) -> Callable[..., None]:
    """Return the command, made with the rooms ``models`` and ``inference``."""
    sizes = sizes_of(models.cell_spaces)

    def compare(
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
        config: dict[str, Any] = {"data": data, "budget": budget, "discretise": discretise}
        for method in methods:
            checks.one_of("methods", method, ROWS)
        for seed in seeds:
            checks.seed(seed)
        checks.one_of("discretise", discretise, DISCRETISATIONS)
        if not methods or not seeds:
            raise ValueError(f"methods: expected one or more, and one seed or more, got {methods} and {seeds}.")
        for method, needed in AFTER.items():
            if method in methods and needed not in methods:
                raise ValueError(f"methods: expected {needed!r} beside {method!r}, which goes by it. Add it.")
        size = sizes[checks.one_of("budget", budget, sizes)]
        size = replace(size, mirrored=size.mirrored and data == "fashion-mnist")  # digits change by it
        place = checks.device("device", device)
        split = load(data, root, valid_fraction=0.5)
        check_images(split, size.images, size.shifted + 1)
        space = size.searched(split.train[0].shape[1], split.classes)
        shared = Task(space, split, size.images, seeds[0], place, size.batch_size,
                      children=size.children, options={"progress": sys.stderr.isatty()})  # fmt: skip
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "device": str(place)}
        config |= {"size": size.settings(), "task": shared.settings(), "data_digest": split.digest()}
        folder = RunFolder(out, config, resume)
        paths = {(method, seed): folder.path / "rows" / f"{method}-{seed}.json" for method in methods for seed in seeds}
        _check_order(paths)
        rows: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
        for seed in seeds:
            task = replace(shared, seed=seed)
            for method in sorted(methods, key=lambda name: name in AFTER):
                path = paths[method, seed]
                if not path.exists():
                    if method == PLAIN:
                        made = _plain(task, size, rows[AFTER[method]][-1])
                    elif method in AGAIN:
                        made = again(task, size, rows[AFTER[method]][-1], AGAIN[method])
                    else:
                        made = row(task, size, method, discretise)
                    write_json(path, {**made, "machine": machine})
                found = read_json(path, "machine", *_fields(method))
                rows[method].append(found)
                print(f"{method}, seed {seed}: {_line(found)}", flush=True)
        every = [found for method in methods for found in rows[method]]
        for found, latency in zip(every, latencies(shared, size, every), strict=True):
            found["cost"]["latency"] = latency
        summary = summarise(rows)
        text = tables(summary) + machines(every)
        folder.write_json(
            "summary.json",
            {"command": "pyro-nas compare", "config": {**config, "methods": methods, "seeds": seeds},
             "methods": summary, "rows": rows},
        )  # fmt: skip
        folder.write_text("tables.md", text)
        for method, found in rows.items():
            if "structure" in found[0]:
                structure = {site: torch.tensor(table) for site, table in found[0]["structure"].items()}
                figure = plot_architecture(space, structure)
                folder.write_with(f"{method}.png", partial(save, figure))
        folder.write_with("robustness.png", partial(save, plots.plot_robustness(summary)))
        print(text)
        print(f"run folder: {folder.path}")

    return compare


def _plain(task: Task, size: Size, other: dict[str, Any]) -> dict[str, Any]:
    """Train the plain network for as many epochs as fit into another row's search and retraining.

    Both networks are trained for an epoch here, one after the other: those seconds may be of a busier machine.
    """
    network = architecture_of(task, size, {})
    *_, theirs = retrain(task, size, architecture_of(task, size, other), True, 1)
    *_, own = retrain(task, size, network, False, 1)
    epochs = other["retrain"]["epochs"] * (1 + other["search"]["seconds"] / other["retrain"]["seconds"])
    return retrained(task, size, network, False, max(1, round(epochs * theirs / own)))


def _check_order(paths: Mapping[tuple[str, int], Path]) -> None:
    """Raise where a stored row goes by another that is no longer there: made again, it need not be the same."""
    for (method, seed), path in paths.items():
        needed = paths.get((AFTER.get(method, ""), seed))
        if needed and path.exists() and not needed.exists():
            raise ValueError(
                f"{path}: expected {needed.name} beside it, by which it goes, got none. Restore that file, or remove "
                "this one too, to make both again."
            )


def _fields(method: str) -> tuple[str, ...]:
    """Return what a row of this method holds."""
    return (*RETRAINED, *(() if method == PLAIN else FOUND), *(("searched",) if method in METHODS else ()))


def _line(found: dict[str, Any]) -> str:
    seconds = found["retrain"]["seconds"] + found.get("search", {"seconds": 0.0})["seconds"]
    return f"accuracy {found['test'][way(found)]['accuracy']:.4f}, {seconds:.0f} s"


def sizes_of(spaces: Any) -> dict[str, Size]:
    """Return the budgets by name."""
    small = partial(spaces.darts, primitives=PRIMITIVES, nodes=2, cells=2, stem_channels=8)
    short = partial(spaces.darts, primitives=PRIMITIVES, nodes=2, cells=3, stem_stride=2)
    long = partial(spaces.nas_bench_201, nodes=3, repeats=1)
    full = spaces.darts  # as DARTS was searched: 8 cells of 4 nodes, 7 primitives, 50 epochs
    return {
        "small": Size(
            60_000, 60, partial(small, channels=8), partial(small, channels=16),
            batch_size=64, shifted=1, mirrored=False,
        ),
        "short": Size(
            120_000, 6, partial(short, channels=8, stem_channels=16), partial(short, channels=16, stem_channels=32),
            children=4,
        ),
        "long": Size(240_000, 24, partial(long, channels=8), partial(long, channels=16), presence=1.0),
        "full": Size(3_000_000, 100, partial(full, channels=16), partial(full, channels=36), batch_size=64),
    }  # fmt: skip
