"""Hessian traces and second-order expectations against closed forms, finite differences and exact sums."""

import itertools
import math

import pytest
import torch

from pyro_nas import Network
from pyro_nas.evidence.packing import Packing
from pyro_nas.reading import curvature
from pyro_nas.reading.curvature import (
    basis,
    compare_expectations,
    hessian_trace,
    rademacher,
    second_order_expectation,
    structure_moments,
)

SHAPES = {"a": torch.Size((2, 3)), "b": torch.Size((1, 2))}
PACKING = Packing(SHAPES)


@pytest.fixture
def quadratic():
    """½ vᵀAv + bᵀv of two sites, a point, a covariance with correlated choices, and both as matrices A and C."""
    size = PACKING.size
    a, b = torch.randn(size, size).double(), torch.randn(size).double()
    a = a + a.T
    covariance = {}
    for site, shape in SHAPES.items():
        root = torch.randn(*shape, shape[1]).double()
        covariance[site] = root @ root.mT
    c = torch.block_diag(*[block for blocks in covariance.values() for block in blocks])

    def function(structure):
        v = PACKING.pack(structure)
        return 0.5 * v @ a @ v + b @ v

    return function, PACKING.unpack(torch.randn(size).double()), covariance, a, c


def all_signs(size):
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=size)))


def check_traces(quadratic, probes=basis, change=lambda covariance: covariance):
    function, point, covariance, a, c = quadratic
    covariance = {site: change(blocks) for site, blocks in covariance.items()}
    assert float(hessian_trace(function, point, probes=probes)) == pytest.approx(float(a.trace()), rel=1e-12)
    assert float(hessian_trace(function, point, covariance, probes)) == pytest.approx(float((a * c).sum()), rel=1e-12)
    expected = float(function(point) + 0.5 * (a * c).sum())
    assert float(second_order_expectation(function, point, covariance, probes)) == pytest.approx(expected, rel=1e-12)


def test_traces_are_exact_over_a_basis_and_over_all_signs(quadratic):
    check_traces(quadratic)
    check_traces(quadratic, all_signs)  # the expectation over Rademacher probes, not an estimate of it


@pytest.mark.parametrize("wrong", ["diagonal", "zero or one", "no square root", "basis without its factor"])
def test_wrong_traces_are_seen(quadratic, wrong, monkeypatch):
    change, probes = (lambda blocks: blocks), all_signs
    if wrong == "diagonal":
        change = lambda blocks: torch.diag_embed(blocks.diagonal(dim1=-2, dim2=-1))  # noqa: E731
    elif wrong == "zero or one":
        probes = lambda size: (1 + all_signs(size)) / 2  # noqa: E731
    elif wrong == "no square root":
        monkeypatch.setattr(
            curvature, "_square_root", lambda _, c: torch.block_diag(*[b for blocks in c.values() for b in blocks])
        )
    else:
        probes = torch.eye
    with pytest.raises(AssertionError):
        check_traces(quadratic, probes, change)


def test_random_probes_have_the_variance_they_say(quadratic):
    function, point, _, a, _ = quadratic
    each = torch.stack([hessian_trace(function, point, probes=lambda _, z=z: z[None]) for z in all_signs(8)[:128]])
    off = a - a.diag().diag()  # z and −z give one value: half of the signs are all there is
    assert float(each.var(correction=0)) == pytest.approx(float(2 * off.square().sum()))
    found = hessian_trace(function, point, probes=rademacher(200, 1))
    assert abs(float(found - a.trace())) < 4 * math.sqrt(float(2 * off.square().sum()) / 200)
    assert torch.equal(found, hessian_trace(function, point, probes=rademacher(200, 1)))
    assert not torch.equal(found, hessian_trace(function, point, probes=rademacher(200, 2)))


def test_functions_without_curvature_have_none(quadratic):
    _, point, covariance, _, _ = quadratic
    for flat in (lambda structure: structure["a"].sum(), lambda _: torch.ones(())):
        assert float(hessian_trace(flat, point, covariance)) == 0.0
        assert torch.equal(second_order_expectation(flat, point, covariance), flat(point))


def network_loss(small_space):
    network = Network(small_space).double()
    x, y = torch.randn(20, 3).double(), torch.randint(2, (20,))
    return lambda structure: torch.nn.functional.cross_entropy(network(x, structure=structure), y)


