"""Dropout of inputs and outputs. It is linear: its gradient is the same kernel on the gradient.

A program takes BLOCK calls of Philox, each of which serves eight neighbouring elements: a row of ``WIDTH`` has
ceil(WIDTH / 8) calls, so that a width that is no power of two pays for itself alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import BLOCKS, aligned, launch
from .masks import examples
from .philox import FIELDS, SEQ, derive_key, dropped_of_calls, keep_scale, product_of, spread
from .rows import Batch


@triton.jit(
    do_not_specialize=["row0", "rows", "batch", "step0", "stream"],
    do_not_specialize_on_alignment=["rng", "thresholds", "example_ids"],
)
def drop_rows_kernel(
    source,  # [N, WIDTH]
    target,  # [N, WIDTH]
    rng,  # [2]
    thresholds,  # [10]
    example_ids,  # [B], or None
    row0: tl.int64,
    rows: tl.int64,  # of the run
    batch: tl.int64,
    step0: tl.int64,  # absolute step of row0
    stream: tl.int64,
    SITE: tl.constexpr,
    WIDTH: tl.constexpr,
    PER_STEP: tl.constexpr,
    SHARED: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    calls: tl.constexpr = (WIDTH + FIELDS - 1) // FIELDS
    k0, k1 = derive_key(rng)
    threshold = tl.load(thresholds + SITE)
    scale = keep_scale(threshold).to(COMPUTE)
    fourth = stream.to(tl.uint32)

    call = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    i = call // calls
    example = examples(example_ids, i % batch, i < rows)
    step = fourth * 0 + SEQ
    if SHARED:
        example = step
    if PER_STEP:
        step = (step0 + i // batch).to(tl.uint32)
    a = (call % calls).to(tl.uint32)
    dropped = spread(dropped_of_calls(a, example, product_of(step), fourth, threshold, k0, k1))

    element = tl.program_id(0).to(tl.int64) * (FIELDS * BLOCK) + tl.arange(0, FIELDS * BLOCK)
    row, column = element // (FIELDS * calls), element % (FIELDS * calls)
    inside = (row < rows) & (column < WIDTH)
    at = (row0 + row) * WIDTH + column
    value = tl.load(source + at, inside, other=0.0).to(COMPUTE)
    tl.store(target + at, tl.where(dropped, 0.0, scale * value), inside)


def drop_rows(
    x: Tensor,
    batch: Batch,
    rng: Tensor,
    thresholds: Tensor,
    example_ids: Tensor | None,
    site: int,
    stream: int,
    per_step: bool,
    batch_shared: bool,
    step_offset: int,
) -> Tensor:
    """x (T, B, width) or packed (N, width), masked and scaled, in its own dtype."""
    x = aligned(x)
    target = torch.empty_like(x)
    width = x.shape[-1]
    compute = tl.float64 if x.dtype == torch.float64 else tl.float32
    for run in batch.runs():
        calls = run.rows * triton.cdiv(width, FIELDS.value)
        launch(
            drop_rows_kernel, triton.cdiv(calls, BLOCKS.dropout),
            x, target, rng, thresholds, example_ids, run.row, run.rows, run.batch, step_offset + run.step, stream,
            SITE=site, WIDTH=width, PER_STEP=per_step, SHARED=batch_shared, COMPUTE=compute, BLOCK=BLOCKS.dropout,
        )  # fmt: skip
    return target
