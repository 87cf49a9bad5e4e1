"""Cross-validation against the closed-form leave-one-out predictions of a linear-Gaussian model."""

from functools import partial

import pytest
import torch
from torch import nn

from pyro_nas import Space
from pyro_nas.inference.cross_validation import cross_validate, log_predictive
from pyro_nas.models import Model, likelihoods, priors
from pyro_nas.reading.conjugate import LinearRegression

N, D, NOISE, PRIOR = 24, 4, 0.7, 0.8


@pytest.fixture
def regression():
    x = torch.randn(N, D)
    return x, x @ torch.randn(D, 1) + NOISE * torch.randn(N, 1)


def exact(pair):
    return LinearRegression(pair[0], pair[1][:, 0], NOISE, PRIOR)


def fit_exactly(train):
    """The closed-form posterior predictive of each datum."""
    posterior = exact(train)

    def density(x, y):
        law = posterior.predictive(x)
        return torch.distributions.Normal(law.mean, law.variance.sqrt()).log_prob(y[:, 0].double())

    return density


def model_of(count):
    return Model(
        Space({(0, 1): {"linear": partial(nn.Linear, D, 1, bias=False)}}),
        num_data=count,
        weights=priors.normal(PRIOR),
        likelihood=likelihoods.gaussian(NOISE, learn=False),
    )


def fit_by_draws(train, count=2000):
    """The same from draws of the posterior, through the model."""
    draws = exact(train).posterior.sample((count,)).float()
    return log_predictive(model_of(len(train[1])), {"weights": draws})


def test_as_many_folds_as_data_leave_one_out(regression):
    truth = exact(regression).leave_one_out.log_prob(regression[1][:, 0].double())
    result = cross_validate(fit_exactly, regression, folds=N)
    assert torch.allclose(result.pointwise, truth, atol=1e-6)
    assert result.total.value == pytest.approx(truth.sum().item())
    assert result.total.standard_error == pytest.approx((truth.std() * N**0.5).item())
    assert torch.allclose(result.by_fold[result.fold], result.pointwise)


def test_training_on_what_is_held_out_is_optimistic(regression):
    honest = exact(regression).leave_one_out.log_prob(regression[1][:, 0].double()).sum().item()
    optimistic = cross_validate(lambda train: fit_exactly(regression), regression, folds=N).total.value
    assert optimistic > honest + 1  # about one nat for each of the four weights


def test_draws_of_a_model_give_its_predictive_density(regression):
    x, y = regression
    train, test = (x[:18], y[:18]), (x[18:], y[18:])
    truth = fit_exactly(train)(*test)
    draws = exact(train).posterior.sample((8, 500)).float()
    estimates = torch.stack([log_predictive(model_of(18), {"weights": part})(*test) for part in draws])
    error = estimates.std(0) / 8**0.5
    assert ((estimates.mean(0) - truth).abs() < 4.5 * error + 5e-3).all()  # 5e-3: a logarithm of 500 draws' mean
    mean_of_logs = torch.stack([log_predictive(model_of(18), {"weights": one[None]})(*test) for one in draws[0]]).mean(
        0
    )  # the wrong order of mean and logarithm
    assert ((mean_of_logs - truth).abs() > 4.5 * error + 5e-3).any()
    through_folds = cross_validate(partial(fit_by_draws, count=300), regression, folds=3)
    assert through_folds.total.value == pytest.approx(
        cross_validate(fit_exactly, regression, folds=3).total.value, abs=0.5
    )


@pytest.mark.parametrize("folds", [2, 5, 10, N])
def test_each_datum_is_held_out_once_and_trained_on_otherwise(folds):
    seen, held = [], []

    def fit(train):
        seen.append(train[0])
        return lambda x, y: held.append(x) or torch.zeros(len(y))

    x = torch.arange(N)
    result = cross_validate(fit, (x, torch.zeros(N)), folds=folds)
    assert torch.equal(torch.cat(held).sort()[0], x)
    assert all(set(a.tolist()) | set(b.tolist()) == set(range(N)) for a, b in zip(seen, held, strict=True))
    assert all(not set(a.tolist()) & set(b.tolist()) for a, b in zip(seen, held, strict=True))
    assert len(result.by_fold) == folds == len(seen)
    assert all(set(x[result.fold == index].tolist()) == set(part.tolist()) for index, part in enumerate(held))


def test_folds_are_shuffled_by_the_seed_alone(regression):
    before = torch.get_rng_state()
    first, again, other = (
        cross_validate(partial(fit_by_draws, count=50), regression, folds=4, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.pointwise, again.pointwise)
    assert torch.equal(first.fold, again.fold)
    assert not torch.equal(first.fold, other.fold)
    assert not torch.equal(first.fold, first.fold.sort()[0])


def test_folds_of_classes_are_stratified():
    y = torch.cat([torch.zeros(40), torch.ones(10)]).long()
    x = torch.arange(50)

    def shares(y):
        fold = cross_validate(lambda train: lambda x, y: torch.zeros(len(y)), (x, y), folds=5).fold
        return [int(y[fold == index].sum()) for index in range(5)]

    assert shares(y) == [2] * 5
    assert shares(y.float()) != [2] * 5  # real y are not
    cross_validate(lambda train: lambda x, y: torch.zeros(len(y)), (x, y), folds=50)  # a class has fewer than folds


def test_errors_say_what_to_do(regression):
    x, y = regression
    with pytest.raises(TypeError, match="fit: expected a function of training data"):
        cross_validate(3, regression)
    with pytest.raises(TypeError, match="fit: expected one that returns a function"):
        cross_validate(lambda train: 3, regression)
    with pytest.raises(ValueError, match="folds: expected an integer of at least 2"):
        cross_validate(fit_exactly, regression, folds=1)
    with pytest.raises(ValueError, match="folds: expected at most as many as data, 24, got 25"):
        cross_validate(fit_exactly, regression, folds=25)
    with pytest.raises(ValueError, match="fit: expected a log density for each of 3 data held out"):
        cross_validate(lambda train: lambda x, y: torch.zeros(()), regression, folds=8)
    with pytest.raises(ValueError, match="without NaN"):
        cross_validate(lambda train: lambda x, y: torch.full((len(y),), torch.nan), regression, folds=8)
    with pytest.raises(ValueError, match="data y: expected finite values"):
        cross_validate(fit_exactly, (x, y / 0), folds=8)
    with pytest.raises(
        ValueError, match=r"draws: expected the model's latent sites, got \['w'\]; missing \['weights'\]"
    ):
        log_predictive(model_of(N), {"w": torch.zeros(2, D)})(x, y)
    with pytest.raises(ValueError, match="one number of draws above 0"):
        log_predictive(model_of(N), {"weights": torch.zeros(0, D)})
    with pytest.raises(ValueError, match="observes each datum"):
        log_predictive(lambda x, y: None, {"weights": torch.zeros(2, D)})(x, y)
