"""What the operators return, from shapes and dtypes alone: for tracing, and for tensors on the meta device.

A *family* is one set of operators, told apart by the prefix of their names: none for those that the compiled libraries
implement, ``triton_`` for Triton's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import library
from .cells import Cell
from .layer_call import NEEDS_X, Direction, Keep, LayerCall, needed, needs_of
from .library import register_fake
from .sites import output_differs


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What layers with results of ``dtype`` keep their memory in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class KeptDtypes(NamedTuple):
    """Dtypes of what a forward keeps for its backward: activations and h, and the memory c."""

    values: torch.dtype
    memory: torch.dtype


def kept_dtypes(gpu: bool, dtype: torch.dtype) -> KeptDtypes:
    """A GPU's kernels keep values in the dtype of the results, and so do the CPU's where they compute with bfloat16.

    Otherwise those of the CPU keep them in the one they compute in.
    """
    memory = compute_dtype(dtype)
    low = gpu or (dtype == torch.bfloat16 and library.cpu_bf16() != "exact")
    return KeptDtypes(dtype if low else memory, memory)


def states_apart(cell: Cell, gpu: bool, dtype: torch.dtype, flags: int) -> bool:
    """Whether the h that backward reads is another tensor than the output."""
    return kept_dtypes(gpu, dtype).values != dtype or output_differs(cell, flags)


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

    _register_layer(prefix, on_gpu)


def _register_layer(prefix: str, on_gpu: Callable[[Tensor], bool]) -> None:
    """The three operators of a layer of any cell."""

    def results(call: LayerCall) -> tuple[Tensor, list[Tensor]]:
        call.check()
        width = call.states[0].shape[1] * call.num_directions
        y = call.x.new_empty((*call.x.shape[:-1], width), dtype=call.dtype)
        return y, [state.new_empty(state.shape, dtype=call.dtype) for state in call.states]

    def kept(call: LayerCall, direction: Direction) -> tuple[Tensor, ...]:
        cell, gpu, rows = call.row, on_gpu(call.x), _rows(call.x)
        values, memory = kept_dtypes(gpu, call.dtype)
        all_of_it = call.keep == Keep.ALL
        states = call.keep and states_apart(cell, gpu, call.dtype, call.flags)
        return (
            call.x.new_empty((rows, cell.gates * direction.units) if all_of_it else 0, dtype=values),
            call.x.new_empty(
                (rows, direction.units) if cell.keeps_beside(call.keep) else 0, dtype=memory if cell.has_c else values
            ),
            call.x.new_empty((rows, direction.h0.shape[1]) if states else 0, dtype=values),
        )

    @register_fake(f"{prefix}layer")
    def _(*args: Any) -> tuple[Tensor, list[Tensor]]:
        return results(LayerCall(*args))

    @register_fake(f"{prefix}layer_forward")
    def _(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        call = LayerCall(*args)
        return *results(call), [tensor for direction in call.each() for tensor in kept(call, direction)]

    @register_fake(f"{prefix}layer_backward")
    def _(
        grad_y: Tensor | None, grad_last: list[Tensor | None], *args: Any
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """A dense gradient for each tensor that needs one, an empty tensor else."""
        *shared, _y, _kept, needs = args
        call = LayerCall(*shared)
        call.check()

        def gradient(like: Tensor, wanted: bool = True) -> Tensor:
            return like.new_empty(like.shape if wanted else 0)

        names, of_weights = call.weight_names, []
        for place, weight in enumerate(call.weights):
            index, of_direction = divmod(place, len(names))
            name = names[of_direction]
            own = call.row.apart or name != "b_hh"  # elsewhere it is that of b_ih
            of_weights.append(gradient(weight, own and needed(needs_of(needs, index), name)))
        return gradient(call.x, bool(needs & NEEDS_X)), [gradient(state) for state in call.states], of_weights
