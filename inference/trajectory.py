"""Evidence from the path of gradient descent: training as variational inference, early stopping as its optimum.

Starts drawn from the prior and moved by plain SGD on the likelihood are draws from an implicit distribution q_t. Each
step is a smooth map of the weights, so that it changes the entropy of q_t by the mean log-determinant of its Jacobian.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, repeat

import torch

from pyro_nas import checks
from pyro_nas.data import Pair, check_pair
from pyro_nas.evidence.currencies import Draws, PyroCallable
from pyro_nas.inference.batches import Batches
from pyro_nas.inference.laplace_approximation import LogDensity, linearised
from pyro_nas.inference.result import Fit, Record
from pyro_nas.inference.stepper import NonFiniteLoss
from pyro_nas.reading.curvature import rademacher

__all__ = ["fit"]

LOG_DETERMINANTS = ("bound", "exact")
KEPT = ("peak", "end")


def fit(
    model: PyroCallable,
    train: Pair,
    valid: Pair | None = None,
    *,
    steps: int,
    learning_rate: float,
    starts: int = 10,
    batch_size: int | None = None,
    log_determinant: str = "bound",
    probes: int = 1,
    every: int = 1,
    keep: str = "peak",
    seed: int = 0,
) -> Fit[Draws]:
    """Descend −log p(y | x, w)/N from ``starts`` draws of the prior, and bound the evidence after every step.

    w_{t+1} = w_t − β ∇L(w_t) has the Jacobian I − β H_t, so that S_{t+1} = S_t + E log|det(I − β H_t)| and
    𝔏_t = E log p(y | x, w_t) + λ (E log p(w_t) + S_t) is at λ = 1 a lower bound of log p(y | x), in nats, while every
    eigenvalue of β H is below 1, so that no two weights meet.

    ``log_determinant``: "exact", by all of H, for few weights; or "bound", −β tr H − β² tr H², below the exact where
    every eigenvalue of β H is below 0.68, estimated by ``probes`` random signs each start and step. ``learning_rate``
    is β. ``train``: (x, y); ``valid`` is only measured. Steps take all data, or batches of ``batch_size``, the same
    for all starts: a model must scale its likelihood to all data, as a ``Model`` does, and 𝔏_t is given the batches.
    Sites that are constrained move in unconstrained coordinates; parameters without a prior stay as they are.

    Every ``every`` steps, at 0 and after the last there is a record: "step", "evidence" and its "standard_error" over
    starts, "log_likelihood", "entropy" (S_t; that of the prior is estimated from the starts), with validation data
    "valid_log_likelihood", which a ``Model`` scales to its ``num_data``: means over starts. The posterior of the
    ``Fit`` are the weights of all starts, {site: (start, …)}, at the "peak" of the evidence, where training should
    stop, or at the "end", as ``keep`` says, and its evidence is that of the same record.

    Raises ValueError for latent structure or λ, and where "exact" meets an eigenvalue of β H of 1 or more,
    NonFiniteLoss where the descent diverges. Maclaurin, Duvenaud and Adams 2015, "Early stopping is nonparametric
    variational inference".
    """
    checks.integer("steps", steps, low=1)
    checks.integer("starts", starts, low=2, remedy="The standard error is over starts.")
    checks.integer("every", every, low=1)
    checks.one_of("keep", keep, KEPT)
    density = LogDensity(model, train, seed)
    descent = _Descent(density, learning_rate, log_determinant, probes)
    batches, measured = _endless(density.data, batch_size), _measured(density, valid)
    with density, torch.no_grad():
        vectors = torch.stack([density.draw() for _ in range(starts)])
        entropy = -torch.vmap(lambda w: density.terms(w, *density.data)[1])(vectors)  # (start,)
        records: list[Record] = []
        kept, kept_vectors = -1, vectors
        for step in range(steps + 1):
            if step % every == 0 or step == steps:
                records.append(_record(step, _terms(density, measured, vectors), entropy.double(), density.complexity))
                if keep == "end" or kept < 0 or records[-1]["evidence"] > records[kept]["evidence"]:
                    kept, kept_vectors = len(records) - 1, vectors
            if step < steps:
                vectors, change = descent.advance(vectors, next(batches), step)
                entropy = entropy + change
        return Fit(model, Draws(density.unpack(kept_vectors)), records, records[kept]["evidence"])


def _measured(density: LogDensity, valid: Pair | None) -> dict[str, Pair]:
    """Return the data that records are of, by the prefix of their names."""
    if valid is None:
        return {"": density.data}
    if hasattr(density.model, "check"):
        density.model.check(*check_pair("valid", valid))
    return {"": density.data, "valid_": check_pair("valid", valid)}


def _endless(data: Pair, batch_size: int | None) -> Iterator[Pair]:
    """Return all data again and again, or batches of them."""
    if batch_size is None:
        return repeat(data)
    return chain.from_iterable(repeat(Batches("train", data, batch_size, data[1].device)))


class _Descent:
    """Steps of gradient descent of −log p(y | x, w)/N, and how each changes the entropy."""

    def __init__(self, density: LogDensity, learning_rate: float, log_determinant: str, probes: int):
        self.density, self.size = density, len(density.data[1])
        self.rate = checks.number("learning_rate", learning_rate, low=0, open_low=True)
        self.exact = checks.one_of("log_determinant", log_determinant, LOG_DETERMINANTS) == "exact"
        self.probes = checks.integer("probes", probes, low=1)

    def advance(self, vectors: torch.Tensor, batch: Pair, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of all starts, (start, size), after a step, and log|det(I − βH)|, (start,)."""
        starts, size = vectors.shape
        fresh = int(torch.randint(2**62, ()))
        signs = rademacher(starts * self.probes, fresh)(size).to(vectors).view(starts, self.probes, -1)
        vectors, change, steepest = torch.vmap(partial(self._step, batch=batch))(vectors, signs)
        if self.exact and float(steepest.max()) >= 1:
            raise ValueError(
                f"learning_rate: expected all eigenvalues of β H below 1, got {float(steepest.max()):.3g} at step "
                f"{step}, where the evidence is no bound. Lower learning_rate, now {self.rate:g}."
            )
        return vectors, change

    def _step(self, vector: torch.Tensor, signs: torch.Tensor, batch: Pair) -> tuple[torch.Tensor, ...]:
        """Return the weights of one start after a step, the change of the entropy, and the steepest eigenvalue."""
        slope, product = linearised(lambda w: -self.density.terms(w, *batch)[0] / self.size, vector)
        if self.exact:
            identity = torch.eye(len(vector)).to(vector)
            eigenvalues = torch.linalg.eigvalsh(self.rate * torch.vmap(product)(identity)[0])
            return vector - self.rate * slope, _change(eigenvalues), eigenvalues.max()
        curved = self.rate * torch.vmap(product)(signs)[0]  # (probe, size)
        change = -(signs * curved).sum(-1).mean() - curved.square().sum(-1).mean()
        return vector - self.rate * slope, change, vector.new_zeros(())  # not all of H is known


