"""The sites inside a step: which are on, and what they multiply with. ``csrc/core/sites.h`` in Triton.

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
from ..sites import FLAG, KIND, OUTER_SITES, SITE_INDEX, STATE_SITES, stream
from .launch import launch
from .philox import M1, derive_key, keep_rate, keep_scale

P_HIDDEN = tl.constexpr(SITE_INDEX["hidden_dropout"])
P_UPDATE = tl.constexpr(SITE_INDEX["update_dropout"])
P_CELL = tl.constexpr(SITE_INDEX["cell_dropout"])
P_ZONEOUT_C = tl.constexpr(SITE_INDEX["zoneout_c"])
P_ZONEOUT_H = tl.constexpr(SITE_INDEX["zoneout_h"])
CELL = tl.constexpr(KIND["CELL"])
HIDDEN = tl.constexpr(KIND["HIDDEN"])

# What a call's kernels read: numbers in the type that the cell computes in, and the words of three keys.
HIDDEN_SCALE = tl.constexpr(0)
UPDATE_SCALE = tl.constexpr(1)
MEMORY_SCALE = tl.constexpr(2)  # of the new c (LSTM) or h (GRU); 1 in training, where its mask is binary
READ_SCALE = tl.constexpr(3)  # what reads the memory sees it times this: 1/q in training
ENTRY_SCALE = tl.constexpr(4)  # GRU: a caller's h, which is scaled, times this is the state
OLD_C = tl.constexpr(5)  # zoneout's probability to keep the old value
OLD_H = tl.constexpr(6)
WRITTEN_SCALE = tl.constexpr(7)
_NUMBERS = 8
STATE_KEY = tl.constexpr(0)
HIDDEN_KEY = tl.constexpr(2)
WRITTEN_KEY = tl.constexpr(4)
_KEYS = 6

_STATE = {site.flag: site for site in STATE_SITES}
UPDATE, MEMORY, ZONE_C, ZONE_H = (
    tl.constexpr(list(_STATE).index(flag)) for flag in ("UPDATE", "CELL", "ZONEOUT_C", "ZONEOUT_H")
)
"""Where a state site is among the masks of a step."""
NUM_STATE_SITES = tl.constexpr(len(STATE_SITES))


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
    return "sequence" if flags & FLAG[_STATE[name].sequence_flag] else "step"


@triton.constexpr_function
def _drawing(flags):
    """The rows of the state sites that draw masks."""
    return [_STATE[name] for name in _STATE if source(flags, name) != "off"]


@triton.constexpr_function
def drawing(flags):
    """How many state sites draw masks."""
    return len(_drawing(flags))


@triton.constexpr_function
def draws(flags, site):
    """Whether the state site in that place does."""
    return STATE_SITES[site] in _drawing(flags)


@triton.constexpr_function
def number_of(flags, site):
    """Which of those that draw it is."""
    return _drawing(flags).index(STATE_SITES[site])


@triton.constexpr_function
def kind_of(flags, number):
    """The kind of the masks of such a site: zoneout of h may read those of zoneout of c."""
    kind = _drawing(flags)[number].kind
    return KIND["ZONEOUT_C" if kind == "ZONEOUT_H" and flags & FLAG["ZONEOUT_H_SHARED"] else kind]


@triton.constexpr_function
def threshold_of(flags, number):
    """Its row of the thresholds."""
    return SITE_INDEX[_drawing(flags)[number].name]


@triton.constexpr_function
def per_step(flags, number):
    return source(flags, _drawing(flags)[number].flag) == "step"


@triton.constexpr_function
def _written(flags):
    """The site that masks what the layer writes; None where none does.

    ``sites.outer_site`` says the same outside: a compiled function calls no function of Python's but its own kind.
    """
    for site in OUTER_SITES:
        if sampled(flags, site.flag) and site.writes_under(flags):
            return site
    return None


@triton.constexpr_function
def writes(flags):
    return _written(flags) is not None


@triton.constexpr_function
def written_kind(flags):
    """The kind of its masks."""
    return KIND[_written(flags).kind]


@triton.constexpr_function
def written_threshold(flags):
    """Its row of the thresholds."""
    return SITE_INDEX[_written(flags).name]


@triton.constexpr_function
def written_per_step(flags):
    sequence_flag = _written(flags).sequence_flag
    return not sequence_flag or not flags & FLAG[sequence_flag]


@triton.constexpr_function
def written_shared(flags):
    """Whether all examples have one mask there."""
    shared = [option.flag for option in _written(flags).options if option.name == "batch_shared"]
    return any(flags & FLAG[flag] for flag in shared)


@triton.constexpr_function
def call_of(element):
    """The call that serves an element of a row."""
    return element // 8


@triton.constexpr_function
def field_of(element):
    """Its field in that."""
    return element % 8


@triton.constexpr_function
def power_of_two(n):
    """The least that is not below n, as every dimension of a block is one."""
    return 1 << (n - 1).bit_length()


# --------------------------------------------------------------------------------------------------------------------
# Once per call
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def prepare_kernel(
    thresholds,  # [10]
    rng_state,  # [2], or None
    rng_hidden,  # [2], or None
    rng_written,  # [2], or None
    numbers,  # [8]
    keys,  # [6]
    FLAGS: tl.constexpr,
):
    """Scales and keys, once for all steps: a division in double precision has no place in a kernel per step."""
    p_hidden, p_update = tl.load(thresholds + P_HIDDEN), tl.load(thresholds + P_UPDATE)
    p_cell = tl.load(thresholds + P_CELL)
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
    tl.store(numbers + HIDDEN_SCALE, keep_scale(p_hidden))
    tl.store(numbers + UPDATE_SCALE, update)
    tl.store(numbers + MEMORY_SCALE, memory)
    tl.store(numbers + READ_SCALE, read)
    tl.store(numbers + ENTRY_SCALE, entry)
    tl.store(numbers + OLD_C, 1.0 - keep_rate(tl.load(thresholds + P_ZONEOUT_C)))
    tl.store(numbers + OLD_H, 1.0 - keep_rate(tl.load(thresholds + P_ZONEOUT_H)))
    if drawing(FLAGS) > 0:
        k0, k1 = derive_key(rng_state)
        tl.store(keys + STATE_KEY, k0.to(tl.int64))
        tl.store(keys + STATE_KEY + 1, k1.to(tl.int64))
    if sampled(FLAGS, "HIDDEN"):
        k0, k1 = derive_key(rng_hidden)
        tl.store(keys + HIDDEN_KEY, k0.to(tl.int64))
        tl.store(keys + HIDDEN_KEY + 1, k1.to(tl.int64))
    if writes(FLAGS):
        tl.store(numbers + WRITTEN_SCALE, keep_scale(tl.load(thresholds + written_threshold(FLAGS))))
        k0, k1 = derive_key(rng_written)
        tl.store(keys + WRITTEN_KEY, k0.to(tl.int64))
        tl.store(keys + WRITTEN_KEY + 1, k1.to(tl.int64))


class Sites(NamedTuple):
    """The sites of one layer and direction, as its kernels take them; tensors are None where no site is configured."""

    thresholds: Tensor | None  # [10]
    numbers: Tensor | None  # [8], in the type that the cell computes in
    keys: Tensor | None  # [6], int64
    example_ids: Tensor | None  # [B], or None for 0 .. B-1
    stream: int  # of kind 0
    step_offset: int
    flags: int
    column: int  # of the layer's output, of both directions, which is the direction's first

    @staticmethod
    def prepare(
        thresholds: Tensor | None,
        rng_state: Tensor | None,
        rng_hidden: Tensor | None,
        rng_written: Tensor | None,
        example_ids: Tensor | None,
        dtype: torch.dtype,
        flags: int,
        layer: int,
        reverse: bool,
        step_offset: int,
        column: int,
    ) -> Sites:
        # Sites of the weights act before the recurrence: they make no other kernels of it.
        flags &= ~(FLAG["WEIGHT_HH"] | FLAG["WEIGHT_IH"] | FLAG["WEIGHT_HR"] | FLAG["WEIGHT_ROW"])
        flags = 0 if flags == FLAG["MASKS_ON"] else flags
        numbers = keys = None
        if flags:
            assert thresholds is not None
            numbers = torch.empty(_NUMBERS, dtype=compute_dtype(dtype), device=thresholds.device)
            keys = torch.empty(_KEYS, dtype=torch.int64, device=thresholds.device)
            rngs = (rng_state, rng_hidden, rng_written)
            launch(prepare_kernel, 1, thresholds, *rngs, numbers, keys, FLAGS=flags, num_warps=1)
        return Sites(
            thresholds if flags else None,
            numbers,
            keys,
            example_ids,
            stream(0, layer, int(reverse)),
            step_offset,
            flags,
            column,
        )

    def product(self, t: int) -> int:
        """That of ``philox.product_of`` for step t of the call, as int64 holds it."""
        found = (self.step_offset + t) % 2**32 * M1.value
        return found - 2**64 if found >= 2**63 else found

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """In the order in which every kernel takes them."""
        return self.numbers, self.keys, self.thresholds, self.example_ids

    def read(self, memory: Tensor) -> Tensor:
        """What callers see of a GRU's state, and the gradient at the state from theirs."""
        if not self.flags & FLAG["CELL"]:
            return memory
        assert self.numbers is not None
        return memory * self.numbers[READ_SCALE.value]
