"""Laplace approximation: a mode found by L-BFGS, and the curvature there, give a normal posterior and the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, init_to_value
from pyro.infer.autoguide.guides import AutoContinuous
from torch.distributions import biject_to
from torch.func import grad, vjp

from pyro_nas import checks
from pyro_nas.data import Inputs, Pair, check_pair
from pyro_nas.evidence.currencies import PyroCallable, Sites
from pyro_nas.evidence.packing import Packing
from pyro_nas.evidence.sites import COMPLEXITY, Substitute, is_structure, local_parameters, log_prob_of, sample_sites
from pyro_nas.inference.result import Fit, G
from pyro_nas.random_state import seeded
from pyro_nas.reading.posterior import each_draw, evaluation_mode

__all__ = ["ROWS", "LogDensity", "approximation", "check_mode", "find_mode", "fit", "linearised"]

CURVATURES = ("full", "diagonal")
MAX_RISE = 0.01  # nats that a mode may lie below the top of its own quadratic
ROWS = 256  # of the Hessian, computed together


class LogDensity(AbstractContextManager["LogDensity"]):
    """log p(y | x, w) and log p(w) of a Pyro model, functions of one vector of all latent sites, unconstrained.

    Where a site is constrained, log p(w) has the Jacobian of its bijection: it is the density of the vector. Sites that
    a condition fixed count as data. ``complexity`` is λ, the scale of the latent sites. Within the context the random
    state is the density's own, started at ``seed``, a module is in evaluation mode, and nothing is validated.

    Raises ValueError for a structure, λ or another discrete site among the latent ones.
    """

    def __init__(self, model: PyroCallable, data: Pair, seed: int):
        self.model = checks.is_callable("model", model, "a Pyro model")
        self.data, self.seed = check_pair("train", data), checks.seed(seed)
        if hasattr(model, "check"):
            model.check(*self.data)
        self._stack = ExitStack()
        with self, pyro.validation_enabled(True):
            sites = self._draw()
        refused = [name for name in sites if is_structure(name) or name == COMPLEXITY]
        discrete = [n for n, site in sites.items() if site["fn"].support is None or site["fn"].support.is_discrete]
        refused += [name for name in discrete if name not in refused]
        if refused or not sites:
            raise ValueError(
                f"model: expected real latent sites alone, got {list(sites)}, of which {refused} are none. Derive the "
                "structure, give λ as a number, or fix such sites by poutine.condition."
            )
        scales = {float(site["scale"]) for site in sites.values()}
        if len(scales) > 1:
            raise ValueError(f"model: expected latent sites of one λ, got scales {sorted(scales)}. Scale them alike.")
        self.complexity = scales.pop()
        self.transforms = {name: biject_to(site["fn"].support) for name, site in sites.items()}
        self.packing = Packing.of({name: self.transforms[name].inv(site["value"]) for name, site in sites.items()})

    def __enter__(self) -> LogDensity:
        self._stack.enter_context(seeded(self.seed))
        self._stack.enter_context(pyro.validation_enabled(False))
        self._stack.enter_context(evaluation_mode(self.model))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def terms(self, vector: torch.Tensor, x: Inputs, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log p(y | x, w) and, without λ, log p(w), scalars in nats, at a vector of shape (size,)."""
        unconstrained = self.packing.unpack(vector)
        values = {name: self.transforms[name](part) for name, part in unconstrained.items()}
        with Substitute(values):
            sites = sample_sites(self.model, (x, y))
        likelihood = [log_prob_of(site, torch.sum) for site in sites.values() if site["is_observed"]]
        prior = [sites[name]["fn"].log_prob(value).sum() for name, value in values.items()]
        prior += [self.transforms[n].log_abs_det_jacobian(unconstrained[n], value).sum() for n, value in values.items()]
        return torch.stack(likelihood).sum(), torch.stack(prior).sum()

    def joint(self, vector: torch.Tensor) -> torch.Tensor:
        """Return log p(y | x, w) + λ log p(w) of all data, a scalar in nats."""
        likelihood, prior = self.terms(vector, *self.data)
        return likelihood + self.complexity * prior

    def draw(self) -> torch.Tensor:
        """Draw a vector, (size,), from the prior."""
        return self.pack({name: site["value"] for name, site in self._draw().items()})

    def pack(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the vector, (size,), of values of the sites."""
        return self.packing.pack({name: transform.inv(values[name]) for name, transform in self.transforms.items()})

    def unpack(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the values of the sites, {site: (draw, …)}, of vectors of shape (draw, size)."""
        return {name: self.transforms[name](part) for name, part in self.packing.unpack(vectors).items()}

    def _draw(self) -> Sites:
        with torch.no_grad():
            sites = sample_sites(self.model, self.data)
        return {name: site for name, site in sites.items() if not site["is_observed"]}


def fit(
    model: PyroCallable,
    train: Pair,
    *,
    curvature: str = "full",
    start: Mapping[str, torch.Tensor] | None = None,
    steps: int = 1000,
    seed: int = 0,
) -> Fit[AutoContinuous]:
    """Return the normal approximation at a mode w* of log p(y | x, w) + λ log p(w), and the evidence that it gives.

    The posterior of the ``Fit`` is a guide; its one record has log p(y | x, w*) beside the evidence.

    q(w) = N(w*, λ H⁻¹) and, in nats, with d weights and H the Hessian of the negative objective,
    𝔏(λ) = log p(y | x, w*) + λ (log p(w*) + ½ log det(2πλ H⁻¹)). At λ = 1 it approximates log p(y | x); for every λ it
    approximates max_q E log p(y | x, w) − λ KL(q ‖ p), and for a linear-Gaussian model is that. It is of one mode:
    other modes, symmetric ones too, would add to it.

    ``model``: any Pyro callable; constrained sites are approximated in unconstrained coordinates, and parameters
    without a prior stay as they are. A structure that ``poutine.condition`` fixes counts as data, log p(y, Γ | x); one
    that was derived does not, log p(y | x, Γ). ``train``: (x, y), all at once. ``curvature``: "full", or "diagonal",
    which leaves out all of H but its diagonal. ``start``: {site: (1, …)}, such as ``mean_draw`` of a fitted point guide
    gives; a draw from the prior by ``seed`` otherwise. ``steps`` of L-BFGS at most lead to the mode. All is computed in
    the precision of model and data; ``model.double()`` and data alike are for an ill-conditioned H.

    Raises ValueError for latent structure or λ, where no mode is reached, and where H is not positive definite.
    MacKay 1992; Tierney and Kadane 1986.
    """
    checks.one_of("curvature", curvature, CURVATURES)
    density = LogDensity(model, train, seed)
    with density:
        mode = find_mode(density, start, steps)
        with torch.no_grad():
            likelihood, prior = density.terms(mode, *density.data)
            slope, product = linearised(density.joint, mode)
            hessian = _hessian(lambda vectors: -torch.vmap(product)(vectors)[0], mode, curvature)
            log_determinant = _log_determinant(hessian, slope)
            guide = _normal(density, mode, hessian)
    volume = 0.5 * (len(mode) * math.log(2 * math.pi * density.complexity) - log_determinant)
    return approximation(density, guide, float(likelihood), float(prior) + volume)


def approximation(density: LogDensity, guide: G, log_likelihood: float, occam: float) -> Fit[G]:
    """Return the result of a normal approximation: its one record holds log p(y | x, w*) and the Occam factor."""
    evidence = log_likelihood + density.complexity * occam
    record = {"evidence": evidence, "log_likelihood": log_likelihood, "occam_factor": occam}
    return Fit(density.model, guide, [record], evidence)


def linearised(
    function: Callable[[torch.Tensor], torch.Tensor], vector: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor]]]:
    """Return the gradient of a scalar function at a vector, (size,), and the map v ↦ (Hessian · v,)."""
    outcome: tuple[Any, ...] = vjp(grad(function), vector)
    return outcome[0], outcome[1]


