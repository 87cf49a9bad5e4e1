"""Metrics of predicted class probabilities."""

from __future__ import annotations

import torch

from pyro_nas.reading.posterior import share_correct

__all__ = ["classification_metrics"]


def classification_metrics(probabilities: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Return accuracy, expected calibration error (15 bins, L1) and mean log-likelihood in nats.

    Shapes: (data, classes) and (data,). Guo et al. 2017.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error  # slow to import

    probabilities = probabilities.clamp(0, 1)  # an average may exceed 1 by rounding: to torchmetrics a logit
    return {
        "accuracy": share_correct(probabilities, y),
        "calibration_error": float(multiclass_calibration_error(probabilities, y, probabilities.shape[-1], n_bins=15)),
        "log_likelihood": float(probabilities.gather(-1, y[:, None]).clamp_min(1e-12).log().mean()),
    }
