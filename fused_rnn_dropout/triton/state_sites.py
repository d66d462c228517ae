"""The sites inside a step: what they multiply with, and which elements they drop. ``csrc/core/sites.h`` in Triton.

``FLAGS``, the static half of a configuration, is a compile-time constant of every kernel: what is not configured leaves
no instruction behind. Functions of ``FLAGS`` alone run in the compiler (``constexpr_function``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..fakes import compute_dtype
from ..sites import FLAG, KIND, SITE_INDEX, stream
from .launch import launch
from .philox import SEQ, below, derive_key, keep_rate, keep_scale, philox

_P_HIDDEN = tl.constexpr(SITE_INDEX["hidden_dropout"])
_P_UPDATE = tl.constexpr(SITE_INDEX["update_dropout"])
_P_CELL = tl.constexpr(SITE_INDEX["cell_dropout"])
_P_ZONEOUT_C = tl.constexpr(SITE_INDEX["zoneout_c"])
_P_ZONEOUT_H = tl.constexpr(SITE_INDEX["zoneout_h"])
_STATE = tl.constexpr(KIND["STATE"])
_STATE_SEQUENCE = tl.constexpr(KIND["STATE_SEQUENCE"])
_HIDDEN = tl.constexpr(KIND["HIDDEN"])

# What a call's kernels read: numbers in the type that the cell computes in, and the words of two keys.
_HIDDEN_SCALE = tl.constexpr(0)
_UPDATE_SCALE = tl.constexpr(1)
_MEMORY_SCALE = tl.constexpr(2)  # of the new c (LSTM) or h (GRU); 1 in training, where its mask is binary
_READ_SCALE = tl.constexpr(3)  # what reads the memory sees it times this: 1/q in training
_ENTRY_SCALE = tl.constexpr(4)  # GRU: a caller's h, which is scaled, times this is the state
_OLD_C = tl.constexpr(5)  # zoneout's probability to keep the old value
_OLD_H = tl.constexpr(6)
_NUMBERS = 7
_STATE_KEY = tl.constexpr(0)
_HIDDEN_KEY = tl.constexpr(2)
_KEYS = 4

_SEQUENCE = {"ZONEOUT_C": "ZONEOUT_C_SEQUENCE", "ZONEOUT_H": "ZONEOUT_H_SEQUENCE", "UPDATE": "UPDATE_SEQUENCE"}


# --------------------------------------------------------------------------------------------------------------------
# In the compiler
# --------------------------------------------------------------------------------------------------------------------


@triton.constexpr_function
def on(flags, name):
    return flags & FLAG[name] != 0


@triton.constexpr_function
def sampled(flags, name):
    """Whether a site draws masks."""
    return flags & FLAG[name] != 0 and flags & FLAG["MASKS_ON"] != 0


@triton.constexpr_function
def source(flags, name):
    """How often a state site draws its mask: "off", "step" or "sequence"."""
    if not flags & FLAG[name] or not flags & FLAG["MASKS_ON"]:
        return "off"
    once = not flags & FLAG["CELL_STEP"] if name == "CELL" else flags & FLAG[_SEQUENCE[name]]
    return "sequence" if once else "step"


@triton.constexpr_function
def any_source(flags, per):
    return any(source(flags, name) == per for name in (*_SEQUENCE, "CELL"))


# --------------------------------------------------------------------------------------------------------------------
# Once per call
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def prepare_kernel(
    thresholds,  # [10]
    rng_state,  # [2], or None
    rng_hidden,  # [2], or None
    numbers,  # [7]
    keys,  # [4]
    FLAGS: tl.constexpr,
):
    """Scales and keys, once for all steps: a division in double precision has no place in a kernel per step."""
    p_hidden, p_update = tl.load(thresholds + _P_HIDDEN), tl.load(thresholds + _P_UPDATE)
    p_cell = tl.load(thresholds + _P_CELL)
    one = keep_rate(p_cell * 0)
    update, memory, read, entry = one, one, one, one
    if sampled(FLAGS, "UPDATE") and not on(FLAGS, "UPDATE_PAPER"):
        update = keep_scale(p_update)
    if on(FLAGS, "UPDATE_PAPER") and not on(FLAGS, "MASKS_ON"):
        update = keep_rate(p_update)
    if sampled(FLAGS, "CELL") and not on(FLAGS, "CELL_PAPER"):
        read, entry = keep_scale(p_cell), keep_rate(p_cell)
    if on(FLAGS, "CELL_PAPER") and not on(FLAGS, "MASKS_ON"):
        memory = keep_rate(p_cell)
    tl.store(numbers + _HIDDEN_SCALE, keep_scale(p_hidden))
    tl.store(numbers + _UPDATE_SCALE, update)
    tl.store(numbers + _MEMORY_SCALE, memory)
    tl.store(numbers + _READ_SCALE, read)
    tl.store(numbers + _ENTRY_SCALE, entry)
    tl.store(numbers + _OLD_C, 1.0 - keep_rate(tl.load(thresholds + _P_ZONEOUT_C)))
    tl.store(numbers + _OLD_H, 1.0 - keep_rate(tl.load(thresholds + _P_ZONEOUT_H)))
    if any_source(FLAGS, "step") or any_source(FLAGS, "sequence"):
        k0, k1 = derive_key(rng_state)
        tl.store(keys + _STATE_KEY, k0.to(tl.int64))
        tl.store(keys + _STATE_KEY + 1, k1.to(tl.int64))
    if sampled(FLAGS, "HIDDEN"):
        k0, k1 = derive_key(rng_hidden)
        tl.store(keys + _HIDDEN_KEY, k0.to(tl.int64))
        tl.store(keys + _HIDDEN_KEY + 1, k1.to(tl.int64))


class Sites(NamedTuple):
    """The sites of one layer and direction, as its kernels take them; tensors are None where no site is configured."""

    thresholds: Tensor | None  # [10]
    numbers: Tensor | None  # [7], in the type that the cell computes in
    keys: Tensor | None  # [4], int64
    example_ids: Tensor | None  # [B], or None for 0 .. B-1
    stream: int  # of kind 0
    step_offset: int
    flags: int

    @staticmethod
    def prepare(
        thresholds: Tensor | None,
        rng_state: Tensor | None,
        rng_hidden: Tensor | None,
        example_ids: Tensor | None,
        dtype: torch.dtype,
        flags: int,
        layer: int,
        reverse: bool,
        step_offset: int,
    ) -> Sites:
        # Sites of the weights act before the recurrence: they make no other kernels of it.
        flags &= ~(FLAG["WEIGHT_HH"] | FLAG["WEIGHT_IH"] | FLAG["WEIGHT_HR"] | FLAG["WEIGHT_ROW"])
        flags = 0 if flags == FLAG["MASKS_ON"] else flags
        numbers = keys = None
        if flags:
            assert thresholds is not None
            numbers = torch.empty(_NUMBERS, dtype=compute_dtype(dtype), device=thresholds.device)
            keys = torch.empty(_KEYS, dtype=torch.int64, device=thresholds.device)
            launch(prepare_kernel, 1, thresholds, rng_state, rng_hidden, numbers, keys, FLAGS=flags, num_warps=1)
        return Sites(
            thresholds if flags else None,
            numbers,
            keys,
            example_ids,
            stream(0, layer, int(reverse)),
            step_offset,
            flags,
        )

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """In the order in which every kernel takes them."""
        return self.numbers, self.keys, self.thresholds, self.example_ids

    def read(self, memory: Tensor) -> Tensor:
        """What callers see of a GRU's state, and the gradient at the state from theirs."""
        if not self.flags & FLAG["CELL"]:
            return memory
        assert self.numbers is not None
        return memory * self.numbers[_READ_SCALE.value]


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
        zone_c = below(w0, tl.load(thresholds + _P_ZONEOUT_C))
    if source(FLAGS, "ZONEOUT_H") == PER:
        if on(FLAGS, "ZONEOUT_H_SHARED"):
            zone_h = below(w0, tl.load(thresholds + _P_ZONEOUT_H))
        else:
            zone_h = below(w1, tl.load(thresholds + _P_ZONEOUT_H))
    if source(FLAGS, "UPDATE") == PER:
        update = below(w2, tl.load(thresholds + _P_UPDATE))
    if source(FLAGS, "CELL") == PER:
        memory = below(w3, tl.load(thresholds + _P_CELL))
    return update, memory, zone_c, zone_h