def test_the_curvature_of_a_network_meets_finite_differences(small_space):
    loss = network_loss(small_space)
    gamma = torch.tensor([[0.7, 0.3], [0.4, 0.6]], dtype=torch.double)
    root = torch.randn(2, 2, 2).double()
    covariance = {"structure": root @ root.mT}
    step, eye = 1e-3, torch.eye(4).double().view(4, 2, 2)

    def difference(i, j):
        corners = [
            s * t * loss({"structure": gamma + step * (s * eye[i] + t * eye[j])}) for s in (1, -1) for t in (1, -1)
        ]
        return sum(corners).item() / (4 * step**2)

    hessian = torch.tensor([[difference(i, j) for j in range(4)] for i in range(4)]).double()
    c = torch.block_diag(*covariance["structure"])
    assert hessian[0, 3].abs() > 1e-3  # across edges, which a covariance in blocks leaves out
    assert float(hessian_trace(loss, {"structure": gamma})) == pytest.approx(float(hessian.trace()), rel=1e-4)
    assert float(hessian_trace(loss, {"structure": gamma}, covariance)) == pytest.approx(
        float((hessian * c).sum()), rel=1e-4
    )


MEAN = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.double)
ALONG = torch.tensor(
    [[[2.0, -1, -1], [0, 1, -1]], [[1.0, 0, -1], [-1, 2, -1]]], dtype=torch.double
)  # tangents, (2, edge, choice)
LAWS = {"symmetric": ((1.0, 0.5), (-1.0, 0.5)), "skewed": ((2.0, 1 / 3), (-1.0, 2 / 3))}  # of mean 0: value, weight


def smooth(structure):
    """A function of two edges that is not symmetric in anything, with curvature across the simplex as well."""
    gamma = structure["structure"]
    return (gamma[0] * torch.tensor([1.0, -0.5, 2.0])).sum().exp() * (1 + gamma[1, 0] ** 3) + gamma.sum(-1).pow(4).sum()


def law_on_the_simplex(kind, sigma):
    """Return E G exactly and Cov Γ of γ_e = μ_e + σ Σ_i s_ei ALONG_ei, with independent s from a law of two points."""
    points = LAWS[kind]
    variance = sum(weight * value**2 for value, weight in points)
    covariance = variance * sigma**2 * torch.einsum("iek,iel->ekl", ALONG, ALONG)
    expected = 0.0
    for drawn in itertools.product(points, repeat=4):
        s = torch.tensor([value for value, _ in drawn]).double().view(2, 2, 1)
        gamma = MEAN + sigma * (s * ALONG).sum(0)
        assert (gamma >= 0).all()
        assert torch.allclose(gamma.sum(-1), torch.ones(2).double())
        expected += math.prod(weight for _, weight in drawn) * float(smooth({"structure": gamma}))
    return expected, covariance


def second_order(covariance):
    return float(second_order_expectation(smooth, {"structure": MEAN}, {"structure": covariance}))


def printed(covariance):
    """Theorem 2 as printed: σ²/2 tr ∇²G with σ² the mean variance of the components."""
    sigma2 = float(covariance.diagonal(dim1=-2, dim2=-1).mean())
    return float(smooth({"structure": MEAN})) + 0.5 * sigma2 * float(hessian_trace(smooth, {"structure": MEAN}))


def check_order(kind, formula):
    """When σ halves, E G − G(μ) quarters, and what the formula leaves falls 8 times, 16 for a symmetric law."""
    at_mean = float(smooth({"structure": MEAN}))
    laws = [law_on_the_simplex(kind, sigma) for sigma in (0.01, 0.005)]
    corrections = [expected - at_mean for expected, _ in laws]
    rests = [expected - formula(covariance) for expected, covariance in laws]
    assert corrections[0] / corrections[1] == pytest.approx(4, rel=0.01)
    assert rests[0] / rests[1] == pytest.approx({"symmetric": 16, "skewed": 8}[kind], rel=0.01)
    assert abs(rests[0]) < 0.02 * abs(corrections[0])


@pytest.mark.parametrize("kind", LAWS)
def test_theorem_two_leaves_what_it_should(kind):
    check_order(kind, second_order)


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("wrong", ["printed", "diagonal", "without the half"])
def test_other_forms_of_theorem_two_do_not(kind, wrong):
    formulas = {
        "printed": printed,
        "diagonal": lambda c: second_order(torch.diag_embed(c.diagonal(dim1=-2, dim2=-1))),
        "without the half": lambda c: second_order(2 * c),
    }
    with pytest.raises(AssertionError):
        check_order(kind, formulas[wrong])


def test_the_printed_form_is_right_for_independent_components_of_equal_variance():
    """Off the simplex: γ_k = μ_k ± σ, where every component may move alone."""
    sigma = 1e-3
    covariance = sigma**2 * torch.eye(3).double().expand(2, 3, 3)
    assert printed(covariance) == pytest.approx(second_order(covariance), abs=1e-12)


