"""``pyro-nas rank``: every cell of a small space trained, and where the choice of each method stands among them.

A NAS-Bench-201 cell of three vertices: 5³ = 125 cells (Dong and Yang 2020 have four vertices and 15 625 cells).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypedDict

import torch
from scipy.stats import rankdata, spearmanr
from tqdm import tqdm

from pyro_nas import checks
from pyro_nas.data import load
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.enumeration import Vertex, all_structures, hard_choices, key_of_structure
from pyro_nas.graph.families import cell_spaces
from pyro_nas.graph.space import Space
from pyro_nas.inference import svi
from pyro_nas.models import guides
from pyro_nas.reading.metrics import classification_metrics
from pyro_nas.reading.posterior import mean_draw, predict
from pyro_nas.studies.compare.methods import METHODS
from pyro_nas.studies.compare.records import Table
from pyro_nas.studies.compare.task import Task, check_images
from pyro_nas.studies.run_folder import RunFolder
from pyro_nas.studies.tables import markdown_table

IMAGES, EPOCHS = 60_000, 15  # of a search, and of the training of a cell


class Searched(TypedDict):
    """What is stored of a search: its structure or choice probabilities, and what it cost."""

    structure: Table
    images: int
    seconds: float


@dataclass(frozen=True)
class Choice:
    """Where a choice stands among all cells, 1 the best; ``spearman`` is of all cells' probabilities and accuracies."""

    rank: float
    accuracy: float
    spearman: float | None