@triton.jit
def state_masks(keys, thresholds, unit, example, step, stream, FLAGS: tl.constexpr):
    """Which elements are dropped (update, memory) or keep their old value (zone_c, zone_h) at an absolute step.

    A mask per sequence is drawn again at each step, which costs less than a pass over memory that holds it.
    """
    never = unit < 0
    update, memory, zone_c, zone_h = never, never, never, never
    if any_source(FLAGS, "step") or any_source(FLAGS, "sequence"):
        k0 = tl.load(keys + _STATE_KEY).to(tl.uint32)
        k1 = tl.load(keys + _STATE_KEY + 1).to(tl.uint32)
        a, of_layer = unit.to(tl.uint32), stream.to(tl.uint32)
        if any_source(FLAGS, "step"):
            w0, w1, w2, w3 = philox(a, example, step.to(tl.uint32), of_layer + _STATE, k0, k1)
            update, memory, zone_c, zone_h = _of_call(
                w0, w1, w2, w3, thresholds, update, memory, zone_c, zone_h, "step", FLAGS
            )
        if any_source(FLAGS, "sequence"):
            w0, w1, w2, w3 = philox(a, example, of_layer * 0 + SEQ, of_layer + _STATE_SEQUENCE, k0, k1)
            update, memory, zone_c, zone_h = _of_call(
                w0, w1, w2, w3, thresholds, update, memory, zone_c, zone_h, "sequence", FLAGS
            )
    return update, memory, zone_c, zone_h


