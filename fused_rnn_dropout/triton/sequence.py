"""What the whole-sequence kernels share: rows of a step, products of blocks, and why one barrier a step is enough.

A program owns ROWS rows of the batch for all steps of its launch and computes all their units, block by block; the
recurrent weight is read again each step, from L2. Programs never read what another one writes. Within a program,
threads do, through global memory:

- *The operand of the next step.* Every unit reads all of it. It has two halves, used in turn: step s reads half s % 2
  and writes the other one. The barrier at the end of a step orders its writes before the reads of step s + 1, and its
  reads before the writes of step s + 1, which go to the half that it read. Backward, the gradients at the gates of the
  later step take that part; each step has its own rows of them.
- *The carried state.* Each element is read and written once a step, and what is written depends on what was read, so
  that the read comes first whichever threads do it; the barrier orders this step's write before the next step's read.

Forward, U is read as its transpose, which is made once a call: units lie side by side then, as the product takes them,
and its blocks go through shared memory with few conflicts of banks (``tools/count_banks.py``). Backward takes U itself
so.

``tl.debug_barrier`` is the barrier of all threads of a program; global memory that its threads have written before it
they all see after it. Loads are plain ones of the same memory space, never the asynchronous proxy (no descriptors).
No run shows a barrier that is missing, but in the compiled kernels ``tools/check_barriers.py`` does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..library import triton_interpreted
from .rows import Batch

_INTERPRETED = tl.constexpr(triton_interpreted())


@triton.jit
def rows_of(layout, t, steps, batch):
    """First row and number of rows of step t; none where there is no such step."""
    exists = (t >= 0) & (t < steps)
    if layout is not None:
        row0 = tl.load(layout + t, exists, other=0)
        rows = tl.load(layout + steps + t, exists, other=0)
    else:
        row0, rows = tl.where(exists, t * batch, 0), tl.where(exists, batch, 0)
    return row0, rows


@triton.jit
def dot(a, b, sums, PRECISION: tl.constexpr):
    """sums + a b; PRECISION tells what float32 operands are rounded to."""
    if _INTERPRETED and a.dtype != tl.float64:  # which holds bfloat16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


def layout_of(batch: Batch, device: torch.device) -> Tensor | None:
    """int64 [2, T] of a packed batch: first row and number of rows of each step."""
    if not batch.packed:
        return None
    table = torch.tensor([batch.offsets, batch.sizes], dtype=torch.int64)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
