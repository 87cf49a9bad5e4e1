"""Result: what every fit returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pyro_nas.evidence.currencies import PyroCallable

Record = dict[str, Any]  # of an epoch, or a step: what was measured, by name
P = TypeVar("P")
G = TypeVar("G", bound=PyroCallable)


@dataclass(frozen=True, repr=False, eq=False)
class Fit(Generic[P]):
    """The model, the posterior that was fitted to it, a record of each epoch, and the evidence 𝔏(λ) in nats.

    ``posterior`` is a guide, or draws {site: (draw, …)} of a procedure that leaves no law behind: what ``predict`` and
    the other readings take. ``evidence`` is the training evidence of the record that the posterior is of.
    """

    model: PyroCallable
    posterior: P
    records: list[Record]
    evidence: float

    def __repr__(self) -> str:
        """Return the evidence and the last record's numbers."""
        numbers = {name: value for name, value in self.records[-1].items() if isinstance(value, (int, float))}
        terms = ", ".join(f"{name} {value:.6g}" for name, value in numbers.items())
        return f"Fit of {len(self.records)} records, evidence {self.evidence:.6g} nats; last: {terms}"
