"""One step of a plain RNN between two products, forward and backward; h is carried as in ``lstm_step.py``."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .cells import rnn_backward, rnn_candidate, rnn_forward
from .launch import BLOCKS, launch, step_programs
from .lstm_step import finish, pre_activation
from .lstm_step_backward import at_h
from .masks import elements, examples, state_masks
from .passes import Backward, Forward, Pass
from .rows import Batch
from .sites import Sites

_SITES = ["thresholds", "example_ids"]


@triton.jit(
    do_not_specialize=["active", "row0", "pre_row0", "product", "stream"],
    do_not_specialize_on_alignment=_SITES,
)
def rnn_forward_kernel(
    pre,  # S [rows of a chunk, H]: W x
    rec,  # S [active, H]: U h
    bias,  # S [H], or None
    h,  # S [B, H]: the state, carried
    read,  # D [B, H]: h as the next product reads it
    out,  # D [N, H]
    states,  # D [N, H], or None
    gates,  # D [N, H]: the candidate, or None
    numbers,
    keys,
    thresholds,
    example_ids,
    active: tl.int64,
    row0: tl.int64,
    pre_row0: tl.int64,  # row0 in the chunk
    product: tl.int64,  # of the absolute step: Sites.product()
    stream: tl.int64,
    RELU: tl.constexpr,
    H: tl.constexpr,
    COLUMN: tl.constexpr,  # of the output: Sites.column
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, unit = elements(H, BLOCK)
    at, inside = b * H + unit, (b < active) & (unit < H)
    row, example = row0 + b, examples(example_ids, b, inside)
    drops = state_masks(keys, thresholds, unit, example, product, stream, FLAGS)

    sum_ = tl.load(rec + at, inside, other=0.0)
    a = pre_activation(pre, sum_, bias, (pre_row0 + b) * H + unit, unit, inside)
    candidate, h_new = rnn_forward(a, drops, numbers, RELU, FLAGS)
    if gates is not None:
        tl.store(gates + row * H + unit, candidate, inside)
    finish(
        h_new, h, read, out, states, numbers, keys, thresholds, b, unit, row, example, product, stream, drops, inside,
        H, COLUMN, FLAGS,
    )  # fmt: skip


def forward_step(
    f: Forward, pre: Tensor, rec: Tensor, sites: Sites, batch: Batch, t: int, chunk_row: int, *, relu: bool
) -> None:
    active, units, row = batch.active(t), f.h.shape[1], batch.row(t)
    launch(
        rnn_forward_kernel, step_programs(active, units),
        pre, rec, f.bias, f.h, f.read, f.out, f.states, f.gates, *sites.tensors, active, row, row - chunk_row,
        sites.product(t), sites.stream, RELU=relu, H=units, COLUMN=sites.column, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip


@triton.jit(do_not_specialize=["total"])
def rnn_activate_kernel(
    pre,  # S [rows of a chunk, H]: W x
    rec,  # S [rows of a chunk, H]: U h
    bias,  # S [H], or None
    gates,  # D [rows of a chunk, H]: the candidate
    total: tl.int64,
    RELU: tl.constexpr,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    a = pre_activation(pre, tl.load(rec + at, inside, other=0.0), bias, at, at % H, inside)
    tl.store(gates + at, rnn_candidate(a, RELU), inside)


def activate(p: Pass, pre: Tensor, rec: Tensor, gates: Tensor, *, relu: bool) -> None:
    """The candidates of some rows once more, for a backward whose forward kept only the states."""
    total = gates.numel()
    launch(
        rnn_activate_kernel, triton.cdiv(total, BLOCKS.step),
        pre, rec, p.bias, gates, total, RELU=relu, H=gates.shape[1], BLOCK=BLOCKS.step,
    )  # fmt: skip


@triton.jit
def at_gate(
    dh_new, gates, dgates, numbers, unit, row, drops, inside, RELU: tl.constexpr, H: tl.constexpr, FLAGS: tl.constexpr
):
    """From the gradient at the new h to that at the pre-activation."""
    candidate = tl.load(gates + row * H + unit, inside, other=0.0).to(dh_new.dtype)
    tl.store(dgates + row * H + unit, rnn_backward(candidate, dh_new, drops, numbers, RELU, FLAGS), inside)


@triton.jit(
    do_not_specialize=["active", "sent", "row0", "product", "stream"],
    do_not_specialize_on_alignment=_SITES,
)
def rnn_backward_kernel(
    rec,  # S [sent, H]: what the step after sends through U, before hidden dropout
    dout,  # [N, H], or None
    dh,  # S [B, H]: the gradient at h that is carried past the product
    gates,  # D [N, H]: the candidate
    dgates,  # D [N, H]; it may be `gates`: an element is read and written by one thread
    numbers,
    keys,
    thresholds,
    example_ids,
    active: tl.int64,
    sent: tl.int64,
    row0: tl.int64,
    product: tl.int64,
    stream: tl.int64,
    RELU: tl.constexpr,
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
    at_gate(dh_new, gates, dgates, numbers, unit, row, drops, inside & (b < active), RELU, H, FLAGS)


def backward_step(k: Backward, rec: Tensor, sites: Sites, batch: Batch, t: int, *, relu: bool) -> None:
    active, sent, units = batch.active(t), batch.active(batch.after(t)), k.dh.shape[1]
    launch(
        rnn_backward_kernel, step_programs(max(active, sent), units),
        rec, k.dout, k.dh, k.gates, k.dgates, *sites.tensors, active, sent, batch.row(t), sites.product(t),
        sites.stream, RELU=relu, H=units, COLUMN=sites.column, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip
