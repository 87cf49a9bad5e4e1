"""Stepper: one ascent step of the generalised evidence in some of the parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_nas import checks
from pyro_nas.data import Inputs
from pyro_nas.evidence import Evidence
from pyro_nas.evidence.effects import LocalReparameterization, Stratified, StructurePerExample
from pyro_nas.evidence.particles import deal
from pyro_nas.evidence.sites import COMPLEXITY
from pyro_nas.evidence.terms import Terms
from pyro_nas.graph.memory import keep_heap
from pyro_nas.inference.options import Options

__all__ = [
    "BatchWeight",
    "NonFiniteLoss",
    "OptimizerFactory",
    "SchedulerFactory",
    "Stepper",
    "adam",
    "clipped",
    "cosine",
    "delayed",
    "one_cycle",
]

OptimizerFactory = Callable[[list[torch.Tensor]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]
BatchWeight = Callable[[torch.Tensor], float]  # of the y of a batch: with mean 1 over an epoch


class NonFiniteLoss(FloatingPointError):
    """A loss or gradient that turned NaN or infinite; model and guide are as after the last whole epoch."""


def adam(lr: float = 0.01, **options: Any) -> OptimizerFactory:
    """Return a factory of torch's fused Adam; raise ValueError for a learning rate not above 0."""
    checks.number("lr", lr, low=0, open_low=True)
    return partial(torch.optim.Adam, lr=lr, fused=True, **options)


def clipped(optimizer: OptimizerFactory, value: float) -> OptimizerFactory:
    """Return a factory of that optimizer, each element of the gradient clipped to [−value, value] before a step.

    Raises TypeError for an optimizer that is no factory, ValueError for a value not above 0.
    """
    checks.is_callable("optimizer", optimizer, "a function of a list of parameters")
    checks.number("value", value, low=0, open_low=True)

    def make(parameters: list[torch.Tensor]) -> Optimizer:
        made = optimizer(parameters)
        made.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_value_(parameters, value))
        return made

    return make


def one_cycle(max_lr: float, **options: Any) -> SchedulerFactory:
    """Return a factory of torch's one-cycle schedule over all steps; raise ValueError for a rate not above 0."""
    checks.number("max_lr", max_lr, low=0, open_low=True)
    return lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=max_lr, total_steps=steps + 1, **options
    )


def cosine(last: float = 0.0) -> SchedulerFactory:
    """Return a factory of torch's cosine schedule, from the optimizer's learning rate to ``last``, over all steps.

    Raises ValueError for a ``last`` below 0.
    """
    checks.number("last", last, low=0)
    return lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps), eta_min=last)


def delayed(fraction: float = 0.3) -> SchedulerFactory:
    """Return a factory of a schedule that holds parameters still for a fraction of the steps, then lets them go.

    For the structure in a bilevel fit: every primitive is trained before any is preferred, so that the one that learns
    fastest does not win by that alone. Raises ValueError for a fraction outside [0, 1].
    """
    checks.number("fraction", fraction, low=0, high=1)
    return lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: float(step >= fraction * steps)
    )


