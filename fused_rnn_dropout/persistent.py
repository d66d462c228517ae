"""The plan of a persistent launch: what a layer would be on a device, by ``csrc/cuda/schedules/persistent_plan.h``.

A GPU keeps the recurrent weights of a layer on its multiprocessors for a whole sequence, in one cooperative launch, or
there is a reason why it cannot; ``docs/persistent.md`` has both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import library
from .cells import CELLS
from .layer_call import BOTH, FORWARD

_ops = torch.ops.fused_rnn_dropout

Plan = dict[str, int]
"""The numbers of ``PersistentPlan`` by their names."""


def plan_of(
    x: Tensor, cell: str, batch: int, w_hh: Tensor, dtype: torch.dtype, directions: int, flags: int, backward: bool
) -> Plan | str:
    """The plan of a layer on the device of ``x``, or why there is none.

    Args:
        batch: B, which a packed input does not show.
        w_hh: (G * H, P) of one direction.
        dtype: of the results.
        directions: 1 or 2, which share a launch.
        flags: of the layer's operator.
        backward: of its backward, else of its forward.
    """
    if x.device.type not in library.gpu_devices:
        return f"the input is on {x.device.type}, which has no limits to plan with"
    of = CELLS[cell]
    text = _ops.persistent_plan(
        x, of.number, batch, w_hh.size(0) // of.gates, w_hh.size(1), dtype,
        FORWARD if directions == 1 else BOTH, flags, backward,
    )  # fmt: skip
    said = bytes(text.tolist()).decode()
    if said.startswith("obstacle="):
        return said.removeprefix("obstacle=")
    return {name: int(value) for name, value in (item.split("=") for item in said.split())}


def in_words(plan: Plan, dtype: torch.dtype) -> str:
    """A plan as ``explain`` tells it."""
    inside, shared = plan["u_in_registers"], plan["u_in_shared"]
    return (
        f"{plan['blocks']} blocks of {plan['units']} units x {plan['rows']} rows, W_hh in registers "
        f"{inside // 1024} KiB and shared memory {shared // 1024} KiB of a block, {plan['bytes_read'] / 1024:.1f} KiB "
        f"exchanged by a block at each step in {'tagged' if plan['tagged'] else 'phased'} words"
        + (", products of 3xTF32" if dtype == torch.float32 else "")
    )


def gradients_asked(tensors: Any) -> bool:
    """Whether a backward may follow, of weights and input."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


__all__ = ["Plan", "gradients_asked", "in_words", "plan_of"]
