"""Measures of the complexity study: the terms of 𝔏 at every λ, accuracies pruned too, how q reacts to λ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

import torch
from pyro import poutine

from pyro_nas.evidence import Evidence, evaluate
from pyro_nas.evidence.effects import LocalReparameterization
from pyro_nas.evidence.sites import COMPLEXITY
from pyro_nas.models.hypernets import Hypernetwork
from pyro_nas.reading.posterior import mean_draw
from pyro_nas.reading.pruning import moments, parametric_complexity, pruning_curve, relative_density, stability
from pyro_nas.studies.complexity.race import Race
from pyro_nas.studies.complexity.setting import GRID, Setting
from pyro_nas.studies.complexity.training import Trained

PASSES = 8  # one leaves a noise of a hundredth in the slopes


class Terms(TypedDict):
    """Terms of 𝔏 on the training data, nats."""

    evidence: float
    log_likelihood: float
    kl_weights: float
    kl_structure: float
    standard_error: float


class Reaction(Terms):
    """And d𝔏/dλ, as q moves with λ."""

    slope: float


class Measured(Terms):
    """And accuracies at posterior means on the test part, by pruning level."""

    parametric_complexity: float
    pruning: list[float]
    accuracy: float
    mean_accuracy: float
    stability: float


class Row(TypedDict):
    """What is stored of a row of one run: measures by λ; of a hypernetwork its reaction by λ too, and its race."""

    updates: int
    seconds: float
    complexities: dict[str, Measured]
    reaction: NotRequired[dict[str, Reaction]]
    race: NotRequired[Race]


def measure(setting: Setting, trained: Trained) -> Row:
    """Return, for each λ, the terms of 𝔏 on the training data, and test accuracies at posterior means, pruned too."""
    complexities: dict[str, Measured] = {}
    x, y = (part.to(setting.device) for part in setting.test)
    for complexity, (model, guide) in trained.pairs.items():
        torch.manual_seed(setting.seed)
        terms = _terms(evaluate(model, guide, setting.batches(), setting.draws))
        mean, sd = moments(guide, model.packing)
        curve = pruning_curve(model, mean_draw(guide), relative_density(mean, sd), x, y)
        complexities[str(complexity)] = {
            **terms,
            "parametric_complexity": parametric_complexity(mean, sd),
            "pruning": curve,
            "accuracy": curve[0],
            "mean_accuracy": sum(curve) / len(curve),
            "stability": stability(curve),
        }
    return {"updates": trained.updates, "seconds": round(trained.seconds, 2), "complexities": complexities}


def reaction(setting: Setting, hypernet: Hypernetwork) -> dict[str, Reaction]:
    """Return, at 13 values of λ, the terms of 𝔏 under the hypernetwork and d𝔏/dλ, means of eight passes."""
    result: dict[str, Reaction] = {}
    for complexity in GRID:
        pair = hypernet.at(complexity)
        torch.manual_seed(setting.seed)
        with LocalReparameterization():
            terms = evaluate(*pair, setting.batches(), PASSES)
        result[str(complexity)] = {**_terms(terms), "slope": slope(setting, hypernet, complexity)}
    return result


def slope(setting: Setting, hypernet: Hypernetwork, complexity: float) -> float:
    """Return d𝔏/dλ of a hypernetwork at one λ, the derivative of reparameterised draws: its posterior moves too."""
    at = torch.tensor(complexity, device=setting.device, requires_grad=True)
    torch.manual_seed(setting.seed)
    evidence, total = Evidence(hypernet.model, hypernet), torch.zeros_like(at)
    with poutine.condition(data={COMPLEXITY: at}), LocalReparameterization():
        for x, y in setting.batches() * PASSES:
            total += torch.autograd.grad(evidence(x, y).evidence, at)[0] * (len(y) / len(setting.train[1]))
    return float(total) / PASSES


def slope_ratios(reacted: Mapping[str, Reaction]) -> dict[str, float]:
    """Return d𝔏/dλ ÷ −KL at each λ of a reaction: 1 where q maximises 𝔏(λ), by the envelope theorem."""
    return {name: -terms["slope"] / (terms["kl_weights"] + terms["kl_structure"]) for name, terms in reacted.items()}


def _terms(terms: Mapping[str, float]) -> Terms:
    return {
        "evidence": terms["evidence"],
        "log_likelihood": terms["log_likelihood"],
        "kl_weights": terms["kl_weights"],
        "kl_structure": terms["kl_structure"],
        "standard_error": terms["standard_error"],
    }
