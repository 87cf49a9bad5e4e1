"""A finished search: the retrained network as the run folder holds it, for predictions on data as they are stored."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from pyro_nas import checks
from pyro_nas.data import Split
from pyro_nas.files import load_state, read_sealed
from pyro_nas.graph.space_files import from_dict, to_dict
from pyro_nas.models import Model
from pyro_nas.models.guides import Guide
from pyro_nas.random_state import seeded
from pyro_nas.reading.posterior import draw, predict
from pyro_nas.studies.run_folder import owner, stored_config
from pyro_nas.studies.search.settings import Settings, parts_of

__all__ = ["MODEL", "WEIGHTS", "SavedRun", "description", "load_run", "predictive"]

MODEL, WEIGHTS = "model.json", "weights.safetensors"


def predictive(model: Model, guide: Guide, x: torch.Tensor, draws: int, seed: int) -> torch.Tensor:
    """Return class probabilities of x, (data, classes), means over draws of a guide; the same for the same seed."""
    with seeded(seed):
        return predict(model, draw(guide, num_samples=draws), x)


def description(model: Model, split: Split) -> dict[str, object]:
    """Return what a network needs beside settings and weights, as JSON values, mean and sd of x as nested lists."""
    return {
        "architecture": to_dict(model.space),
        "num_data": model.num_data,
        "shape": list(split.train[0].shape[1:]),
        "class_names": list(split.names),
        "mean": split.mean.tolist(),
        "sd": split.sd.tolist(),
    }


@dataclass(frozen=True, eq=False)
class SavedRun:
    """The retrained network of a search: its pair, the scaling of its data, its classes and settings.

    ``mean`` and ``sd`` broadcast against x of ``shape``, that of a datum.
    """

    model: Model
    guide: Guide
    settings: Settings
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    mean: torch.Tensor
    sd: torch.Tensor

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return class probabilities, (data, classes), of x as stored, (data, …), scaled as the run scaled its data.

        They are the run's own, by the same draws of the posterior: on its test part they give its test figures.

        Raises ValueError for data of another size.
        """
        x = torch.as_tensor(x, dtype=torch.float32)
        size = torch.Size(self.shape).numel()
        if x.dim() < 2 or x[:1].numel() != size:
            raise ValueError(f"x: expected data of shape (data, …), {size} numbers each, got {checks.describe(x)}.")
        scaled = (x.reshape(-1, *self.shape) - self.mean) / self.sd
        settings = self.settings
        return predictive(self.model, self.guide, scaled.to(settings.device), settings.draws, settings.seed).cpu()


def load_run(folder: str | os.PathLike[str], device: str = "cpu") -> SavedRun:
    """Return what ``pyro-nas search`` left in its run folder.

    Raises ValueError for a folder without a finished search, and for files that were changed or are of another run.
    """
    path = Path(folder)
    config = stored_config(path)
    names = [field.name for field in fields(Settings)]
    if not set(names) <= set(config) or not all((path / name).is_file() for name in (MODEL, WEIGHTS)):
        raise ValueError(
            f"folder: expected a finished search, with {MODEL} and {WEIGHTS}, got {str(path)!r}. "
            "Continue it by pyro-nas search --resume true."
        )
    stored = read_sealed(path / MODEL, of=owner(config, MODEL))
    settings = Settings(**{name: config[name] for name in names} | {"device": device})
    parts = parts_of(settings)
    model = Model(
        from_dict(stored["architecture"]), num_data=stored["num_data"], weights=parts.weights,
        complexity=settings.complexity,
    ).to(parts.device)  # fmt: skip
    guide = parts.make_guide(model).to(parts.device)
    load_state(path / WEIGHTS, model, guide, of=owner(config, WEIGHTS))
    mean, sd = (torch.tensor(stored[name]) for name in ("mean", "sd"))
    return SavedRun(model, guide, settings, tuple(stored["class_names"]), tuple(stored["shape"]), mean, sd)
