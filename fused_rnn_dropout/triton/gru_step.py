"""One step of a GRU between two products, forward and backward. See ``lstm_step.py``.

With cell dropout the state is carried unscaled, and everything that reads it, the recurrent product, the output and the
caller, sees it times a scale.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .cells import gru_backward, gru_forward, sigmoid, tanh
from .entry import operand, through
from .launch import BLOCKS, launch, step_programs
from .masks import drop_written, elements, enter, examples, read_memory, split_h, state_masks, zone_h
from .passes import Backward, Forward, Pass
from .rows import Batch
from .sites import MEMORY, Sites, on

_SITES = ["thresholds", "example_ids"]


# --------------------------------------------------------------------------------------------------------------------
# Forward
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def pre_activations(pre, sum_r, sum_z, sum_n, bias, bias_apart, at_pre, unit, inside, H: tl.constexpr):
    """Of r and z; the input part of n; u = U_n h + b_hn. The sums are U h of each gate."""
    r = tl.load(pre + at_pre, inside, other=0.0) + sum_r
    z = tl.load(pre + at_pre + H, inside, other=0.0) + sum_z
    n, u = tl.load(pre + at_pre + 2 * H, inside, other=0.0), sum_n
    if bias is not None:
        r += tl.load(bias + unit, inside, other=0.0)
        z += tl.load(bias + unit + H, inside, other=0.0)
        n += tl.load(bias + unit + 2 * H, inside, other=0.0)
        u += tl.load(bias_apart + unit, inside, other=0.0)
    return r, z, n, u


@triton.jit
def recurrent_sums(rec, inside, H: tl.constexpr):
    """U h of each gate at these elements of ``rec``, [.., 3H]."""
    of_r, of_z = tl.load(rec, inside, other=0.0), tl.load(rec + H, inside, other=0.0)
    return of_r, of_z, tl.load(rec + 2 * H, inside, other=0.0)


@triton.jit(
    do_not_specialize=["active", "row0", "pre_row0", "product", "stream"],
    do_not_specialize_on_alignment=_SITES,
)
def gru_forward_kernel(
    pre,  # S [rows of a chunk, 3H]: W x
    rec,  # S [active, 3H]: U h
    bias,  # S [3H], or None
    bias_apart,  # S [H]: that of U_n h, or None
    h,  # S [B, H]: the state, carried
    read,  # D [B, H]: h as the next product reads it
    out,  # D [N, H]
    states,  # D [N, H], or None
    gates,  # D [N, 3H], activated, or None
    resets,  # D [N, H]: u, or None where gates is
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

    sum_r, sum_z, sum_n = recurrent_sums(rec + b * (3 * H) + unit, inside, H)
    p = (pre_row0 + b) * (3 * H) + unit
    r, z, n, u = pre_activations(pre, sum_r, sum_z, sum_n, bias, bias_apart, p, unit, inside, H)
    old = tl.load(h + at, inside, other=0.0)
    r, z, n, h_new = gru_forward(r, z, n, u, old, drops, numbers, FLAGS)
    finish(h_new, old, h, read, out, states, numbers, keys, thresholds, at, row * H + unit, unit, example, product,
           stream, drops, inside, COLUMN, FLAGS)  # fmt: skip
    if gates is not None:
        to = gates + row * (3 * H) + unit
        tl.store(to, r, inside)
        tl.store(to + H, z, inside)
        tl.store(to + 2 * H, n, inside)
        tl.store(resets + row * H + unit, u, inside)


@triton.jit
def finish(
    h_new, old, h, read, out, states, numbers, keys, thresholds, at, at_row, unit, example, product, stream, drops,
    inside, COLUMN: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """Zoneout of h, and everything that h goes to."""
    zoned = zone_h(old, h_new, drops, numbers, FLAGS)
    tl.store(h + at, zoned, inside)
    shown = zoned
    if on(FLAGS, "UNZONED"):
        shown = h_new
    shown = read_memory(shown, numbers, FLAGS)
    shown = drop_written(shown, numbers, keys, thresholds, unit, example, product, stream, COLUMN, FLAGS)
    tl.store(out + at_row, shown, inside)
    if states is not None:
        tl.store(states + at_row, zoned, inside)
    seen = operand(zoned, numbers, keys, thresholds, unit, example, stream, True, FLAGS)
    tl.store(read + at, seen, inside)


def forward_step(f: Forward, pre: Tensor, rec: Tensor, sites: Sites, batch: Batch, t: int, chunk_row: int) -> None:
    active, units, row = batch.active(t), f.h.shape[1], batch.row(t)
    launch(
        gru_forward_kernel, step_programs(active, units),
        pre, rec, f.bias, f.bias_apart, f.h, f.read, f.out, f.states, f.gates, f.beside, *sites.tensors, active, row,
        row - chunk_row, sites.product(t), sites.stream, H=units, COLUMN=sites.column, FLAGS=sites.flags,
        BLOCK=BLOCKS.step,
    )  # fmt: skip


@triton.jit(do_not_specialize=["total"])
def gru_activate_kernel(
    pre,  # S [rows of a chunk, 3H]: W x
    rec,  # S [rows of a chunk, 3H]: U h
    bias,  # S [3H], or None
    bias_apart,  # S [H]: that of U_n h, or None
    gates,  # D [rows of a chunk, 3H], activated
    resets,  # D [rows of a chunk, H]
    total: tl.int64,  # rows of the chunk * H
    H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, unit, inside = at // H, at % H, at < total
    place = row * (3 * H) + unit
    sum_r, sum_z, sum_n = recurrent_sums(rec + place, inside, H)
    r, z, n, u = pre_activations(pre, sum_r, sum_z, sum_n, bias, bias_apart, place, unit, inside, H)
    r = sigmoid(r)
    tl.store(gates + place, r, inside)
    tl.store(gates + place + H, sigmoid(z), inside)
    tl.store(gates + place + 2 * H, tanh(n + r * u), inside)
    tl.store(resets + at, u, inside)


def activate(p: Pass, pre: Tensor, rec: Tensor, gates: Tensor, resets: Tensor) -> None:
    """The gates of some rows once more, for a backward whose forward kept only the states."""
    total = resets.numel()
    launch(
        gru_activate_kernel,
        triton.cdiv(total, BLOCKS.step),
        pre,
        rec,
        p.bias,
        p.bias_apart,
        gates,
        resets,
        total,
        H=resets.shape[1],
        BLOCK=BLOCKS.step,
    )


# --------------------------------------------------------------------------------------------------------------------
# Backward
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def at_h(
    sum_, dout, dh, gates, resets, states, h0, dgates, numbers, keys, thresholds, b, unit, row, before_row0, continued,
    example, product, stream, drops, active, inside, H: tl.constexpr, COLUMN: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """From what the step after sends through U, ``sum_``, to the gradients of this step and what is carried in ``dh``.

    A row that is not active any more, which only a reversed packed batch has, is done: ``dh`` keeps its gradient.
    """
    S: tl.constexpr = dh.dtype.element_ty
    here = inside & (b < active)
    at, place = b * H + unit, row * (3 * H) + unit
    total = tl.load(dh + at, inside, other=0.0)
    total += through(sum_, numbers, keys, thresholds, unit, example, stream, True, FLAGS)
    if dout is not None:
        grad = tl.load(dout + row * H + unit, here, other=0.0).to(S)
        grad = drop_written(grad, numbers, keys, thresholds, unit, example, product, stream, COLUMN, FLAGS)
        grad = read_memory(grad, numbers, FLAGS)
    else:
        grad = tl.zeros_like(total)
    if not on(FLAGS, "UNZONED"):
        total += grad
    to_old, to_new = split_h(total, drops, numbers, FLAGS)
    if on(FLAGS, "UNZONED"):
        to_new += grad

    r = tl.load(gates + place, here, other=0.0).to(S)
    z = tl.load(gates + place + H, here, other=0.0).to(S)
    n = tl.load(gates + place + 2 * H, here, other=0.0).to(S)
    u = tl.load(resets + row * H + unit, here, other=0.0).to(S)
    first = tl.load(h0 + at, here & (b >= continued), other=0.0).to(S)
    first = enter(first, drops[MEMORY], numbers, True, FLAGS)
    h = tl.load(states + (before_row0 + b) * H + unit, here & (b < continued), other=0.0).to(S)
    h = tl.where(b < continued, h, first)
    dr, dz, dn, du, leak = gru_backward(r, z, n, u, h, to_new, drops, numbers, FLAGS)
    tl.store(dh + at, tl.where(b < active, to_old + leak, total), inside)
    to = dgates + row * (4 * H) + unit
    tl.store(to, dn, here)
    tl.store(to + H, dr, here)
    tl.store(to + 2 * H, dz, here)
    tl.store(to + 3 * H, du, here)


@triton.jit(
    do_not_specialize=["active", "sent", "row0", "before_row0", "continued", "product", "stream"],
    do_not_specialize_on_alignment=["h0", *_SITES],
)
def gru_backward_kernel(
    rec,  # S [sent, H]: what the step after sends through U, before hidden dropout
    dout,  # [N, H], or None
    dh,  # S [B, H]: the gradient at the state that is carried past the product
    gates,  # D [N, 3H], activated
    resets,  # D [N, H]
    states,  # D [N, H], unscaled
    h0,  # [B, H]: a caller's
    dgates,  # D [N, 4H]: gradients at the pre-activation of n, at those of r and z, and at u
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
    example = examples(example_ids, b, inside)
    drops = state_masks(keys, thresholds, unit, example, product, stream, FLAGS)
    sum_ = tl.load(rec + at, inside & (b < sent), other=0.0)
    at_h(
        sum_, dout, dh, gates, resets, states, h0, dgates, numbers, keys, thresholds, b, unit, row0 + b, before_row0,
        continued, example, product, stream, drops, active, inside, H, COLUMN, FLAGS,
    )  # fmt: skip


def backward_step(k: Backward, rec: Tensor, sites: Sites, batch: Batch, t: int) -> None:
    active, sent, units = batch.active(t), batch.active(batch.after(t)), k.dh.shape[1]
    launch(
        gru_backward_kernel, step_programs(max(active, sent), units),
        rec, k.dout, k.dh, k.gates, k.beside, k.states, k.h0, k.dgates, *sites.tensors, active, sent, batch.row(t),
        batch.row(batch.before(t)), batch.continued(t), sites.product(t), sites.stream, H=units,
        COLUMN=sites.column, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip
