"""Which elements the sites inside a step drop, and what that does to a value; ``sites.py`` has their numbers."""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import FIELDS, SEQ, dropped_of_calls, product_of
from .sites import (
    CELL,
    ENTRY_SCALE,
    HIDDEN,
    HIDDEN_KEY,
    HIDDEN_SCALE,
    MEMORY,
    MEMORY_SCALE,
    NUM_STATE_SITES,
    OLD_C,
    OLD_H,
    P_CELL,
    P_HIDDEN,
    READ_SCALE,
    STATE_KEY,
    UPDATE,
    UPDATE_SCALE,
    WRITTEN_KEY,
    WRITTEN_SCALE,
    ZONE_C,
    ZONE_H,
    call_of,
    drawing,
    draws,
    field_of,
    kind_of,
    number_of,
    on,
    per_step,
    power_of_two,
    sampled,
    source,
    threshold_of,
    writes,
    written_kind,
    written_per_step,
    written_shared,
    written_threshold,
)

# --------------------------------------------------------------------------------------------------------------------
# Which elements are dropped
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def elements(WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Row and unit of each element of a program's block. Units from WIDTH on fill up the last call of a row."""
    row: tl.constexpr = (WIDTH + FIELDS - 1) // FIELDS * FIELDS
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return i // row, i % row


@triton.jit
def examples(example_ids, b, inside):
    """The example counter of batch rows b."""
    if example_ids is not None:
        example = tl.load(example_ids + b, inside, other=0)
    else:
        example = b
    return example.to(tl.uint32)


@triton.jit
def _calls(unit, example):
    """The calls that serve a block, and their examples, each (elements / 8): eight neighbours share a call."""
    call, example = tl.broadcast((unit // FIELDS).to(tl.uint32), example)
    count: tl.constexpr = call.numel // FIELDS
    call, example = tl.reshape(call, (count, FIELDS)), tl.reshape(example, (count, FIELDS))
    return tl.max(call, axis=1), tl.max(example, axis=1)


@triton.jit
def _of_elements(bits, number, unit, example):
    """The bit of each element of a block among those of its call; byte ``number`` has its site's."""
    _, like = tl.broadcast(unit, example)
    each = tl.reshape(tl.broadcast_to(bits[:, None], (bits.numel, FIELDS)), like.shape)
    return (each >> (unit % FIELDS + FIELDS * number).to(bits.dtype)) & 1 != 0


@triton.jit
def _of_state(bits, unit, example, FLAGS: tl.constexpr, SITE: tl.constexpr):
    dropped = unit < 0
    if draws(FLAGS, SITE):
        dropped = _of_elements(bits, number_of(FLAGS, SITE), unit, example)
    return dropped


@triton.jit
def state_masks(keys, thresholds, unit, example, product, stream, FLAGS: tl.constexpr):
    """Which elements are dropped, or with zoneout keep their old value, at a step: a mask of each state site.

    All sites draw at once, each in a row of calls, which the absolute step enters as its ``product``. A mask per
    sequence is drawn again at each step, which costs less than a pass over memory that holds it. The units of a block
    are eights that share calls (:func:`elements`).
    """
    bits = unit.to(tl.uint32)  # not read where no site draws
    if drawing(FLAGS) > 0:
        k0 = tl.load(keys + STATE_KEY).to(tl.uint32)
        k1 = tl.load(keys + STATE_KEY + 1).to(tl.uint32)
        of = tl.arange(0, power_of_two(drawing(FLAGS)))[:, None]
        fourth, limit = of.to(tl.uint32) * 0 + stream.to(tl.uint32), of.to(tl.int64) * 0
        products = product_of(of.to(tl.uint32) * 0 + SEQ)
        for number in tl.static_range(drawing(FLAGS)):
            fourth = tl.where(of == number, fourth + kind_of(FLAGS, number), fourth)
            limit = tl.where(of == number, tl.load(thresholds + threshold_of(FLAGS, number)), limit)
            if per_step(FLAGS, number):
                products = tl.where(of == number, product.to(tl.uint64), products)
        wide: tl.constexpr = tl.uint32 if drawing(FLAGS) <= 4 else tl.uint64  # a byte for each site
        call, of_call = _calls(unit, example)
        of_sites = dropped_of_calls(call[None, :], of_call[None, :], products, fourth, limit, k0, k1)
        bits = tl.sum(of_sites.to(wide) << (of * FIELDS).to(wide), axis=0)
    drops = ()
    for site in tl.static_range(NUM_STATE_SITES):
        drops = drops + (_of_state(bits, unit, example, FLAGS, site),)  # type: ignore[assignment]
    return drops


@triton.jit
def _once(key, threshold, unit, example, stream):
    """Which elements one mask per sequence drops. ``key`` points to its two words."""
    k0, k1 = tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32)
    call, of_call = _calls(unit, example)
    fourth = stream.to(tl.uint32)
    bits = dropped_of_calls(call, of_call, product_of(fourth * 0 + SEQ), fourth, tl.load(threshold), k0, k1)
    return _of_elements(bits, 0, unit, example)


@triton.jit
def dead_units(keys, thresholds, unit, example, stream, FLAGS: tl.constexpr):
    """Which units of the memory are dropped for the whole sequence."""
    dead = unit < 0
    if source(FLAGS, "CELL") == "sequence":
        dead = _once(keys + STATE_KEY, thresholds + P_CELL, unit, example, stream + CELL)
    return dead


# --------------------------------------------------------------------------------------------------------------------
# What they do; each linear site is its own gradient
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def drop_hidden(
    value, numbers, keys, thresholds, unit, example, stream, FLAGS: tl.constexpr
):  # fmt: skip
    """Hidden dropout of h, or of the gradient that comes back through it."""
    if sampled(FLAGS, "HIDDEN"):
        if on(FLAGS, "HIDDEN_BATCH_SHARED"):
            example = example * 0 + SEQ
        dropped = _once(keys + HIDDEN_KEY, thresholds + P_HIDDEN, unit, example, stream + HIDDEN)
        value = tl.where(dropped, 0.0, tl.load(numbers + HIDDEN_SCALE) * value)
    return value


@triton.jit
def drop_written(
    value, numbers, keys, thresholds, unit, example, product, stream, COLUMN: tl.constexpr, FLAGS: tl.constexpr
):  # fmt: skip
    """Dropout of what a layer writes, or of its gradient.

    Its mask goes on over both directions: element ``COLUMN`` is unit 0, which may lie within a call.
    """
    if writes(FLAGS):
        if written_shared(FLAGS):
            example = example * 0 + SEQ
        if not written_per_step(FLAGS):
            product = product_of((product * 0).to(tl.uint32) + SEQ)
        fourth = ((stream.to(tl.uint32) >> 16) + 1 << 16) + written_kind(FLAGS)  # in the name of the layer that reads
        k0, k1 = tl.load(keys + WRITTEN_KEY).to(tl.uint32), tl.load(keys + WRITTEN_KEY + 1).to(tl.uint32)
        threshold, of_step = tl.load(thresholds + written_threshold(FLAGS)), product.to(tl.uint64)
        call, of_call = _calls(unit, example)
        call += call_of(COLUMN)
        bits = dropped_of_calls(call, of_call, of_step, fourth, threshold, k0, k1)
        if field_of(COLUMN) > 0:
            bits |= dropped_of_calls(call + 1, of_call, of_step, fourth, threshold, k0, k1) << FIELDS
            bits = bits >> field_of(COLUMN)
        dropped = _of_elements(bits, 0, unit, example)
        value = tl.where(dropped, 0.0, tl.load(numbers + WRITTEN_SCALE) * value)
    return value


@triton.jit
def drop_update(value, drops, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "UPDATE"):
        value = tl.where(drops[UPDATE], 0.0, tl.load(numbers + UPDATE_SCALE) * value)
    return value


@triton.jit
def drop_memory(value, drops, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "CELL"):
        value = tl.where(drops[MEMORY], 0.0, tl.load(numbers + MEMORY_SCALE) * value)
    return value


@triton.jit
def read_memory(value, numbers, FLAGS: tl.constexpr):
    """What reads the memory sees it times a scale."""
    if sampled(FLAGS, "CELL"):
        value = tl.load(numbers + READ_SCALE) * value
    return value


@triton.jit
def enter(value, dead, numbers, SCALED: tl.constexpr, FLAGS: tl.constexpr):
    """A state that enters a call: a unit that is dropped for the whole sequence enters dead. Its own gradient.

    SCALED: whether callers see this state times a scale, as a GRU's.
    """
    if SCALED and sampled(FLAGS, "CELL"):
        value = tl.load(numbers + ENTRY_SCALE) * value
    if source(FLAGS, "CELL") == "sequence":
        value = tl.where(dead, 0.0, value)
    return value


@triton.jit
def zone_c(old, new, drops, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "ZONEOUT_C"):
        if on(FLAGS, "MASKS_ON"):
            new = tl.where(drops[ZONE_C], old, new)
        else:
            z = tl.load(numbers + OLD_C)
            new = z * old + (1.0 - z) * new
    return new


@triton.jit
def zone_h(old, new, drops, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "ZONEOUT_H"):
        if on(FLAGS, "MASKS_ON"):
            new = tl.where(drops[ZONE_H], old, new)
        else:
            z = tl.load(numbers + OLD_H)
            new = z * old + (1.0 - z) * new
    return new


@triton.jit
def split_c(grad, drops, numbers, FLAGS: tl.constexpr):
    """The shares of a gradient at the zoned c that go to the old value and to the new one."""
    zero = tl.zeros_like(grad)
    return zone_c(grad, zero, drops, numbers, FLAGS), zone_c(zero, grad, drops, numbers, FLAGS)


@triton.jit
def split_h(grad, drops, numbers, FLAGS: tl.constexpr):
    zero = tl.zeros_like(grad)
    return zone_h(grad, zero, drops, numbers, FLAGS), zone_h(zero, grad, drops, numbers, FLAGS)
