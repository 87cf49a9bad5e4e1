"""A saved fit: what is saved is loaded; nothing is where nothing was; another number of scheduled steps is refused."""

import pytest
import torch

from pyro_nas.inference.checkpoint import CorruptCheckpoint
from pyro_nas.inference.saved_fit import SavedFit
from pyro_nas.inference.state import FitState

IDENTITY = {"fit": {"options": {"seed": 0}}, "values": {"log_likelihood": -3.0}}


def state(value):
    return FitState(torch.nn.Identity(), torch.nn.Identity(), {"guide.loc": torch.full((3,), value)}, {}, {})


def test_state_records_and_best_are_loaded_as_they_were_saved(tmp_path):
    with SavedFit(tmp_path, state(1.0), IDENTITY, 6, scheduled=True) as saved:
        assert saved.load() == ([], {})
        saved.save([{"evidence": float("-inf")}], {"guide.loc": torch.zeros(3)})
    later = state(2.0)
    with SavedFit(tmp_path, later, IDENTITY, 6, scheduled=True) as saved:
        history, best = saved.load()
    assert history == [{"evidence": float("-inf")}]
    assert best.keys() == {"guide.loc"}
    assert torch.equal(best["guide.loc"], torch.zeros(3))
    assert torch.equal(later.live["guide.loc"], torch.ones(3))


def test_scheduled_steps_and_what_the_fit_is_of_are_compared(tmp_path):
    with SavedFit(tmp_path, state(1.0), IDENTITY, 6, scheduled=True) as saved:
        saved.save([], {})
        second = SavedFit(tmp_path, state(1.0), IDENTITY, 6, scheduled=True)
        with pytest.raises(BlockingIOError, match="checkpoint: "), second:
            pass
    later = state(2.0)
    longer = SavedFit(tmp_path, later, IDENTITY, 8, scheduled=True)
    with longer as saved, pytest.raises(ValueError, match="epochs: expected 6 steps, those of the schedules, got 8"):
        saved.load()
    identity = {"fit": {"options": {"seed": 1}}, "values": {"log_likelihood": -3.1}}
    other = SavedFit(tmp_path, later, identity, 6, scheduled=False)
    message = r"got fit.options.seed 0 → 1, values.log_likelihood -3.0 → -3.1. Resume"
    with other as saved, pytest.raises(ValueError, match=message):
        saved.load()
    assert torch.equal(later.live["guide.loc"], torch.full((3,), 2.0))
    close = {"fit": IDENTITY["fit"], "values": {"log_likelihood": -3.0001}}  # as another number of threads rounds
    with SavedFit(tmp_path, later, close, 8, scheduled=False) as saved:
        assert saved.load() == ([], {})
    assert torch.equal(later.live["guide.loc"], torch.ones(3))
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    with SavedFit(tmp_path, later, IDENTITY, 6, scheduled=True) as saved, pytest.raises(CorruptCheckpoint):
        saved.load()
