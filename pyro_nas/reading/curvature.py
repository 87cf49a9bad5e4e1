"""Curvature of a function of the structure: Hessian traces, and expectations to second order.

E_q G(Γ) ≈ G(μ) + ½ tr(∇²G(μ) · Cov Γ), theorem 2 of the VarDARTS thesis talk in the form that holds for every law. The
printed σ²/2 · tr ∇²G needs independent components of one variance, which no law on the simplex has: there ∇²G must
count along the simplex alone. Traces are means of zᵀ∇²G z over probes z (Hutchinson 1990).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch.autograd.functional import vhp

from pyro_nas import checks
from pyro_nas.evidence.packing import Packing
from pyro_nas.graph.space import Structure

__all__ = [
    "Function",
    "basis",
    "compare_expectations",
    "hessian_trace",
    "rademacher",
    "second_order_expectation",
    "structure_moments",
]

Function: TypeAlias = Callable[[dict[str, torch.Tensor]], torch.Tensor]
Probes: TypeAlias = Callable[[int], torch.Tensor]


def basis(size: int) -> torch.Tensor:
    """Return the probes √size · e_i, (size, size): their mean of zᵀAz is tr A exactly, at ``size`` products."""
    return math.sqrt(size) * torch.eye(size, dtype=torch.double)


def rademacher(count: int, seed: int) -> Probes:
    """Return ``count`` probes of independent random signs, (count, size).

    Their mean of zᵀAz is tr A in expectation, with variance 2 Σ_{i≠j} A_ij² / count for a symmetric A.

    Raises ValueError for a count below 1.
    """
    checks.integer("count", count, low=1)
    checks.seed(seed)

    def signs(size: int) -> torch.Tensor:
        return 2.0 * torch.randint(2, (count, size), generator=torch.Generator().manual_seed(seed)) - 1.0

    return signs


def structure_moments(draws: Structure) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return mean {site: (edge, choice)} and covariance {site: (edge, choice, choice)} of draws of a structure.

    ``draws``: {site: (draw, edge, choice)}. The moments are those of the draws themselves (sums over n, not n − 1), and
    edges count as independent of one another.

    Raises ValueError for draws of another shape, of integers, and none.
    """
    for site, gamma in draws.items():
        if gamma.dim() != 3 or not gamma.is_floating_point() or not len(gamma):
            raise ValueError(
                f"draws[{site!r}]: expected draws of shape (draw, edge, choice), got {checks.describe(gamma)}. "
                "Pass the structure sites of posterior.draw alone."
            )
    mean = {site: gamma.mean(0) for site, gamma in draws.items()}
    away = {site: gamma - mean[site] for site, gamma in draws.items()}
    return mean, {site: torch.einsum("dek,del->ekl", part, part) / len(part) for site, part in away.items()}


def hessian_trace(
    function: Function,
    structure: Structure,
    covariance: Mapping[str, torch.Tensor] | None = None,
    probes: Probes = basis,
) -> torch.Tensor:
    """Return tr(∇²G C) at a structure, a scalar: the mean of zᵀLᵀ ∇²G L z over probes z, with C = L Lᵀ.

    ``function`` is G, a scalar function of {site: (edge, choice)}, the same at each call. ``covariance`` is C, blocks
    {site: (edge, choice, choice)}; None is the identity. ``probes(size)``, (probe, size), have the identity as mean of
    z zᵀ: ``basis`` gives the trace exactly, ``rademacher(count, seed)`` estimates it. Products ∇²G v are exact, by
    differentiating twice, and reach across edges. ``Network`` does not run a primitive whose γ is exactly 0, and then
    G has no derivative there: call it with ``skip_zeros=False``, or keep C zero there as the simplex does.

    Raises ValueError for sites or shapes that differ, a G that is no scalar, and a C that is not symmetric and positive
    semidefinite.
    """
    if not structure:
        raise ValueError("structure: expected {site: (edge, choice)} with a site or more, got none.")
    packing = Packing.of(structure)
    point = packing.pack(structure).detach()
    directions = probes(packing.size).to(point)  # (probe, size)
    if directions.dim() != 2 or directions.shape[1] != packing.size:
        raise ValueError(f"probes: expected shape (probe, {packing.size}), got {checks.describe(directions)}.")
    if covariance is not None:
        directions = directions @ _square_root(structure, covariance).to(point).T

    def of_vector(vector: torch.Tensor) -> torch.Tensor:
        return _scalar(function(packing.unpack(vector)))

    return torch.stack([direction @ vhp(of_vector, point, direction)[1] for direction in directions]).mean()


def second_order_expectation(
    function: Function, mean: Structure, covariance: Mapping[str, torch.Tensor], probes: Probes = basis
) -> torch.Tensor:
    """Return G(μ) + ½ tr(∇²G(μ) C), the expectation of G(Γ) to second order, a scalar; arguments as ``hessian_trace``.

    Exact for a quadratic G. The rest is of order σ³, and σ⁴ for a symmetric law, when all deviations scale with σ.

    Raises ValueError as ``hessian_trace``.
    """
    with torch.no_grad():
        at_mean = _scalar(function(dict(mean)))
    return at_mean + 0.5 * hessian_trace(function, mean, covariance, probes)


def compare_expectations(function: Function, draws: Structure, probes: Probes = basis) -> dict[str, float]:
    """Return E G(Γ) over draws, {site: (draw, edge, choice)}, its standard error, G(μ), and E G to second order.

    μ and the covariance are those of the same draws, so that the noise of the draws is largely common to all three.

    Raises ValueError as ``structure_moments`` and ``hessian_trace``.
    """
    mean, covariance = structure_moments(draws)
    with torch.no_grad():
        values = torch.stack(
            [
                _scalar(function({site: gamma[index] for site, gamma in draws.items()}))
                for index in range(len(next(iter(draws.values()))))
            ]
        ).double()
        at_mean = float(function(mean))
    return {
        "expectation": float(values.mean()),
        "standard_error": float(values.std(correction=0)) / math.sqrt(len(values)),
        "at_mean": at_mean,
        "second_order": float(second_order_expectation(function, mean, covariance, probes)),
    }


def _square_root(structure: Structure, covariance: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return L, (size, size), block-diagonal, with L Lᵀ = C; C is singular on the simplex, so not by Cholesky."""
    if covariance.keys() != structure.keys():
        raise ValueError(f"covariance: expected the sites {list(structure)}, got {list(covariance)}.")
    roots = []
    for site, gamma in structure.items():
        blocks = covariance[site]
        expected = (*gamma.shape, gamma.shape[-1])
        if gamma.dim() != 2 or blocks.shape != expected:
            raise ValueError(
                f"covariance[{site!r}]: expected shape {expected}, (edge, choice, choice), "
                f"got {checks.describe(blocks)}. Pass what structure_moments returns."
            )
        values, vectors = torch.linalg.eigh(blocks)
        slack = 1e-4 * float(blocks.abs().max())
        if not torch.allclose(blocks, blocks.mT, atol=slack) or float(values.min()) < -slack:
            raise ValueError(
                f"covariance[{site!r}]: expected symmetric, positive semidefinite blocks, got eigenvalues from "
                f"{float(values.min()):g} to {float(values.max()):g}. Pass what structure_moments returns."
            )
        roots += list((vectors * values.clamp_min(0).sqrt()[..., None, :]).flatten(0, -3))
    root: torch.Tensor = torch.block_diag(*roots)
    return root


def _scalar(value: torch.Tensor) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        raise ValueError(f"function: expected one that returns a scalar tensor, got {checks.describe(value)}.")
    return value.reshape(())
