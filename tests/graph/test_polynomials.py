"""Polynomials of degree 0 to 8: evidence of every degree, the posterior over degrees, evidence and cross-validation."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold

from pyro_nas import choice_probabilities
from pyro_nas.evidence import evaluate
from pyro_nas.graph.families.polynomials import features, polynomials
from pyro_nas.graph.space_files import read_space, write_space
from pyro_nas.inference import adam, one_cycle, svi
from pyro_nas.models import Model, guides, likelihoods, priors, structures
from pyro_nas.reading.conjugate import LinearRegression

N, NOISE, DEGREES, PLANTED = 40, 0.3, range(9), 3
WEIGHTS = torch.tensor([[0.3], [-0.5], [0.2], [0.4]])


def made_up_data(degree=PLANTED, weights=WEIGHTS, noise=NOISE, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(N, 1, generator=generator) - 1
    return x, features(x, degree) @ weights + noise * torch.randn(N, 1, generator=generator)


@pytest.fixture(scope="module")
def data():
    return made_up_data()


def exact(data, degree, basis="legendre", scale=1.0):
    x, y = data
    return LinearRegression(features(x.double(), degree, basis), y[:, 0], NOISE, scale)


def model_of(degrees, basis="legendre", **options):
    likelihood = likelihoods.gaussian(NOISE, learn=False)
    return Model(polynomials(degrees, basis), num_data=N, weights=priors.normal(1.0), likelihood=likelihood, **options)


@pytest.mark.parametrize("degree", DEGREES)
def test_features_are_powers_or_orthonormal(degree):
    nodes, weights = np.polynomial.legendre.leggauss(20)
    x = torch.tensor(nodes)[:, None]
    legendre, power = features(x, degree), features(x, degree, "power")
    gram = legendre.T @ (torch.tensor(weights)[:, None] / 2 * legendre)  # the mean over U(−1, 1)
    assert torch.allclose(gram, torch.eye(degree + 1, dtype=torch.double), atol=1e-6)
    assert torch.allclose(power, torch.cat([x**k for k in range(degree + 1)], 1))
    residual = torch.linalg.lstsq(power, legendre)  # of one span
    assert torch.allclose(power @ residual.solution, legendre, atol=1e-5)


def test_the_model_computes_the_polynomial(data):
    x, _ = data
    for basis in ("legendre", "power"):
        model = model_of([4], basis)
        weight = torch.randn(5)
        network = model.network
        next(network.parameters()).data.copy_(weight)
        assert torch.allclose(network(x)[:, 0], features(x, 4, basis) @ weight)
    assert polynomials([4]).choices() == {}
    assert polynomials().choices()["structure"].shape == (1, 9)


def test_bad_input_is_named():
    for call, message in (
        (lambda: features(torch.rand(4, 2), 1), r"x: expected shape \(data, 1\)"),
        (lambda: features(torch.rand(4), 1), r"x: expected shape \(data, 1\)"),
        (lambda: features(torch.rand(4, 1), 2, "pwoer"), "basis: expected one of .*Did you mean 'power'"),
        (lambda: features(torch.rand(4, 1), -1), "degree: expected an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_family_is_written_and_read(tmp_path):
    write_space(polynomials([0, 2], "power"), tmp_path / "space.json")
    assert read_space(tmp_path / "space.json") == polynomials([0, 2], "power")


def sequential(regression):
    """Return Σ log p(y_i | y_1 … y_{i−1}), another exact route to the log evidence."""
    total = 0.0
    for i in range(len(regression.y)):
        before = LinearRegression(regression.design[:i], regression.y[:i], NOISE, regression.scale)
        total += float(before.predictive(regression.design[i : i + 1]).log_prob(regression.y[i : i + 1]))
    return total


@pytest.mark.parametrize("basis", ["legendre", "power"])
@pytest.mark.parametrize("degree", DEGREES)
def test_log_evidence_by_two_exact_routes(data, degree, basis):
    regression = exact(data, degree, basis)
    assert sequential(regression) == pytest.approx(regression.log_evidence, abs=0.05)
    fitted = regression.predictive(regression.design)  # all data seen before they are predicted
    assert fitted.log_prob(regression.y) > regression.log_evidence + 0.5


def check_bound(data, degree, basis, known):
    """Fit a mean-field guide and hold its ELBO to a value within 0.3 nat and 4 standard errors."""
    model = model_of([degree], basis)
    guide = guides.MeanField(model, initial_scale=0.1)
    svi.fit(
        model, guide, data, epochs=300, batch_size=N, optimizer=adam(0.05, betas=(0.9, 0.99)),
        scheduler=one_cycle(0.1, pct_start=0.1), local_reparameterization=True,
    )  # fmt: skip
    found = evaluate(model, guide, data, draws=300)
    assert found["evidence"] <= known + 4 * found["standard_error"]
    assert found["evidence"] >= known - 0.3 - 4 * found["standard_error"]


@pytest.mark.parametrize("degree", DEGREES)
def test_the_fitted_bound_is_the_mean_field_value(data, degree):
    check_bound(data, degree, "legendre", exact(data, degree).mean_field_evidence)


def test_the_bound_of_powers_is_their_mean_field_value_and_not_the_evidence(data):
    known = exact(data, 3, "power")
    check_bound(data, 3, "power", known.mean_field_evidence)
    assert known.log_evidence - known.mean_field_evidence > 1.5
    with pytest.raises(AssertionError):
        check_bound(data, 3, "power", known.log_evidence)


def posterior_over_degrees(data, value="log_evidence", scale=1.0):
    return torch.tensor([getattr(exact(data, degree, scale=scale), value) for degree in DEGREES]).softmax(0)


def test_the_posterior_prefers_the_planted_degree(data):
    assert posterior_over_degrees(data)[PLANTED] > 0.9
    assert posterior_over_degrees(data, "mean_field_evidence")[PLANTED] > 0.9
    best_fit = torch.tensor([float(exact(data, d).predictive(exact(data, d).design).mean.sub(data[1][:, 0])
                                   .square().sum()) for d in DEGREES])  # fmt: skip
    assert best_fit.argmin() > PLANTED  # without the Occam factor the largest degree wins


def calibration(temperature=1.0, datasets=200):
    """Return the mean and standard error of p(planted | D) − Σ p(k | D)², for degrees and weights from the prior."""
    differences = []
    for seed in range(datasets):
        generator = torch.Generator().manual_seed(1000 + seed)
        degree = int(torch.randint(9, (), generator=generator))
        weights = torch.randn(degree + 1, 1, generator=generator)
        table = posterior_over_degrees(made_up_data(degree, weights, seed=seed))
        table = (table.log() * temperature).softmax(0)
        differences.append(table[degree] - table.square().sum())
    values = torch.stack(differences)
    return float(values.mean()), float(values.std() / datasets**0.5)


def test_the_posterior_over_degrees_is_calibrated():
    """E p(planted | D) = E Σ p(k | D)² where degree, weights and noise are drawn from the model."""
    mean, error = calibration()
    assert abs(mean) < 4 * error
    mean, error = calibration(temperature=0.3)  # evidence per datum, say, in place of evidence
    assert abs(mean) > 4 * error


@pytest.mark.slow
def test_the_degree_as_structure():
    """With weights that may differ by degree, q(Γ) is proportional to the exponential of each mean-field ELBO."""
    weak = made_up_data(2, torch.tensor([[0.3], [-0.5], [0.07]]))
    degrees = [1, 2]
    model = model_of(degrees, structure=structures.categorical())
    guide = guides.StructureConditioned(model, rank=2, initial_scale=0.1)
    svi.fit(
        model, guide, weak, epochs=800, batch_size=N, optimizer=adam(0.05, betas=(0.9, 0.99)),
        scheduler=one_cycle(0.1, pct_start=0.1), enumerate_discrete=True,
    )  # fmt: skip
    found = choice_probabilities(guide)["structure"][0]
    known = torch.tensor([exact(weak, degree).mean_field_evidence for degree in degrees]).softmax(0)
    assert 0.1 < known.max() < 0.95
    assert torch.allclose(found, known, atol=0.05)


def cross_validated(data, degree, scale):
    """Return the log predictive density of each tenth of the data given the rest, summed."""
    whole = exact(data, degree, scale=scale)
    total = 0.0
    for kept, held_out in KFold(10, shuffle=True, random_state=0).split(whole.design):
        part = LinearRegression(whole.design[kept], whole.y[kept], NOISE, scale)
        total += float(part.predictive(whole.design[held_out]).log_prob(whole.y[held_out]))
    return total


def scores(data, scale):
    evidence = torch.tensor([exact(data, degree, scale=scale).log_evidence for degree in DEGREES])
    return evidence, torch.tensor([cross_validated(data, degree, scale) for degree in DEGREES])


def test_where_cross_validation_and_evidence_disagree():
    """A vague prior, τ = 30 in place of 1: the evidence turns from degree 3 to degree 1, cross-validation stays at 3.

    The evidence is Σ log p(y_i | y_1 … y_{i−1}) and so predicts the first data from the prior alone: each weight costs
    log τ, here (k + 1) log 30 in all. In 10-fold cross-validation every datum is predicted from nine tenths of the
    others, where the prior is forgotten, and no weight costs that. Log evidence and cross-validated log density, nats:

    ====== ======== ======== ======== ========
    degree τ = 1              τ = 30
    ------ ----------------- -----------------
    1      −18.99   −15.77   −25.63   −15.78
    3      −12.65    −4.27   −26.06    −4.28
    ====== ======== ======== ======== ========
    """
    data = made_up_data(PLANTED, torch.tensor([[0.3], [-0.5], [0.0], [0.2]]))
    (evidence, validated), (vague_evidence, vague_validated) = scores(data, 1.0), scores(data, 30.0)
    expected = {1: [-18.99, -15.77, -25.63, -15.78], 3: [-12.65, -4.27, -26.06, -4.28]}
    for degree, row in expected.items():
        found = [float(part[degree]) for part in (evidence, validated, vague_evidence, vague_validated)]
        assert found == pytest.approx(row, abs=0.02)
    assert [int(part.argmax()) for part in (evidence, validated)] == [3, 3]
    assert [int(part.argmax()) for part in (vague_evidence, vague_validated)] == [1, 3]
    vaguer_evidence, vaguer_validated = scores(data, 3000.0)
    cost = (torch.arange(9) + 1) * torch.tensor(100.0).log()  # of one weight: log τ
    assert torch.allclose(vague_evidence - vaguer_evidence, cost, atol=0.1)
    assert torch.allclose(vague_validated, vaguer_validated, atol=0.1)
    assert not torch.allclose(vague_evidence - vaguer_evidence, cost / 2, atol=0.1)