# --------------------------------------------------------------------------------------------------------------------
# What they do; each linear site is its own gradient
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def drop_hidden(value, numbers, keys, thresholds, unit, example, stream, FLAGS: tl.constexpr):
    """Hidden dropout of h, or of the gradient that comes back through it."""
    if sampled(FLAGS, "HIDDEN"):
        k0 = tl.load(keys + _HIDDEN_KEY).to(tl.uint32)
        k1 = tl.load(keys + _HIDDEN_KEY + 1).to(tl.uint32)
        of_layer = stream.to(tl.uint32)
        if on(FLAGS, "HIDDEN_BATCH_SHARED"):
            example = of_layer * 0 + SEQ
        w0, _, _, _ = philox(unit.to(tl.uint32), example, of_layer * 0 + SEQ, of_layer + _HIDDEN, k0, k1)
        dropped = below(w0, tl.load(thresholds + _P_HIDDEN))
        value = tl.where(dropped, 0.0, tl.load(numbers + _HIDDEN_SCALE) * value)
    return value


@triton.jit
def drop_update(value, dropped, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "UPDATE"):
        value = tl.where(dropped, 0.0, tl.load(numbers + _UPDATE_SCALE) * value)
    return value


@triton.jit
def drop_memory(value, dropped, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "CELL"):
        value = tl.where(dropped, 0.0, tl.load(numbers + _MEMORY_SCALE) * value)
    return value


@triton.jit
def read_memory(value, numbers, FLAGS: tl.constexpr):
    """What reads the memory sees it times a scale."""
    if sampled(FLAGS, "CELL"):
        value = tl.load(numbers + _READ_SCALE) * value
    return value


@triton.jit
def enter(value, memory, numbers, SCALED: tl.constexpr, FLAGS: tl.constexpr):
    """A state that enters a call: a unit that is dropped for the whole sequence enters dead. Its own gradient.

    SCALED: whether callers see this state times a scale, as a GRU's.
    """
    if SCALED and sampled(FLAGS, "CELL"):
        value = tl.load(numbers + _ENTRY_SCALE) * value
    if source(FLAGS, "CELL") == "sequence":
        value = tl.where(memory, 0.0, value)
    return value


@triton.jit
def zone_c(old, new, keep_old, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "ZONEOUT_C"):
        if on(FLAGS, "MASKS_ON"):
            new = tl.where(keep_old, old, new)
        else:
            z = tl.load(numbers + _OLD_C)
            new = z * old + (1.0 - z) * new
    return new


@triton.jit
def zone_h(old, new, keep_old, numbers, FLAGS: tl.constexpr):
    if on(FLAGS, "ZONEOUT_H"):
        if on(FLAGS, "MASKS_ON"):
            new = tl.where(keep_old, old, new)
        else:
            z = tl.load(numbers + _OLD_H)
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
