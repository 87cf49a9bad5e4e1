"""Result: every fit says what was fitted, its records and its evidence, and prints on a screen."""

import pytest
import torch

from pyro_nas.inference import Fit, adam, bilevel, kronecker, laplace_approximation, svi, trajectory
from pyro_nas.models import Model, guides
from pyro_nas.reading.posterior import predict


def check(fit, model, x):
    assert isinstance(fit, Fit)
    assert fit.model is model
    assert any(record["evidence"] == fit.evidence for record in fit.records)
    assert len(repr(fit).splitlines()) <= 21
    assert f"{fit.evidence:.6g}" in repr(fit)
    assert "<table>" in fit._repr_html_()
    assert predict(model, fit.posterior, x, num_samples=3).shape[0] == len(x)


@pytest.mark.parametrize("procedure", ["svi", "bilevel"])
def test_gradient_fits_return_the_pair(small_space, small_data, procedure):
    x, y = small_data
    model = Model(small_space, num_data=40)
    guide = guides.MeanField(model)
    fit = {"svi": svi.fit, "bilevel": bilevel.fit}[procedure]
    result = fit(model, guide, (x, y), (x, y), epochs=3, optimizer=adam(0.01))
    assert result.posterior is guide
    assert result.evidence == result.records[-1]["evidence"]
    check(result, model, x)


def test_a_fit_that_loses_patience_has_the_evidence_of_its_best_epoch(small_space, small_data):
    x, y = small_data
    model = Model(small_space, num_data=40)
    guide = guides.MeanField(model)
    result = svi.fit(model, guide, (x, y), (x, y), epochs=60, patience=2, optimizer=adam(0.5))
    best = max(result.records, key=lambda record: record["valid_evidence"])
    assert best is not result.records[-1]
    assert result.evidence == best["evidence"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of the import of laplace-torch
@pytest.mark.parametrize("procedure", ["laplace", "kronecker", "trajectory"])
def test_other_fits_return_what_predict_takes(procedure):
    from pyro_nas import Space
    from pyro_nas.graph.primitives import dense

    x = torch.randn(30, 2)
    y = (x[:, 0] > 0).long()
    model = Model(Space({(0, 1): {"a": dense(2, 2)}}), num_data=30)
    if procedure == "trajectory":
        result = trajectory.fit(model, (x, y), steps=5, learning_rate=0.1)
    else:
        result = {"laplace": laplace_approximation.fit, "kronecker": kronecker.fit}[procedure](model, (x, y))
    check(result, model, x)