def _terms(density: LogDensity, measured: dict[str, Pair], vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return log p(y | x, w) and log p(w) of every start on each part of the data, {part: (start, 2)}."""
    return {
        name: torch.vmap(lambda w, pair=pair: torch.stack(density.terms(w, *pair)))(vectors).double()
        for name, pair in measured.items()
    }


def _change(eigenvalues: torch.Tensor) -> torch.Tensor:
    """Return log det(I − βH), (), from the eigenvalues of βH."""
    return torch.log1p(-eigenvalues).sum(-1)


def _record(step: int, terms: dict[str, torch.Tensor], entropy: torch.Tensor, complexity: float) -> Record:
    """Return the record of a step from log p(y | x, w) and log p(w), (start, 2), and S, (start,)."""
    likelihood, prior = terms[""].unbind(-1)
    evidence = likelihood + complexity * (prior + entropy)
    if not bool(torch.isfinite(evidence).all()):
        raise NonFiniteLoss(f"step {step}: the evidence of a start is not finite. Lower learning_rate.")
    return {
        "step": step,
        "evidence": float(evidence.mean()),
        "standard_error": float(evidence.std() / len(evidence) ** 0.5),
        "entropy": float(entropy.mean()),
    } | {f"{name}log_likelihood": float(values[:, 0].mean()) for name, values in terms.items()}
