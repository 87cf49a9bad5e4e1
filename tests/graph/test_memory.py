"""Memory: what is freed is kept for the next step, and keeping it takes no memory."""

import pytest
import torch

from pyro_nas.graph.memory import keep_heap

resource = pytest.importorskip("resource")  # of Unix
MIB = 2**20


def faults(function):
    """How many pages a call gets from the system: a page has 4 KiB, or 2 MiB where the system joins them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    function()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def filled(size):
    """A block that is written to."""
    return torch.ones(size * MIB, dtype=torch.uint8)


def test_keeping_the_heap_touches_nothing_and_keeps_nothing():
    assert keep_heap() is None
    assert faults(keep_heap) < 16
    assert faults(lambda: filled(64)) >= 31  # what is touched is seen: blocks of over 32 MiB are new each time
