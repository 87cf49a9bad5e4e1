"""A saved fit: its state and records in a checkpoint, which goes on with the fit that it is of and no other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack

import torch

from pyro_nas.inference.checkpoint import Checkpoint
from pyro_nas.inference.fit_identity import check_identity
from pyro_nas.inference.result import Record
from pyro_nas.inference.state import FitState

__all__ = ["SavedFit"]

BEST = "best."


class SavedFit(AbstractContextManager["SavedFit"]):
    """The checkpoint of a fit in a folder, which it holds within the context.

    ``identity`` is what ``fit_identity`` and ``values_at`` return; ``scheduled`` says whether what changes with the
    steps goes by their number. Raises BlockingIOError, on entering, for a folder that is in use.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        state: FitState,
        identity: Mapping[str, object],
        steps: int,
        *,
        scheduled: bool,
    ):
        self.checkpoint, self.state = Checkpoint(folder), state
        self.identity, self.steps, self.scheduled = identity, steps, scheduled
        self._stack = ExitStack()

    def __enter__(self) -> SavedFit:
        self._stack.enter_context(self.checkpoint.locked())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def load(self) -> tuple[list[Record], dict[str, torch.Tensor]]:
        """Set the state to the checkpoint's, and return the records and the best state; nothing of each without one.

        Raises CorruptCheckpoint for one that was changed, ValueError for that of another fit, or with schedules of
        another number of steps.
        """
        if not self.checkpoint.exists():
            return [], {}
        tensors, position = self.checkpoint.load()
        check_identity(self.checkpoint.folder, position["identity"], self.identity)
        if position["steps"] != self.steps and self.scheduled:
            raise ValueError(
                f"epochs: expected {position['steps']} steps, those of the schedules, got {self.steps}. "
                "Resume with the same epochs, data and batch size, or fit without schedules."
            )
        best = {name.removeprefix(BEST): tensors.pop(name) for name in list(tensors) if name.startswith(BEST)}
        self.state.load(tensors, position["steppers"])
        return position["history"], best

    def save(self, history: list[Record], best: Mapping[str, torch.Tensor]) -> None:
        """Write the state, the records so far and the best state, {name: tensor} or empty."""
        tensors, steppers = self.state.dump()
        tensors.update({f"{BEST}{name}": value for name, value in best.items()})
        position = {"identity": self.identity, "steppers": steppers, "history": history, "steps": self.steps}
        self.checkpoint.save(tensors, position)
