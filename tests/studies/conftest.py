"""What tests of the commands share: a small file of images, and a recorder of which rows a run does what with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields
from functools import partial, wraps

import numpy as np
import pytest
import torch

from pyro_nas.evidence import evaluate
from pyro_nas.graph.costs import total_cost
from pyro_nas.graph.network import Network
from pyro_nas.inference import (
    cross_validation,
    darts,
    evolution,
    laplace_approximation,
    random_search,
    tempering,
    trajectory,
)
from pyro_nas.inference.loop import Session
from pyro_nas.inference.options import Options
from pyro_nas.reading.batch_normalization import recalibrated
from pyro_nas.reading.importance import weigh
from pyro_nas.reading.metrics import classification_metrics
from pyro_nas.reading.posterior import accuracy, predict
from pyro_nas.reading.pruning import pruning_curve
from pyro_nas.reading.robustness import robustness_curves
from pyro_nas.reading.selection import shared_weight_score

COUNTS = (30, 20, 10)  # of the classes: 36 rows to train on, or with half for validation 24, 12 to test on
UNCOMPARED = {"batch_size", "checkpoint", "resume", "progress", "callbacks"}  # noted apart, or changing no number


@pytest.fixture
def images_file(tmp_path):
    """A function: write images 1 × 8 × 8 of three classes, and return the path; ``spoilt`` replaces those of rows."""

    def write(spoilt=()):
        generator = np.random.default_rng(0)
        y = generator.permutation(np.repeat(np.arange(3), COUNTS))
        x = generator.normal(size=(len(y), 1, 8, 8)).astype(np.float32)
        x[np.arange(len(y)), 0, 2 * y] += 2
        for row in spoilt:
            x[row] = generator.normal(5, 3, x[row].shape)
        path = tmp_path / "images.npz"
        np.savez(path, x=x, y=y)
        return str(path)

    return write


class Event(dict):
    """What was done, as text and numbers; ``rows`` are those of the data that it saw, (part, index) each."""

    rows: frozenset = frozenset()
    pair: tuple = ()


class Recorder:
    """The fits, choices, recalibrations, predictions and tests of a run, in order.

    Data are named by their rows: "train", "train + valid" for all of those, in any order, "test[:5]" for the first,
    "7 of train" for others, with "of other labels" where y is not theirs, and "other" where a row is none of them.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.places: dict[bytes, tuple[str, int]] = {}
        self.parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.ran: set[tuple[str | None, str]] = set()  # (what was being done, part of a row that the network ran on)
        self._doing: list[str] = []
        self._depth = 0

    def start(self, **parts: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Begin a recording of a run on data by name, (x, y) each."""
        self.events, self.ran, self.parts = [], set(), parts
        self.places = {_key(row): (name, place) for name, (x, _) in parts.items() for place, row in enumerate(x)}
        assert len(self.places) == sum(len(x) for x, _ in parts.values())

    def rows(self, x: torch.Tensor) -> list[tuple[str, int]]:
        return [self.places.get(_key(row), ("other", 0)) for row in x.detach()]

    def named(self, x: torch.Tensor, y: torch.Tensor | None = None) -> str:
        """Name data by their rows."""
        found = self.rows(x)
        text = []
        for name in [*self.parts, "other"]:
            places = [place for part, place in found if part == name]
            if name == "other" and places:
                text.append(name)
            elif sorted(places) == list(range(len(self.parts.get(name, [[]])[0]))):
                text += [name] if places else []
            elif places == list(range(len(places))):
                text += [f"{name}[:{len(places)}]"] if places else []
            else:
                text.append(f"{len(places)} of {name}")
        right = [self.parts[part][1][place] for part, place in found if part != "other"]
        if y is not None and "other" not in text and not torch.equal(torch.stack(right), y.cpu()):
            text.append("of other labels")
        return " + ".join(text)

    def label(self, y: torch.Tensor) -> str:
        """Name labels by the part that has them."""
        return next((name for name, (_, labels) in self.parts.items() if torch.equal(labels, y)), "other")

    def note(self, what: str, rows: frozenset = frozenset(), pair: tuple = (), **values: object) -> Event:
        """Note an event, but for those within another."""
        event = Event(do=what, **values)
        event.rows, event.pair = rows, pair
        if not self._doing:
            self.events.append(event)
        return event

    @contextmanager
    def doing(self, what: str):
        self._doing.append(what)
        try:
            yield
        finally:
            self._doing.pop()

    def entered(self, inputs: tuple[torch.Tensor, ...]) -> None:
        """Take down what the outermost network runs on."""
        if torch._C._functorch.maybe_current_level() is None:  # within torch.func tensors have no values to look at
            self.ran |= {(self._doing[0] if self._doing else None, part) for part, _ in self.rows(inputs[0])}

    def values(self, *names: str) -> torch.Tensor:
        """Return x of parts, one after the other."""
        return torch.cat([self.parts[name][0] for name in names])

    def of(self, *kinds: str) -> list[Event]:
        """Return the events of these kinds."""
        return [event for event in self.events if event["do"] in kinds]


def _key(row: torch.Tensor) -> bytes:
    return row.contiguous().numpy().tobytes()


def _whole(data: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all rows of a pair, of batches, or of a list of pairs."""
    if hasattr(data, "everything"):
        data = data.everything()
    if isinstance(data, list):
        return torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    return data


def _draws(posterior: object) -> object:
    return "guide" if callable(posterior) else len(next(iter(posterior.values())))


def _text(value: object) -> object:
    """Return an option as something to compare: schedules by three values, partial functions by their arguments."""
    if isinstance(value, partial):
        return (
            value.func.__name__.lstrip("_"),
            *map(_text, value.args),
            {k: _text(v) for k, v in value.keywords.items()},
        )
    if isinstance(value, tuple):
        return tuple(map(_text, value))
    if isinstance(value, Callable):
        return tuple(round(float(value(torch.tensor(progress))), 6) for progress in (0.0, 0.5, 1.0))
    return value


def _optimizer(stepper: object) -> str:
    """Describe the optimizer of a stepper and its schedule."""
    made, scheduler = stepper.optimizer, stepper.scheduler
    text = f"{type(made).__name__} {made.defaults['lr']:g}"
    text += "" if made.defaults["betas"] == (0.9, 0.999) else f" {made.defaults['betas']}"
    for hook in made._optimizer_step_pre_hooks.values():
        for value in stepper.values:
            value.grad = torch.full_like(value, 1e6)
        hook(made, (), {})
        text += f", clipped to {float(stepper.values[0].grad.max()):g}"
        for value in stepper.values:
            value.grad = None
    if isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR):
        peak = round(scheduler._schedule_phases[0]["end_step"])
        text += f", one cycle to {made.param_groups[0]['max_lr']:g} at {peak} of {scheduler.total_steps - 1}"
    elif isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        factors = [scheduler.lr_lambdas[0](step) for step in range(1000)]
        assert set(factors) == {0.0, 1.0}
        text += f", still for {factors.index(1.0)}"
    else:
        assert scheduler is None
    return text


