"""Writing files: whole or not at all, where nobody foresees."""

import os
import re
import resource

import h5py
import pytest

from pyro_nas.files import (
    atomically,
    is_temporary,
    remove_temporaries,
    write_atomically,
)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"first")

    def crash(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)  # the new content is written, but not in its place yet
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"second")
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == [("file", b"first")]
    write_atomically(path, b"second")
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == [("file", b"second")]


def fill(path):
    with h5py.File(path, "w") as file:
        file["x"] = [0.0] * 10_000


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(b" " * 5000), fill], ids=["Python", "library of C"])
def test_a_full_disk_is_said_with_the_path_and_leaves_nothing(write, tmp_path):
    """By a limit on the size of files, which the system refuses like a full disk."""
    path = tmp_path / "file"
    write_atomically(path, b"first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=re.escape(str(path))) as error, atomically(path) as temporary:
            write(temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if write is not fill:
        assert str(error.value) == f"[Errno 27] File too large: {str(path)!r}"
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"first")]


def test_new_files_follow_no_link_and_have_names_that_nobody_foresees(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"another's")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").symlink_to(target)
    names = []
    for content in (b"first", b"second"):
        with atomically(folder / "file") as temporary:
            names.append(temporary.parent.name)
            assert is_temporary(temporary.parent)
            temporary.write_bytes(content)
    assert target.read_bytes() == b"another's"
    assert (folder / "file").read_bytes() == b"second"
    assert not (folder / "file").is_symlink()
    assert len(set(names)) == 2


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path):
    left = tmp_path / "rows" / ".a.json.0123456789abcdef.partial"
    left.mkdir(parents=True)
    (left / "a.json").write_text("{")
    others = [tmp_path / ".a.json.1234", tmp_path / "a.partial", tmp_path / ".a.0123456789abcdef.partial"]
    for path in others:
        path.write_text("another's")
    (tmp_path / ".b.0123456789abcdef.partial").symlink_to(tmp_path / "rows")
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(path.name for path in others), "rows", ".b.0123456789abcdef.partial"}  # fmt: skip
    assert not list((tmp_path / "rows").iterdir())
