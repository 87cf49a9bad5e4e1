"""Metrics of predicted probabilities, by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from pyro_nas.reading.metrics import classification_metrics


def test_metrics():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]) * 1.0000001
    y = torch.tensor([0, 1, 1, 1])
    metrics = classification_metrics(probabilities, y)
    assert metrics["accuracy"] == accuracy_score(y, probabilities.argmax(-1)) == 0.5
    assert metrics["calibration_error"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.6) / 4, abs=1e-5)
    assert metrics["log_likelihood"] == pytest.approx(np.log([0.9, 0.2, 0.7, 0.4]).mean(), abs=1e-5)
