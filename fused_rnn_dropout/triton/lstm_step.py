"""One step of an LSTM between two products, forward and backward: one thread sees all gates of a unit.

A block is BLOCK neighbouring elements of (rows, H), so that no H pays for another one's size. A row of this step is
number ``b`` of the batch and number ``row0 + b`` of the sequence. D is the dtype of the results, S the type that the
cell computes in.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .batch import Batch
from .cells import lstm_backward, lstm_forward, lstm_memory, lstm_output, sigmoid, tanh
from .entry import operand, through
from .launch import launch
from .schedules import BLOCKS
from .state_sites import Sites, enter, examples, on, split_h, state_masks, zone_h

_SITES = ["thresholds", "example_ids"]


# --------------------------------------------------------------------------------------------------------------------
# Forward
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def pre_activation(pre, sum_, b_ih, b_hh, at_pre, at_bias, inside):
    """W x + U h + b of one gate, from ``sum_`` = U h."""
    value = tl.load(pre + at_pre, inside, other=0.0) + sum_
    if b_ih is not None:
        S: tl.constexpr = value.dtype
        value += tl.load(b_ih + at_bias, inside, other=0.0).to(S) + tl.load(b_hh + at_bias, inside, other=0.0).to(S)
    return value


@triton.jit
def finish(
    h_new, h, read, out, states, numbers, keys, thresholds, b, unit, row, example, stream, keep_h, inside,
    P: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """Zoneout of h, and everything that h goes to."""
    old = tl.load(h + b * P + unit, inside, other=0.0)
    zoned = zone_h(old, h_new, keep_h, numbers, FLAGS)
    tl.store(h + b * P + unit, zoned, inside)
    if on(FLAGS, "UNZONED"):
        tl.store(out + row * P + unit, h_new, inside)
    else:
        tl.store(out + row * P + unit, zoned, inside)
    if states is not None:
        tl.store(states + row * P + unit, zoned, inside)
    seen = operand(zoned, numbers, keys, thresholds, unit, example, stream, False, FLAGS)
    tl.store(read + b * P + unit, seen, inside)


@triton.jit(
    do_not_specialize=["active", "row0", "pre_row0", "step", "stream"],
    do_not_specialize_on_alignment=["pre", "b_ih", "b_hh", *_SITES],
)
def lstm_forward_kernel(
    pre,  # S [rows of a chunk, 4H]: W x
    rec,  # S [active, 4H]: U h
    b_ih,  # [4H], or None
    b_hh,  # [4H], or None
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
    step: tl.int64,  # absolute
    stream: tl.int64,
    H: tl.constexpr,
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b, unit, inside = at // H, at % H, at < active * H
    row, example = row0 + b, examples(example_ids, b, inside)
    update, memory, keep_c, keep_h = state_masks(keys, thresholds, unit, example, step, stream, FLAGS)

    p, r = (pre_row0 + b) * (4 * H) + unit, rec + b * (4 * H) + unit
    i = pre_activation(pre, tl.load(r, inside, other=0.0), b_ih, b_hh, p, unit, inside)
    f = pre_activation(pre, tl.load(r + H, inside, other=0.0), b_ih, b_hh, p + H, unit + H, inside)
    g = pre_activation(pre, tl.load(r + 2 * H, inside, other=0.0), b_ih, b_hh, p + 2 * H, unit + 2 * H, inside)
    o = pre_activation(pre, tl.load(r + 3 * H, inside, other=0.0), b_ih, b_hh, p + 3 * H, unit + 3 * H, inside)
    old = tl.load(c + at, inside, other=0.0)
    i, f, g, o, new, h_new = lstm_forward(i, f, g, o, old, update, memory, keep_c, numbers, FLAGS)

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
            h_new, h, read, out, states, numbers, keys, thresholds, b, unit, row, example, stream, keep_h, inside,
            H, FLAGS,
        )  # fmt: skip


def forward_step(
    pre: Tensor, rec: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, c: Tensor, h: Tensor | None,
    read: Tensor | None, out: Tensor | None, states: Tensor | None, outputs: Tensor | None, gates: Tensor | None,
    cells: Tensor | None, sites: Sites, batch: Batch, t: int, chunk_row: int,
) -> None:  # fmt: skip
    active, units, row = batch.active(t), c.shape[1], batch.row(t)
    launch(
        lstm_forward_kernel, triton.cdiv(active * units, BLOCKS.step),
        pre, rec, b_ih, b_hh, c, h, read, out, states, outputs, gates, cells, *sites.tensors, active, row,
        row - chunk_row, sites.step_offset + t, sites.stream, H=units, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip


@triton.jit(do_not_specialize=["active", "row0", "step", "stream"], do_not_specialize_on_alignment=_SITES)
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
    step: tl.int64,
    stream: tl.int64,
    P: tl.constexpr,
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b, unit, inside = at // P, at % P, at < active * P
    example = examples(example_ids, b, inside)
    _, _, _, keep_h = state_masks(keys, thresholds, unit, example, step, stream, FLAGS)
    h_new = tl.load(projected + at, inside, other=0.0)
    finish(
        h_new, h, read, out, states, numbers, keys, thresholds, b, unit, row0 + b, example, stream, keep_h, inside,
        P, FLAGS,
    )  # fmt: skip


def project_step(
    projected: Tensor, h: Tensor, read: Tensor, out: Tensor, states: Tensor | None, sites: Sites, batch: Batch, t: int
) -> None:
    active, width = batch.active(t), h.shape[1]
    launch(
        lstm_project_kernel, triton.cdiv(active * width, BLOCKS.step),
        projected, h, read, out, states, *sites.tensors, active, batch.row(t), sites.step_offset + t, sites.stream,
        P=width, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip


@triton.jit(do_not_specialize=["total"], do_not_specialize_on_alignment=["pre", "rec", "b_ih", "b_hh"])
def lstm_activate_kernel(
    pre,  # S [rows of a chunk, 4H]: W x
    rec,  # S [rows of a chunk, 4H]: U h
    b_ih,  # [4H], or None
    b_hh,  # [4H], or None
    gates,  # D [rows of a chunk, 4H], activated
    total: tl.int64,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column, inside = at % (4 * H), at < total
    value = pre_activation(pre, tl.load(rec + at, inside, other=0.0), b_ih, b_hh, at, column, inside)
    value = tl.where((column >= 2 * H) & (column < 3 * H), tanh(value), sigmoid(value))
    tl.store(gates + at, value, inside)


def activate(pre: Tensor, rec: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, gates: Tensor) -> None:
    """The gates of some rows once more, for a backward whose forward kept only the states."""
    total = gates.numel()
    launch(
        lstm_activate_kernel,
        triton.cdiv(total, BLOCKS.step),
        pre,
        rec,
        b_ih,
        b_hh,
        gates,
        total,
        H=gates.shape[1] // 4,
        BLOCK=BLOCKS.step,
    )


# --------------------------------------------------------------------------------------------------------------------
# Backward
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def at_h(
    sum_, dout, dh, numbers, keys, thresholds, b, unit, row, example, stream, keep_h, active, inside,
    P: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """The gradient at the new h; what zoneout sends to the h before is carried in ``dh``.

    ``sum_`` is what the step after sends through U; a row that has no such step gets 0. A row that is not active any
    more, which only a reversed packed batch has, is done: ``dh`` keeps its gradient at h_0.
    """
    at = b * P + unit
    S: tl.constexpr = dh.dtype.element_ty
    total = tl.load(dh + at, inside, other=0.0)
    total += through(sum_, numbers, keys, thresholds, unit, example, stream, False, FLAGS)
    if dout is not None:
        grad = tl.load(dout + row * P + unit, inside & (b < active), other=0.0).to(S)
    else:
        grad = tl.zeros_like(total)
    if not on(FLAGS, "UNZONED"):
        total += grad
    to_old, to_new = split_h(total, keep_h, numbers, FLAGS)
    if on(FLAGS, "UNZONED"):
        to_new += grad
    tl.store(dh + at, tl.where(b < active, to_old, total), inside)
    return to_new


@triton.jit
def at_gates(
    dh_new, gates, cells, c0, dc, dgates, outputs, numbers, b, unit, row, before_row0, continued, update, memory,
    keep_c, inside, H: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """From the gradient at the new h to those at the pre-activations, and at the memory before."""
    S: tl.constexpr = dc.dtype.element_ty
    place = row * (4 * H) + unit
    i = tl.load(gates + place, inside, other=0.0).to(S)
    f = tl.load(gates + place + H, inside, other=0.0).to(S)
    g = tl.load(gates + place + 2 * H, inside, other=0.0).to(S)
    o = tl.load(gates + place + 3 * H, inside, other=0.0).to(S)
    first = tl.load(c0 + b * H + unit, inside & (b >= continued), other=0.0).to(S)
    first = enter(first, memory, numbers, False, FLAGS)
    c = tl.load(cells + (before_row0 + b) * H + unit, inside & (b < continued), other=0.0)
    c = tl.where(b < continued, c, first)
    if outputs is not None:
        c_new = lstm_memory(i, f, g, c, update, memory, numbers, FLAGS)
        tl.store(outputs + row * H + unit, lstm_output(o, c_new, numbers, FLAGS), inside)
    later = tl.load(dc + b * H + unit, inside, other=0.0)
    di, df, dg, do, earlier = lstm_backward(i, f, g, o, c, dh_new, later, update, memory, keep_c, numbers, FLAGS)
    tl.store(dc + b * H + unit, earlier, inside)
    tl.store(dgates + place, di, inside)
    tl.store(dgates + place + H, df, inside)
    tl.store(dgates + place + 2 * H, dg, inside)
    tl.store(dgates + place + 3 * H, do, inside)


@triton.jit(
    do_not_specialize=["active", "sent", "row0", "before_row0", "continued", "step", "stream"],
    do_not_specialize_on_alignment=["dout", "gates", "cells", "c0", *_SITES],
)
def lstm_backward_kernel(
    rec,  # S [sent, H]: what the step after sends through U, before hidden dropout
    dout,  # [N, H], or None
    dh,  # S [B, H]: the gradient at h that is carried past the product
    gates,  # D [N, 4H], activated
    cells,  # S [N, H]
    c0,  # [B, H]: a caller's
    dc,  # S [B, H]: the gradient at c, carried
    dgates,  # D [N, 4H]; it may be `gates`: an element is read and written by one thread
    numbers,
    keys,
    thresholds,
    example_ids,
    active: tl.int64,
    sent: tl.int64,
    row0: tl.int64,
    before_row0: tl.int64,
    continued: tl.int64,
    step: tl.int64,
    stream: tl.int64,
    H: tl.constexpr,
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b, unit = at // H, at % H
    inside = b < tl.maximum(active, sent)
    row, example = row0 + b, examples(example_ids, b, inside)
    update, memory, keep_c, keep_h = state_masks(keys, thresholds, unit, example, step, stream, FLAGS)
    sum_ = tl.load(rec + at, inside & (b < sent), other=0.0)
    dh_new = at_h(
        sum_, dout, dh, numbers, keys, thresholds, b, unit, row, example, stream, keep_h, active, inside, H, FLAGS
    )
    at_gates(
        dh_new, gates, cells, c0, dc, dgates, None, numbers, b, unit, row, before_row0, continued, update, memory,
        keep_c, inside & (b < active), H, FLAGS,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["active", "sent", "row0", "step", "stream"], do_not_specialize_on_alignment=["dout", *_SITES]
)
def lstm_unproject_kernel(
    rec,  # S [sent, P]
    dout,  # [N, P], or None
    dh,  # S [B, P]
    dprojected,  # D [N, P]: the gradient at the projected h
    numbers,
    keys,
    thresholds,
    example_ids,
    active: tl.int64,
    sent: tl.int64,
    row0: tl.int64,
    step: tl.int64,
    stream: tl.int64,
    P: tl.constexpr,
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b, unit = at // P, at % P
    inside = b < tl.maximum(active, sent)
    row, example = row0 + b, examples(example_ids, b, inside)
    _, _, _, keep_h = state_masks(keys, thresholds, unit, example, step, stream, FLAGS)
    sum_ = tl.load(rec + at, inside & (b < sent), other=0.0)
    dh_new = at_h(
        sum_, dout, dh, numbers, keys, thresholds, b, unit, row, example, stream, keep_h, active, inside, P, FLAGS
    )
    tl.store(dprojected + row * P + unit, dh_new, b < active)


@triton.jit(
    do_not_specialize=["active", "row0", "before_row0", "continued", "step", "stream"],
    do_not_specialize_on_alignment=["gates", "cells", "c0", *_SITES],
)
def lstm_projected_backward_kernel(
    dh_new,  # S [active, H]: the gradient at what the projection read
    gates,  # D [N, 4H]
    cells,  # S [N, H]
    c0,  # [B, H]
    dc,  # S [B, H]
    dgates,  # D [N, 4H], maybe `gates`
    outputs,  # D [N, H]: what the projection read, for the gradient of W_hr
    numbers,
    keys,
    thresholds,
    example_ids,
    active: tl.int64,
    row0: tl.int64,
    before_row0: tl.int64,
    continued: tl.int64,
    step: tl.int64,
    stream: tl.int64,
    H: tl.constexpr,
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b, unit, inside = at // H, at % H, at < active * H
    update, memory, keep_c, _ = state_masks(
        keys, thresholds, unit, examples(example_ids, b, inside), step, stream, FLAGS
    )
    at_gates(
        tl.load(dh_new + at, inside, other=0.0), gates, cells, c0, dc, dgates, outputs, numbers, b, unit, row0 + b,
        before_row0, continued, update, memory, keep_c, inside, H, FLAGS,
    )  # fmt: skip


def backward_step(
    rec: Tensor, dout: Tensor | None, dh: Tensor, gates: Tensor, cells: Tensor, c0: Tensor, dc: Tensor, dgates: Tensor,
    sites: Sites, batch: Batch, t: int,
) -> None:  # fmt: skip
    active, sent, units = batch.active(t), batch.active(batch.after(t)), dc.shape[1]
    launch(
        lstm_backward_kernel, triton.cdiv(max(active, sent) * units, BLOCKS.step),
        rec, dout, dh, gates, cells, c0, dc, dgates, *sites.tensors, active, sent, batch.row(t),
        batch.row(batch.before(t)), batch.continued(t), sites.step_offset + t, sites.stream, H=units,
        FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip


def unproject_step(
    rec: Tensor, dout: Tensor | None, dh: Tensor, dprojected: Tensor, sites: Sites, batch: Batch, t: int
) -> None:
    active, sent, width = batch.active(t), batch.active(batch.after(t)), dh.shape[1]
    launch(
        lstm_unproject_kernel, triton.cdiv(max(active, sent) * width, BLOCKS.step),
        rec, dout, dh, dprojected, *sites.tensors, active, sent, batch.row(t), sites.step_offset + t, sites.stream,
        P=width, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip


def projected_backward_step(
    dh_new: Tensor, gates: Tensor, cells: Tensor, c0: Tensor, dc: Tensor, dgates: Tensor, outputs: Tensor, sites: Sites,
    batch: Batch, t: int,
) -> None:  # fmt: skip
    active, units = batch.active(t), dc.shape[1]
    launch(
        lstm_projected_backward_kernel, triton.cdiv(active * units, BLOCKS.step),
        dh_new, gates, cells, c0, dc, dgates, outputs, *sites.tensors, active, batch.row(t),
        batch.row(batch.before(t)), batch.continued(t), sites.step_offset + t, sites.stream, H=units,
        FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip
