"""``pyro-nas search``: bilevel variational inference of weights and structure, then the derived network alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict

import torch

from pyro_nas import checks
from pyro_nas.data import Labelled, Split, load
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.families import zoo
from pyro_nas.graph.space import Space
from pyro_nas.graph.space_files import read_space, to_dict
from pyro_nas.inference import bilevel, svi
from pyro_nas.models import Model
from pyro_nas.models.guides import Guide
from pyro_nas.reading.structure_posterior import choice_probabilities, probable_structures
from pyro_nas.studies.fit_arguments import BilevelArguments, FitArguments
from pyro_nas.studies.run_folder import RunFolder
from pyro_nas.studies.search.report import Fitted, print_structure, rehearse, report
from pyro_nas.studies.search.settings import Parts, Settings, parts_of

DERIVED = 1000  # structures, best first, from which to derive before giving up


def search(
    *,
    data: str = "digits",
    root: str | None = None,
    space: str = "auto",
    guide: str = "mean_field",
    weights: str = "normal",
    structure: str = "gumbel_softmax",
    prior_gain: float = 1.0,
    complexity: float = 0.001,
    epochs: int | None = None,
    retrain_epochs: int | None = None,
    batch_size: int = 64,
    lr: float = 0.02,
    structure_lr: float = 0.1,
    draws: int = 30,
    seed: int = 0,
    device: str = "cpu",
    out: str = "runs/search",
    resume: bool = False,
) -> None:
    """Search an architecture, show its posterior, derive, retrain, test once, and write the run folder.

    The search is bilevel variational inference: weights on the training part, structure on the validation part. The
    derived network is retrained on both. Fits checkpoint after every epoch.

    Args:
        data: "digits", "mnist", "fashion-mnist", or an .npz file with arrays x and y (class indices).
        root: folder of the torchvision sets, downloaded there where absent.
        space: "cells" (images), "layers" (any data), "auto" for one of the two, or a JSON file of a space.
        guide: "mean_field", "low_rank", "point_mass", "point_weights" or "structure_conditioned".
        weights: weight prior, "normal", "laplace" or "relevance_determination".
        structure: structure prior, "gumbel_softmax", "straight_through", "dirichlet", "categorical", and for spaces on
            the cube "relaxed_bernoulli" or "bernoulli".
        prior_gain: prior standard deviation of a weight times the square root of its fan-in.
        complexity: λ, the weight of the divergence from the prior.
        epochs: epochs of the search; by default 60, for large sets fewer: 100 000 / data of an epoch, at least 3.
        retrain_epochs: epochs of the derived network, by the same rule.
        batch_size: data a step.
        lr: highest learning rate of the weights, in a one-cycle schedule.
        structure_lr: learning rate of the structure.
        draws: posterior draws that predictions average.
        seed: seed of all that is random but the split of the data.
        device: "cpu", "cuda", …
        out: run folder, new or empty.
        resume: continue the run in that folder.
    """
    settings = Settings(
        data=data, root=root, space=space, guide=guide, weights=weights, structure=structure, prior_gain=prior_gain,
        complexity=complexity, epochs=epochs, retrain_epochs=retrain_epochs, batch_size=batch_size, lr=lr,
        structure_lr=structure_lr, draws=draws, seed=seed, device=device,
    )  # fmt: skip
    run(settings, out, resume=resume)


def run(settings: Settings, out: str, *, resume: bool) -> None:
    """Search, derive, retrain and test; write the run folder ``out``."""
    parts = parts_of(settings)
    split = load(settings.data, settings.root)
    space = space_of(settings.space, split)
    torch.manual_seed(settings.seed)
    model = Model(
        space, num_data=len(split.train[1]), weights=parts.weights, structure=parts.structure,
        complexity=settings.complexity,
    )  # fmt: skip
    if not model.choices:
        raise ValueError("space: expected a space with open choices to search, got one without.")
    model.to(parts.device).check(split.train[0].to(parts.device), split.train[1].to(parts.device))
    guide = parts.make_guide(model).to(parts.device)
    rehearse(model)
    config = {**asdict(settings), "data_digest": split.digest()}
    if settings.space.endswith(".json"):
        config["space"] = to_dict(space)  # what is in the file, which may change
    with RunFolder(out, config, resume=resume) as folder:
        searched = _searched(settings, parts, split, model, guide, folder)
        probabilities = {site: table.cpu() for site, table in choice_probabilities(guide).items()}
        print_structure(space, probabilities)
        derived = retrain(settings, parts, derived_space(space, probabilities), split.known, folder)
        report(settings, split, searched, derived, probabilities, folder)


def _searched(settings: Settings, parts: Parts, split: Split, model: Model, guide: Guide, folder: RunFolder) -> Fitted:
    """Fit weights to the training part and structure to the validation part."""
    start = time.perf_counter()
    arguments: BilevelArguments = {
        **parts.options,
        "epochs": epochs_of(settings.epochs, split.train),
        "temperature": parts.temperature,
        "structure_optimizer": parts.structure_optimizer,
        "checkpoint": folder.path / "search",
        "resume": folder.resume,
    }
    records = bilevel.fit(model, guide, split.train, split.valid, **arguments).records
    return Fitted(model, guide, records, time.perf_counter() - start)


def derived_space(space: Space, probabilities: Mapping[str, torch.Tensor]) -> Space:
    """Return what is derived from the most probable structure that leaves a network.

    On the simplex that is the most probable one. On the cube an edge may keep nothing, and a search would end without a
    network where all edges into the output do.
    """
    for found in probable_structures(space, probabilities, count=DERIVED):
        with suppress(ValueError):
            return derive(space, found.structure)
    return derive(space, probabilities)  # raises what is wrong


def retrain(settings: Settings, parts: Parts, architecture: Space, known: Labelled, folder: RunFolder) -> Fitted:
    """Fit the derived network to all known data, under the weight prior and with the guide of the search."""
    start = time.perf_counter()
    torch.manual_seed(settings.seed)
    model = Model(architecture, num_data=len(known[1]), weights=parts.weights, complexity=settings.complexity)
    guide = parts.make_guide(model.to(parts.device)).to(parts.device)
    arguments: FitArguments = {
        **parts.options,
        "epochs": epochs_of(settings.retrain_epochs, known),
        "checkpoint": folder.path / "retrain",
        "resume": folder.resume,
    }
    records = svi.fit(model, guide, known, **arguments).records
    return Fitted(model, guide, records, time.perf_counter() - start)


def epochs_of(asked: int | None, data: Labelled) -> int:
    """Return the epochs that were asked for, or by default 100 000 / data, from 3 to 60."""
    return asked if asked is not None else max(3, min(60, 100_000 // len(data[1])))


def space_of(name: str, split: Split) -> Space:
    """Return the space of a name or of a JSON file, sized for the data."""
    x = split.train[0]
    if name.endswith(".json"):
        return read_space(name)
    checks.one_of("space", name, ["auto", "cells", "layers", "FILE.json"])
    if name == "cells" and x.dim() != 4:
        raise ValueError(f"space: expected 'layers' for data of shape {tuple(x.shape)}, got 'cells', for images.")
    if x.dim() == 4 and name != "layers":
        return zoo.cells(x.shape[1], split.classes, stem_stride=2 if x.shape[-1] > 16 else 1)
    return zoo.layers(x[0].numel(), split.classes)
