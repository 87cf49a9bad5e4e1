"""Report of a search: tests of what was searched and of what was derived, and the files of the run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import torch

from pyro_nas.data import Split
from pyro_nas.evidence import evaluate
from pyro_nas.files import state_of
from pyro_nas.graph.space import Space
from pyro_nas.graph.space_files import to_dict
from pyro_nas.inference.batches import Batches
from pyro_nas.inference.options import Record
from pyro_nas.models import Model
from pyro_nas.models.guides import Guide
from pyro_nas.reading.metrics import classification_metrics
from pyro_nas.reading.posterior import draw
from pyro_nas.reading.structure_posterior import by_edge, edge_entropies, number_by_edge, probable_structures
from pyro_nas.studies.run_folder import RunFolder
from pyro_nas.studies.search.saved_run import MODEL, WEIGHTS, description, predictive
from pyro_nas.studies.search.settings import Settings

SMALL = 100_000  # weights below which the stored posterior has 1000 draws of the structure, not 100
Probabilities = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Fitted:
    """A fitted pair, the records of its epochs, and the seconds that it took."""

    model: Model
    guide: Guide
    records: list[Record]
    seconds: float


class Chosen(TypedDict):
    """The primitives that each edge chooses, and the log posterior probability of these choices together, in nats."""

    log_probability: float
    choices: dict[str, list[str]]


class Summary(TypedDict):
    """What summary.json holds: of "search" and "derived" metrics on the test part, terms of 𝔏 in nats, sizes."""

    data: str
    seed: int
    test: dict[str, dict[str, float]]
    probabilities: dict[str, dict[str, float]]
    entropy: dict[str, float]
    evidence: dict[str, dict[str, float]]
    parameters: dict[str, int]
    probable_structures: list[Chosen]
    seconds: dict[str, float]


def rehearse(model: Model) -> None:
    """Write the posterior's file of draws of the prior, into a folder that goes, before hours are spent on a fit.

    Raises ValueError where this machine cannot write NetCDF.
    """
    prior = {site: model.structure_probabilities(site)[None] for site in model.choices}
    try:
        with TemporaryDirectory() as folder:
            _write_posterior(prior, model.space, Path(folder) / "posterior.nc")
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"posterior.nc: expected a machine that can write NetCDF, at the end of the run, got {error!r}. "
            "Install h5netcdf, and see that the folder for temporary files can be written."
        ) from error


def _write_posterior(structure_draws: Probabilities, space: Space, path: Path) -> None:
    from pyro_nas.reading.arviz_export import to_arviz  # what knows ArviZ is imported where it is used

    to_arviz(structure_draws, space).to_netcdf(str(path))


def report(
    settings: Settings, split: Split, searched: Fitted, derived: Fitted, probabilities: Probabilities, folder: RunFolder
) -> None:
    """Test both networks once, print their metrics, and write what was found."""
    start = time.perf_counter()
    torch.manual_seed(settings.seed)
    drawn = draw(searched.guide, num_samples=1000 if searched.model.packing.size < SMALL else 100)
    structure_draws = {site: drawn[site].cpu() for site in searched.model.choices}
    summary = summarise(settings, split, searched, derived, probabilities)
    seconds = {"search": searched.seconds, "retrain": derived.seconds, "test": time.perf_counter() - start}
    summary["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
    _write(folder, searched, derived, probabilities, structure_draws)
    folder.write_sealed(MODEL, description(derived.model, split))
    folder.write_json("summary.json", summary)
    for name, metrics in summary["test"].items():
        accuracy, error = metrics["accuracy"], metrics["calibration_error"]
        print(f"{name.replace('_', ' ')}: test accuracy {accuracy:.4f}, calibration error {error:.4f}")
    print(f"run folder: {folder.path}")


def summarise(
    settings: Settings, split: Split, searched: Fitted, derived: Fitted, probabilities: Probabilities
) -> Summary:
    """Return the summary of a search; its seconds are filled in by whom they are known to."""
    space, device = searched.model.space, torch.device(settings.device)
    terms = {
        name: evaluate(fitted.model, fitted.guide, Batches("train", data, 1024, device), draws=8)
        for name, fitted, data in (("search", searched, split.train), ("derived", derived, split.known))
    }
    return {
        "data": settings.data,
        "seed": settings.seed,
        "test": {
            name: _tested(fitted, split, settings.draws, settings.seed, device)
            for name, fitted in (("posterior_predictive", searched), ("derived", derived))
        },
        "probabilities": by_edge(space, probabilities),
        "entropy": number_by_edge(space, edge_entropies(space, probabilities)),
        "evidence": terms,
        "parameters": {
            name: sum(parameter.numel() for parameter in fitted.model.network.parameters())
            for name, fitted in (("search", searched), ("derived", derived))
        },
        "probable_structures": [
            {"log_probability": found.log_probability, "choices": _chosen(space, found.structure)}
            for found in probable_structures(space, probabilities)
            if found.log_probability > -math.inf  # of a point structure one alone is probable
        ],
        "seconds": {},
    }


def _tested(fitted: Fitted, split: Split, draws: int, seed: int, device: torch.device) -> dict[str, float]:
    """Return the metrics of the posterior predictive on the test part."""
    x, y = split.test
    return classification_metrics(predictive(fitted.model, fitted.guide, x.to(device), draws, seed).cpu(), y)


def _chosen(space: Space, structure: Probabilities) -> dict[str, list[str]]:
    """Return the primitives that each edge of a discrete structure keeps."""
    return {edge: [name for name, on in table.items() if on] for edge, table in by_edge(space, structure).items()}


def print_structure(space: Space, probabilities: Probabilities) -> None:
    """Print the probability of each edge's primitives, and the entropy of the choice in nats."""
    entropies = number_by_edge(space, edge_entropies(space, probabilities))
    print("edge → probability of each primitive, entropy in nats")
    for edge, table in by_edge(space, probabilities).items():
        choices = "  ".join(f"{name} {value:.3f}" for name, value in table.items())
        print(f"  {edge:<24}{choices}  entropy {entropies[edge]:.3f}")


def _write(
    folder: RunFolder, searched: Fitted, derived: Fitted, probabilities: Probabilities, structure_draws: Probabilities
) -> None:
    """Write network, weights, draws of the structure, history and pictures."""
    from pyro_nas.reading import plots  # what draws is imported where it is used

    space = searched.model.space
    folder.write_json("architecture.json", to_dict(derived.model.space))
    folder.write_tensors(WEIGHTS, state_of(derived.model, derived.guide))
    folder.write_with("posterior.nc", partial(_write_posterior, structure_draws, space))
    folder.write_with("architecture.png", partial(plots.save, plots.plot_architecture(space, probabilities)))
    folder.write_with("structure.png", partial(plots.save, plots.plot_structure(searched.records, space)))
    folder.write_with("history.png", partial(plots.save, plots.plot_history(searched.records)))
    folder.write_json("history.json", searched.records)