def test_the_printed_form_moves_a_function_that_is_constant_on_the_simplex():
    """(Σ_k γ_k)² is 1 for every Γ; its Hessian 2·11ᵀ has trace 2K, and 1ᵀC1 = 0."""
    mean = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.double)
    covariance = (torch.diag_embed(mean) - mean[..., None] * mean[:, None]) / 11  # Dirichlet(10 μ)

    def total(structure):
        return structure["structure"].sum() ** 2

    found = second_order_expectation(total, {"structure": mean}, {"structure": covariance})
    assert float(found) == pytest.approx(1.0, abs=1e-12)
    sigma2 = float(covariance[0].diagonal().mean())
    trace = float(hessian_trace(total, {"structure": mean}))
    assert trace == pytest.approx(6.0)
    assert 0.5 * sigma2 * trace > 0.05  # what the printed form would add to 1


def test_theorem_two_for_a_dirichlet_law_of_growing_concentration():
    """E Π γ_k^{m_k} = Π (α_k)_{m_k} / (α_0)_{Σm} in rising factorials; σ² = μ(1 − μ)/(α_0 + 1)."""
    mean = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.double)
    terms = {(2, 1, 1): 3.0, (3, 0, 0): 1.0, (0, 2, 2): -2.0}

    def polynomial(structure):
        gamma = structure["structure"][0]
        return sum(c * math.prod(gamma[k] ** m for k, m in enumerate(powers)) for powers, c in terms.items())

    def rising(a, count):
        return math.prod(a + i for i in range(count))

    rests, corrections = [], []
    for total in (1e3, 4e3):  # σ halves
        alpha = (total * mean[0]).tolist()
        expected = sum(
            c * math.prod(map(rising, alpha, powers)) / rising(total, sum(powers)) for powers, c in terms.items()
        )
        covariance = (torch.diag_embed(mean) - mean[..., None] * mean[:, None]) / (total + 1)
        found = second_order_expectation(polynomial, {"structure": mean}, {"structure": covariance})
        rests.append(expected - float(found))
        corrections.append(expected - float(polynomial({"structure": mean})))
    assert corrections[0] / corrections[1] == pytest.approx(4, rel=0.01)
    assert rests[0] / rests[1] == pytest.approx(16, rel=0.01)  # third cumulants fall as 1/α_0², as σ⁴


def test_moments_are_those_of_each_edge():
    draws = {"structure": torch.randn(7, 2, 3).double(), "structure.cell": torch.randn(7, 1, 2).double()}
    mean, covariance = structure_moments(draws)
    for site, gamma in draws.items():
        for edge in range(gamma.shape[1]):
            assert torch.allclose(mean[site][edge], gamma[:, edge].mean(0))
            assert torch.allclose(covariance[site][edge], torch.cov(gamma[:, edge].T, correction=0))


def test_a_comparison_over_draws_is_exact_for_a_quadratic_and_independent_edges(quadratic):
    function, point, _, _, _ = quadratic
    steps = {site: torch.randn(shape).double() for site, shape in SHAPES.items()}
    rows = list(itertools.product((-1.0, 1.0), repeat=3))  # every sign of every edge: two of a, one of b
    draws = {
        "a": torch.stack([point["a"] + torch.tensor(row[:2]).double()[:, None] * steps["a"] for row in rows]),
        "b": torch.stack([point["b"] + row[2] * steps["b"] for row in rows]),
    }
    found = compare_expectations(function, draws)
    assert found["expectation"] == pytest.approx(found["second_order"])
    assert found["at_mean"] == pytest.approx(float(function(point)))
    assert abs(found["expectation"] - found["at_mean"]) > 0.1
    values = torch.stack([function({site: gamma[i] for site, gamma in draws.items()}) for i in range(8)])
    assert found["standard_error"] == pytest.approx(float(values.std(correction=0)) / math.sqrt(8))


def test_bad_input_is_named(quadratic):
    function, point, covariance, _, _ = quadratic
    calls = {
        "structure: expected": lambda: hessian_trace(function, {}),
        "function: expected": lambda: hessian_trace(lambda structure: structure["a"], point),
        "probes: expected": lambda: hessian_trace(function, point, probes=lambda size: torch.ones(4, size + 1)),
        "count: expected": lambda: rademacher(0, 0),
        "seed: expected": lambda: rademacher(1, -1),
        "covariance: expected the sites": lambda: hessian_trace(function, point, {"a": covariance["a"]}),
        r"covariance\['a'\]: expected shape": lambda: hessian_trace(
            function, point, {**covariance, "a": torch.ones(2, 3)}
        ),
        r"covariance\['a'\]: expected symmetric": lambda: hessian_trace(
            function, point, {**covariance, "a": -covariance["a"]}
        ),
        r"draws\['a'\]: expected": lambda: structure_moments({"a": torch.ones(2, 3)}),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
