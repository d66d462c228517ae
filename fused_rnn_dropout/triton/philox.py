"""Counters to random words: Philox4x32-10, the key of a call, thresholds. ``csrc/core/philox.h`` in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import sites
from ..sites import DOMAIN, KIND
from .launch import launch

SEQ = tl.constexpr(sites.SEQ)
_DOMAIN = tl.constexpr(DOMAIN)
_M0, _M1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)  # multipliers
_W0, _W1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)  # Weyl increments of the key

FOUR_WORDS = frozenset(KIND[name] for name in ("STATE", "STATE_SEQUENCE", "HIDDEN", "INPUT_UNTIED"))
"""Kinds whose call serves one unit; the call of any other kind serves four neighbours."""


@triton.jit
def philox(a, b, c, stream, k0, k1):
    """The four words of the counter (a, b, c, stream), all uint32, scalars or tensors that broadcast."""
    x0, x1, x2, x3 = a, b, c, stream
    for _ in tl.static_range(10):
        p0, p1 = x0.to(tl.uint64) * _M0, x2.to(tl.uint64) * _M1
        x0, x1 = (p1 >> 32).to(tl.uint32) ^ x1 ^ k0, p1.to(tl.uint32)
        x2, x3 = (p0 >> 32).to(tl.uint32) ^ x3 ^ k1, p0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return x0, x1, x2, x3


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
def below(words, threshold):
    """Whether each word is below an int64 threshold in [0, 2**32]; 2**32 itself does not fit a word."""
    return (words < threshold.to(tl.uint32)) | (threshold >= 4294967296)


@triton.jit
def keep_scale(threshold):
    """2**32 / (2**32 - P) in float64; 0 where everything is dropped."""
    kept = 4294967296 - threshold
    return tl.where(kept > 0, 4294967296.0 / tl.maximum(kept, 1).to(tl.float64), 0.0)


@triton.jit
def keep_rate(threshold):
    """(2**32 - P) / 2**32 in float64."""
    return (4294967296 - threshold).to(tl.float64) * (1.0 / 4294967296.0)


@triton.jit
def side_by_side(w0, w1, w2, w3):
    """(N) four times -> (4 N): the words of call n at 4 n .. 4 n + 3."""
    together = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(together, (together.numel,))


# --------------------------------------------------------------------------------------------------------------------
# Raw words, for tests and for exporting masks
# --------------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["nb", "calls", "total", "width", "stream"])
def words_kernel(
    rng,  # [2]
    b,  # [nb]
    c,  # [nc]
    target,  # [nc, nb, width]
    nb: tl.int64,
    calls: tl.int64,  # for each pair of b and c
    total: tl.int64,  # nc * nb * calls
    width: tl.int64,  # of the words of a pair; the last call may hold more
    stream: tl.int64,
    BLOCK: tl.constexpr,
):
    k0, k1 = derive_key(rng)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pair, call = at // calls, at % calls
    inside = at < total
    word_b = tl.load(b + pair % nb, inside, other=0).to(tl.uint32)
    word_c = tl.load(c + pair // nb, inside, other=0).to(tl.uint32)
    w0, w1, w2, w3 = philox(call.to(tl.uint32), word_b, word_c, stream.to(tl.uint32), k0, k1)
    to, room = target + pair * width + 4 * call, width - 4 * call
    tl.store(to, w0.to(tl.int64), inside & (room > 0))
    tl.store(to + 1, w1.to(tl.int64), inside & (room > 1))
    tl.store(to + 2, w2.to(tl.int64), inside & (room > 2))
    tl.store(to + 3, w3.to(tl.int64), inside & (room > 3))


def words(rng: Tensor, b: Tensor, c: Tensor, units: int, stream: int) -> Tensor:
    """int64 words: (len(c), len(b), units, 4) for the kinds of :data:`FOUR_WORDS`, else (len(c), len(b), units)."""
    single = stream & 0xFF in FOUR_WORDS
    shape = (c.numel(), b.numel(), units)
    target = torch.empty((*shape, 4) if single else shape, dtype=torch.int64, device=rng.device)
    calls = units if single else triton.cdiv(units, 4)
    total = c.numel() * b.numel() * calls
    if total:
        width = 4 * units if single else units
        launch(
            words_kernel, triton.cdiv(total, 256), rng, b, c, target, b.numel(), calls, total, width, stream, BLOCK=256
        )
    return target
