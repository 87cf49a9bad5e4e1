"""Tempering: the evidence of small models as the integral of E log p(D | w, Γ) along p(w, Γ) p(D | w, Γ)^t, by NUTS."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pyro_nas import checks
from pyro_nas.data import Pair
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.inference.sampling import run_chain, sampling_of
from pyro_nas.reading.arviz_export import mean_error
from pyro_nas.reading.posterior import each_draw

__all__ = ["TemperedEvidence", "coefficients", "evidence", "ladder"]


@dataclass(frozen=True, eq=False)
class TemperedEvidence:
    """log p(D) in nats, its Monte-Carlo standard error, and what it was made from.

    ``correction`` is what the trapezoidal rule's second-order term added; the error left falls with the fourth power
    of the distance of ``powers``. ``means`` and ``variances``, (power,), are those of log p(D | w, Γ) at each power.
    """

    value: float
    standard_error: float
    correction: float
    powers: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor
    divergences: int


def evidence(
    model: PyroCallable, data: Pair, *, powers: int = 20, draws: int = 250, warmup: int = 50, chains: int = 2,
    seed: int = 0,
) -> TemperedEvidence:  # fmt: skip
    """Return log p(D) = ∫₀¹ E_t log p(D | w, Γ) dt, E_t over p(w, Γ) p(D | w, Γ)^t, by thermodynamic integration.

    ``ladder`` has the powers t. Each chain climbs it from draws of the prior, ``draws`` at each power, and takes start
    and scales from the power before. Other arguments and errors as ``nuts``; priors must be normalised, and the
    likelihood above 0 at all draws of them.
    The trapezoidal rule has its second-order correction, for which dE_t/dt = Var_t. Friel, Hurn and Wyse 2014.
    """
    checks.integer("powers", powers, low=1)
    ts = ladder(powers)
    with sampling_of(model, data, draws, warmup, chains, seed) as target:
        runs, rows, divergences = [target.prior_draws(draws, everywhere=True) for _ in range(chains)], [], 0
        for power in ts.tolist():
            for chain, before in enumerate(runs):
                if power > 0:
                    runs[chain], diverged = run_chain(target, power, before, draws, warmup)
                    divergences += diverged
                values = each_draw(target.constrain(runs[chain]))
                rows.append(torch.stack([torch.stack(target.conditional(power, draw)) for draw in values]))
    weights, terms = torch.stack(rows).view(len(ts), chains, draws, 2, -1).unbind(-2)  # (power, chain, draw, value)
    first = (weights * terms).sum(-1)
    means = first.mean((1, 2))
    second = (weights * (terms - means.view(-1, 1, 1, 1)).square()).sum(-1)
    variances = second.mean((1, 2))
    of_mean, of_variance = coefficients(ts)
    estimates = of_mean.view(-1, 1, 1) * first + of_variance.view(-1, 1, 1) * second
    errors = [mean_error(estimate) for estimate in estimates]
    correction = float(of_variance @ variances)
    value = float(of_mean @ means) + correction
    return TemperedEvidence(value, math.hypot(*errors), correction, ts, means, variances, divergences)


def ladder(powers: int) -> torch.Tensor:
    """Return t_k = (k/K)⁵, (K + 1,): dense towards 0, where E_t log p(D | w) changes fastest."""
    return torch.linspace(0, 1, powers + 1, dtype=torch.double) ** 5


def coefficients(powers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of means and variances in the integral over powers t_k, (power,) each.

    With Δ_k = t_{k+1} − t_k the integral is Σ Δ_k (E_k + E_{k+1}) / 2 − Σ Δ_k² (V_{k+1} − V_k) / 12.
    """
    steps = torch.nn.functional.pad(powers.diff(), (1, 1))  # none before the first and after the last
    return (steps[1:] + steps[:-1]) / 2, (steps[1:].square() - steps[:-1].square()) / 12
