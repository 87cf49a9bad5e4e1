"""Laplace approximation by Kronecker factors: the curvature of every layer is the product of two small matrices.

The factors are those of laplace-torch (Daxberger et al. 2021), an optional extra. They are of the generalised
Gauss–Newton matrix in place of the Hessian, which is positive semidefinite for every network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Categorical, Independent, Normal
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer.autoguide import init_to_value
from pyro.infer.autoguide.guides import AutoContinuous
from torch import nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from pyro_nas import checks
from pyro_nas.data import Pair
from pyro_nas.evidence.currencies import PyroCallable, Site, Sites, SpaceModel
from pyro_nas.evidence.sites import local_parameters, sample_sites
from pyro_nas.inference.laplace_approximation import LogDensity, approximation, check_mode, find_mode
from pyro_nas.inference.result import Fit

__all__ = ["NO_SHAPE", "AutoKronecker", "KroneckerNormal", "fit"]

NO_SHAPE = torch.Size()


class KroneckerNormal(TorchDistribution):
    """N(m, P⁻¹) of a vector, (size,); P is block-diagonal, a sum of a Kronecker product and δI for every tensor."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch has it
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: torch.Tensor, precision: Any):
        self.loc, self.precision = loc, precision
        super().__init__(NO_SHAPE, loc.shape, validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        """The location m."""
        return self.loc

    @property
    def variance(self) -> torch.Tensor:
        """The diagonal of P⁻¹."""
        diagonal: torch.Tensor = self.precision.diag(exponent=-1)
        return diagonal

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = NO_SHAPE) -> torch.Tensor:
        """Draw m + P^{-½} ε."""
        noise = torch.randn(*sample_shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self._power(noise, -0.5)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return ½ (log det P − size log 2π − (w − m)ᵀ P (w − m))."""
        away = value - self.loc
        square = (away * self._power(away, 1.0)).sum(-1)
        density: torch.Tensor = 0.5 * (self.precision.logdet() - len(self.loc) * math.log(2 * math.pi) - square)
        return density

    def _power(self, vectors: torch.Tensor, exponent: float) -> torch.Tensor:
        product: torch.Tensor = self.precision.bmm(vectors.reshape(-1, 1, len(self.loc)), exponent=exponent)
        return product.view_as(vectors)


class AutoKronecker(AutoContinuous):
    """An autoguide whose law is a ``KroneckerNormal``."""

    def __init__(self, model: PyroCallable, law: KroneckerNormal, values: Mapping[str, torch.Tensor]):
        super().__init__(model, init_loc_fn=init_to_value(values=dict(values)))
        self.law = law

    def get_posterior(self, *args: object, **kwargs: object) -> KroneckerNormal:
        """Return the law of all weights."""
        return self.law

    def _loc_scale(self, *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        return self.law.loc, self.law.variance.sqrt()


def fit(
    model: SpaceModel,
    train: Pair,
    *,
    start: Mapping[str, torch.Tensor] | None = None,
    steps: int = 1000,
    batch_size: int = 256,
    seed: int = 0,
) -> Fit[AutoKronecker]:
    """Return the normal approximation at a mode of log p(y | x, w) + λ log p(w) by Kronecker factors, and its evidence.

    As ``laplace_approximation.fit``, whose mode, meaning and arguments these are, with q(w) = N(w*, P⁻¹),
    P = K/λ + T, T the precision of the prior and K the factors. Exact for a linear-Gaussian model of one output
    without a bias.

    ``model``: a ``Model`` with nothing to choose, linear and convolutional layers, a centred normal prior with one
    scale a tensor, and a Gaussian or categorical likelihood. ``batch_size``: data whose factors are computed together;
    of several batches the factors, not their products, are added.

    Raises ImportError without laplace-torch, ValueError for another model, and what
    ``laplace_approximation.fit`` raises.
    Ritter, Botev and Barber 2018; Daxberger et al. 2021.
    """
    try:
        from laplace import KronLaplace
    except ImportError as error:
        raise ImportError(
            f"laplace: expected the package laplace-torch, got none. pip install 'pyro-nas[laplace]'. {error}"
        ) from error
    checks.integer("batch_size", batch_size, low=1)
    density = LogDensity(model, train, seed)
    x, y = density.data
    if isinstance(x, tuple):
        raise ValueError(f"train x: expected one tensor, got a tuple of {len(x)}. Use laplace_approximation.fit.")
    with density:
        mode = find_mode(density, start, steps)
        with torch.no_grad():
            sites = sample_sites(model, (x, y))
        likelihood, options = _likelihood([site for site in sites.values() if site["is_observed"]])
        scales = _prior_scales(model, {n: site for n, site in sites.items() if not site["is_observed"]})
        options["temperature"] = density.complexity / options.pop("weight")
        factors = KronLaplace(_network(model, mode), likelihood, prior_precision=scales**-2, **options)
        factors.fit(DataLoader(TensorDataset(x, y), batch_size))
        precision = factors.posterior_precision
        vector = mode.clone().requires_grad_()
        slope = torch.autograd.grad(density.joint(vector), vector)[0]
        check_mode(0.5 * float(slope @ precision.bmm(slope, exponent=-1)) / density.complexity)
        with torch.no_grad():
            fitness, prior = density.terms(mode, x, y)
            guide = AutoKronecker(model, KroneckerNormal(mode, precision), density.unpack(mode))
            with local_parameters(guide):
                guide(x, y)  # an autoguide learns its shapes from a first run
    volume = 0.5 * (len(mode) * math.log(2 * math.pi) - float(precision.logdet()))
    return approximation(density, guide, float(fitness), float(prior) + volume)


def _likelihood(observed: list[Site]) -> tuple[str, dict[str, Any]]:
    """Return laplace-torch's name of the likelihood and its options, the weight of a datum among them."""
    law = observed[0]["fn"] if len(observed) == 1 else None
    weight = {} if law is None else {"weight": float(observed[0]["scale"])}
    if isinstance(law, Categorical):
        return "classification", weight
    if isinstance(law, Independent) and isinstance(law.base_dist, Normal):
        noise = law.base_dist.scale.detach().unique()
        if len(noise) == 1:
            return "regression", {"sigma_noise": noise, **weight}
    raise ValueError(
        f"model: expected a Gaussian likelihood of one noise, or a categorical one, got {law}. "
        "Use laplace_approximation.fit."
    )


def _prior_scales(model: SpaceModel, latent: Sites) -> torch.Tensor:
    """Return the prior's standard deviation of each tensor, (tensor,)."""
    law = latent["weights"]["fn"] if list(latent) == ["weights"] else None
    normal = isinstance(law, Independent) and isinstance(law.base_dist, Normal) and not bool(law.mean.any())
    if not hasattr(model, "network") or not hasattr(model, "packing") or not normal:
        raise ValueError(
            f"model: expected a Model with a centred normal prior, at the site 'weights', got {list(latent)} "
            f"of {checks.describe(model)}. Use laplace_approximation.fit."
        )
    everything = [name for name, _ in model.network.named_parameters()]
    if shared := [name for name, _ in model.network.named_parameters(remove_duplicate=False) if name not in everything]:
        raise ValueError(
            f"model: expected weights of one layer each, got shared ones: {shared}. Use laplace_approximation.fit."
        )
    assert isinstance(law, Independent)
    scales = law.base_dist.scale.split(model.packing.sizes)
    if everything != model.packing.names or any(bool((scale != scale[0]).any()) for scale in scales):
        raise ValueError(
            f"model: expected one scale of the prior in each of the tensors {everything}, got several, or tensors "
            f"without a prior: {sorted(set(everything) - set(model.packing.names))}. Use laplace_approximation.fit."
        )
    return torch.stack([scale[0] for scale in scales])


def _network(model: SpaceModel, mode: torch.Tensor) -> nn.Module:
    """Return a copy of the model's network with the weights of a mode, open to gradients."""
    network = copy.deepcopy(model.network)
    network.load_state_dict(model.packing.unpack(mode), strict=False)
    network.requires_grad_(True)
    return network
