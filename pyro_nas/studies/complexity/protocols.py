"""Protocols of the complexity study: the paper's rows with its settings, and the best that we have."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from pyro_nas.inference import adam, clipped, one_cycle
from pyro_nas.inference.options import BATCH_SIZE
from pyro_nas.models import hypernets, priors
from pyro_nas.studies.complexity.setting import HIGH, LOW, Setting, Start
from pyro_nas.studies.complexity.training import Trained, by_hypernetwork, directly, tuned
from pyro_nas.studies.fit_arguments import FitArguments

ROWS = {
    "paper": ("direct", "direct, 1 epoch", "low rank", "low rank + 1 epoch", "linear", "linear + 1 epoch"),
    "best": ("direct", "spline"),
}
# The paper does not say where means start. With a draw of the prior "direct" and "linear" come out as published; with
# torch's own initialisation the evidence of "direct" at λ = 0.1 is above the published one, and its pruned networks are
# worse. "low rank" starts from torch's: from a draw of the prior its evidence at λ = 0.1 is below the published one.
STARTS: dict[str, Start] = {"paper": "prior", "best": "network"}


def options_of(protocol: str) -> FitArguments:
    """Return what every fit of a protocol takes."""
    if protocol == "paper":
        return {"batch_size": 64, "optimizer": clipped(adam(5e-4), 1.0)}
    batch_size = 250  # it divides 60 000, so that no batch is short
    return {
        "batch_size": batch_size,
        "local_reparameterization": True,
        "optimizer": adam(3e-3),
        "scheduler": one_cycle(3e-3),
    }


def emphasis(complexity: torch.Tensor) -> torch.Tensor:
    """Return the weight of 𝔏(λ) of the protocol "best": evidences of large λ are larger by orders of magnitude."""
    return (1 + complexity / 0.3).rsqrt()


def train(name: str, setting: Setting, done: dict[str, Trained]) -> Trained:
    """Train the row of this name and add it to ``done``.

    One that goes on from another, "… + 1 epoch", takes that from ``done``, and trains it where it is not there: what is
    stored of a finished row has no weights.
    """
    base, _, more = name.partition(" + ")
    if more:
        trained = done[base] if base in done else train(base, setting, done)
        assert trained.hypernet is not None
        done[name] = tuned(setting, trained, trained.hypernet)
    elif name == "direct":
        done[name] = directly(setting, setting.epochs)
    elif name == "direct, 1 epoch":
        done[name] = directly(setting, 1)
    else:
        done[name] = HYPERNETWORKS[name](setting)
    return done[name]


def _low_rank(setting: Setting) -> Trained:
    prior = priors.log_uniform(LOW, HIGH)
    return by_hypernetwork(replace(setting, start="network"), hypernets.LowRank, prior, epochs=setting.hypernet_epochs)


def _linear(setting: Setting) -> Trained:
    return by_hypernetwork(
        setting, hypernets.Linear, priors.log_uniform(LOW, HIGH), epochs=setting.hypernet_epochs, particles=5,
        vectorize_particles=True,
    )  # fmt: skip


def _spline(setting: Setting) -> Trained:
    make = partial(hypernets.Spline, bases=5, scale_bases=4)
    prior = priors.log_interval(0.6 * LOW, 1.3 * HIGH, ends=0.25)  # an end has neighbours on one side only
    return by_hypernetwork(
        setting, make, prior, epochs=setting.hypernet_epochs,
        batch_size=2 * (setting.options["batch_size"] or BATCH_SIZE), particles=8, vectorize_particles=True,
        stratified=True, emphasis=emphasis,
        optimizer=adam(6e-3), scheduler=one_cycle(6e-3),
    )  # fmt: skip


HYPERNETWORKS = {"low rank": _low_rank, "linear": _linear, "spline": _spline}
