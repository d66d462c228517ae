"""One step of an LSTM between two products, forward: one thread sees all gates of a unit.

A block is BLOCK neighbouring elements of (rows, H), each row filled up to a multiple of 8: no H pays for another one's
size, and eight units share a call of Philox. A row of this step is number ``b`` of the batch and number ``row0 + b`` of
the sequence. D is the dtype of the results, S the type that the cell computes in.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .cells import lstm_forward, sigmoid, tanh
from .entry import operand
from .launch import BLOCKS, launch, step_programs
from .masks import drop_written, elements, examples, state_masks, zone_h
from .passes import Forward, Pass
from .rows import Batch
from .sites import Sites, on

_SITES = ["thresholds", "example_ids"]


# --------------------------------------------------------------------------------------------------------------------
# Forward
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def pre_activation(pre, sum_, bias, at_pre, at_bias, inside):
    """W x + U h + b of one gate, from ``sum_`` = U h."""
    value = tl.load(pre + at_pre, inside, other=0.0) + sum_
    if bias is not None:
        value += tl.load(bias + at_bias, inside, other=0.0)
    return value


@triton.jit
def finish(
    h_new, h, read, out, states, numbers, keys, thresholds, b, unit, row, example, product, stream, drops, inside,
    P: tl.constexpr, COLUMN: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """Zoneout of h, and everything that h goes to."""
    old = tl.load(h + b * P + unit, inside, other=0.0)
    zoned = zone_h(old, h_new, drops, numbers, FLAGS)
    tl.store(h + b * P + unit, zoned, inside)
    shown = zoned
    if on(FLAGS, "UNZONED"):
        shown = h_new
    shown = drop_written(shown, numbers, keys, thresholds, unit, example, product, stream, COLUMN, FLAGS)
    tl.store(out + row * P + unit, shown, inside)
    if states is not None:
        tl.store(states + row * P + unit, zoned, inside)
    seen = operand(zoned, numbers, keys, thresholds, unit, example, stream, False, FLAGS)
    tl.store(read + b * P + unit, seen, inside)


@triton.jit(
    do_not_specialize=["active", "row0", "pre_row0", "product", "stream"],
    do_not_specialize_on_alignment=_SITES,
)
def lstm_forward_kernel(
    pre,  # S [rows of a chunk, 4H]: W x
    rec,  # S [active, 4H]: U h
    bias,  # S [4H], or None
    c,  # S [B, H]: the memory, carried
    h,  # S [B, H]: h, carried; with a projection None, as every argument but `outputs` down to `states`
    read,  # D [B, H]: h as the next product reads it
    out,  # D [N, H]
    states,  # D [N, H], or None
    outputs,  # D [B, H]: with a projection, what it reads; else None
    gates,  # D [N, 4H], activated, or None
    cells,  # S [N, H], or None
    numbers,
    keys,
    thresholds,
    example_ids,
    active: tl.int64,
    row0: tl.int64,
    pre_row0: tl.int64,  # row0 in the chunk
    product: tl.int64,  # of the absolute step: Sites.product()
    stream: tl.int64,
    H: tl.constexpr,
    COLUMN: tl.constexpr,  # of the output: Sites.column
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, unit = elements(H, BLOCK)
    at, inside = b * H + unit, (b < active) & (unit < H)
    row, example = row0 + b, examples(example_ids, b, inside)
    drops = state_masks(keys, thresholds, unit, example, product, stream, FLAGS)

    p, r = (pre_row0 + b) * (4 * H) + unit, rec + b * (4 * H) + unit
    i = pre_activation(pre, tl.load(r, inside, other=0.0), bias, p, unit, inside)
    f = pre_activation(pre, tl.load(r + H, inside, other=0.0), bias, p + H, unit + H, inside)
    g = pre_activation(pre, tl.load(r + 2 * H, inside, other=0.0), bias, p + 2 * H, unit + 2 * H, inside)
    o = pre_activation(pre, tl.load(r + 3 * H, inside, other=0.0), bias, p + 3 * H, unit + 3 * H, inside)
    old = tl.load(c + at, inside, other=0.0)
    i, f, g, o, new, h_new = lstm_forward(i, f, g, o, old, drops, numbers, FLAGS)

    tl.store(c + at, new, inside)
    if gates is not None:
        to = gates + row * (4 * H) + unit
        tl.store(to, i, inside)
        tl.store(to + H, f, inside)
        tl.store(to + 2 * H, g, inside)
        tl.store(to + 3 * H, o, inside)
    if cells is not None:
        tl.store(cells + row * H + unit, new, inside)
    if outputs is not None:
        tl.store(outputs + at, h_new, inside)
    else:
        finish(
            h_new, h, read, out, states, numbers, keys, thresholds, b, unit, row, example, product, stream, drops,
            inside, H, COLUMN, FLAGS,
        )  # fmt: skip


def forward_step(f: Forward, pre: Tensor, rec: Tensor, sites: Sites, batch: Batch, t: int, chunk_row: int) -> None:
    """With a projection only what it reads is written: what h goes to follows it, in :func:`project_step`."""
    assert f.c is not None
    active, units, row = batch.active(t), f.c.shape[1], batch.row(t)
    of_h = (f.h, f.read, f.out, f.states) if f.outputs is None else (None,) * 4
    launch(
        lstm_forward_kernel, step_programs(active, units),
        pre, rec, f.bias, f.c, *of_h, f.outputs, f.gates, f.beside, *sites.tensors, active, row,
        row - chunk_row, sites.product(t), sites.stream, H=units, COLUMN=sites.column, FLAGS=sites.flags,
        BLOCK=BLOCKS.step,
    )  # fmt: skip


@triton.jit(do_not_specialize=["active", "row0", "product", "stream"], do_not_specialize_on_alignment=_SITES)
def lstm_project_kernel(
    projected,  # S [active, P]: W_hr times what the projection reads
    h,  # S [B, P]
    read,  # D [B, P]
    out,  # D [N, P]
    states,  # D [N, P], or None
    numbers,
    keys,
    thresholds,
    example_ids,
    active: tl.int64,
    row0: tl.int64,
    product: tl.int64,
    stream: tl.int64,
    P: tl.constexpr,
    COLUMN: tl.constexpr,  # of the output: Sites.column
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, unit = elements(P, BLOCK)
    at, inside = b * P + unit, (b < active) & (unit < P)
    example = examples(example_ids, b, inside)
    drops = state_masks(keys, thresholds, unit, example, product, stream, FLAGS)
    h_new = tl.load(projected + at, inside, other=0.0)
    finish(
        h_new, h, read, out, states, numbers, keys, thresholds, b, unit, row0 + b, example, product, stream, drops,
        inside, P, COLUMN, FLAGS,
    )  # fmt: skip


def project_step(f: Forward, projected: Tensor, sites: Sites, batch: Batch, t: int) -> None:
    active, width = batch.active(t), f.h.shape[1]
    launch(
        lstm_project_kernel, step_programs(active, width),
        projected, f.h, f.read, f.out, f.states, *sites.tensors, active, batch.row(t), sites.product(t),
        sites.stream, P=width, COLUMN=sites.column, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip


@triton.jit(do_not_specialize=["total"])
def lstm_activate_kernel(
    pre,  # S [rows of a chunk, 4H]: W x
    rec,  # S [rows of a chunk, 4H]: U h
    bias,  # S [4H], or None
    gates,  # D [rows of a chunk, 4H], activated
    total: tl.int64,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column, inside = at % (4 * H), at < total
    value = pre_activation(pre, tl.load(rec + at, inside, other=0.0), bias, at, column, inside)
    value = tl.where((column >= 2 * H) & (column < 3 * H), tanh(value), sigmoid(value))
    tl.store(gates + at, value, inside)


def activate(p: Pass, pre: Tensor, rec: Tensor, gates: Tensor) -> None:
    """The gates of some rows once more, for a backward whose forward kept only the states."""
    total = gates.numel()
    launch(
        lstm_activate_kernel,
        triton.cdiv(total, BLOCKS.step),
        pre,
        rec,
        p.bias,
        gates,
        total,
        H=gates.shape[1] // 4,
        BLOCK=BLOCKS.step,
    )
