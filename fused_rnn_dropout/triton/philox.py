"""Counters to masks: Philox4x32-10, the key of a call, what a call drops. ``csrc/core/counters.h`` in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import sites
from ..sites import DOMAIN
from .launch import launch

SEQ = tl.constexpr(sites.SEQ)
LOW = tl.constexpr(sites.LOW)
FIELDS = tl.constexpr(8)  # of a call, and so the neighbouring elements that it serves
_DOMAIN = tl.constexpr(DOMAIN)
M0, M1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)  # multipliers
_W0, _W1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)  # Weyl increments of the key


@triton.jit
def product_of(c):
    """uint64: what the first round needs of the third counter word, uint32; common to all calls that have it."""
    return c.to(tl.uint64) * M1


@triton.jit
def begin(a, b, product, k0, k1):
    """The words after the first round but for the stream, which enters it by an exclusive or: common to all streams."""
    p0 = a.to(tl.uint64) * M0
    return (
        (product >> 32).to(tl.uint32) ^ b ^ k0,
        product.to(tl.uint32),
        (p0 >> 32).to(tl.uint32) ^ k1,
        p0.to(tl.uint32),
    )


@triton.jit
def of_stream(x0, x1, x2, x3, stream, k0, k1):
    """The four words of a stream, from what :func:`begin` returns."""
    x2 ^= stream
    for _ in tl.static_range(9):
        k0, k1 = k0 + _W0, k1 + _W1
        p0, p1 = x0.to(tl.uint64) * M0, x2.to(tl.uint64) * M1
        x0, x1 = (p1 >> 32).to(tl.uint32) ^ x1 ^ k0, p1.to(tl.uint32)
        x2, x3 = (p0 >> 32).to(tl.uint32) ^ x3 ^ k1, p0.to(tl.uint32)
    return x0, x1, x2, x3


@triton.jit
def philox(a, b, c, stream, k0, k1):
    """The four words of the counter (a, b, c, stream), all uint32, scalars or tensors that broadcast."""
    x0, x1, x2, x3 = begin(a, b, product_of(c), k0, k1)
    return of_stream(x0, x1, x2, x3, stream, k0, k1)


@triton.jit
def derive_key(rng):
    """The key of a call from its pair of 64-bit numbers."""
    r0, r1 = tl.load(rng), tl.load(rng + 1)
    zero = (r0 & 0).to(tl.uint32)
    k0, k1, _, _ = philox(
        r1.to(tl.uint32), (r1 >> 32).to(tl.uint32), zero + _DOMAIN, zero, r0.to(tl.uint32), (r0 >> 32).to(tl.uint32)
    )
    return k0, k1


@triton.jit
def _below(w0, w1, w2, w3, limit):
    """The fields of calls that are below ``limit``, bit f for field f: word f / 2, its low half where f is even."""
    found = (w0 & 0xFFFF < limit).to(tl.uint32) | (w0 >> 16 < limit).to(tl.uint32) << 1
    found |= (w1 & 0xFFFF < limit).to(tl.uint32) << 2 | (w1 >> 16 < limit).to(tl.uint32) << 3
    found |= (w2 & 0xFFFF < limit).to(tl.uint32) << 4 | (w2 >> 16 < limit).to(tl.uint32) << 5
    return found | (w3 & 0xFFFF < limit).to(tl.uint32) << 6 | (w3 >> 16 < limit).to(tl.uint32) << 7


@triton.jit
def dropped_of_calls(call, row, product, stream, threshold, k0, k1):
    """Which of their eight elements calls drop, bit f for field f; for zoneout, which keep their old value.

    ``threshold`` is int64 in [0, 2**32], ``product`` that of the step (:func:`product_of`), all else uint32; they
    broadcast. Where p = 1 the upper half is 2**16, which is
    above every field. The second call is made where some field of a program meets the upper half.
    """
    upper, lower = (threshold >> 16).to(tl.uint32), (threshold & 0xFFFF).to(tl.uint32)
    x0, x1, x2, x3 = begin(call, row, product, k0, k1)
    w0, w1, w2, w3 = of_stream(x0, x1, x2, x3, stream, k0, k1)
    found = _below(w0, w1, w2, w3, upper)
    ties = tl.where(lower > 0, _below(w0, w1, w2, w3, upper + 1) & ~found, 0)
    if tl.max(ties) > 0:
        w0, w1, w2, w3 = of_stream(x0, x1, x2, x3, stream | LOW, k0, k1)
        found |= ties & _below(w0, w1, w2, w3, lower)
    return found


@triton.jit
def spread(bits):
    """(N) -> (8 N): bit f of number n at 8 n + f, as a mask."""
    each = tl.reshape(tl.broadcast_to(bits[:, None], (bits.numel, FIELDS)), (FIELDS * bits.numel,))
    return (each >> (tl.arange(0, FIELDS * bits.numel) % FIELDS).to(tl.uint32)) & 1 != 0


@triton.jit
def keep_scale(threshold):
    """2**32 / (2**32 - P) in float64; 0 where everything is dropped."""
    kept = 4294967296 - threshold
    return tl.where(kept > 0, 4294967296.0 / tl.maximum(kept, 1).to(tl.float64), 0.0)


@triton.jit
def keep_rate(threshold):
    """(2**32 - P) / 2**32 in float64."""
    return (4294967296 - threshold).to(tl.float64) * (1.0 / 4294967296.0)


# --------------------------------------------------------------------------------------------------------------------
# The numbers that masks are made of, for tests and for exporting masks
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def _store_two(word, low_word, to, inside, room):
    """The numbers of the two fields of a word; ``low_word`` is that of the second call."""
    tl.store(to, (word & 0xFFFF).to(tl.int64) << 16 | (low_word & 0xFFFF).to(tl.int64), inside & (room > 0))
    tl.store(to + 1, (word >> 16).to(tl.int64) << 16 | (low_word >> 16).to(tl.int64), inside & (room > 1))


@triton.jit(do_not_specialize=["rows", "calls", "total", "n", "stream"])
def words_kernel(
    rng,  # [2]
    row,  # [rows]
    step,  # [steps]
    target,  # [steps, rows, n]
    rows: tl.int64,
    calls: tl.int64,  # of a row
    total: tl.int64,  # steps * rows * calls
    n: tl.int64,
    stream: tl.int64,
    BLOCK: tl.constexpr,
):
    k0, k1 = derive_key(rng)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    of_row, call = at // calls, at % calls
    inside = at < total
    b = tl.load(row + of_row % rows, inside, other=0).to(tl.uint32)
    c = tl.load(step + of_row // rows, inside, other=0).to(tl.uint32)
    a, fourth = call.to(tl.uint32), stream.to(tl.uint32)
    w0, w1, w2, w3 = philox(a, b, c, fourth, k0, k1)
    l0, l1, l2, l3 = philox(a, b, c, fourth | LOW, k0, k1)
    to, room = target + of_row * n + FIELDS * call, n - FIELDS * call
    _store_two(w0, l0, to, inside, room)
    _store_two(w1, l1, to + 2, inside, room - 2)
    _store_two(w2, l2, to + 4, inside, room - 4)
    _store_two(w3, l3, to + 6, inside, room - 6)


def words(rng: Tensor, row: Tensor, step: Tensor, n: int, stream: int) -> Tensor:
    """int64 numbers: (len(step), len(row), n)."""
    target = torch.empty((step.numel(), row.numel(), n), dtype=torch.int64, device=rng.device)
    calls = triton.cdiv(n, FIELDS.value)
    total = step.numel() * row.numel() * calls
    if total:
        launch(
            words_kernel, triton.cdiv(total, 256), rng, row, step, target, row.numel(), calls, total, n, stream,
            BLOCK=256,
        )  # fmt: skip
    return target
