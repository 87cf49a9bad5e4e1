"""Data: checked tensors, batches of them, and the named sets of the command line."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pyro_nas import checks
from pyro_nas.files.identity import identity_digest, tensor_digest
from pyro_nas.random_state import forked, generators

__all__ = [
    "NAMED",
    "Batches",
    "Inputs",
    "Labelled",
    "Pair",
    "Source",
    "Split",
    "check_classes",
    "check_pair",
    "load",
]

Inputs = torch.Tensor | tuple[torch.Tensor, ...]
Pair = tuple[Inputs, torch.Tensor]
Labelled = tuple[torch.Tensor, torch.Tensor]
Source = Pair | DataLoader[Any] | Dataset[Any]
NAMED = ("digits", "mnist", "fashion-mnist")
BROKEN = (OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError)  # of torchvision, for its files


def check_pair(name: str, data: object) -> Pair:
    """Return (x, y) where x, a tensor or a tuple of them, and y, (data, …) each, are finite and of one length.

    Raises TypeError for what is no pair of tensors, ValueError for other lengths, no data, and NaN or infinity.
    """
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        raise TypeError(f"{name}: expected a pair (x, y), a Dataset or a DataLoader, got {checks.describe(data)}.")
    x, y = data
    parts = {f"{name} x": x} if not isinstance(x, tuple) else {f"{name} x[{i}]": part for i, part in enumerate(x)}
    for label, tensor in {f"{name} y": y, **parts}.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{label}: expected a tensor, got {checks.describe(tensor)}. Call torch.as_tensor on it.")
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            raise ValueError(f"{label}: expected at least one datum on axis 0, got {checks.describe(tensor)}.")
        if tensor.shape[0] != y.shape[0]:
            raise ValueError(f"{label}: expected as many data as y, {y.shape[0]}, got {tensor.shape[0]}.")
        if not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise ValueError(f"{label}: expected finite values, got {count} NaN or infinite. Remove or impute them.")
    return x, y


def check_classes(x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise ValueError where x are not floating-point inputs (data, …), or y not a class index of each, (data,)."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or not len(x):
        raise ValueError(f"x: expected floating-point inputs (data, …), got {checks.describe(x)}. Call x.float().")
    if not isinstance(y, torch.Tensor) or y.shape != (len(x),) or y.is_floating_point():
        raise ValueError(
            f"y: expected class indices of shape ({len(x)},), got {checks.describe(y)}. Squeeze it or take its argmax."
        )


class Batches:
    """Shuffled batches of a source, on a device; tensors are cut into parts whose sizes differ by at most one.

    Raises ValueError for a batch size below 1 and an empty Dataset, and what ``check_pair`` raises for tensors.
    """

    def __init__(self, name: str, source: Source, batch_size: int, device: torch.device):
        self.name, self.device, self.batch_size = name, device, checks.integer("batch_size", batch_size, low=1)
        self.loader: DataLoader[Any] | None = None
        if isinstance(source, DataLoader):
            self.loader = source
        elif isinstance(source, Dataset):
            if len(source) == 0:  # type: ignore[arg-type]
                raise ValueError(f"{name}: expected a dataset with data, got an empty one.")
            self.loader = DataLoader(source, batch_size, shuffle=True)
        else:
            x, y = check_pair(name, source)
            self.x, self.y = _move(x, device), y.to(device)
        self.size = len(self.loader.dataset) if self.loader is not None else len(self.y)  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self.loader) if self.loader is not None else -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Pair]:
        """Yield the batches of an epoch in random order."""
        if self.loader is not None:
            for x, y in self.loader:
                yield _move(x, self.device), y.to(self.device)
            return
        for index in torch.randperm(self.size, device=self.device).tensor_split(len(self)):
            yield _take(self.x, index), self.y[index]

    def first(self) -> Pair:
        """Return a first batch, without touching the random state; raise what ``check_pair`` raises for a loader's."""
        if self.loader is not None:
            before = {name: generator.get_state() for name, generator in self.generators().items()}
            with forked():
                x, y = next(iter(self.loader))
            for name, generator in self.generators().items():
                generator.set_state(before[name])
            return check_pair("the loader's batch", (_move(x, self.device), y.to(self.device)))
        return _take(self.x, slice(self.batch_size)), self.y[: self.batch_size]

    def generators(self) -> dict[str, torch.Generator]:
        """Return the random generators that the loader, its samplers or its dataset have of their own, by place."""
        parts = {name: getattr(self.loader, name, None) for name in ("batch_sampler", "dataset", "sampler")}
        parts |= {"loader": self.loader, "batches": getattr(parts["batch_sampler"], "sampler", None)}
        return generators({f"{self.name}.{part}": owner for part, owner in parts.items()})

    def everything(self) -> Pair | None:
        """Return all data where they are tensors."""
        return None if self.loader is not None else (self.x, self.y)


def _move(x: Inputs | list[torch.Tensor], device: torch.device) -> Inputs:
    return x.to(device) if isinstance(x, torch.Tensor) else tuple(part.to(device) for part in x)


def _take(x: Inputs, index: torch.Tensor | slice) -> Inputs:
    return x[index] if isinstance(x, torch.Tensor) else tuple(part[index] for part in x)


