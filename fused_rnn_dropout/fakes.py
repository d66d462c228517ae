"""What the operators return, from shapes and dtypes alone: for tracing, and for tensors on the meta device.

A *family* is one set of operators, told apart by the prefix of their names: none for those that the compiled libraries
implement, ``triton_`` for Triton's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import library
from .cells import CELLS
from .library import register_fake

SAVE_ALL, SAVE_STATES = 1, 2  # the `save` argument of the *_forward operators
NEEDS_X, NEEDS_W_IH, NEEDS_W_HH, NEEDS_BIAS, NEEDS_W_HR = 1, 2, 4, 8, 16  # `needs` of the *_backward operators


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What layers with results of ``dtype`` keep their memory in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Kept(NamedTuple):
    """Dtypes of what a forward keeps for its backward: activations and h, and the memory c."""

    values: torch.dtype
    memory: torch.dtype


def kept_dtypes(gpu: bool, dtype: torch.dtype) -> Kept:
    """A GPU's kernels keep values in the dtype of the results, the CPU's in the one they compute in."""
    memory = compute_dtype(dtype)
    return Kept(dtype if gpu else memory, memory)


def states_apart(cell: str, gpu: bool, dtype: torch.dtype, flags: int) -> bool:
    """Whether the h that backward reads is another tensor than the output."""
    return kept_dtypes(gpu, dtype).values != dtype or CELLS[cell.upper()].output_differs(flags)


def _rows(x: Tensor) -> Any:
    return x.shape[0] * x.shape[1] if x.dim() == 3 else x.shape[0]


def _gradients(needs: int, compute: torch.dtype, *wanted: tuple[int, Tensor | None]) -> tuple[Tensor, ...]:
    """A dense gradient for each tensor that needs one, an empty tensor else."""
    found = []
    for bit, like in wanted:
        shape = like.shape if like is not None and (not bit or needs & bit) else 0
        some = like if like is not None else next(t for _, t in wanted if t is not None)
        found.append(some.new_empty(shape, dtype=like.dtype if like is not None else compute))
    return tuple(found)


def register(prefix: str = "") -> None:
    """Registers the fakes of one family."""

    def on_gpu(x: Tensor) -> bool:
        return bool(prefix) or x.device.type in library.gpu_devices

    @register_fake(f"{prefix}words")
    def _(rng: Tensor, b: Tensor, c: Tensor, units: int, stream: int) -> Tensor:
        shape = (c.shape[0], b.shape[0], units)
        return rng.new_empty((*shape, 4) if stream & 0xFF in (0, 1, 2, 6) else shape)

    @register_fake(f"{prefix}dropout", batch_sizes=3)
    def _(x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @register_fake(f"{prefix}lstm", batch_sizes=8)
    def _(x: Tensor, h0: Tensor, c0: Tensor, *args: Any) -> tuple[Tensor, ...]:
        dtype = args[-6]
        out = x.new_empty((*x.shape[:-1], h0.shape[1]), dtype=dtype)
        return out, h0.new_empty(h0.shape, dtype=dtype), c0.new_empty(c0.shape, dtype=dtype)

    @register_fake(f"{prefix}lstm_forward", batch_sizes=8)
    def _(x: Tensor, h0: Tensor, c0: Tensor, *args: Any) -> tuple[Tensor, ...]:
        dtype, flags, save = args[-6], args[-5], args[-1]
        units, rows, gpu = c0.shape[1], _rows(x), on_gpu(x)
        values, memory = kept_dtypes(gpu, dtype)
        out = x.new_empty((*x.shape[:-1], h0.shape[1]), dtype=dtype)
        gates = x.new_empty((rows, 4 * units) if save == SAVE_ALL else 0, dtype=values)
        cells = x.new_empty((rows, units) if save else 0, dtype=memory)
        apart = save and states_apart("lstm", gpu, dtype, flags)
        states = x.new_empty((rows, h0.shape[1]) if apart else 0, dtype=values)
        return out, h0.new_empty(h0.shape, dtype=dtype), c0.new_empty(c0.shape, dtype=dtype), gates, cells, states

    @register_fake(f"{prefix}lstm_backward", batch_sizes=11)
    def _(*args: Any) -> tuple[Tensor, ...]:
        x, h0, c0, w_ih, w_hh, b_ih, _, w_hr = args[3:11]
        return _gradients(
            args[-1], compute_dtype(args[-6]), (NEEDS_X, x), (0, h0), (0, c0), (NEEDS_W_IH, w_ih),
            (NEEDS_W_HH, w_hh), (NEEDS_BIAS, b_ih), (NEEDS_W_HR, w_hr),
        )  # fmt: skip

    @register_fake(f"{prefix}gru", batch_sizes=6)
    def _(x: Tensor, h0: Tensor, *args: Any) -> tuple[Tensor, ...]:
        dtype = args[-6]
        return x.new_empty((*x.shape[:-1], h0.shape[1]), dtype=dtype), h0.new_empty(h0.shape, dtype=dtype)

    @register_fake(f"{prefix}gru_forward", batch_sizes=6)
    def _(x: Tensor, h0: Tensor, *args: Any) -> tuple[Tensor, ...]:
        dtype, flags, save = args[-6], args[-5], args[-1]
        units, rows, gpu = h0.shape[1], _rows(x), on_gpu(x)
        values = kept_dtypes(gpu, dtype).values
        out = x.new_empty((*x.shape[:-1], units), dtype=dtype)
        gates = x.new_empty((rows, 3 * units) if save == SAVE_ALL else 0, dtype=values)
        resets = x.new_empty((rows, units) if save == SAVE_ALL else 0, dtype=values)
        apart = save and states_apart("gru", gpu, dtype, flags)
        states = x.new_empty((rows, units) if apart else 0, dtype=values)
        return out, h0.new_empty(h0.shape, dtype=dtype), gates, resets, states

    @register_fake(f"{prefix}gru_backward", batch_sizes=8)
    def _(*args: Any) -> tuple[Tensor, ...]:
        x, h0, w_ih, w_hh, b_ih, b_hh = args[2:8]
        return _gradients(
            args[-1], compute_dtype(args[-6]), (NEEDS_X, x), (0, h0), (NEEDS_W_IH, w_ih), (NEEDS_W_HH, w_hh),
            (NEEDS_BIAS, b_ih), (NEEDS_BIAS, b_hh),
        )  # fmt: skip
