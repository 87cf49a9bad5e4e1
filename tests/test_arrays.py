"""Arrays: files that are read, and what is said of those that are not."""

import io
import zipfile

import numpy as np
import pytest

from pyro_nas import arrays
from pyro_nas.arrays import read_arrays

X, Y = np.arange(24.0).reshape(8, 3), np.arange(8) % 2


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "data.npz", x=X, y=Y, names=np.array(["a", "b"]))
    return tmp_path / "data.npz"


def test_arrays_come_back_as_they_were_saved(path):
    x, y = read_arrays(path)
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)


REFUSED = {
    "channels last": ({"x": np.ones((8, 20, 20, 3)), "y": Y}, r"channels come last. Save x.transpose\(0, 3, 1, 2\)"),
    "grey channels last": ({"x": np.ones((8, 20, 20, 1)), "y": Y}, "channels come last"),
    "grey images": ({"x": np.ones((8, 20, 20)), "y": Y}, r"got \(8, 20, 20\). Save x\[:, None\] for grey images"),
    "numbers": ({"x": np.ones(8), "y": Y}, r"got \(8,\). .*reshape\(len\(x\), -1\) for features"),
    "complex": ({"x": X + 1j, "y": Y}, "numeric x .* complex128"),
    "names": ({"x": X, "y": np.array(["cat", "dog"] * 4)}, r"Save numpy.unique\(y, return_inverse=True\)\[1\]"),
    "column": ({"x": X, "y": Y[:, None]}, r"Save y.ravel\(\)"),
    "one-hot": ({"x": X, "y": np.eye(2)[Y]}, r"Save y.argmax\(1\)"),
    "real": ({"x": X, "y": Y.astype(float)}, r"Save y.astype\(int\)"),
    "objects": ({"x": X, "y": np.array(["cat", 1] * 4, dtype=object)}, "Object arrays cannot be loaded"),
    "other names": ({"inputs": X, "labels": Y}, r"arrays 'x' and 'y' in .*\['inputs', 'labels'\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_would_run_as_something_else_are_refused(name, tmp_path):
    content, message = REFUSED[name]
    np.savez(tmp_path / "data.npz", **content)
    with pytest.raises(ValueError, match=f"^data: expected .*{message}"):
        read_arrays(tmp_path / "data.npz")


def test_channels_first_and_small_images_are_read(tmp_path):
    for shape in ((8, 3, 20, 20), (8, 1, 3, 3), (8, 3, 4, 4), (8, 20, 20, 20)):
        np.savez(tmp_path / "data.npz", x=np.ones(shape), y=Y)
        assert read_arrays(tmp_path / "data.npz")[0].shape == shape


def test_broken_files_are_named(path, tmp_path):
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, X)
    for content in (b"", b"not a zip", whole[: len(whole) // 2], whole[:-30], array.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^data: expected an .npz file, got .*data.npz.*numpy.savez"):
            read_arrays(path)
    for index in range(0, len(whole), 97):  # every one is read, or named
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0xFF]) + whole[index + 1 :])
        try:
            read_arrays(path)
        except ValueError as error:
            assert str(error).startswith("data: expected")  # noqa: PT017
    with pytest.raises(ValueError, match=r"expected an .npz file, got 'table.csv'. .*numpy.savez.*loadtxt"):
        read_arrays(tmp_path.__class__("table.csv"))
    with pytest.raises(ValueError, match=r"expected an existing .npz file"):
        read_arrays(tmp_path / "nowhere.npz")


def test_a_file_that_unpacks_to_more_than_half_of_the_memory_is_not_unpacked(path, monkeypatch):
    monkeypatch.setattr(arrays, "_memory", lambda: 2**30)
    zeros = io.BytesIO()
    np.save(zeros, np.zeros((1, 2**20)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("y.npy", array_of(Y))
        with file.open("x.npy", "w", force_zip64=True) as member:
            for _ in range(65):
                member.write(zeros.getvalue())
    assert path.stat().st_size < 2**22
    with pytest.raises(ValueError, match=r"its x and y take 0.5 GiB, more than half"):
        read_arrays(path)


def array_of(value):
    content = io.BytesIO()
    np.save(content, value)
    return content.getvalue()