@dataclass(frozen=True)
class Split:
    """Train, validation and test parts of a set for classification, each a pair (x, y).

    x is (stored − ``mean``) / ``sd``, both of a shape that broadcasts; ``names`` are those of the classes.
    """

    train: Labelled
    valid: Labelled
    test: Labelled
    classes: int
    mean: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    sd: torch.Tensor = field(default_factory=lambda: torch.ones(()))
    names: tuple[str, ...] = ()

    @property
    def known(self) -> Labelled:
        """The training and validation parts together."""
        (x, y), (u, v) = self.train, self.valid
        return torch.cat([x, u]), torch.cat([y, v])

    def digest(self) -> str:
        """Return a checksum of all parts: a run is continued on the data it was started with."""
        return identity_digest([tensor_digest(part) for part in (*self.train, *self.valid, *self.test)])


def load(name: str, root: str | None = None, valid_fraction: float = 0.2) -> Split:
    """Load a set by name, or arrays x and y of an .npz file, and split it.

    "digits" (scikit-learn, 1 797 images 1 × 8 × 8) and .npz: a fifth, drawn once for all seeds and stratified by class,
    is the test part. "mnist" and "fashion-mnist" (torchvision, under ``root``, downloaded where absent) have their
    own. ``valid_fraction`` of the rest validates. Images are scaled to [−1, 1]; features of an .npz to
    mean 0 and sd 1, with the training part's.

    Raises ValueError for another name, a fraction outside [0.01, 0.9], no ``root`` where one is needed, files that are
    missing or broken, arrays other than numbers x, (data, …), and class indices y, (data,), and fewer than 3 data of a
    class.
    """
    checks.number("valid_fraction", valid_fraction, low=0.01, high=0.9)
    if name.endswith(".npz"):
        return _load_npz(Path(name), valid_fraction)
    checks.one_of("data", name, NAMED)
    if name == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        x = torch.as_tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
        return _split(x, torch.as_tensor(labels), valid_fraction, half=8.0)
    if root is None:
        raise ValueError(
            f"root: expected the folder of {name!r} (downloaded there where absent), got None. Pass --root."
        )
    from torchvision.datasets import MNIST, FashionMNIST

    kind = MNIST if name == "mnist" else FashionMNIST
    raw = Path(root) / kind.__name__ / "raw"
    try:
        sets = [kind(root, train=part, download=not raw.exists()) for part in (True, False)]
    except BROKEN as error:
        raise ValueError(
            f"root: expected torchvision's files in {str(raw)!r}, got {error} Remove the folder to download them again."
        ) from error
    (x, y), test = [(part.data[:, None].float(), part.targets) for part in sets]
    return replace(_split(x, y, valid_fraction, test, half=127.5), names=tuple(sets[0].classes))


def _load_npz(path: Path, valid_fraction: float) -> Split:
    if not path.is_file():
        raise ValueError(f"data: expected an existing .npz file, got {str(path)!r}.")
    try:
        file = np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"data: expected an .npz file, got {str(path)!r}: {error}") from error
    with file as arrays:
        if not {"x", "y"} <= set(arrays.files):
            raise ValueError(f"data: expected arrays 'x' and 'y' in {str(path)!r}, got {arrays.files}.")
        x, y = arrays["x"], arrays["y"]
    if x.dtype.kind not in "fiub" or x.ndim < 2:
        raise ValueError(f"data: expected a numeric x of shape (data, …) in {str(path)!r}, got {x.dtype} {x.shape}.")
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise ValueError(f"data: expected integer class indices y of shape (data,), got {y.dtype} {y.shape}.")
    features, labels = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y.astype(np.int64))
    check_pair("data", (features, labels))
    return _split(features, labels, valid_fraction)


def _split(
    x: torch.Tensor, y: torch.Tensor, valid_fraction: float, test: Labelled | None = None, *, half: float | None = None
) -> Split:
    """Split, and scale x from [0, 2 · half] to [−1, 1], or to mean 0 and sd 1 of the training part."""
    from sklearn.model_selection import train_test_split

    classes = int(y.max()) + 1
    rest = np.arange(len(y))
    counts = torch.bincount(y, minlength=classes)
    if int(y.min()) < 0 or int(counts.min()) < 3:
        raise ValueError(f"data: expected at least 3 data of each class 0 … {classes - 1} in y, got {counts.tolist()}.")
    if test is None:
        rest, held = train_test_split(rest, test_size=0.2, random_state=0, stratify=y)
        test = (x[held], y[held])
    train, valid = train_test_split(rest, test_size=valid_fraction, random_state=0, stratify=y[rest])
    if half is None:
        axes = (0, *range(2, x.dim()))
        mean, sd = x[train].mean(axes, keepdim=True), x[train].std(axes, keepdim=True).clamp_min(1e-6)
    else:
        mean = sd = torch.tensor(half)
    x, test = (x - mean) / sd, ((test[0] - mean) / sd, test[1])
    names = tuple(str(number) for number in range(classes))
    return Split((x[train], y[train]), (x[valid], y[valid]), test, classes, mean, sd, names)
