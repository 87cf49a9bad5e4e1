"""DARTS of second order: bilevel, with the gradient of the structure taken through one step of the weights.

DARTS (Liu, Simonyan and Yang 2019) is a ``guides.PointMass`` of a model with ``structures.dirichlet()``, whose density
is constant: of first order fitted by ``bilevel.fit``, of second order by this. Other guides work in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import nn

from pyro_nas import checks
from pyro_nas.data import Pair, Source
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.evidence.sites import is_structure, sample_sites
from pyro_nas.evidence.terms import Terms
from pyro_nas.inference.bilevel import alternate
from pyro_nas.inference.loop import Session
from pyro_nas.inference.options import FitOptions, Options
from pyro_nas.inference.result import Fit, G
from pyro_nas.inference.state import kept_buffers
from pyro_nas.inference.stepper import OptimizerFactory, SchedulerFactory, Stepper
from pyro_nas.random_state import seeded

__all__ = ["Leaves", "fit", "unrolled_gradient"]

Loss = Callable[[], torch.Tensor]
Leaves = Sequence[torch.Tensor]


def unrolled_gradient(
    lower: Loss, upper: Loss, weights: Leaves, structure: Leaves, rate: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return Q and d/dΓ Q(w − ξ ∇_w L(w, Γ), Γ) = ∂_Γ Q − ξ ∇²_{Γw} L ∇_w Q, the derivatives of Q at the moved w.

    ``lower`` computes L and ``upper`` Q from the parameters as they are; ``rate`` is ξ. The mixed derivative is exact,
    by double differentiation. (Structure-selection lecture, DARTS, where the direct term is missing.)
    """
    before = [value.detach().clone() for value in weights]
    seed = int(torch.randint(2**31, ()))

    def same_noise() -> torch.Tensor:
        with seeded(seed):
            return lower()

    try:
        step = _gradients(same_noise(), weights)
        with torch.no_grad():
            torch._foreach_sub_(list(weights), step, alpha=rate)
        loss = upper()
        gradients = _gradients(loss, [*structure, *weights])
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), before)
    direct, vector = gradients[: len(structure)], gradients[len(structure) :]
    slopes = torch.autograd.grad(same_noise(), list(weights), create_graph=True, allow_unused=True)
    pairs = [(g, v) for g, v in zip(slopes, vector, strict=True) if g is not None and g.requires_grad]
    product = torch.stack([(g * v).sum() for g, v in pairs]).sum()
    mixed = _gradients(product, structure)
    return loss.detach(), [d - rate * m for d, m in zip(direct, mixed, strict=True)]


def _gradients(loss: torch.Tensor, inputs: Leaves) -> list[torch.Tensor]:
    gradients = torch.autograd.grad(loss, list(inputs), allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for g, i in zip(gradients, inputs, strict=True)]


def fit(
    model: PyroCallable,
    guide: G,
    train: Source,
    valid: Source,
    *,
    rate: float,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    structure_optimizer: OptimizerFactory | None = None,
    structure_scheduler: SchedulerFactory | None = None,
    **options: Unpack[FitOptions],
) -> Fit[G]:
    """Alternate a step of the structure, through a step of the weights of length ``rate``, and one of the weights.

    Arguments as ``bilevel.fit``. A step of the structure passes two training batches' worth of data more than there,
    and both passes of the training batch have the same noise. Batch normalisation counts the steps of weights only.

    Raises ValueError for draws of the structure that carry no gradient.
    """
    checks.number("rate", rate, low=0)
    with Session(model, guide, train, valid, Options.of(options), {"fit": "darts", "rate": rate}) as session:
        _check(guide, session)
        buffers = [buffer for _, buffer in kept_buffers(model)] if isinstance(model, nn.Module) else []

        def structure_step(number: int, lower: Stepper, upper: Stepper, batch: Pair, held_out: Pair) -> None:
            kept = [buffer.clone() for buffer in buffers]
            try:
                _structure_step(number, lower, upper, batch, held_out, rate)
            finally:
                for buffer, value in zip(buffers, kept, strict=True):
                    buffer.copy_(value)

        factories = (optimizer, scheduler, structure_optimizer, structure_scheduler)
        return alternate(session, structure_step, *factories)


def _check(guide: PyroCallable, session: Session[G]) -> None:
    """Raise where draws of the structure carry no gradient, or evidences are weighted by λ."""
    sites = sample_sites(guide, session.train.first())
    discrete = [name for name, site in sites.items() if is_structure(name) and not site["fn"].has_rsample]
    if discrete:
        raise ValueError(
            f"guide: expected draws of the structure that carry gradients, got discrete ones at {discrete}. "
            "Use structures.dirichlet or gumbel_softmax, or bilevel.fit."
        )
    if session.options.emphasis is not None:
        raise ValueError("emphasis: expected none for a fit of second order, got one. Use bilevel.fit.")


def _structure_step(number: int, lower: Stepper, upper: Stepper, train: Pair, valid: Pair, rate: float) -> None:
    last: list[Terms] = []

    def loss(stepper: Stepper, batch: Pair) -> torch.Tensor:
        terms = stepper.terms(*batch)
        last[:] = [terms]
        return stepper.loss(terms, batch[1])

    held: list[Terms] = []

    def upper_loss() -> torch.Tensor:
        value = loss(upper, valid)
        held[:] = last
        return value

    value, gradients = unrolled_gradient(lambda: loss(lower, train), upper_loss, lower.values, upper.values, rate)
    for parameter, gradient in zip(upper.values, gradients, strict=True):
        parameter.grad = gradient
    upper.update(number, held[0], value)
