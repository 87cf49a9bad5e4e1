"""Result: what every fit returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.printing import Printed, Table

__all__ = ["Fit", "Record"]

Record = dict[str, Any]  # of an epoch, or a step: what was measured, by name
P = TypeVar("P")
G = TypeVar("G", bound=PyroCallable)


@dataclass(frozen=True, repr=False, eq=False)
class Fit(Printed, Generic[P]):
    """The model, the posterior that was fitted to it, a record of each epoch, and the evidence 𝔏(λ) in nats.

    ``posterior`` is a guide, or draws {site: (draw, …)} of a procedure that leaves no law behind: what ``predict`` and
    the other readings take. ``evidence`` is the training evidence of the record that the posterior is of.
    """

    model: PyroCallable
    posterior: P
    records: list[Record]
    evidence: float

    def table(self) -> Table:
        """Return the numbers of the first and the last record."""
        first, last = self.records[0], self.records[-1]
        names = [name for name, value in last.items() if isinstance(value, (int, float))]
        rows = [(name, f"{first[name]:.6g}", f"{last[name]:.6g}") for name in names if name in first]
        title = f"Fit of {len(self.records)} records, evidence {self.evidence:.6g} nats; first and last record"
        return Table(title, rows)
