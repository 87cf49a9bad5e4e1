"""Arrays: inputs x and class indices y of an .npz file, checked before they are unpacked."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

__all__ = ["read_arrays"]

BROKEN = (  # what numpy and zipfile raise for files that are damaged, or no .npz at all
    OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, OverflowError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
COLOURS = (1, 3, 4)  # channels that images have


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return x, (data, features) or (data, channels, height, width), and class indices y, (data,), of an .npz file.

    Raises ValueError for a file that is missing, broken or larger, unpacked, than half of the memory, for other arrays,
    and for images whose channels come last; it says how to write the file.
    """
    if path.suffix != ".npz":
        raise ValueError(
            f"data: expected an .npz file, got {str(path)!r}. "
            "Write one: numpy.savez('data.npz', x=x, y=y), x (data, features), of a table by numpy.loadtxt, say."
        )
    if not path.is_file():
        raise ValueError(f"data: expected an existing .npz file, got {str(path)!r}.")
    try:
        with zipfile.ZipFile(path) as file:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in file.infolist()}
        unpacked = sum(size for name, size in sizes.items() if name in ("x", "y"))
        if unpacked > _memory() // 2:
            raise MemoryError(f"its x and y take {unpacked / 2**30:.1f} GiB, more than half of this machine's memory.")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("x", "y") if name in arrays.files}
    except BROKEN as error:
        raise ValueError(
            f"data: expected an .npz file, got {str(path)!r}: {error} Write it by numpy.savez(path, x=x, y=y)."
        ) from error
    if len(found) < 2:
        raise ValueError(f"data: expected arrays 'x' and 'y' in {str(path)!r}, got {list(sizes)}. Name them so.")
    _check_inputs(path, found["x"])
    _check_labels(found["y"])
    return found["x"], found["y"]


def _check_inputs(path: Path, x: np.ndarray) -> None:
    if x.dtype.kind not in "fiub":
        raise ValueError(f"data: expected a numeric x in {str(path)!r}, got {x.dtype} {x.shape}. Save x.astype(float).")
    if x.ndim not in (2, 4):
        remedy = "Save x[:, None] for grey images, x.reshape(len(x), -1) for features."
        raise ValueError(
            f"data: expected x of shape (data, features) or (data, channels, height, width) in {str(path)!r}, "
            f"got {x.shape}. {remedy}"
        )
    if x.ndim == 4 and x.shape[3] in COLOURS and min(x.shape[1:3]) > max(COLOURS):
        raise ValueError(
            f"data: expected images (data, channels, height, width), got {x.shape}, whose channels come last. "
            "Save x.transpose(0, 3, 1, 2)."
        )


def _check_labels(y: np.ndarray) -> None:
    if y.dtype.kind not in "iu" or y.ndim != 1:
        remedy = "Save y.astype(int)."
        if y.dtype.kind in "USO":
            remedy = "Save numpy.unique(y, return_inverse=True)[1]."
        elif y.ndim > 1:
            remedy = "Save y.ravel()." if y[:1].size == 1 else "Save y.argmax(1)."
        raise ValueError(f"data: expected integer class indices y of shape (data,), got {y.dtype} {y.shape}. {remedy}")


def _memory() -> int:
    """Return the memory of this machine in bytes; 16 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**34
