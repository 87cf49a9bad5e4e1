"""Model: the joint law p(y, w, Γ | x) of a space as a Pyro model.

p(y | x, w, Γ) p(w) p(Γ), with λ as a scale of the latent sites, so that any evidence lower bound of this model and a
guide that scales likewise is the generalised evidence E_q log p(y | x, w, Γ) − λ KL(q ‖ p).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Self

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.poutine.indep_messenger import IndepMessenger
from torch import nn

from pyro_nas import checks
from pyro_nas.data import Inputs
from pyro_nas.evidence.currencies import SpaceModel
from pyro_nas.evidence.packing import Packing
from pyro_nas.evidence.particles import Dealt, run_particles
from pyro_nas.evidence.sites import COMPLEXITY, sample_sites, transformed
from pyro_nas.graph.network import Network, running
from pyro_nas.graph.space import Choices, Space
from pyro_nas.models.cost_factors import Cost
from pyro_nas.models.latents import Latent, laid_out
from pyro_nas.models.likelihoods import Likelihood, categorical
from pyro_nas.models.priors import WeightPrior, fan_in, normal
from pyro_nas.models.structures import StructurePrior, check_temperature, gumbel_softmax
from pyro_nas.printing import Printed, Table
from pyro_nas.random_state import check_thread, forked

__all__ = ["Model"]


class Model(Printed, SpaceModel):
    """p(y, w, Γ | x) of a space; called as ``model(x, y)``, or ``model(x)`` to draw y, and returns the outputs.

    ``weights`` is a weight prior, by default N(0, 1/fan-in), ``structure`` a structure prior, by default Gumbel-Softmax
    of temperature 1, ``likelihood`` the law of y given the outputs, by default categorical,
    ``num_data`` the number N of data: a batch of n counts N/n times. ``complexity`` is λ > 0, or its prior: then λ is
    the site "complexity". ``point_estimates`` are patterns (fnmatch) of parameters without a prior; those of batch
    normalisation never have one, and those that come frozen, without ``requires_grad``, are constants. ``cost``, one of
    models.cost_factors, is what Γ pays. Sites: "weights" (or what the prior draws) and the space's structure sites.
    The network is a copy of the modules that the factories give.

    ``temperature`` and ``complexity`` may be changed between steps.

    Raises TypeError for arguments of another kind, ValueError for numbers out of range, λ of no scalar law, a structure
    prior or a cost that does not fit the space, and patterns that match no parameter.
    """

    likelihood: Likelihood

    def __init__(
        self,
        space: Space,
        *,
        num_data: int,
        weights: WeightPrior | None = None,
        structure: StructurePrior | None = None,
        likelihood: Likelihood | None = None,
        complexity: float | TorchDistribution = 1.0,
        point_estimates: Sequence[str] = (),
        cost: Cost | None = None,
    ):
        super().__init__()
        check_thread()  # a network draws its first weights
        for name, value, kind, what in (
            ("space", space, Space, "a Space"),
            ("structure", structure, StructurePrior, "a prior of models.structures, such as gumbel_softmax()"),
            ("likelihood", likelihood, Likelihood, "one of models.likelihoods, such as gaussian()"),
            ("cost", cost, Cost, "one of models.cost_factors"),
        ):
            if not isinstance(value, kind) and (value is not None or name == "space"):
                raise TypeError(f"{name}: expected {what}, got {checks.describe(value)}.")
        if isinstance(point_estimates, str):
            raise TypeError(f"point_estimates: expected a list of patterns, got {point_estimates!r}. Put it in a list.")
        self.space, self.num_data = space, checks.integer("num_data", num_data, low=1)
        self.network = Network(space).copied()
        self.likelihood = likelihood if likelihood is not None else categorical()
        self.structure_prior = structure if structure is not None else gumbel_softmax()
        self.choices: dict[str, Choices] = space.choices()
        self.cost = cost
        if cost is not None:
            cost.check(self.choices)
        self._temperature = self.structure_prior.temperature
        self._complexity: float | TorchDistribution = 1.0
        self.complexity = complexity
        self._register_structure()
        points = self._points(point_estimates)
        trained = {n: p for n, p in self.network.named_parameters() if p.requires_grad and p not in points}
        bayesian = {name: parameter.requires_grad_(False) for name, parameter in trained.items()}
        self.packing = Packing.of(bayesian)
        self._shapes = {**self.packing.shapes, **{site: torch.Size(c.shape) for site, c in self.choices.items()}}
        self._batches = not self.network.keeps_statistics() and (
            self.structure_prior.reparameterised or not self.choices
        )
        self.weights = laid_out(normal(fan_in()) if weights is None else weights, self.packing)

    def table(self) -> Table:
        """Return what the model is made of."""
        sizes = {site: f"{c.shape[0]} edges × {c.shape[1]} choices" for site, c in self.choices.items()}
        rows = [("weights", str(self.weights)), ("structure", f"{self.structure_prior}: {sizes}")]
        rows.append(("likelihood", str(self.likelihood)))
        return Table(f"Model of {self.packing.size} latent weights, {self.num_data} data, λ = {self._complexity}", rows)

    @property
    def temperature(self) -> float | None:
        """The prior's temperature τ, or None; setting it where None, or beyond [0.01, 1000], raises ValueError."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self._temperature is None:
            raise ValueError(f"temperature: the structure prior ({self.structure_prior.restriction}) has none.")
        self._temperature = check_temperature("temperature", value)

    @property
    def complexity(self) -> float | TorchDistribution:
        """The complexity λ > 0, or its scalar prior; setting others raises ValueError, a law of torch's TypeError."""
        return self._complexity

    @complexity.setter
    def complexity(self, value: float | TorchDistribution) -> None:
        if isinstance(value, torch.distributions.Distribution) and not isinstance(value, TorchDistributionMixin):
            raise TypeError(f"complexity: expected a law of pyro.distributions, got {checks.describe(value)}.")
        if not isinstance(value, TorchDistributionMixin):
            self._complexity = checks.number("complexity", value, low=0, open_low=True)
            return
        shape = tuple(value.batch_shape + value.event_shape)
        if shape:
            raise ValueError(f"complexity: expected a scalar distribution, got one of shape {shape}.")
        self._complexity = value

    def forward(self, x: Inputs, y: torch.Tensor | None = None) -> torch.Tensor:
        """Draw w and Γ, run the network on x, observe (or draw) y; return the outputs, (batch, features).

        Within a plate of L particles at dim −2 (each with w, Γ and λ of its own) outputs are (L, batch, features);
        where x is ``Dealt``, each particle has data of its own, and y is (L, batch, …) too. A structure of shape
        (batch, edge, choice) gives each example its own.
        """
        with poutine.scale(scale=self.draw_complexity()):
            structure = {site: pyro.sample(site, self.structure_law(site)) for site in self.choices}
            weights = self.weights()
            weight = 1.0 if self.cost is None else self.cost(structure)  # of the likelihood
        # a structure may have an axis of its own for the data: one γ an example
        if any(v.dim() > len(self._shapes[n]) + (n in structure) for n, v in (*weights.items(), *structure.items())):
            outputs = run_particles(self.network, weights, structure, x, self._shapes, batched=self._batches)
        else:
            outputs = self.network.with_weights(weights, x, structure)
        size = (x[0] if isinstance(x, tuple) else x).shape[isinstance(x, Dealt)]
        weight = weight * (self.num_data / size)
        with IndepMessenger("data", size, dim=-1), poutine.scale(scale=weight):  # a plate, not subsampled
            self.likelihood(outputs, y)
        return outputs

    def draw_complexity(self) -> float | torch.Tensor:
        """Return λ; where it has a prior, draw the site "complexity"."""
        if isinstance(self._complexity, float):
            return self._complexity
        return pyro.sample(COMPLEXITY, self._complexity)

    def structure_law(self, site: str, parameters: torch.Tensor | None = None) -> TorchDistribution:
        """Return the law of a structure site with these parameters of shape (…, edge, choice), or the prior's."""
        if parameters is None:
            parameters = self.structure_parameters(site)
        law = self.structure_prior.distribution(parameters, self._temperature or 1.0)
        joint: TorchDistribution = law.to_event(2 - law.event_dim)
        return joint

    def structure_parameters(self, site: str) -> torch.Tensor:
        """Return the prior's unconstrained parameters of a structure site, (edge, choice)."""
        return self.structure_prior.parameters(self.structure_probabilities(site), self._temperature or 1.0)

    def structure_probabilities(self, site: str) -> torch.Tensor:
        """Return the prior probabilities of a structure site, (edge, choice): the buffer, which may be changed."""
        return self.get_buffer(_buffer(site))

    def latent_weights(self) -> dict[str, Latent]:
        """Return the latent sites of the weight prior with initial values: the network's own initialisation."""
        if not self.packing.size:
            return {}
        with poutine.block(), forked():
            nodes = sample_sites(self.weights, ())
        named = {name: dict(self.network.named_parameters())[name].detach() for name in self.packing.names}
        latents = {}
        for site, node in nodes.items():
            law, value = node["fn"], node["value"]
            if site == "weights":
                initial = self.packing.pack(named)
            elif site.removeprefix("weights.") in named:
                initial = named[site.removeprefix("weights.")]
            else:
                initial = value.detach()
            support = law.support
            assert support is not None
            inside = bool(torch.as_tensor(support.check(initial)).all())
            latents[site] = Latent((initial if inside else value.detach()).clone(), support)
        return latents

    def check(self, x: Inputs, y: torch.Tensor) -> torch.Tensor:
        """Return the outputs on the first two of x, (2, features), by every primitive, of weights as they are.

        Raises ValueError where the network cannot run on x, and of y what the likelihood raises.
        """
        few = tuple(part[:2] for part in x) if isinstance(x, tuple) else x[:2]
        was_training = self.training
        structure = {site: torch.full(choices.shape, 0.5, device=y.device) for site, choices in self.choices.items()}
        self.eval()
        try:
            with torch.no_grad(), running(self.network, few if isinstance(few, tuple) else (few,)):
                outputs = self.network.with_weights({}, few, structure)
        finally:
            self.train(was_training)
        self.likelihood.check(outputs, y)
        return outputs

    def _points(self, patterns: Sequence[str]) -> set[nn.Parameter]:
        """Return the parameters without a prior: of batch normalisation, and those of which a name matches."""
        every = dict(self.network.named_parameters(remove_duplicate=False))
        if missed := [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in every)]:
            raise ValueError(f"point_estimates: expected patterns that match parameters of {[*every]}, got {missed}.")
        norms = (part for part in self.network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
        matched = {
            parameter for name, parameter in every.items() if any(fnmatch(name, pattern) for pattern in patterns)
        }
        return matched.union(*(part.parameters() for part in norms))

    def _register_structure(self) -> None:
        for site, choices in self.choices.items():
            if not self.structure_prior.accepts(choices):
                raise ValueError(
                    f"structure: expected a prior on the {choices.restriction}, the restriction of {site!r}, "
                    f"got one on the {self.structure_prior.restriction}. Change the prior or Space(restriction=…)."
                )
            self.register_buffer(
                _buffer(site), self.structure_prior.prior_probabilities(choices).clone(), persistent=False
            )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        if not isinstance(self._complexity, float):
            self._complexity = transformed(self._complexity, fn)
        super()._apply(fn, recurse)
        return self

    def point_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters without a prior, which a fit optimises beside the guide's."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)


def _buffer(site: str) -> str:
    return "prior_" + site.replace(".", "/")
