"""Records: what a comparison stores, as JSON values. A row is of one method with one seed, a summary of all seeds."""

from __future__ import annotations

from typing import NotRequired, TypeAlias, TypedDict

from pyro_nas.studies.tables import Spread

Curves: TypeAlias = dict[str, dict[str, float]]  # accuracy by what was done to a network, and by its level
Table: TypeAlias = dict[str, list[list[float]]]  # γ or probabilities by site, (edge, choice)


class Spent(TypedDict):
    """Images and seconds of a search."""

    images: int
    seconds: float


class Retraining(Spent):
    """And the epochs of a retraining."""

    epochs: int


class Robustness(TypedDict):
    """Curves of accuracy under attack, deleted edges and noise."""

    robustness: Curves


class Tested(Robustness):
    """Metrics on the test part."""

    accuracy: float
    calibration_error: float
    log_likelihood: float


class Cost(TypedDict):
    """Cost of one retrained network, and the networks that a prediction averages; latency in µs an image."""

    networks: int
    parameters: int
    multiply_accumulates: int
    latency: NotRequired[float]


class Machine(TypedDict):
    """What a row's seconds depend on."""

    threads: int
    torch: str
    device: str


class Retrained(TypedDict):
    """The part of a row about the network that was retrained; ``test`` has "point" and, with it, "posterior"."""

    retrain: Retraining
    test: dict[str, Tested]
    cost: Cost


class Described(TypedDict):
    """The part of a row about what a search left: probabilities, and the discrete structure made of them."""

    search: Spent
    choices: dict[str, str]
    derived: Table
    structure: Table
    entropy: dict[str, float]


class Row(Retrained):
    """A row. Without a search there is no ``Described`` part; ``searched`` is of rows that searched by themselves."""

    search: NotRequired[Spent]
    choices: NotRequired[dict[str, str]]
    derived: NotRequired[Table]
    structure: NotRequired[Table]
    entropy: NotRequired[dict[str, float]]
    searched: NotRequired[Robustness]
    machine: NotRequired[Machine]


class SpentSummary(TypedDict):
    """Spreads of images and seconds."""

    images: Spread
    seconds: Spread


class RobustnessSummary(TypedDict):
    """Spreads of the curves that all seeds have."""

    robustness: dict[str, dict[str, Spread]]


class TestedSummary(RobustnessSummary):
    """Spreads of metrics on the test part."""

    accuracy: Spread
    calibration_error: Spread
    log_likelihood: Spread


class CostSummary(TypedDict):
    """Spreads of costs."""

    networks: Spread
    parameters: Spread
    multiply_accumulates: Spread
    latency: Spread


class CellSummary(TypedDict):
    """Edges of a cell, its mean numbers of skips, pools and zeros, and the agreement of the seeds, None of one seed."""

    edges: int
    skip: float
    pool: float
    zero: float
    agreement: float | None


class MethodSummary(TypedDict):
    """Spreads of all numbers of a method over its seeds, and its accuracy relative to random search."""

    seeds: int
    test: dict[str, TestedSummary]
    retrain: SpentSummary
    cost: CostSummary
    judged_by: str
    search: NotRequired[SpentSummary]
    choices: NotRequired[dict[str, CellSummary]]
    searched: NotRequired[RobustnessSummary]
    over_random: NotRequired[float]