def _checked_start(density: LogDensity, start: Mapping[str, torch.Tensor]) -> torch.Tensor:
    draws = each_draw(start)
    expected = {name: tuple(value.shape) for name, value in density.unpack(torch.zeros(density.packing.size)).items()}
    got = {name: tuple(value.shape) for name, value in start.items()}
    if len(draws) != 1 or {name: shape[1:] for name, shape in got.items()} != expected:
        raise ValueError(
            f"start: expected one draw of the latent sites, {{site: (1, …)}} with … as in {expected}, got {got}. "
            "Pass posterior.mean_draw(guide)."
        )
    return density.pack({name: value.detach() for name, value in draws[0].items()})


def find_mode(density: LogDensity, start: Mapping[str, torch.Tensor] | None, steps: int) -> torch.Tensor:
    """Return where at most ``steps`` of L-BFGS lead from a start, {site: (1, …)}, or from a draw of the prior, (size,).

    Raises ValueError for another start, steps below 1, and where the density there is not finite.
    """
    checks.integer("steps", steps, low=1)
    vector = density.draw() if start is None else _checked_start(density, start)
    vector = vector.clone().requires_grad_()
    least = torch.finfo(vector.dtype).eps  # a change of the loss that ends the ascent
    optimizer = torch.optim.LBFGS([vector], max_iter=steps, tolerance_change=least, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        vector.grad = None
        value = -density.joint(vector)
        value.backward(inputs=[vector])
        return value

    optimizer.step(loss)
    vector = vector.detach()
    if not bool(torch.isfinite(vector).all()) or not bool(torch.isfinite(density.joint(vector))):
        raise ValueError(
            "model: expected a finite log p(y | x, w) + λ log p(w) on the way to its mode, got NaN or infinity. "
            "Pass another start, or a condition inside the support of its site."
        )
    return vector


def _hessian(product: Callable[[torch.Tensor], torch.Tensor], mode: torch.Tensor, curvature: str) -> torch.Tensor:
    """Return H, (size, size), or its diagonal, (size,); ``product`` maps vectors (rows, size) to their products."""
    parts = []
    for rows in torch.arange(len(mode), device=mode.device).split(ROWS):
        basis = torch.zeros(len(rows), len(mode)).to(mode)
        basis[torch.arange(len(rows)), rows] = 1.0
        products = product(basis)
        parts.append(products if curvature == "full" else products.gather(1, rows[:, None])[:, 0])
    hessian = torch.cat(parts)
    return (hessian + hessian.mT) / 2 if curvature == "full" else hessian


def _log_determinant(hessian: torch.Tensor, slope: torch.Tensor) -> float:
    """Return log det H; raise where H is not positive definite, or where it shows that this is no mode."""
    eigenvalues = hessian if hessian.dim() == 1 else torch.linalg.eigvalsh(hessian)
    least, most = float(eigenvalues.min()), float(eigenvalues.max())
    if not least > torch.finfo(hessian.dtype).eps * most:
        raise ValueError(
            f"curvature: expected a positive definite Hessian at the mode, got eigenvalues from {least:g} to {most:g}. "
            "Use a normal prior of smaller scale, another start, or double precision."
        )
    newton = slope / hessian if hessian.dim() == 1 else torch.linalg.solve(hessian, slope)
    check_mode(0.5 * float(slope @ newton))
    return float(eigenvalues.log().sum())


def check_mode(rise: float) -> None:
    """Raise ValueError where a point lies that many nats, 0.01 or more, below the top of its quadratic."""
    if not rise < MAX_RISE:
        raise ValueError(
            f"steps: expected a mode after them, got a point {rise:.3g} nats below the top of its quadratic. "
            "Make more steps, or use double precision or a prior that is smooth at its mode."
        )


def _normal(density: LogDensity, mode: torch.Tensor, hessian: torch.Tensor) -> AutoContinuous:
    """Return the guide N(w*, λ H⁻¹) in the coordinates of the vector."""
    initial = init_to_value(values=density.unpack(mode))
    kind = AutoDiagonalNormal if hessian.dim() == 1 else AutoMultivariateNormal
    guide: Any = kind(density.model, init_loc_fn=initial)  # its scale is a PyroParam, to be set as a tensor
    with local_parameters(guide):
        guide(*density.data)  # an autoguide learns its shapes, and its location, from a first run
    if hessian.dim() == 1:
        guide.scale = (density.complexity / hessian).sqrt()
    else:
        covariance = density.complexity * torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        factor = torch.linalg.cholesky(covariance)
        guide.scale = factor.diagonal().clone()
        guide.scale_tril = factor / factor.diagonal()[:, None]
    fitted: AutoContinuous = guide
    return fitted