class Stepper:
    """Ascend 𝔏(λ)/N in ``parameters``; called with a step's number and batch, returns the terms before the step.

    ``weight`` is that of a batch among those of an epoch, ``Batches.weight``: by default all have the same.

    Raises NonFiniteLoss, before anything is changed, where the loss or a gradient is not finite; ValueError where the
    evidence depends on no parameter; when made, TypeError for what is no factory of an optimizer.
    """

    def __init__(
        self,
        evidence: Evidence,
        parameters: dict[str, torch.Tensor],
        num_data: int,
        steps: int,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        options: Options,
        weight: BatchWeight = lambda y: 1.0,
    ):
        self.evidence, self.parameters, self.num_data, self.weight = evidence, parameters, num_data, weight
        self.values = list(parameters.values())
        self.optimizer = _optimizer(optimizer, self.values)
        self.scheduler = None if scheduler is None else _scheduler(scheduler, self.optimizer, steps)
        self.made_by = {"optimizer": optimizer, "scheduler": scheduler}
        self.options = options
        keep_heap()

    def __call__(self, step: int, x: Inputs, y: torch.Tensor) -> Terms:
        """Make one step."""
        for value in self.values:
            value.grad = None
        terms = self.terms(x, y)
        loss = self.loss(terms, y)
        if not loss.requires_grad:
            raise ValueError("guide: expected parameters that the evidence depends on, got none.")
        loss.backward(inputs=self.values)
        self.update(step, terms, loss)
        return terms

    def loss(self, terms: Terms, y: torch.Tensor) -> torch.Tensor:
        """Return what a step descends on a batch, −𝔏(λ)/N times the batch's weight, a scalar."""
        return -terms.surrogate * self.weight(y) / self.num_data

    def update(self, step: int, terms: Terms, loss: torch.Tensor) -> None:
        """Move the parameters along their gradients; raise NonFiniteLoss where those or the loss are not finite."""
        gradients = [value.grad for value in self.values if value.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if not bool(torch.isfinite(loss.detach() + norm)):
            self._refuse(step, terms)
        if self.options.max_gradient_norm is not None and norm > self.options.max_gradient_norm:
            torch._foreach_mul_(gradients, self.options.max_gradient_norm / norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    def terms(self, x: Inputs, y: torch.Tensor) -> Terms:
        """Estimate the evidence on a batch, under the effects that the options switch on.

        Raises ValueError for an effect that meets no site to change.
        """
        strata = Stratified(COMPLEXITY) if self.options.stratified else nullcontext()
        local = LocalReparameterization() if self.options.local_reparameterization else nullcontext()
        each = StructurePerExample(len(y)) if self.options.structure_per_example else nullcontext()
        if self.options.dealt and len(y) >= self.options.particles:  # else few data are left, for all
            x, y = deal(x, y, self.options.particles)
        with strata as spread, local as effect, each as drawn:
            terms: Terms = self.evidence(x, y)
        if drawn is not None and not drawn.sites:
            raise ValueError(
                "structure_per_example: expected a guide that draws a structure with a gradient, got none. "
                "Switch it off, or use a structure prior whose draws are reparameterised."
            )
        if spread is not None and not spread.used:
            raise ValueError("stratified: expected a guide that draws λ, got one that does not. Switch it off.")
        if effect is not None and not effect.sites:
            raise ValueError(
                "local_reparameterization: expected a guide that draws normal weight sites, got none. "
                "Switch it off for this guide."
            )
        return terms

    def _refuse(self, step: int, terms: Terms) -> None:
        bad = [] if torch.isfinite(terms.log_likelihood) else ["y (the likelihood)"]
        bad += [site for site, divergence in terms.divergence.items() if not torch.isfinite(divergence)]
        bad += [
            f"the gradient of {name}"
            for name, value in self.parameters.items()
            if value.grad is not None and not bool(torch.isfinite(value.grad).all())
        ]
        raise NonFiniteLoss(
            f"step {step}: the loss or its gradient is not finite at {', '.join(bad)}. Model and guide are as after "
            "the last whole epoch. Lower the learning rate, or set max_gradient_norm."
        )


def _optimizer(make: OptimizerFactory, parameters: list[torch.Tensor]) -> Optimizer:
    """Return the optimizer of these parameters; raise where it cannot step without more, or would move others."""
    what = "a function of a list of parameters, such as functools.partial(torch.optim.Adam, lr=0.01)"
    if isinstance(make, (Optimizer, PyroOptim)) or not callable(make):
        raise TypeError(f"optimizer: expected {what}, got {checks.describe(make)}.")
    made = make(parameters)
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer: expected a torch optimizer, got {checks.describe(made)}. Pass {what}.")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer: expected one that steps along a gradient, got {type(made).__name__}, which evaluates the loss "
            "anew: its draws would be others. Use adam(), or inference.laplace_approximation for a mode."
        )
    given = {id(value) for value in parameters}
    moved = {id(value) for group in made.param_groups for value in group["params"]}
    if not moved <= given:
        raise ValueError("optimizer: expected one of the parameters that it is given, got one of others.")
    return made


def _scheduler(make: SchedulerFactory, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Return the schedule of an optimizer; raise where it is no function of the steps alone."""
    what = "a function of the optimizer and the number of steps, such as one_cycle(0.1)"
    if isinstance(make, (LRScheduler, PyroOptim)) or not callable(make):
        raise TypeError(f"scheduler: expected {what}, got {checks.describe(make)}.")
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    if make is not plateau and isinstance(make, type) and issubclass(make, LRScheduler):
        second = list(inspect.signature(make).parameters)[1]
        if second != "T_max":
            raise TypeError(
                f"scheduler: expected {what}, got the class {make.__name__}, which would take the number of steps for "
                f"its {second}. Pass lambda optimizer, steps: {make.__name__}(optimizer, {second}=…)."
            )
    made = None if make is plateau else make(optimizer, steps)
    if make is plateau or isinstance(made, plateau):
        raise TypeError(
            f"scheduler: expected {what}, got ReduceLROnPlateau, which follows a loss. Stop by patience, or lower the "
            "rate by cosine()."
        )
    if not isinstance(made, LRScheduler):
        raise TypeError(f"scheduler: expected one that returns a schedule of torch, got {checks.describe(made)}.")
    return made
