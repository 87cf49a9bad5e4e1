"""Structure priors: laws of γ for every open choice of a space, and the guide's laws of the same family.

A prior is made of free prior probabilities and, where the family has one, a temperature: towards 0 all mass goes to
the vertices, towards infinity to the centre (structure-selection lecture, prior of the model structure).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from pyro.distributions import Bernoulli, OneHotCategorical
from pyro.distributions.torch_distribution import TorchDistribution

from pyro_nas import checks
from pyro_nas.graph.space import Choices, Restriction, on_simplex
from pyro_nas.models.distributions import Dirichlet, GumbelSoftmax, RelaxedBernoulli, StraightThrough

__all__ = [
    "TEMPERATURES",
    "Probabilities",
    "StructurePrior",
    "bernoulli",
    "categorical",
    "check_temperature",
    "dirichlet",
    "gumbel_softmax",
    "relaxed_bernoulli",
    "straight_through",
]

Probabilities = Sequence[float] | torch.Tensor | Mapping[str, "Sequence[float] | torch.Tensor"] | None
TEMPERATURES = (0.01, 1000.0)


@dataclass(frozen=True, repr=False)
class StructurePrior:
    """A family of laws of γ, (edge, choice), with its prior probabilities.

    ``distribution(parameters, temperature)`` is a law of the family with batch shape (edge,) or (edge, choice), and
    ``parameters(probabilities, temperature)`` are those of the prior, unconstrained and of shape (edge, choice).
    """

    family: str
    restriction: Restriction
    temperature: float | None
    probabilities: Probabilities
    distribution: Callable[[torch.Tensor, float], TorchDistribution]
    parameters: Callable[[torch.Tensor, float], torch.Tensor]

    def __repr__(self) -> str:
        """Return the call that makes it."""
        parts = [] if self.temperature is None else [f"temperature={self.temperature:g}"]
        parts += [] if self.probabilities is None else [f"probabilities={self.probabilities}"]
        return f"{self.family}({', '.join(parts)})"

    @property
    def reparameterised(self) -> bool:
        """Whether draws carry gradients and a point mass can be learned."""
        return "vertices" not in self.restriction

    def accepts(self, choices: Choices) -> bool:
        """Whether every draw lies within the space's restriction."""
        return self.restriction.startswith(choices.restriction)

    def prior_probabilities(self, choices: Choices) -> torch.Tensor:
        """Return the prior probabilities of one site, (edge, choice).

        Raises ValueError for a mapping without the site, another shape, and numbers that are no positive probabilities.
        """
        edges, size = choices.shape
        given = self.probabilities
        if isinstance(given, Mapping):
            checks.one_of("probabilities", choices.site, given)
            given = given[choices.site]
        name = f"probabilities of {choices.site!r}"
        if on_simplex(self.restriction):
            if given is None:
                given = torch.full((size,), 1.0 / size)
            table = checks.probabilities(name, given, size)
        else:
            table = torch.full((size,), 0.5) if given is None else torch.as_tensor(given, dtype=torch.float)
            if table.dim() == 0 or table.shape[-1] != size or not bool(((table > 0) & (table < 1)).all()):
                raise ValueError(f"{name}: expected {size} numbers within (0, 1), got {table.tolist()}.")
        if table.dim() > 2 or (table.dim() == 2 and table.shape[0] != edges):
            raise ValueError(f"{name}: expected shape ({size},) or ({edges}, {size}), got {tuple(table.shape)}.")
        return table.expand(edges, size)


def check_temperature(name: str, value: float) -> float:
    """Return a temperature within ``TEMPERATURES``; raise ValueError for another."""
    return checks.number(name, value, low=TEMPERATURES[0], high=TEMPERATURES[1])


def _log(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    return probabilities.log()


def _logit(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    return probabilities.logit()


def _log_concentration(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    return (temperature * probabilities.shape[-1] * probabilities).log()


def _gumbel_softmax(parameters: torch.Tensor, temperature: float) -> TorchDistribution:
    return GumbelSoftmax(temperature, parameters, validate_args=False)


def _straight_through(parameters: torch.Tensor, temperature: float) -> TorchDistribution:
    return StraightThrough(temperature, parameters, validate_args=False)


def _categorical(parameters: torch.Tensor, temperature: float) -> TorchDistribution:
    return OneHotCategorical(logits=parameters, validate_args=False)


def _dirichlet(parameters: torch.Tensor, temperature: float) -> TorchDistribution:
    return Dirichlet(parameters.exp(), validate_args=False)


def _relaxed_bernoulli(parameters: torch.Tensor, temperature: float) -> TorchDistribution:
    return RelaxedBernoulli(temperature, parameters, validate_args=False)


def _bernoulli(parameters: torch.Tensor, temperature: float) -> TorchDistribution:
    law: TorchDistribution = Bernoulli(logits=parameters, validate_args=False)
    return law


def gumbel_softmax(temperature: float = 1.0, probabilities: Probabilities = None) -> StructurePrior:
    """γ ~ Gumbel-Softmax(s, τ) on the interior of the simplex, reparameterised.

    Raises ValueError for τ outside ``TEMPERATURES``.
    """
    return StructurePrior(
        "gumbel_softmax", "simplex", check_temperature("temperature", temperature), probabilities, _gumbel_softmax, _log
    )


def straight_through(temperature: float = 1.0, probabilities: Probabilities = None) -> StructurePrior:
    """One-hot γ with the gradient of the Gumbel-Softmax draw: low variance, biased; one primitive runs per edge.

    Raises ValueError for τ outside ``TEMPERATURES``.
    """
    return StructurePrior(
        "straight_through",
        "simplex vertices",
        check_temperature("temperature", temperature),
        probabilities,
        _straight_through,
        _log,
    )


def categorical(probabilities: Probabilities = None) -> StructurePrior:
    """One-hot γ ~ Categorical(s): score-function gradients or exact enumeration, both unbiased."""
    return StructurePrior("categorical", "simplex vertices", None, probabilities, _categorical, _log)


def dirichlet(temperature: float = 1.0, probabilities: Probabilities = None) -> StructurePrior:
    """γ ~ Dirichlet(α), α_k = τ K s_k: τ = 1 with equal s is the uniform law on the simplex.

    Raises ValueError for τ outside ``TEMPERATURES``.
    """
    return StructurePrior(
        "dirichlet",
        "simplex",
        check_temperature("temperature", temperature),
        probabilities,
        _dirichlet,
        _log_concentration,
    )


def relaxed_bernoulli(temperature: float = 1.0, probabilities: Probabilities = None) -> StructurePrior:
    """Each γ_k ~ RelaxedBernoulli(p_k, τ) by itself: the interior of the cube, reparameterised.

    Raises ValueError for τ outside ``TEMPERATURES``.
    """
    return StructurePrior(
        "relaxed_bernoulli",
        "cube",
        check_temperature("temperature", temperature),
        probabilities,
        _relaxed_bernoulli,
        _logit,
    )


def bernoulli(probabilities: Probabilities = None) -> StructurePrior:
    """Each γ_k ~ Bernoulli(p_k) by itself: the vertices of the cube, score-function gradients or enumeration."""
    return StructurePrior("bernoulli", "cube vertices", None, probabilities, _bernoulli, _logit)
