"""Matrix products through torch: values in the dtype of the results, sums in at least float32."""

from __future__ import annotations

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out = a b; ``out`` may be wider than ``a`` and ``b``, which share a dtype.

    Always an ``out=`` overload: autocast leaves those alone, where it would turn a product of float32 into its own
    dtype. How a product of float32 is computed is torch's setting (``torch.backends.cuda.matmul``).
    """
    if out.dtype == a.dtype:
        return torch.mm(a, b, out=out)
    # No product of mixed dtypes: the CPU has none, and torch raises on ROCm, "not supported for ROCm".
    if a.device.type == "cpu" or torch.version.hip is not None:
        return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def new_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return product(a, b, a.new_empty(a.shape[0], b.shape[1], dtype=dtype))


def row_sum(a: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, width) -> (width), always in the same order."""
    return a.sum(0, dtype=dtype)