@pytest.fixture
def recorder(monkeypatch):
    """A recorder that watches the commands; ``start`` names it the rows."""
    record = Recorder()

    def watch(function: Callable, noted: Callable) -> None:
        """Call ``noted`` with the arguments of a function before each call of it, under whatever name it is known."""

        @wraps(function)
        def watched(*args: object, **options: object) -> object:
            event = noted(*args, **options)
            with record.doing(event["do"]):
                return function(*args, **options)

        _replace(monkeypatch, function, watched)

    def seen(what: str, data: object, **values: object) -> Event:
        x, y = data if isinstance(data, tuple) else (data, None)
        return record.note(what, frozenset(record.rows(x)), data=record.named(x, y), **values)

    watch(predict, lambda model, posterior, x, **_: seen("predict", x, draws=_draws(posterior), seed=_seed()))
    watch(accuracy, lambda model, posterior, x, y, **_: seen("accuracy", (x, y), draws=_draws(posterior)))
    watch(evaluate, lambda model, guide, batches, draws=1: seen("evaluate", _whole(batches), draws=draws, seed=_seed()))
    watch(total_cost, lambda space, x, kind: seen("cost", x, kind=kind))
    watch(classification_metrics, lambda p, y: record.note("metrics", labels=record.label(y)))
    watch(pruning_curve, lambda model, draws, scores, x, y: seen("prune", (x, y), draws=_draws(draws)))
    watch(robustness_curves, lambda model, draws, x, y, **o: seen("robustness", (x, y), draws=_draws(draws), **o))
    watch(weigh, lambda model, guide, data, draws, seed: seen("weigh", data, draws=draws, seed=seed))
    for name, function in (
        ("laplace", laplace_approximation.fit), ("trajectory", trajectory.fit), ("tempering", tempering.evidence),
    ):  # fmt: skip
        watch(function, lambda model, data, name=name, **o: seen(name, data, N=model.num_data, **o))
    _watch_contexts(monkeypatch, record, seen)
    _watch_fits(monkeypatch, record)
    return record


