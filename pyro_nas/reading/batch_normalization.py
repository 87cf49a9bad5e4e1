"""Batch normalisation: running statistics recomputed for the draws that a model is evaluated at.

A fit's running statistics average over all structures and weights that it drew. A supernet of shared weights at one
structure, or a posterior mean, is another network, whose layers see other inputs (Guo et al. 2020, "Single path
one-shot", §3.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from pyro import poutine
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_nas.checks import describe
from pyro_nas.data import Pair
from pyro_nas.evidence.currencies import Tensors
from pyro_nas.evidence.sites import run_at
from pyro_nas.random_state import forked
from pyro_nas.reading.posterior import each_draw, evaluation_mode

__all__ = ["recalibrate", "recalibrated"]


def recalibrate(model: nn.Module, draws: Tensors, batches: Pair | Iterable[Pair]) -> None:
    """Set the running statistics of batch normalisation to those that the data have under ``draws``.

    The running mean becomes Σ_b n_b · mean of batch b / Σ_b n_b, n_b its number of data, and the running variance the
    same of unbiased variances, over all batches under all draws, {site: (draw, …)}; one draw gives the statistics of
    one network. ``batches``: (x, y) or what yields such pairs; y is not used. Layers that no draw runs keep what they
    have. Nothing else changes: other layers are in evaluation mode, and modes and the random state are as before.

    Raises ValueError, and changes nothing, where ``draws`` lack a latent site, there are no batches, or one has no
    variance, TypeError for a model that is no torch.nn.Module.
    """
    layers = _layers(model)
    if not layers:
        return
    separate = each_draw(draws)
    with _restored(layers), _counting(model, layers):
        count = 0
        for x, _ in [batches] if isinstance(batches, tuple) else batches:
            count += 1
            for single in separate:
                run_at(model, single, (x,))
        statistics = [(layer, _copied(layer)) for layer in layers if layer.num_batches_tracked]
    if not count:
        raise ValueError("batches: expected a batch or more, got none.")
    for layer, values in statistics:
        _set(layer, values)


@contextmanager
def recalibrated(model: nn.Module, draws: Tensors, batches: Pair | Iterable[Pair]) -> Iterator[None]:
    """Within the context running statistics are those of ``recalibrate``, after it what they were before.

    Arguments, with draws {site: (draw, …)}, and errors as there.
    """
    with _restored(_layers(model)):
        recalibrate(model, draws, batches)
        yield


def _layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the layers of batch normalisation that keep running statistics."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a Model or another torch.nn.Module, got {describe(model)}.")
    return [part for part in model.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]


@contextmanager
def _counting(model: nn.Module, layers: list[_BatchNorm]) -> Iterator[None]:
    """Have the layers average over all that they see; afterwards modes and the random state are as they were."""
    momenta = [layer.momentum for layer in layers]
    seen = dict.fromkeys(layers, 0)

    def weigh(layer: _BatchNorm, inputs: tuple[torch.Tensor]) -> None:
        """Have a batch count as its share of the data that the layer has seen."""
        count, channels = inputs[0].shape[:2]
        if inputs[0].numel() == channels:
            raise ValueError("batches: expected two data or more in each, whose variance is taken, got one of a datum.")
        seen[layer] += count
        layer.momentum = count / seen[layer]

    with torch.no_grad(), forked(), poutine.block(), evaluation_mode(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        hooks = [layer.register_forward_pre_hook(weigh) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


@contextmanager
def _restored(layers: list[_BatchNorm]) -> Iterator[None]:
    """Set the layers' statistics to what they were, at the end."""
    before = [_copied(layer) for layer in layers]
    try:
        yield
    finally:
        for layer, statistics in zip(layers, before, strict=True):
            _set(layer, statistics)


def _copied(layer: _BatchNorm) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in layer.buffers(recurse=False)]


def _set(layer: _BatchNorm, statistics: list[torch.Tensor]) -> None:
    for buffer, value in zip(layer.buffers(recurse=False), statistics, strict=True):
        buffer.copy_(value)
