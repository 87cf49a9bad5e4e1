"""Data: checked tensors, and the named sets and files of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pyro_nas import checks
from pyro_nas.arrays import read_arrays
from pyro_nas.files.identity import identity_digest, tensor_digest

__all__ = [
    "NAMED",
    "Inputs",
    "Labelled",
    "Pair",
    "Source",
    "Split",
    "check_classes",
    "check_labels",
    "check_number",
    "check_pair",
    "check_tensors",
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
    check_tensors(f"{name} y", y)
    check_tensors(f"{name} x", x)
    parts = {f"{name} x": x} if not isinstance(x, tuple) else {f"{name} x[{i}]": part for i, part in enumerate(x)}
    for label, tensor in {f"{name} y": y, **parts}.items():
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            raise ValueError(f"{label}: expected at least one datum on axis 0, got {checks.describe(tensor)}.")
        if tensor.shape[0] != y.shape[0]:
            raise ValueError(f"{label}: expected as many data as y, {y.shape[0]}, got {tensor.shape[0]}.")
        if not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise ValueError(f"{label}: expected finite values, got {count} NaN or infinite. Remove or impute them.")
    return x, y


def check_tensors(name: str, value: object) -> None:
    """Raise TypeError where a value is neither a tensor nor a tuple of them, with how to make it one."""
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, torch.Tensor):
            continue
        values = part if isinstance(part, (list, tuple)) else getattr(part, "flat", ())
        remedy = "Call torch.as_tensor on it."
        if hasattr(part, "to_numpy"):
            remedy = "Call torch.as_tensor on its to_numpy()."
        elif any(isinstance(entry, torch.Tensor) for entry in values):
            remedy = "Pass several inputs as a tuple, one tensor as torch.stack makes it."
        elif any(isinstance(entry, str) for entry in values):
            remedy = "Number what are names: torch.as_tensor(numpy.unique(y, return_inverse=True)[1])."
        raise TypeError(f"{name}: expected a tensor, got {checks.describe(part)}. {remedy}")


def check_number(model: object, *numbers: int) -> None:
    """Raise ValueError where a model that counts its data, by ``num_data``, counts none of these numbers of them."""
    expected = getattr(model, "num_data", None)
    if isinstance(expected, int) and expected not in numbers:
        raise ValueError(
            f"num_data: expected the number of data that the model is fitted to, {numbers[0]}, got {expected}: the "
            f"likelihood would count {expected / numbers[0]:.3g} times. Build the model with num_data={numbers[0]}; "
            "complexity is what weighs prior against data."
        )


def check_labels(name: str, y: torch.Tensor, classes: int) -> None:
    """Check class indices y, (data,), from 0 to ``classes`` − 1.

    Raises TypeError for y that are no integers, ValueError for other shapes and indices, with how to mend them.
    """
    if y.dim() != 1:
        remedy = "Call y.squeeze(1)." if y.shape[1:].numel() == 1 else "Call y.argmax(1) on a one-hot form."
        raise ValueError(f"{name}: expected class indices of shape (batch,), got {checks.describe(y)}. {remedy}")
    if y.is_floating_point() or y.dtype == torch.bool or y.is_complex():
        raise TypeError(f"{name}: expected integer class indices, got {checks.describe(y)}. Call y.long().")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        remedy = "Number them from 0, as torch.unique(y, return_inverse=True)[1] does, an output of the network each."
        if (low, high) == (1, classes):
            remedy = "They count from 1: subtract 1."
        elif low < 0:
            remedy = "Leave out the data without a class, y[y >= 0] and x alike."
        raise ValueError(
            f"{name}: expected class indices from 0 to {classes - 1}, got values from {low} to {high}. {remedy}"
        )


def check_classes(x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise ValueError where x are not floating-point inputs (data, …), or y not a class index of each, (data,)."""
    check_tensors("x", x)
    check_tensors("y", y)
    if not x.is_floating_point() or not len(x):
        raise ValueError(f"x: expected floating-point inputs (data, …), got {checks.describe(x)}. Call x.float().")
    if y.shape != (len(x),) or y.is_floating_point():
        raise ValueError(
            f"y: expected class indices of shape ({len(x)},), got {checks.describe(y)}. Squeeze it or take its argmax."
        )


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
    missing or broken, other arrays (as ``arrays.read_arrays``), classes that are not numbered from 0, and fewer than 3
    data of one.
    """
    checks.number("valid_fraction", valid_fraction, low=0.01, high=0.9)
    if Path(name).suffix:
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
    x, y = read_arrays(path)
    features, labels = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y.astype(np.int64))
    check_pair("data", (features, labels))
    return _split(features, labels, valid_fraction)


def _split(
    x: torch.Tensor, y: torch.Tensor, valid_fraction: float, test: Labelled | None = None, *, half: float | None = None
) -> Split:
    """Split, and scale x from [0, 2 · half] to [−1, 1], or to mean 0 and sd 1 of the training part."""
    from sklearn.model_selection import train_test_split

    classes = int(y.max()) + 1
    found, counts = y.unique(return_counts=True)
    check_labels("data y", y, len(found))
    rest = np.arange(len(y))
    if int(counts.min()) < 3:
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