def _seed() -> int:
    return torch.initial_seed()


def _replace(monkeypatch: pytest.MonkeyPatch, function: object, replacement: object) -> None:
    for name, module in list(sys.modules.items()):
        for attribute, value in list(vars(module).items()) if name.startswith("pyro_nas") else ():
            if value is function:
                monkeypatch.setattr(module, attribute, replacement)


def _watch_contexts(monkeypatch: pytest.MonkeyPatch, record: Recorder, seen: Callable) -> None:
    """Watch what is called with data and used later: recalibration, scores, predictive densities; and the network."""

    def searching(name, search):
        def watched(space, score, count=None, seed=0, **options):
            record.note(name, **({} if count is None else {"count": count}), seed=seed, **options)
            return search(space, score, *([] if count is None else [count]), seed=seed, **options)

        return watched

    def recalibrating(model, draws, batches):
        seen("recalibrate", batches, draws=_draws(draws))
        return recalibrated(model, draws, batches)

    def scoring(model, guide, calibration, valid):
        score = shared_weight_score(model, guide, calibration, valid)

        def watched(structure):
            seen("score", valid, calibration=record.named(*calibration))
            with record.doing("score"):
                return score(structure)

        return watched

    def predictive(model, draws):
        density = cross_validation_density(model, draws)
        return lambda x, y: (seen("density", (x, y), draws=_draws(draws)), density(x, y))[1]

    cross_validation_density = cross_validation.log_predictive
    monkeypatch.setattr(evolution, "search", searching("evolution", evolution.search))
    monkeypatch.setattr(random_search, "search", searching("random search", random_search.search))
    _replace(monkeypatch, recalibrated, recalibrating)
    _replace(monkeypatch, shared_weight_score, scoring)
    _replace(monkeypatch, cross_validation_density, predictive)
    forward = Network.forward

    def run(network, *inputs, **options):
        record._depth += 1
        try:
            if record._depth == 1:
                record.entered(inputs)
            return forward(network, *inputs, **options)
        finally:
            record._depth -= 1

    monkeypatch.setattr(Network, "forward", run)


def _watch_fits(monkeypatch: pytest.MonkeyPatch, record: Recorder) -> None:
    """Watch every fit by gradients: its data, options, steppers."""
    begin, step, go, unrolled = Session.__init__, Session.stepper, Session.run, darts.unrolled_gradient
    defaults = Options()

    def beginning(session, model, guide, train, valid, options, *more):
        begin(session, model, guide, train, valid, options, *more)
        rows = [_whole(part) for part in (train, valid) if part is not None]
        taken = {field.name for field in fields(Options)} - UNCOMPARED
        record.note(
            sys._getframe(1).f_globals["__name__"].rpartition(".")[2],
            frozenset().union(*(record.rows(x) for x, _ in rows)),
            (model, guide),
            train=record.named(*rows[0]), valid=record.named(*rows[1]) if valid is not None else None,
            N=model.num_data, complexity=model.complexity if isinstance(model.complexity, float) else "prior",
            weights=str(model.weights), structure=str(model.structure_prior) if model.choices else None,
            guide=type(guide).__name__, start=_seed(), batch_size=options.batch_size,
            **{n: _text(getattr(options, n)) for n in taken if getattr(options, n) != getattr(defaults, n)},
        )  # fmt: skip

    def stepping(session, names, *made_by):
        stepper = step(session, names, *made_by)
        kind = "all" if set(names) == set(session.named) else "weights"
        kind = "structure" if all(name.startswith("guide.structure") for name in names) else kind
        record.events[-1][f"steps of {kind}"] = _optimizer(stepper)
        return stepper

    def running(session, steppers, one):
        with record.doing("fit"):
            return go(session, steppers, one)

    def unrolling(lower, upper, weights, structure, rate):
        record.events[-1]["rate"] = rate
        return unrolled(lower, upper, weights, structure, rate)

    monkeypatch.setattr(Session, "__init__", beginning)
    monkeypatch.setattr(Session, "stepper", stepping)
    monkeypatch.setattr(Session, "run", running)
    monkeypatch.setattr(darts, "unrolled_gradient", unrolling)
