"""One step of an LSTM between two products, backward: the mirror image of ``lstm_step.py``, which explains the blocks.

The step after sends its gradient through U to its first ``sent`` rows, the state before comes from the first
``continued`` rows of the step before; the other rows begin here.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .cells import lstm_backward, lstm_memory, lstm_output
from .entry import through
from .launch import BLOCKS, launch, step_programs
from .masks import drop_written, elements, enter, examples, split_h, state_masks
from .passes import Backward
from .rows import Batch
from .sites import MEMORY, Sites, on

_SITES = ["thresholds", "example_ids"]


@triton.jit
def at_h(
    sum_, dout, dh, numbers, keys, thresholds, b, unit, row, example, product, stream, drops, active, inside,
    P: tl.constexpr, COLUMN: tl.constexpr, FLAGS: tl.constexpr,
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
        grad = drop_written(grad, numbers, keys, thresholds, unit, example, product, stream, COLUMN, FLAGS)
    else:
        grad = tl.zeros_like(total)
    if not on(FLAGS, "UNZONED"):
        total += grad
    to_old, to_new = split_h(total, drops, numbers, FLAGS)
    if on(FLAGS, "UNZONED"):
        to_new += grad
    tl.store(dh + at, tl.where(b < active, to_old, total), inside)
    return to_new


@triton.jit
def at_gates(
    dh_new, gates, cells, c0, dc, dgates, outputs, numbers, b, unit, row, before_row0, continued, drops, inside,
    H: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """From the gradient at the new h to those at the pre-activations, and at the memory before."""
    S: tl.constexpr = dc.dtype.element_ty
    place = row * (4 * H) + unit
    i = tl.load(gates + place, inside, other=0.0).to(S)
    f = tl.load(gates + place + H, inside, other=0.0).to(S)
    g = tl.load(gates + place + 2 * H, inside, other=0.0).to(S)
    o = tl.load(gates + place + 3 * H, inside, other=0.0).to(S)
    first = tl.load(c0 + b * H + unit, inside & (b >= continued), other=0.0).to(S)
    first = enter(first, drops[MEMORY], numbers, False, FLAGS)
    c = tl.load(cells + (before_row0 + b) * H + unit, inside & (b < continued), other=0.0)
    c = tl.where(b < continued, c, first)
    if outputs is not None:
        c_new = lstm_memory(i, f, g, c, drops, numbers, FLAGS)
        tl.store(outputs + row * H + unit, lstm_output(o, c_new, numbers, FLAGS), inside)
    later = tl.load(dc + b * H + unit, inside, other=0.0)
    di, df, dg, do, earlier = lstm_backward(i, f, g, o, c, dh_new, later, drops, numbers, FLAGS)
    tl.store(dc + b * H + unit, earlier, inside)
    tl.store(dgates + place, di, inside)
    tl.store(dgates + place + H, df, inside)
    tl.store(dgates + place + 2 * H, dg, inside)
    tl.store(dgates + place + 3 * H, do, inside)


@triton.jit(
    do_not_specialize=["active", "sent", "row0", "before_row0", "continued", "product", "stream"],
    do_not_specialize_on_alignment=["c0", *_SITES],
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
    product: tl.int64,
    stream: tl.int64,
    H: tl.constexpr,
    COLUMN: tl.constexpr,  # of the output: Sites.column
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, unit = elements(H, BLOCK)
    at, inside = b * H + unit, (b < tl.maximum(active, sent)) & (unit < H)
    row, example = row0 + b, examples(example_ids, b, inside)
    drops = state_masks(keys, thresholds, unit, example, product, stream, FLAGS)
    sum_ = tl.load(rec + at, inside & (b < sent), other=0.0)
    dh_new = at_h(
        sum_, dout, dh, numbers, keys, thresholds, b, unit, row, example, product, stream, drops, active, inside, H,
        COLUMN, FLAGS,
    )  # fmt: skip
    at_gates(
        dh_new, gates, cells, c0, dc, dgates, None, numbers, b, unit, row, before_row0, continued, drops,
        inside & (b < active), H, FLAGS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["active", "sent", "row0", "product", "stream"], do_not_specialize_on_alignment=_SITES)
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
    product: tl.int64,
    stream: tl.int64,
    P: tl.constexpr,
    COLUMN: tl.constexpr,  # of the output: Sites.column
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, unit = elements(P, BLOCK)
    at, inside = b * P + unit, (b < tl.maximum(active, sent)) & (unit < P)
    row, example = row0 + b, examples(example_ids, b, inside)
    drops = state_masks(keys, thresholds, unit, example, product, stream, FLAGS)
    sum_ = tl.load(rec + at, inside & (b < sent), other=0.0)
    dh_new = at_h(
        sum_, dout, dh, numbers, keys, thresholds, b, unit, row, example, product, stream, drops, active, inside, P,
        COLUMN, FLAGS,
    )  # fmt: skip
    tl.store(dprojected + row * P + unit, dh_new, inside & (b < active))


@triton.jit(
    do_not_specialize=["active", "row0", "before_row0", "continued", "product", "stream"],
    do_not_specialize_on_alignment=["c0", *_SITES],
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
    product: tl.int64,
    stream: tl.int64,
    H: tl.constexpr,
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, unit = elements(H, BLOCK)
    at, inside = b * H + unit, (b < active) & (unit < H)
    drops = state_masks(keys, thresholds, unit, examples(example_ids, b, inside), product, stream, FLAGS)
    at_gates(
        tl.load(dh_new + at, inside, other=0.0), gates, cells, c0, dc, dgates, outputs, numbers, b, unit, row0 + b,
        before_row0, continued, drops, inside, H, FLAGS,
    )  # fmt: skip


def backward_step(k: Backward, rec: Tensor, sites: Sites, batch: Batch, t: int) -> None:
    assert k.dc is not None
    active, sent, units = batch.active(t), batch.active(batch.after(t)), k.dc.shape[1]
    launch(
        lstm_backward_kernel, step_programs(max(active, sent), units),
        rec, k.dout, k.dh, k.gates, k.beside, k.c0, k.dc, k.dgates, *sites.tensors, active, sent, batch.row(t),
        batch.row(batch.before(t)), batch.continued(t), sites.product(t), sites.stream, H=units,
        COLUMN=sites.column, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip


def unproject_step(k: Backward, rec: Tensor, dprojected: Tensor, sites: Sites, batch: Batch, t: int) -> None:
    active, sent, width = batch.active(t), batch.active(batch.after(t)), k.dh.shape[1]
    launch(
        lstm_unproject_kernel, step_programs(max(active, sent), width),
        rec, k.dout, k.dh, dprojected, *sites.tensors, active, sent, batch.row(t), sites.product(t), sites.stream,
        P=width, COLUMN=sites.column, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip


def projected_backward_step(k: Backward, dh_new: Tensor, outputs: Tensor, sites: Sites, batch: Batch, t: int) -> None:
    assert k.dc is not None
    active, units = batch.active(t), k.dc.shape[1]
    launch(
        lstm_projected_backward_kernel, step_programs(active, units),
        dh_new, k.gates, k.beside, k.c0, k.dc, k.dgates, outputs, *sites.tensors, active, batch.row(t),
        batch.row(batch.before(t)), batch.continued(t), sites.product(t), sites.stream, H=units,
        FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip
