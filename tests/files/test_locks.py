"""Locks: one process at a time in a folder, and a dead one holds nothing."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from pyro_nas.files import locks
from pyro_nas.files.locks import LOCK, locked

HOLDER = (  # the module alone: the package takes seconds
    "import importlib.util, sys, time\n"
    "from pathlib import Path\n"
    "spec = importlib.util.spec_from_file_location('locks', sys.argv[2])\n"
    "module = importlib.util.module_from_spec(spec)\n"
    "spec.loader.exec_module(module)\n"
    "with module.locked('out', Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


def test_a_folder_that_another_process_holds_is_refused_with_its_id_until_it_is_dead(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(folder), locks.__file__]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        message = (
            rf"out: expected a folder that nothing else writes to, got '{folder}', in use by process {holder.pid}\."
        )
        with pytest.raises(BlockingIOError, match=message), locked("out", folder):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert (folder / LOCK).read_text() == str(holder.pid)  # its file is left, and no lock
    with locked("out", folder):
        assert (folder / LOCK).read_text() == str(os.getpid())
    assert list(folder.iterdir()) == []


def test_within_a_process_it_is_held_once_by_whatever_path(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    refused = []

    def other():
        try:
            with locked("checkpoint", tmp_path / "link"):
                pass
        except BlockingIOError as error:
            refused.append(str(error))

    with locked("checkpoint", tmp_path / "run"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        other()
        with locked("checkpoint", tmp_path / "run" / "within"):
            pass
    assert len(refused) == 2
    assert all(f"in use by process {os.getpid()}. Wait for its end" in text for text in refused)
    with locked("checkpoint", tmp_path / "link"):
        pass


def test_a_lock_follows_no_link(tmp_path):
    target = tmp_path / "target"
    target.write_text("another's")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(target)
    with pytest.raises(OSError, match=LOCK), locked("out", tmp_path / "run"):
        pass
    assert target.read_text() == "another's"
