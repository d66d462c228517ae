"""All steps of an LSTM in one launch, forward and backward; ``sequence.py`` says why that is right.

The maths of a step is that of ``lstm_step.py``, on blocks of (ROWS, UNITS).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .cells import lstm_forward
from .launch import Tiles, launch
from .lstm_step import finish, pre_activation
from .lstm_step_backward import at_gates, at_h
from .masks import examples, state_masks
from .passes import Backward, Forward
from .philox import product_of
from .rows import Batch
from .sequence import dot, rows_of
from .sites import Sites

_COUNTS = ["begin", "end", "steps", "batch", "chunk_row", "step_offset", "stream"]


@triton.jit(do_not_specialize=_COUNTS, do_not_specialize_on_alignment=["layout", "thresholds", "example_ids"])
def lstm_sequence_forward_kernel(
    pre,  # S [rows of a chunk, 4H]: W x
    w_hh,  # D [H, 4H], masked: the transpose of U
    bias,  # S [4H], or None
    c,  # S [B, H]: the memory, carried
    h,  # S [B, H]: h, carried
    read,  # D [2, B, H]: h as products read it, both halves filled
    out,  # D [N, H]
    states,  # D [N, H], or None
    gates,  # D [N, 4H], activated, or None
    cells,  # S [N, H], or None
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
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    COLUMN: tl.constexpr,  # of the output: Sites.column
    FLAGS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    K: tl.constexpr,
):
    S: tl.constexpr = c.dtype.element_ty
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
            i, f = tl.zeros((ROWS, UNITS), S), tl.zeros((ROWS, UNITS), S)
            g, o = tl.zeros((ROWS, UNITS), S), tl.zeros((ROWS, UNITS), S)
            for k0 in range(0, H, K):
                k, k_ = k0 + tl.arange(0, K)[None, :], k0 + tl.arange(0, K)[:, None]
                operand = tl.load(from_ + b * H + k, (b < active) & (k < H), other=0.0)
                w, fits = w_hh + k_ * (4 * H) + unit, (unit < H) & (k_ < H)
                i = dot(operand, tl.load(w, fits, other=0.0), i, PRECISION)
                f = dot(operand, tl.load(w + H, fits, other=0.0), f, PRECISION)
                g = dot(operand, tl.load(w + 2 * H, fits, other=0.0), g, PRECISION)
                o = dot(operand, tl.load(w + 3 * H, fits, other=0.0), o, PRECISION)

            drops = state_masks(keys, thresholds, unit, example, product, stream, FLAGS)
            p = (row - chunk_row) * (4 * H) + unit
            i = pre_activation(pre, i, bias, p, unit, inside)
            f = pre_activation(pre, f, bias, p + H, unit + H, inside)
            g = pre_activation(pre, g, bias, p + 2 * H, unit + 2 * H, inside)
            o = pre_activation(pre, o, bias, p + 3 * H, unit + 3 * H, inside)
            old = tl.load(c + b * H + unit, inside, other=0.0)
            i, f, g, o, new, h_new = lstm_forward(i, f, g, o, old, drops, numbers, FLAGS)
            tl.store(c + b * H + unit, new, inside)
            if gates is not None:
                place = gates + row * (4 * H) + unit
                tl.store(place, i, inside)
                tl.store(place + H, f, inside)
                tl.store(place + 2 * H, g, inside)
                tl.store(place + 3 * H, o, inside)
            if cells is not None:
                tl.store(cells + row * H + unit, new, inside)
            finish(
                h_new, h, to, out, states, numbers, keys, thresholds, b, unit, row, example, product, stream, drops,
                inside, H, COLUMN, FLAGS,
            )  # fmt: skip
        tl.debug_barrier()


def forward_steps(
    f: Forward, pre: Tensor, w_hh: Tensor, layout: Tensor | None, sites: Sites, batch: Batch, begin: int, end: int,
    chunk_row: int, tiles: Tiles, precision: str,
) -> None:  # fmt: skip
    """Steps ``begin`` .. ``end`` in the order of the recurrence."""
    assert f.c is not None
    launch(
        lstm_sequence_forward_kernel, triton.cdiv(batch.batch, tiles.rows),
        pre, w_hh, f.bias, f.c, f.h, f.read, f.out, f.states, f.gates, f.beside, layout, *sites.tensors, begin,
        end, batch.steps, batch.batch, chunk_row, sites.step_offset, sites.stream, REVERSE=batch.reverse,
        PRECISION=precision, H=f.c.shape[1], COLUMN=sites.column, FLAGS=sites.flags, ROWS=tiles.rows,
        UNITS=tiles.units, K=tiles.k, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["steps", "batch", "step_offset", "stream"],
    do_not_specialize_on_alignment=["c0", "layout", "thresholds", "example_ids"],
)
def lstm_sequence_backward_kernel(
    w_hh,  # D [4H, H], masked
    dout,  # [N, H], or None
    dh,  # S [B, H]: the gradient at h that is carried past the product
    gates,  # D [N, 4H], activated
    cells,  # S [N, H]
    c0,  # [B, H]: a caller's
    dc,  # S [B, H]: the gradient at c, carried
    dgates,  # D [N, 4H], maybe `gates`
    layout,  # [2, T] of a packed batch, or None
    numbers,
    keys,
    thresholds,
    example_ids,
    steps: tl.int64,
    batch: tl.int64,
    step_offset: tl.int64,
    stream: tl.int64,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    COLUMN: tl.constexpr,  # of the output: Sites.column
    FLAGS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    K: tl.constexpr,
):
    S: tl.constexpr = dc.dtype.element_ty
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    example = examples(example_ids, b, b < batch)
    for step in range(steps):
        t, way = steps - 1 - step, 1  # the recurrence's way through time
        if REVERSE:
            t, way = step, -1
        row0, active = rows_of(layout, t, steps, batch)
        after_row0, sent = rows_of(layout, t + way, steps, batch)
        before_row0, continued = rows_of(layout, t - way, steps, batch)
        continued, row = tl.minimum(continued, active), row0 + b
        product = product_of((step_offset + t).to(tl.uint32))
        for u0 in range(0, H, UNITS):
            unit = u0 + tl.arange(0, UNITS)[None, :]
            inside = (b < tl.maximum(active, sent)) & (unit < H)
            sum_ = tl.zeros((ROWS, UNITS), S)
            for k0 in range(0, 4 * H, K):
                k, k_ = k0 + tl.arange(0, K)[None, :], k0 + tl.arange(0, K)[:, None]
                later = tl.load(dgates + (after_row0 + b) * (4 * H) + k, (b < sent) & (k < 4 * H), other=0.0)
                w = tl.load(w_hh + k_ * H + unit, (k_ < 4 * H) & (unit < H), other=0.0)
                sum_ = dot(later, w, sum_, PRECISION)
            drops = state_masks(keys, thresholds, unit, example, product, stream, FLAGS)
            dh_new = at_h(
                sum_, dout, dh, numbers, keys, thresholds, b, unit, row, example, product, stream, drops, active,
                inside, H, COLUMN, FLAGS,
            )  # fmt: skip
            at_gates(
                dh_new, gates, cells, c0, dc, dgates, None, numbers, b, unit, row, before_row0, continued, drops,
                inside & (b < active), H, FLAGS,
            )  # fmt: skip
        tl.debug_barrier()


def backward_steps(
    k: Backward, w_hh: Tensor, layout: Tensor | None, sites: Sites, batch: Batch, tiles: Tiles, precision: str
) -> None:
    assert k.dc is not None
    launch(
        lstm_sequence_backward_kernel, triton.cdiv(batch.batch, tiles.rows),
        w_hh, k.dout, k.dh, k.gates, k.beside, k.c0, k.dc, k.dgates, layout, *sites.tensors, batch.steps, batch.batch,
        sites.step_offset, sites.stream, REVERSE=batch.reverse, PRECISION=precision, H=k.dc.shape[1],
        COLUMN=sites.column, FLAGS=sites.flags, ROWS=tiles.rows, UNITS=tiles.units, K=tiles.k, num_warps=tiles.warps,
        num_stages=tiles.stages,
    )  # fmt: skip
