"""Operations: the multiply-accumulates of a module; what has no formula is refused, not taken for free.

Formulas are those of ``torch.utils.flop_counter`` and, for products that it does not know, others by hand. Counted are
matrix products, convolutions and their like; what works element by element, moves, pools or normalises counts as none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["multiply_accumulates"]

aten = torch.ops.aten
Formula = Callable[..., int]
Tensors = tuple[torch.Tensor, ...]


def _matrix_vector(*args: torch.Tensor) -> int:
    """(…, m, n) times (…, n), the last two of the arguments."""
    return args[-2].numel() if args[-2].dim() > 1 else args[-1].numel()


def _trilinear(*args: Any) -> int:
    """x₁ W of all outputs, then its product with x₂, as ``nn.Bilinear``: n o i j + n o j."""
    first, weight, second = args[:3]
    size = first.numel() // weight.shape[1]
    total: int = size * weight.numel() + size * weight.shape[0] * second.shape[-1]
    return total


def _batched_sum(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> int:
    return left.numel() * right.shape[-1]


def _distances(left: torch.Tensor, right: torch.Tensor, *_: object) -> int:
    """A square of each coordinate of each pair."""
    return left.numel() * right.shape[-2]


BY_HAND: dict[object, Formula] = {  # of the tensors, not of their shapes
    aten.mv: _matrix_vector,
    aten.addmv: _matrix_vector,
    aten.dot: _matrix_vector,
    aten.vdot: _matrix_vector,
    aten.addbmm: _batched_sum,
    aten._trilinear: _trilinear,
    aten._cdist_forward: _distances,
    aten._euclidean_dist: _distances,
}
FREE = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.view_copy, torch.Tag.inplace_view}
WORDS = """
norm softmax pool1d pool2d pool3d pad pad1d pad2d pad3d upsample sampler im2col col2im shuffle unshuffle copy
clone view reshape cat stack split index gather scatter select take embedding flip roll repeat tril triu diag
sort topk kthvalue median mode unique nonzero bincount histc searchsorted bucketize cummax cummin cumsum cumprod
logcumsumexp dropout glu hardswish prelu rrelu empty zeros ones full arange linspace eye rand randn randint
randperm multinomial bernoulli normal uniform exponential fill zero scalar lift alias set resize assert
"""
FREE_WORDS = frozenset(WORDS.split())  # in the name of one without such a tag


class _Counter(TorchDispatchMode):
    """Add up the multiply-accumulates of what runs within; ``where`` says which module runs."""

    def __init__(self, where: Callable[[], str]):
        super().__init__()
        self.where = where
        self.total: float = 0.0

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options, packet = kwargs or {}, func._overloadpacket
        if packet not in flop_registry and packet not in BY_HAND:
            with self:
                result = func.decompose(*args, **options)
            if result is not NotImplemented:
                return result
        output = func(*args, **options)
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **options, out_val=output) / 2
        elif packet in BY_HAND:
            self.total += BY_HAND[packet](*args)
        elif not _is_free(func):
            raise ValueError(
                f"kind: expected operations whose multiply-accumulates are known, got {func} in {self.where()}. "
                "Register a formula of it by torch.utils.flop_counter.register_flop_formula, or measure the latency."
            )
        return output


def _is_free(func: OpOverload[..., Any]) -> bool:
    """Whether an operation has no products to count."""
    words = func._overloadpacket.__name__.split("_")
    known = func.namespace in {"aten", "prim", "prims"}
    return known and (func.is_view or not FREE.isdisjoint(func.tags) or not FREE_WORDS.isdisjoint(words))


def multiply_accumulates(module: nn.Module, inputs: Tensors) -> float:
    """Return the multiply-accumulates of one forward pass, without gradients.

    Raises ValueError, which names the module, for an operation without a formula: one of another library, a transform,
    a solution of equations.
    """
    names = {
        part: f"{type(part).__name__} {name!r}" if name else type(part).__name__
        for name, part in module.named_modules()
    }
    running: list[str] = []

    def enter(part: nn.Module, _: object) -> None:
        running.append(names[part])

    def leave(*_: object) -> None:
        running.pop()

    with ExitStack() as stack:
        for part in names:
            stack.callback(part.register_forward_pre_hook(enter).remove)
            stack.callback(part.register_forward_hook(leave).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_unfused())
        counter: _Counter = stack.enter_context(_Counter(lambda: running[-1] if running else names[module]))
        module(*inputs)
    return counter.total


@contextmanager
def _unfused() -> Iterator[None]:
    """Run attention and recurrent layers as the matrix products that they are made of, not as one operation each."""
    backends: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    before, fast = [backend.enabled for backend in backends], torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for backend in backends:
        backend.enabled = False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for backend, enabled in zip(backends, before, strict=True):
            backend.enabled = enabled
