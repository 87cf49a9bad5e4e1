"""Memory: how the C library keeps what torch frees."""

from __future__ import annotations

import torch

__all__ = ["keep_heap"]


def keep_heap() -> None:
    """Have glibc keep freed memory for the next step: it keeps up to twice the largest block ever freed.

    (``mallopt(3)``, M_TRIM_THRESHOLD; blocks of up to 32 MiB count.) What frees more would otherwise get it from the
    system again, page by page, which took a quarter of the time of a step with five λ. Elsewhere it is an allocation
    that is never touched.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")
