"""Which elements the sites inside a step drop, and what that does to a value; ``sites.py`` has their numbers."""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import SEQ, below, philox
from .sites import (
    ENTRY_SCALE,
    HIDDEN,
    HIDDEN_KEY,
    HIDDEN_SCALE,
    MEMORY_SCALE,
    OLD_C,
    OLD_H,
    P_CELL,
    P_HIDDEN,
    P_UPDATE,
    P_ZONEOUT_C,
    P_ZONEOUT_H,
    READ_SCALE,
    STATE,
    STATE_KEY,
    STATE_SEQUENCE,
    UPDATE_SCALE,
    any_source,
    on,
    sampled,
    source,
)

# --------------------------------------------------------------------------------------------------------------------
# Which elements are dropped
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def examples(example_ids, b, inside):
    """The example counter of batch rows b."""
    if example_ids is not None:
        example = tl.load(example_ids + b, inside, other=0)
    else:
        example = b
    return example.to(tl.uint32)


@triton.jit
def _of_call(w0, w1, w2, w3, thresholds, update, memory, zone_c, zone_h, PER: tl.constexpr, FLAGS: tl.constexpr):
    if source(FLAGS, "ZONEOUT_C") == PER:
        zone_c = below(w0, tl.load(thresholds + P_ZONEOUT_C))
    if source(FLAGS, "ZONEOUT_H") == PER:
        if on(FLAGS, "ZONEOUT_H_SHARED"):
            zone_h = below(w0, tl.load(thresholds + P_ZONEOUT_H))
        else:
            zone_h = below(w1, tl.load(thresholds + P_ZONEOUT_H))
    if source(FLAGS, "UPDATE") == PER:
        update = below(w2, tl.load(thresholds + P_UPDATE))
    if source(FLAGS, "CELL") == PER:
        memory = below(w3, tl.load(thresholds + P_CELL))
    return update, memory, zone_c, zone_h


@triton.jit
def state_masks(keys, thresholds, unit, example, step, stream, FLAGS: tl.constexpr):
    """Which elements are dropped (update, memory) or keep their old value (zone_c, zone_h) at an absolute step.

    A mask per sequence is drawn again at each step, which costs less than a pass over memory that holds it.
    """
    never = unit < 0
    update, memory, zone_c, zone_h = never, never, never, never
    if any_source(FLAGS, "step") or any_source(FLAGS, "sequence"):
        k0 = tl.load(keys + STATE_KEY).to(tl.uint32)
        k1 = tl.load(keys + STATE_KEY + 1).to(tl.uint32)
        a, of_layer = unit.to(tl.uint32), stream.to(tl.uint32)
        if any_source(FLAGS, "step"):
            w0, w1, w2, w3 = philox(a, example, step.to(tl.uint32), of_layer + STATE, k0, k1)
            update, memory, zone_c, zone_h = _of_call(
                w0, w1, w2, w3, thresholds, update, memory, zone_c, zone_h, "step", FLAGS
            )
        if any_source(FLAGS, "sequence"):
            w0, w1, w2, w3 = philox(a, example, of_layer * 0 + SEQ, of_layer + STATE_SEQUENCE, k0, k1)
            update, memory, zone_c, zone_h = _of_call(
                w0, w1, w2, w3, thresholds, update, memory, zone_c, zone_h, "sequence", FLAGS
            )
    return update, memory, zone_c, zone_h


@triton.jit
def dead_units(keys, thresholds, unit, example, stream, FLAGS: tl.constexpr):
    """Which units of the memory are dropped for the whole sequence."""
    dead = unit < 0
    if source(FLAGS, "CELL") == "sequence":
        k0 = tl.load(keys + STATE_KEY).to(tl.uint32)
        k1 = tl.load(keys + STATE_KEY + 1).to(tl.uint32)
        of_layer = stream.to(tl.uint32)
        _, _, _, w3 = philox(unit.to(tl.uint32), example, of_layer * 0 + SEQ, of_layer + STATE_SEQUENCE, k0, k1)
        dead = below(w3, tl.load(thresholds + P_CELL))
    return dead


# --------------------------------------------------------------------------------------------------------------------
# What they do; each linear site is its own gradient
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def drop_hidden(value, numbers, keys, thresholds, unit, example, stream, FLAGS: tl.constexpr):
    """Hidden dropout of h, or of the gradient that comes back through it."""
    if sampled(FLAGS, "HIDDEN"):
        k0 = tl.load(keys + HIDDEN_KEY).to(tl.uint32)
        k1 = tl.load(keys + HIDDEN_KEY + 1).to(tl.uint32)
        of_layer = stream.to(tl.uint32)
        if on(FLAGS, "HIDDEN_BATCH_SHARED"):
            example = of_layer * 0 + SEQ
        w0, _, _, _ = philox(unit.to(tl.uint32), example, of_layer * 0 + SEQ, of_layer + HIDDEN, k0, k1)
        dropped = below(w0, tl.load(thresholds + P_HIDDEN))
        value = tl.where(dropped, 0.0, tl.load(numbers + HIDDEN_SCALE) * value)
    return value


@triton.jit
def drop_update(value, dropped, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "UPDATE"):
        value = tl.where(dropped, 0.0, tl.load(numbers + UPDATE_SCALE) * value)
    return value


@triton.jit
def drop_memory(value, dropped, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "CELL"):
        value = tl.where(dropped, 0.0, tl.load(numbers + MEMORY_SCALE) * value)
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
def zone_c(old, new, keep_old, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "ZONEOUT_C"):
        if on(FLAGS, "MASKS_ON"):
            new = tl.where(keep_old, old, new)
        else:
            z = tl.load(numbers + OLD_C)
            new = z * old + (1.0 - z) * new
    return new


@triton.jit
def zone_h(old, new, keep_old, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "ZONEOUT_H"):
        if on(FLAGS, "MASKS_ON"):
            new = tl.where(keep_old, old, new)
        else:
            z = tl.load(numbers + OLD_H)
            new = z * old + (1.0 - z) * new
    return new


@triton.jit
def split_c(grad, keep_old, numbers, FLAGS: tl.constexpr):
    """The shares of a gradient at the zoned c that go to the old value and to the new one."""
    zero = tl.zeros_like(grad)
    return zone_c(grad, zero, keep_old, numbers, FLAGS), zone_c(zero, grad, keep_old, numbers, FLAGS)


@triton.jit
def split_h(grad, keep_old, numbers, FLAGS: tl.constexpr):
    zero = tl.zeros_like(grad)
    return zone_h(grad, zero, keep_old, numbers, FLAGS), zone_h(zero, grad, keep_old, numbers, FLAGS)
