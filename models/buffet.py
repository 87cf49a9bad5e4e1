"""The cascading Indian buffet process: a prior over the width, depth and sparsity of a layered network.

Every unit of a layer is a customer, every unit of the next layer a dish; a customer's dishes are its connections. α
is the expected number of connections of a unit; the larger β, the less units share them, so the wider and sparser the
next layer (Adams, Wallach and Ghahramani 2010). With at most T dishes one layer has the stick-breaking form of Teh,
Görür and Ghahramani (2007), in which a network is fitted: ``BuffetNetwork`` and ``BuffetGuide``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import lgamma, log

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.indep_messenger import IndepMessenger
from torch import nn
from torch.distributions import constraints
from torch.nn.utils.rnn import pad_sequence

from pyro_nas import checks
from pyro_nas.evidence.packing import Packing
from pyro_nas.models.distributions import NO_SHAPE, RelaxedBernoulli, Shape
from pyro_nas.models.likelihoods import Likelihood, gaussian
from pyro_nas.models.normals import MeanFieldNormal
from pyro_nas.models.priors import Scale, normal
from pyro_nas.models.structures import check_temperature

__all__ = ["BuffetGuide", "BuffetNetwork", "IndianBuffet", "expected_units", "log_prob", "sample"]


class IndianBuffet(TorchDistribution):
    """The two-parameter Indian buffet process: a binary matrix of ``customers`` rows, as many columns as are drawn.

    Customer j takes dish k, which n_k before it took, with probability n_k / (β + j − 1), and Poisson(αβ / (β + j − 1))
    new dishes. Raises ValueError for customers below 1, α or β not above 0. Ghahramani, Griffiths and Sollich 2007.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, customers: int, alpha: float, beta: float):
        self.customers = checks.integer("customers", customers, low=1)
        self.alpha = checks.number("alpha", alpha, low=0, open_low=True)
        self.beta = checks.number("beta", beta, low=0, open_low=True)
        super().__init__(torch.Size(), torch.Size((customers, -1)), validate_args=False)  # −1: as many as are drawn

    @property
    def expected_dishes(self) -> float:
        """E K = α Σ_j β / (β + j − 1), the mean of a Poisson law."""
        return self.alpha * sum(self.beta / (self.beta + j) for j in range(self.customers))

    @property
    def expected_connections(self) -> float:
        """E Σ Z = α · customers: each takes Poisson(α) dishes."""
        return self.alpha * self.customers

    def sample(self, sample_shape: Shape = NO_SHAPE) -> torch.Tensor:
        """Draw a matrix, (customer, dish), dishes as they were first taken; raise ValueError for a ``sample_shape``."""
        if sample_shape:
            raise ValueError(f"sample_shape: expected (), got {tuple(sample_shape)}. Widths differ: draw one by one.")
        taken, rows = torch.zeros(0), []
        for j in range(self.customers):
            new = int(torch.poisson(torch.tensor(self.alpha * self.beta / (self.beta + j))))
            rows.append(torch.cat([torch.bernoulli(taken / (self.beta + j)), torch.ones(new)]))
            taken = torch.cat([taken, torch.zeros(new)]) + rows[-1]
        return pad_sequence(rows, batch_first=True)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log-probability in nats of all matrices that differ from this one in the order of columns, ().

        K log αβ − Σ_h log K_h! − E K + Σ_k log B(m_k, J − m_k + β), with J customers, m_k those of dish k, and K_h the
        number of dishes of history h. It does not depend on the order of customers. Raises ValueError for values other
        than 0 and 1, another number of rows, and columns without a 1.
        """
        binary = value.dim() == 2 and bool(((value == 0) | (value == 1)).all())
        if not binary or len(value) != self.customers or not bool(value.any(0).all()):
            raise ValueError(
                f"connections: expected zeros and ones of shape ({self.customers}, dishes), each column with a one, "
                f"got {checks.describe(value)}. Leave out units without connections."
            )
        taken = value.sum(0).double()
        _, repeats = torch.unique(value, dim=1, return_counts=True)
        shared = torch.lgamma(taken) + torch.lgamma(self.customers - taken + self.beta)
        shared = shared - lgamma(self.customers + self.beta)
        log_prob = (log(self.alpha * self.beta) + shared).sum() - torch.lgamma(repeats.double() + 1).sum()
        return log_prob - self.expected_dishes


def sample(visible: int, alpha: float, beta: float, maximal_depth: int = 100) -> list[torch.Tensor]:
    """Draw a structure: Z^(m), (unit of layer m, unit of layer m + 1), for each layer from the visible one on.

    The last matrix has no columns: its layer is the deepest. A Pyro program with sites "structure.1", "structure.2", …
    The depth is finite with probability one, though not small where α is large: raises ValueError above
    ``maximal_depth`` layers.
    """
    checks.integer("maximal_depth", maximal_depth, low=1)
    matrices: list[torch.Tensor] = []
    width = checks.integer("visible", visible, low=1)
    while width:
        if len(matrices) == maximal_depth:
            raise ValueError(
                f"maximal_depth: expected a structure of at most {maximal_depth} layers, got one that goes on with "
                f"{width} units. Lower alpha or beta, or raise maximal_depth."
            )
        matrices.append(pyro.sample(f"structure.{len(matrices) + 1}", IndianBuffet(width, alpha, beta)))
        width = matrices[-1].shape[1]
    return matrices


def log_prob(matrices: Sequence[torch.Tensor], alpha: float, beta: float) -> torch.Tensor:
    """Return the log-probability of a structure in nats, (): Σ_m log P([Z^(m)] | its number of rows).

    [Z^(m)] is the class of matrices that differ in the order of columns, layer by layer: the names of a layer's units
    do not count, and since customers are exchangeable neither does the order in which they come to the next buffet.
    A last matrix with columns leaves the layers after it open. Raises ValueError for no matrices, rows that are not the
    columns before them, and what ``IndianBuffet`` raises.
    """
    if not matrices or any(matrix.shape[1] != len(following) for matrix, following in pairwise(matrices)):
        shapes = [tuple(matrix.shape) for matrix in matrices]
        raise ValueError(f"matrices: expected one per layer, with a row for each column of the last, got {shapes}.")
    return torch.stack([IndianBuffet(len(matrix), alpha, beta).log_prob(matrix) for matrix in matrices]).sum()


class BuffetNetwork(nn.Module):
    """A layer of at most T ``units`` whose connections come from a truncated Indian buffet, and a linear readout.

    v_k ~ Beta(α, 1), π_k = Π_{i≤k} v_i, so that E π_k = (α / (1 + α))^k; z_ik ~ Bernoulli(π_k), relaxed at temperature
    τ; outputs Σ_k a_k u_k g(Σ_i z_ik w_ik x_i + b_k) + c, where u_k = 1 − Π_i (1 − z_ik) switches a unit without
    connections off. Weights are N(0, ``scale``²).

    Called as ``model(x, y)``, or ``model(x)`` to draw y; returns the outputs. x: (batch, inputs); a batch of n counts
    N/n times, N = ``num_data``. Sites: "sticks", (unit,), "structure", (input, unit), "weights". Teh et al. 2007.

    Raises TypeError for a likelihood or an activation of another kind, ValueError for numbers out of range.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        outputs: int,
        *,
        num_data: int,
        alpha: float = 1.0,
        temperature: float = 0.3,
        scale: Scale = 1.0,
        likelihood: Likelihood | None = None,
        activation: Callable[[torch.Tensor], torch.Tensor] = torch.tanh,
    ):
        super().__init__()
        self.inputs, self.units = checks.integer("inputs", inputs, low=1), checks.integer("units", units, low=1)
        self.num_data = checks.integer("num_data", num_data, low=1)
        self.alpha = checks.number("alpha", alpha, low=0, open_low=True)
        self.temperature = temperature
        self.activation = checks.is_callable("activation", activation, "a function of a tensor, such as torch.relu")
        if likelihood is not None and not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood: expected one of models.likelihoods, got {checks.describe(likelihood)}.")
        self.likelihood = likelihood if likelihood is not None else gaussian()
        shapes = {
            "hidden": (inputs, units),
            "bias": (units,),
            "readout": (units, checks.integer("outputs", outputs, low=1)),
            "readout_bias": (outputs,),
        }
        self.packing = Packing({name: torch.Size(shape) for name, shape in shapes.items()})
        self.weights = normal(scale)(self.packing)

    @property
    def temperature(self) -> float:
        """The temperature τ of the connections; to set it beyond [0.01, 1000] raises ValueError."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = check_temperature("temperature", value)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Draw sticks, connections and weights, observe (or draw) y; return the outputs, (batch, outputs)."""
        ones = x.new_ones(self.units)
        sticks = pyro.sample("sticks", dist.Beta(self.alpha * ones, ones, validate_args=False).to_event(1))
        connections = pyro.sample("structure", self.connections(self.prior_logits(sticks)))
        weights = self.weights()
        on = 1 - (1 - connections).prod(-2)  # (…, unit)
        sums = (x.unsqueeze(-2) @ (connections * weights["hidden"])).squeeze(-2)  # (…, batch, unit)
        hidden = on * self.activation(sums + weights["bias"])
        outputs = (hidden.unsqueeze(-2) @ weights["readout"]).squeeze(-2) + weights["readout_bias"]
        with IndepMessenger("data", len(x), dim=-1), poutine.scale(scale=self.num_data / len(x)):
            self.likelihood(outputs, y)
        return outputs

    def prior_logits(self, sticks: torch.Tensor) -> torch.Tensor:
        """Return logit π_k of each connection given the sticks, (input, unit)."""
        log_pi = sticks.log().cumsum(-1).clamp_max(-1e-6)
        logits = log_pi - torch.expm1(log_pi).neg().log()
        return logits.unsqueeze(-2).expand(*logits.shape[:-1], self.inputs, self.units)

    def connections(self, logits: torch.Tensor) -> TorchDistribution:
        """Return the law of the connections with these logits, (input, unit)."""
        law: TorchDistribution = RelaxedBernoulli(self.temperature, logits, validate_args=False).to_event(2)
        return law

    def check(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Raise ValueError for x of another shape than (batch, inputs), and what the likelihood raises of y."""
        if x.dim() != 2 or x.shape[1] != self.inputs:
            raise ValueError(f"x: expected shape (batch, {self.inputs}), got {checks.describe(x)}.")
        self.likelihood.check(x.new_zeros(2, self.packing.shapes["readout_bias"][0]), y)


class BuffetGuide(nn.Module):
    """q = Π Beta(v_k; a_k, b_k) · Π RelaxedBernoulli(z_ik; l_ik, τ) · Π N(w_j; m_j, σ_j²) of a ``BuffetNetwork``.

    Sticks and connections start from the prior, and weights from a draw of it, so that units are taken into use from
    the first on; all on at the start would stay on. ``initial_scale`` is the first σ. Given the sticks all divergences
    are exact. ``structure_per_example`` of a fit lowers the variance of the gradient much.

    Raises TypeError for a model that is no ``BuffetNetwork``, ValueError for an ``initial_scale`` not above 0.
    """

    model: BuffetNetwork

    def __init__(self, model: BuffetNetwork, initial_scale: float = 0.05):
        super().__init__()
        if not isinstance(model, BuffetNetwork):
            raise TypeError(f"model: expected a BuffetNetwork, got {checks.describe(model)}.")
        checks.number("initial_scale", initial_scale, low=0, open_low=True)
        self.__dict__["model"] = model  # not a submodule: the guide's state is its own
        with poutine.block(), torch.no_grad():
            weights = model.packing.pack(model.weights())
        prior = weights.new_tensor([model.alpha, 1.0])
        self.log_concentration = nn.Parameter(prior.log().repeat(model.units, 1))  # (unit, 2)
        self.logits = nn.Parameter(model.prior_logits((prior[0] / prior.sum()).expand(model.units)).clone())
        self.loc = nn.Parameter(weights)
        self.log_scale = nn.Parameter(torch.full_like(weights, log(initial_scale)))

    def forward(self, x: torch.Tensor | None = None, y: torch.Tensor | None = None) -> None:
        """Draw sticks, connections and weights; the data are not used."""
        a, b = self.log_concentration.exp().unbind(-1)
        pyro.sample("sticks", dist.Beta(a, b, validate_args=False).to_event(1))
        pyro.sample("structure", self.model.connections(self.logits))
        pyro.sample("weights", MeanFieldNormal(self.loc, self.log_scale).to_event(1))


def expected_units(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the mean number of units with a connection, (): Σ_k 1 − Π_i (1 − P(z_ik > ½)).

    ``probabilities`` of the independent connections, (input, unit), as ``choice_probabilities`` returns.
    """
    return (1 - (1 - probabilities).prod(-2)).sum(-1)
