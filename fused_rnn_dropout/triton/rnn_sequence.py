"""All steps of a plain RNN in one launch, forward and backward; ``sequence.py`` says why that is right.

The maths of a step is that of ``rnn_step.py``, on blocks of (ROWS, UNITS).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .cells import rnn_forward
from .launch import Tiles, launch
from .lstm_step import finish, pre_activation
from .lstm_step_backward import at_h
from .masks import examples, state_masks
from .passes import Backward, Forward
from .philox import product_of
from .rnn_step import at_gate
from .rows import Batch
from .sequence import dot, rows_of
from .sites import Sites

_COUNTS = ["begin", "end", "steps", "batch", "chunk_row", "step_offset", "stream"]


@triton.jit(do_not_specialize=_COUNTS, do_not_specialize_on_alignment=["layout", "thresholds", "example_ids"])
def rnn_sequence_forward_kernel(
    pre,  # S [rows of a chunk, H]: W x
    w_hh,  # D [H, H], masked: the transpose of U
    bias,  # S [H], or None
    h,  # S [B, H]: the state, carried
    read,  # D [2, B, H]: h as products read it, both halves filled
    out,  # D [N, H]
    states,  # D [N, H], or None
    gates,  # D [N, H]: the candidate, or None
    layout,  # [2, T] of a packed batch, or None
    numbers,
    keys,
    thresholds,
    example_ids,
    begin: tl.int64,  # steps in the order of the recurrence
    end: tl.int64,
    steps: tl.int64,
    batch: tl.int64,
    chunk_row: tl.int64,  # the row of `pre` number 0
    step_offset: tl.int64,
    stream: tl.int64,
    RELU: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    COLUMN: tl.constexpr,  # of the output: Sites.column
    FLAGS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    K: tl.constexpr,
):
    S: tl.constexpr = h.dtype.element_ty
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    example = examples(example_ids, b, b < batch)
    for s in range(begin, end):
        t = s
        if REVERSE:
            t = steps - 1 - s
        row0, active = rows_of(layout, t, steps, batch)
        product = product_of((step_offset + t).to(tl.uint32))
        row, from_, to = row0 + b, read + (s % 2) * batch * H, read + ((s + 1) % 2) * batch * H
        for u0 in range(0, H, UNITS):
            unit = u0 + tl.arange(0, UNITS)[None, :]
            inside = (b < active) & (unit < H)
            sum_ = tl.zeros((ROWS, UNITS), S)
            for k0 in range(0, H, K):
                k, k_ = k0 + tl.arange(0, K)[None, :], k0 + tl.arange(0, K)[:, None]
                operand = tl.load(from_ + b * H + k, (b < active) & (k < H), other=0.0)
                w = tl.load(w_hh + k_ * H + unit, (unit < H) & (k_ < H), other=0.0)
                sum_ = dot(operand, w, sum_, PRECISION)

            drops = state_masks(keys, thresholds, unit, example, product, stream, FLAGS)
            a = pre_activation(pre, sum_, bias, (row - chunk_row) * H + unit, unit, inside)
            candidate, h_new = rnn_forward(a, drops, numbers, RELU, FLAGS)
            if gates is not None:
                tl.store(gates + row * H + unit, candidate, inside)
            finish(
                h_new, h, to, out, states, numbers, keys, thresholds, b, unit, row, example, product, stream, drops,
                inside, H, COLUMN, FLAGS,
            )  # fmt: skip
        tl.debug_barrier()


def forward_steps(
    f: Forward, pre: Tensor, w_hh: Tensor, layout: Tensor | None, sites: Sites, batch: Batch, begin: int, end: int,
    chunk_row: int, tiles: Tiles, precision: str, *, relu: bool,
) -> None:  # fmt: skip
    """Steps ``begin`` .. ``end`` in the order of the recurrence."""
    launch(
        rnn_sequence_forward_kernel, triton.cdiv(batch.batch, tiles.rows),
        pre, w_hh, f.bias, f.h, f.read, f.out, f.states, f.gates, layout, *sites.tensors, begin, end,
        batch.steps, batch.batch, chunk_row, sites.step_offset, sites.stream, RELU=relu, REVERSE=batch.reverse,
        PRECISION=precision, H=f.h.shape[1], COLUMN=sites.column, FLAGS=sites.flags, ROWS=tiles.rows,
        UNITS=tiles.units, K=tiles.k, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["steps", "batch", "step_offset", "stream"],
    do_not_specialize_on_alignment=["layout", "thresholds", "example_ids"],
)
def rnn_sequence_backward_kernel(
    w_hh,  # D [H, H], masked
    dout,  # [N, H], or None
    dh,  # S [B, H]: the gradient at h that is carried past the product
    gates,  # D [N, H]: the candidate
    dgates,  # D [N, H], maybe `gates`
    layout,  # [2, T] of a packed batch, or None
    numbers,
    keys,
    thresholds,
    example_ids,
    steps: tl.int64,
    batch: tl.int64,
    step_offset: tl.int64,
    stream: tl.int64,
    RELU: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    COLUMN: tl.constexpr,  # of the output: Sites.column
    FLAGS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    K: tl.constexpr,
):
    S: tl.constexpr = dh.dtype.element_ty
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    example = examples(example_ids, b, b < batch)
    for step in range(steps):
        t, way = steps - 1 - step, 1  # the recurrence's way through time
        if REVERSE:
            t, way = step, -1
        row0, active = rows_of(layout, t, steps, batch)
        after_row0, sent = rows_of(layout, t + way, steps, batch)
        row, product = row0 + b, product_of((step_offset + t).to(tl.uint32))
        for u0 in range(0, H, UNITS):
            unit = u0 + tl.arange(0, UNITS)[None, :]
            inside = (b < tl.maximum(active, sent)) & (unit < H)
            sum_ = tl.zeros((ROWS, UNITS), S)
            for k0 in range(0, H, K):
                k, k_ = k0 + tl.arange(0, K)[None, :], k0 + tl.arange(0, K)[:, None]
                later = tl.load(dgates + (after_row0 + b) * H + k, (b < sent) & (k < H), other=0.0)
                w = tl.load(w_hh + k_ * H + unit, (k_ < H) & (unit < H), other=0.0)
                sum_ = dot(later, w, sum_, PRECISION)
            drops = state_masks(keys, thresholds, unit, example, product, stream, FLAGS)
            dh_new = at_h(
                sum_, dout, dh, numbers, keys, thresholds, b, unit, row, example, product, stream, drops, active,
                inside, H, COLUMN, FLAGS,
            )  # fmt: skip
            at_gate(dh_new, gates, dgates, numbers, unit, row, drops, inside & (b < active), RELU, H, FLAGS)
        tl.debug_barrier()


def backward_steps(
    k: Backward, w_hh: Tensor, layout: Tensor | None, sites: Sites, batch: Batch, tiles: Tiles, precision: str, *,
    relu: bool,
) -> None:  # fmt: skip
    launch(
        rnn_sequence_backward_kernel, triton.cdiv(batch.batch, tiles.rows),
        w_hh, k.dout, k.dh, k.gates, k.dgates, layout, *sites.tensors, batch.steps, batch.batch, sites.step_offset,
        sites.stream, RELU=relu, REVERSE=batch.reverse, PRECISION=precision, H=k.dh.shape[1], COLUMN=sites.column,
        FLAGS=sites.flags,
        ROWS=tiles.rows, UNITS=tiles.units, K=tiles.k, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
