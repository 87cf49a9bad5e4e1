"""Named tensors as one vector and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pyro_nas.evidence.gaussian_tensor import GaussianTensor

__all__ = ["Packing"]


class Packing:
    """The layout of named tensors in one vector, in the order of the names.

    ``pack`` maps {name: tensor} to a vector of shape (size,), ``unpack`` maps (…, size) to views (…, *shape).
    """

    def __init__(self, shapes: Mapping[str, torch.Size]):
        self.shapes = dict(shapes)
        self.names = list(self.shapes)
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.size = sum(self.sizes)

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Packing:
        """Lay out these tensors."""
        return cls({name: tensor.shape for name, tensor in tensors.items()})

    def pack(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Join the named tensors into a vector of shape (size,)."""
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def unpack(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cut vectors of shape (…, size) into named views of shape (…, *shape); raise ValueError for another size."""
        if vector.shape[-1:] != (self.size,):
            raise ValueError(f"vector: expected shape (…, {self.size}), got {tuple(vector.shape)}.")
        if isinstance(vector, GaussianTensor):
            means, variances = self.unpack(vector.mean_value), self.unpack(vector.variance)
            return {name: GaussianTensor.of(mean, variances[name]) for name, mean in means.items()}
        lead = vector.shape[:-1]
        pieces = zip(self.names, vector.split(self.sizes, -1), strict=True)
        return {name: piece.view(lead + self.shapes[name]) for name, piece in pieces}
