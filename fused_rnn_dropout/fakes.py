"""What the operators return, from shapes and dtypes alone: for tracing, and for tensors on the meta device.

A *family* is one set of operators, told apart by the prefix of their names: none for those that the compiled libraries
implement, ``triton_`` for Triton's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import library
from .cells import CELLS, Cell
from .library import argument_names, register_fake


class Keep(enum.IntEnum):
    """What a forward keeps for its backward: the ``save`` argument of the ``*_forward`` operators."""

    NOTHING = 0
    ALL = 1
    STATES = 2


NEEDS_X, NEEDS_W_IH, NEEDS_W_HH, NEEDS_BIAS, NEEDS_W_HR = 1, 2, 4, 8, 16  # `needs` of the *_backward operators
NEEDS = {"x": NEEDS_X, "w_ih": NEEDS_W_IH, "w_hh": NEEDS_W_HH, "b_ih": NEEDS_BIAS, "b_hh": NEEDS_BIAS,
         "w_hr": NEEDS_W_HR}  # fmt: skip
"""The bit that asks for the gradient of an argument; those of the initial states are always computed."""


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


def states_apart(cell: Cell, gpu: bool, dtype: torch.dtype, flags: int) -> bool:
    """Whether the h that backward reads is another tensor than the output."""
    return kept_dtypes(gpu, dtype).values != dtype or cell.output_differs(flags)


def _rows(x: Tensor) -> Any:
    return x.shape[0] * x.shape[1] if x.dim() == 3 else x.shape[0]


def register(prefix: str = "") -> None:
    """Registers the fakes of one family."""

    def on_gpu(x: Tensor) -> bool:
        return bool(prefix) or x.device.type in library.gpu_devices

    @register_fake(f"{prefix}words")
    def _(rng: Tensor, row: Tensor, step: Tensor, n: int, stream: int) -> Tensor:
        return rng.new_empty((step.shape[0], row.shape[0], n))

    @register_fake(f"{prefix}dropout")
    def _(x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    for cell in CELLS.values():
        _register_layer(prefix, cell, on_gpu)


def _register_layer(prefix: str, cell: Cell, on_gpu: Callable[[Tensor], bool]) -> None:
    """The three operators of one cell, whose arguments are known by their names in the schemas."""
    operator = cell.name.lower()

    def given(name: str, args: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(argument_names(getattr(torch.ops.fused_rnn_dropout, name)), args, strict=True))

    def results(a: dict[str, Any]) -> tuple[Tensor, ...]:
        x, h0, dtype = a["x"], a["h0"], a["dtype"]
        out = x.new_empty((*x.shape[:-1], h0.shape[1]), dtype=dtype)
        last = (state.new_empty(state.shape, dtype=dtype) for state in (h0, a.get("c0")) if state is not None)
        return (out, *last)

    @register_fake(f"{prefix}{operator}")
    def _(*args: Any) -> tuple[Tensor, ...]:
        return results(given(f"{prefix}{operator}", args))

    @register_fake(f"{prefix}{operator}_forward")
    def _(*args: Any) -> tuple[Tensor, ...]:
        a = given(f"{prefix}{operator}_forward", args)
        x, save, gpu = a["x"], a["save"], on_gpu(a["x"])
        units = a["c0" if cell.has_c else "h0"].shape[1]
        values, memory = kept_dtypes(gpu, a["dtype"])
        rows, all_of_it = _rows(x), save == Keep.ALL
        beside = save if cell.has_c else cell.apart and all_of_it
        states = save and states_apart(cell, gpu, a["dtype"], a["flags"])
        return (
            *results(a),
            x.new_empty((rows, cell.gates * units) if all_of_it else 0, dtype=values),
            x.new_empty((rows, units) if beside else 0, dtype=memory if cell.has_c else values),
            x.new_empty((rows, a["h0"].shape[1]) if states else 0, dtype=values),
        )

    @register_fake(f"{prefix}{operator}_backward")
    def _(*args: Any) -> tuple[Tensor, ...]:
        """A dense gradient for each tensor that needs one, an empty tensor else."""
        a = given(f"{prefix}{operator}_backward", args)
        found = []
        names = ("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
        for name in (name for name in names if name in a and (cell.apart or name != "b_hh")):
            like, bit = a[name], NEEDS.get(name)
            shape = like.shape if like is not None and (bit is None or a["needs"] & bit) else 0
            dtype = compute_dtype(a["dtype"]) if like is None else like.dtype
            found.append((a["x"] if like is None else like).new_empty(shape, dtype=dtype))
        return tuple(found)
