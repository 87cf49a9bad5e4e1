"""Families of small models whose evidence is known: polynomials, and logistic regression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from pyro_nas.graph.families import branches, polynomials
from pyro_nas.graph.space import Space
from pyro_nas.models import Model, likelihoods, priors
from pyro_nas.reading.conjugate import LinearRegression
from pyro_nas.studies.evidence.methods import quadrature
from pyro_nas.studies.evidence.problems import Problem

DEGREES, PLANTED_DEGREE, NOISE = range(9), 3, 0.3
COLUMNS = ("intercept", "intercept, x1", "intercept, x1, x2")


@dataclass(frozen=True)
class Example:
    """Models of one data set by name, the function that gives log p(D) of one of them, and what is true."""

    problems: dict[str, Problem]
    exact: Callable[[str], float]
    planted: str
    mean_field: Callable[[str], float] | None = None


def polynomial_regression(size: int, scale: float, seed: int) -> Example:
    """Return regression on polynomials of degree 0 to 8 of data from degree 3, x ~ U(−1, 1), noise of sd 0.3.

    Weights of the orthonormal polynomials are N(0, ``scale``²); the planted ones have the size 0.4.
    """
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(size, 1, generator=generator) - 1
    signs = torch.randint(2, (PLANTED_DEGREE + 1, 1), generator=generator) * 2.0 - 1
    y = polynomials.features(x, PLANTED_DEGREE) @ (0.4 * signs)
    y = y + NOISE * torch.randn(size, 1, generator=generator)
    problems, known = {}, {}
    for degree in DEGREES:
        design = polynomials.features(x.double(), degree)
        name, curvature = f"degree {degree}", float(torch.linalg.matrix_norm(design, 2)) ** 2 / NOISE**2
        problems[name] = Problem(partial(_polynomial, degree, scale), (x, y), curvature, seed)
        known[name] = LinearRegression(design, y[:, 0], NOISE, scale)
    return Example(
        problems, lambda name: known[name].log_evidence, f"degree {PLANTED_DEGREE}",
        lambda name: known[name].mean_field_evidence,
    )  # fmt: skip


def _polynomial(degree: int, scale: float, count: int) -> Model:
    likelihood = likelihoods.gaussian(NOISE, learn=False)
    space = polynomials.polynomials([degree])
    return Model(space, num_data=count, weights=priors.normal(scale), likelihood=likelihood)


def logistic_regression(size: int, scale: float, seed: int) -> Example:
    """Return logistic regression on an intercept, on x1 too, and on x2 too, x ~ N(0, I), where x1 alone counts.

    y ~ Bernoulli(σ(0.5 + 1.5 x1)), weights N(0, ``scale``²); log p(D) is by quadrature.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat([torch.ones(size, 1), torch.randn(size, 2, generator=generator)], 1)
    y = (torch.rand(size, 1, generator=generator) < torch.sigmoid(x @ torch.tensor([[0.5], [1.5], [0.0]]))).float()
    problems = {}
    for columns, name in enumerate(COLUMNS, start=1):
        curvature = float(torch.linalg.matrix_norm(x[:, :columns], 2)) ** 2 / 4
        problems[name] = Problem(partial(_logistic, columns, scale), (x, y), curvature, seed)
    return Example(problems, lambda name: quadrature(problems[name]), COLUMNS[1])


def _logistic(columns: int, scale: float, count: int) -> Model:
    linear = partial(nn.Linear, columns, 1, bias=False)
    space = Space({(0, 1): {"columns": branches.leading(columns)}, (1, 2): {"linear": linear}})
    return Model(space, num_data=count, weights=priors.normal(scale), likelihood=likelihoods.bernoulli())


EXAMPLES = {"polynomials": polynomial_regression, "logistic": logistic_regression}
