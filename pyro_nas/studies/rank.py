"""``pyro-nas rank``: every cell of a small space trained, and where the choice of each method stands among them.

A NAS-Bench-201 cell of three vertices: 5³ = 125 cells (Dong and Yang 2020 have four vertices and 15 625 cells).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from scipy.stats import rankdata, spearmanr
from tqdm import tqdm

from pyro_nas import checks
from pyro_nas.data import load
from pyro_nas.files import read_json, write_json
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.enumeration import Vertex, all_structures, hard_choices, key_of_structure
from pyro_nas.graph.space import Space
from pyro_nas.reading.metrics import classification_metrics
from pyro_nas.reading.plots import save
from pyro_nas.reading.posterior import mean_draw, predict
from pyro_nas.studies import plots
from pyro_nas.studies.compare.methods import METHODS
from pyro_nas.studies.compare.task import Task, check_images
from pyro_nas.studies.run_folder import RunFolder

IMAGES, EPOCHS = 60_000, 15  # of a search, and of the training of a cell


def ranking(models: Any, inference: Any) -> Callable[..., None]:
    """Return the command, made with the rooms ``models`` and ``inference``."""

    def rank(
        data: str = "digits",
        root: str | None = None,
        methods: Sequence[str] = tuple(METHODS),
        seeds: Sequence[int] = (0, 1, 2),
        images: int = IMAGES,
        epochs: int = EPOCHS,
        primitives: Sequence[str] = cell_spaces.NAS_BENCH_201,
        device: str = "cpu",
        out: str = "runs/rank",
        resume: bool = False,
    ) -> None:
        """Train every cell of a small space, and rank among them what each method chooses.

        The ranking is by mean test accuracy over the seeds; no method sees a test image. Writes a JSON file of each
        training and search as it ends, then the table and a picture.

        Args:
            data: "digits", "mnist", "fashion-mnist", or an .npz file with images x and classes y.
            root: folder of the torchvision sets, downloaded there where absent.
            methods: those of ``compare`` that search.
            seeds: one training of each cell and one search by each method for each.
            images: budget of a search, images that pass forward.
            epochs: epochs that each cell is trained for, on all known data.
            primitives: what each of the three edges chooses from.
            device: "cpu", "cuda", …
            out: run folder, new or empty.
            resume: continue in that folder.
        """
        methods, seeds = list(dict.fromkeys(methods)), list(dict.fromkeys(seeds))
        config: dict[str, Any] = {"data": data, "methods": methods, "seeds": seeds, "images": images, "epochs": epochs,
                  "primitives": list(primitives)}  # fmt: skip
        for method in methods:
            checks.one_of("methods", method, METHODS)
        for name, value in {"images": images, "epochs": epochs}.items():
            checks.integer(name, value, low=1)
        for seed in seeds:
            checks.seed(seed)
        if not seeds:
            raise ValueError("seeds: expected one or more, got none.")
        place = checks.device("device", device)
        split = load(data, root, valid_fraction=0.5)
        check_images(split, images)
        sizes = {"channels": 8, "repeats": 2, "nodes": 3, "stages": 1}
        space = cell_spaces.nas_bench_201(split.train[0].shape[1], split.classes, **sizes, primitives=primitives)
        if len({*primitives}) < max(2, len(primitives)):
            raise ValueError(f"primitives: expected two or more, all different, got {list(primitives)}.")
        task = Task(space, split, images, seeds[0], place, batch_size=64)
        config |= {"task": task.settings(), "data_digest": split.digest()}
        folder = RunFolder(out, config, resume)
        cells = list(all_structures(space))
        accuracies = []
        for seed in seeds:
            own = replace(task, seed=seed)
            trained = []
            for number, cell in enumerate(tqdm(cells, disable=not sys.stderr.isatty(), unit="cell", leave=False)):
                path = folder.path / "cells" / f"{number}-{seed}.json"
                if not path.exists():
                    write_json(path, _trained(own, cell, epochs))
                trained.append(read_json(path, "accuracy")["accuracy"])
            accuracies.append(trained)
            print(f"seed {seed}: {len(cells)} cells, accuracy {min(trained):.3f} to {max(trained):.3f}", flush=True)
        means = [statistics.fmean(one) for one in zip(*accuracies, strict=True)]
        ranks = rankdata([-mean for mean in means])  # 1 is the best, ties share the mean of theirs
        place_of = {key_of_structure(cell): number for number, cell in enumerate(cells)}
        result: dict[str, Any] = {}
        for method in methods:
            entries = []
            for seed in seeds:
                path = folder.path / "searches" / f"{method}-{seed}.json"
                if not path.exists():
                    write_json(path, _found(replace(task, seed=seed), method))
                structure = {site: torch.tensor(t) for site, t in read_json(path, "structure")["structure"].items()}
                number = place_of[key_of_structure({site: _vertex(space, site, t) for site, t in structure.items()})]
                logs = [_log_probability(structure, cell) for cell in cells]
                entries.append({
                    "rank": float(ranks[number]), "accuracy": means[number],
                    "spearman": _correlation(logs, means),
                })  # fmt: skip
            result[method] = entries
            found = ", ".join(f"{entry['rank']:g}" for entry in entries)
            print(f"{method}: ranks {found} of {len(cells)}", flush=True)
        agreement = [_correlation(a, b) for i, a in enumerate(accuracies) for b in accuracies[:i]]
        folder.write_json(
            "summary.json",
            {"command": "pyro-nas rank", "config": config, "cells": len(cells), "accuracy": means, "methods": result,
             "spearman_of_seeds": agreement, "threads": torch.get_num_threads()},
        )  # fmt: skip
        folder.write_text("table.md", table(result, len(cells)))
        folder.write_with("ranks.png", partial(save, plots.plot_ranks(means, result)))
        print(table(result, len(cells)))
        print(f"run folder: {folder.path}")

    return rank


def table(result: Mapping[str, Sequence[Mapping[str, Any]]], count: int) -> str:
    """Return ranks of the choices, their accuracy, and the correlation of the posterior, as Markdown."""
    lines = [f"| method | ranks among {count} | accuracy of the choice | Spearman of probability and accuracy |",
             "|---|---|---|---|"]  # fmt: skip
    for method, entries in result.items():
        ranks = ", ".join(f"{entry['rank']:g}" for entry in entries)
        accuracy = statistics.fmean(entry["accuracy"] for entry in entries)
        known = [entry["spearman"] for entry in entries if entry["spearman"] is not None]
        correlation = f"{statistics.fmean(known):.2f}" if known else "–"
        lines.append(f"| {method} | {ranks} | {accuracy:.4f} | {correlation} |")
    return "\n".join(lines) + "\n"


def _trained(task: Task, cell: Vertex, epochs: int) -> dict[str, float]:
    """Train one cell on all known data and return its metrics on the test part."""
    known = task.split.known
    full = replace(task, split=replace(task.split, train=known))
    model = full.model(space=derive(task.space, cell))
    guide = models.guides.PointWeights(model).to(task.device)
    inference.svi.fit(model, guide, known, **full.fit_options(epochs))
    x, y = task.split.test
    return classification_metrics(predict(model, mean_draw(guide), x.to(task.device)).cpu(), y)


def _found(task: Task, method: str) -> dict[str, Any]:
    found = METHODS[method](task)
    return {
        "structure": {site: torch.as_tensor(table).tolist() for site, table in found.structure.items()},
        "images": found.images,
        "seconds": found.seconds,
    }


def _vertex(space: Space, site: str, probabilities: torch.Tensor) -> torch.Tensor:
    return hard_choices(probabilities, space.choices()[site].restriction)


def _log_probability(structure: Mapping[str, torch.Tensor], cell: Vertex) -> float:
    """Return the log-probability of a cell under independent edges."""
    return float(torch.cat([(table * cell[site]).sum(-1) for site, table in structure.items()]).double().log().sum())


def _correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's correlation, None where one side is constant or has no finite order."""
    if len({*a}) < 3 or len({*b}) < 3:
        return None
    return float(spearmanr(a, b).statistic)
