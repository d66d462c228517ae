"""Where a state enters a call and where its gradient leaves it, and what recurrent products read.

``SCALED``: whether callers see the state times a scale, as a GRU's: then the state itself is unscaled, and everything
that reads it, the recurrent product and the caller, sees it times that scale.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import BLOCKS, launch, step_programs
from .masks import dead_units, drop_hidden, elements, enter, examples, read_memory
from .rows import Batch
from .sites import Sites


@triton.jit
def operand(
    h, numbers, keys, thresholds, unit, example, stream, SCALED: tl.constexpr, FLAGS: tl.constexpr
):  # fmt: skip
    """What the recurrent product reads of a state h."""
    if SCALED:
        h = read_memory(h, numbers, FLAGS)
    return drop_hidden(h, numbers, keys, thresholds, unit, example, stream, FLAGS)


@triton.jit
def through(
    grad, numbers, keys, thresholds, unit, example, stream, SCALED: tl.constexpr, FLAGS: tl.constexpr
):  # fmt: skip
    """The gradient at a state from that at the operand of its product: the same factors."""
    return operand(grad, numbers, keys, thresholds, unit, example, stream, SCALED, FLAGS)


# --------------------------------------------------------------------------------------------------------------------
# Entry
# --------------------------------------------------------------------------------------------------------------------


@triton.jit(
    do_not_specialize=["total", "stream"], do_not_specialize_on_alignment=["source", "thresholds", "example_ids"]
)
def enter_kernel(
    source,  # [B, WIDTH]: a caller's
    state,  # [B, WIDTH]: as it is carried from step to step
    read,  # [B, WIDTH]: as the first product reads it, or None
    numbers,
    keys,
    thresholds,
    example_ids,
    total: tl.int64,
    stream: tl.int64,
    MEMORY: tl.constexpr,  # whether cell dropout acts on this state
    SCALED: tl.constexpr,
    WIDTH: tl.constexpr,
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    S: tl.constexpr = state.dtype.element_ty
    b, unit = elements(WIDTH, BLOCK)
    at = b * WIDTH + unit
    inside = (at < total) & (unit < WIDTH)
    example = examples(example_ids, b, inside)
    value = tl.load(source + at, inside, other=0.0).to(S)
    if MEMORY:
        dead = dead_units(keys, thresholds, unit, example, stream, FLAGS)
        value = enter(value, dead, numbers, SCALED, FLAGS)
    tl.store(state + at, value, inside)
    if read is not None:
        value = operand(value, numbers, keys, thresholds, unit, example, stream, SCALED, FLAGS)
        tl.store(read + at, value, inside)


def enter_state(
    source: Tensor, state: Tensor, read: Tensor | None, sites: Sites, *, memory: bool, scaled: bool = False
) -> None:
    total, width = state.numel(), state.shape[1]
    launch(
        enter_kernel, step_programs(state.shape[0], width),
        source.contiguous(), state, read, *sites.tensors, total, sites.stream,
        MEMORY=memory, SCALED=scaled, WIDTH=width, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# The way out, backward
# --------------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["sent", "total", "stream"], do_not_specialize_on_alignment=["thresholds", "example_ids"])
def leave_kernel(
    carried,  # [B, WIDTH]: gradient at the state, but for what the first step sends through its product
    rec,  # [sent, WIDTH]: that, before hidden dropout, or None
    target,  # [B, WIDTH]: gradient at a caller's state
    numbers,
    keys,
    thresholds,
    example_ids,
    sent: tl.int64,
    total: tl.int64,
    stream: tl.int64,
    MEMORY: tl.constexpr,
    SCALED: tl.constexpr,
    WIDTH: tl.constexpr,
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, unit = elements(WIDTH, BLOCK)
    at = b * WIDTH + unit
    inside = (at < total) & (unit < WIDTH)
    example = examples(example_ids, b, inside)
    grad = tl.load(carried + at, inside, other=0.0)
    if rec is not None:
        sum_ = tl.load(rec + at, inside & (b < sent), other=0.0)
        grad += through(sum_, numbers, keys, thresholds, unit, example, stream, SCALED, FLAGS)
    if MEMORY:
        dead = dead_units(keys, thresholds, unit, example, stream, FLAGS)
        grad = enter(grad, dead, numbers, SCALED, FLAGS)
    tl.store(target + at, grad, inside)


def leave_state(
    carried: Tensor, rec: Tensor | None, sent: int, target: Tensor, sites: Sites, *, memory: bool, scaled: bool = False
) -> None:
    total, width = carried.numel(), carried.shape[1]
    launch(
        leave_kernel, step_programs(carried.shape[0], width),
        carried, rec, target, *sites.tensors, sent, total, sites.stream,
        MEMORY=memory, SCALED=scaled, WIDTH=width, FLAGS=sites.flags, BLOCK=BLOCKS.step,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# The operands of all steps at once, for the gradient of W_hh and for gates that are computed again
# --------------------------------------------------------------------------------------------------------------------


@triton.jit(
    do_not_specialize=["row0", "rows", "batch", "shift", "edge", "edge_row", "edge_rows", "stream"],
    do_not_specialize_on_alignment=["h0", "thresholds", "example_ids"],
)
def operands_kernel(
    states,  # [N, WIDTH]: after each step
    h0,  # [B, WIDTH]: a caller's
    target,  # [N, WIDTH]
    numbers,
    keys,
    thresholds,
    example_ids,
    row0: tl.int64,  # of a run
    rows: tl.int64,
    batch: tl.int64,
    shift: tl.int64,  # from a row to that of the step before it in the recurrence
    edge: tl.int64,  # the step of the run whose step before lies outside it ...
    edge_row: tl.int64,  # ... from this row on ...
    edge_rows: tl.int64,  # ... in so many rows; the others begin there, with h0
    stream: tl.int64,
    SCALED: tl.constexpr,
    WIDTH: tl.constexpr,
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    S: tl.constexpr = tl.float64 if target.dtype.element_ty == tl.float64 else tl.float32
    i, unit = elements(WIDTH, BLOCK)
    b, at_edge, inside = i % batch, i // batch == edge, (i < rows) & (unit < WIDTH)
    example = examples(example_ids, b, inside)
    begins = at_edge & (b >= edge_rows)
    before = tl.where(at_edge, edge_row + b, row0 + i + shift)
    h = tl.load(states + before * WIDTH + unit, inside & (begins == 0), other=0.0).to(S)
    first = tl.load(h0 + b * WIDTH + unit, inside & begins, other=0.0).to(S)
    if SCALED:
        dead = dead_units(keys, thresholds, unit, example, stream, FLAGS)
        first = enter(first, dead, numbers, SCALED, FLAGS)
    h = operand(tl.where(begins, first, h), numbers, keys, thresholds, unit, example, stream, SCALED, FLAGS)
    tl.store(target + (row0 + i) * WIDTH + unit, h, inside)


def operands(states: Tensor, h0: Tensor, target: Tensor, batch: Batch, sites: Sites, *, scaled: bool = False) -> Tensor:
    """Fills ``target`` (N, P) with what the product of each step read."""
    width = target.shape[1]
    for run in batch.runs():
        edge = run.steps - 1 if batch.reverse else 0
        t = run.step + edge
        launch(
            operands_kernel, step_programs(run.rows, width),
            states, h0.contiguous(), target, *sites.tensors, run.row, run.rows, run.batch,
            run.batch if batch.reverse else -run.batch, edge, batch.row(batch.before(t)), batch.continued(t),
            sites.stream, SCALED=scaled, WIDTH=width, FLAGS=sites.flags, BLOCK=BLOCKS.step,
        )  # fmt: skip
    return target