def rank(
    *,
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
    _check(methods, seeds, images, epochs)
    task = _task(data, root, primitives, images, seeds[0], checks.device("device", device))
    config = {"data": data, "methods": methods, "seeds": seeds, "images": images, "epochs": epochs,
              "primitives": list(primitives), "task": task.settings(),
              "data_digest": task.split.digest()}  # fmt: skip
    with RunFolder(out, config, resume=resume) as folder:
        cells = list(all_structures(task.space))
        accuracies = [_accuracies(folder, replace(task, seed=seed), cells, epochs) for seed in seeds]
        means = [statistics.fmean(values) for values in zip(*accuracies, strict=True)]
        choices = {method: _choices(folder, task, method, seeds, cells, means) for method in methods}
        _report(folder, config, accuracies, means, choices)


def _check(methods: Sequence[str], seeds: Sequence[int], images: int, epochs: int) -> None:
    """Raise ValueError for unknown methods, bad or no seeds, and an empty budget."""
    for method in methods:
        checks.one_of("methods", method, METHODS)
    for name, value in {"images": images, "epochs": epochs}.items():
        checks.integer(name, value, low=1)
    for seed in seeds:
        checks.seed(seed)
    if not seeds:
        raise ValueError("seeds: expected one or more, got none.")


def _task(data: str, root: str | None, primitives: Sequence[str], images: int, seed: int, device: torch.device) -> Task:
    """Load the data, check that the budget suits them, and return the task of the first seed."""
    split = load(data, root, valid_fraction=0.5)
    check_images(split, images)
    space = cell_spaces.nas_bench_201(
        split.train[0].shape[1], split.classes, channels=8, repeats=2, nodes=3, stages=1, primitives=primitives
    )
    if len({*primitives}) < max(2, len(primitives)):
        raise ValueError(f"primitives: expected two or more, all different, got {list(primitives)}.")
    return Task(space, split, images, seed, device, batch_size=64)


def _accuracies(folder: RunFolder, task: Task, cells: Sequence[Vertex], epochs: int) -> list[float]:
    """Return the test accuracy of each cell, trained with the task's seed where the folder does not have it."""
    accuracies = []
    for number, cell in enumerate(tqdm(cells, disable=not sys.stderr.isatty(), unit="cell", leave=False)):
        name = f"cells/{number}-{task.seed}.json"
        accuracies.append(folder.row(name, ("accuracy",), partial(_trained, task, cell, epochs))["accuracy"])
    low, high = min(accuracies), max(accuracies)
    print(f"seed {task.seed}: {len(cells)} cells, accuracy {low:.3f} to {high:.3f}", flush=True)
    return accuracies


def _choices(
    folder: RunFolder, task: Task, method: str, seeds: Sequence[int], cells: Sequence[Vertex], means: Sequence[float]
) -> list[Choice]:
    """Return where the choice of a method stands, for each seed; search where the folder does not have it."""
    ranks = rankdata([-mean for mean in means])  # 1 is the best, ties share the mean of theirs
    numbers = {key_of_structure(cell): number for number, cell in enumerate(cells)}
    choices = []
    for seed in seeds:
        make = partial(_searched, replace(task, seed=seed), method)
        stored = folder.row(f"searches/{method}-{seed}.json", ("structure",), make)["structure"]
        structure = {site: torch.tensor(table) for site, table in stored.items()}
        number = numbers[key_of_structure(_vertex(task.space, structure))]
        logs = [_log_probability(structure, cell) for cell in cells]
        choices.append(Choice(float(ranks[number]), means[number], _correlation(logs, means)))
    print(f"{method}: ranks {_ranks(choices)} of {len(cells)}", flush=True)
    return choices


def _report(
    folder: RunFolder,
    config: Mapping[str, object],
    accuracies: Sequence[Sequence[float]],
    means: Sequence[float],
    choices: Mapping[str, Sequence[Choice]],
) -> None:
    """Write and print the ranks."""
    from pyro_nas.reading.plots import save  # matplotlib is imported where it is used
    from pyro_nas.studies.plots import plot_ranks

    agreement = [_correlation(a, b) for i, a in enumerate(accuracies) for b in accuracies[:i]]
    entries = {method: [asdict(choice) for choice in chosen] for method, chosen in choices.items()}
    folder.write_json(
        "summary.json",
        {"command": "pyro-nas rank", "config": config, "cells": len(means), "accuracy": means, "methods": entries,
         "spearman_of_seeds": agreement, "threads": torch.get_num_threads()},
    )  # fmt: skip
    text = table(choices, len(means))
    folder.write_text("table.md", text)
    folder.write_with("ranks.png", partial(save, plot_ranks(means, entries)))
    print(text)
    print(f"run folder: {folder.path}")


def table(choices: Mapping[str, Sequence[Choice]], count: int) -> str:
    """Return ranks of the choices, their accuracy, and the correlation of the posterior, as Markdown."""
    lines = []
    for method, chosen in choices.items():
        accuracy = statistics.fmean(choice.accuracy for choice in chosen)
        known = [choice.spearman for choice in chosen if choice.spearman is not None]
        correlation = f"{statistics.fmean(known):.2f}" if known else "–"
        lines.append([method, _ranks(chosen), f"{accuracy:.4f}", correlation])
    header = ["method", f"ranks among {count}", "accuracy of the choice", "Spearman of probability and accuracy"]
    return "\n".join(markdown_table(header, lines)) + "\n"


def _ranks(choices: Sequence[Choice]) -> str:
    return ", ".join(f"{choice.rank:g}" for choice in choices)


def _trained(task: Task, cell: Vertex, epochs: int) -> dict[str, float]:
    """Train one cell on all known data and return its metrics on the test part."""
    known = task.split.known
    full = replace(task, split=replace(task.split, train=known))
    model = full.model(space=derive(task.space, cell))
    guide = guides.PointWeights(model).to(task.device)
    svi.fit(model, guide, known, **full.fit_options(epochs))
    x, y = task.split.test
    return classification_metrics(predict(model, mean_draw(guide), x.to(task.device)).cpu(), y)


def _searched(task: Task, method: str) -> Searched:
    """Search by a method and return what is stored of it."""
    result = METHODS[method](task)
    structure = {site: torch.as_tensor(table).tolist() for site, table in result.structure.items()}
    return {"structure": structure, "images": result.images, "seconds": result.seconds}


def _vertex(space: Space, structure: Mapping[str, torch.Tensor]) -> Vertex:
    """Return the cell that a structure, or choice probabilities, stand for."""
    return {site: hard_choices(structure[site], choices.restriction) for site, choices in space.choices().items()}


def _log_probability(structure: Mapping[str, torch.Tensor], cell: Vertex) -> float:
    """Return the log-probability of a cell under independent edges."""
    return float(torch.cat([(table * cell[site]).sum(-1) for site, table in structure.items()]).double().log().sum())


def _correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's correlation, None where one side is constant or has no finite order."""
    if len({*a}) < 3 or len({*b}) < 3:
        return None
    return float(spearmanr(a, b).statistic)
