"""Choice probabilities of a Dirichlet law, which torch and Pyro do not give."""

from __future__ import annotations

import math

import torch


def largest(concentration: torch.Tensor) -> torch.Tensor:
    """Return P(γ_k is the largest) for γ ~ Dirichlet(α), (K,), in double precision.

    γ ∝ independent x_k ~ Gamma(α_k, 1), so P_k = ∫ p(x_k = x) Π_{j≠k} P(x_j < x) dx, by the trapezoidal rule in log x.
    """
    highest, total = float(concentration.max()), float(concentration.sum())
    start, end = max(-700.0, -40 / min(total, 1.0)), math.log(highest + 10 * highest**0.5 + 40)
    logs = torch.linspace(start, end, int((end - start) * 10 * max(1.0, highest) ** 0.5), dtype=torch.double)
    alpha, x = concentration.cpu()[:, None], logs.exp()
    density = (alpha * logs - x - alpha.lgamma()).exp()
    below = torch.special.gammainc(alpha, x.expand(len(alpha), -1))
    others = torch.stack([torch.cat([below[:k], below[k + 1 :]]).prod(0) for k in range(len(alpha))])
    probabilities = (density * others).sum(-1)
    return (probabilities / probabilities.sum()).to(concentration.device)
