"""One step of an LSTM, of a GRU and of a plain RNN with every state site, forward and backward, for a block of units.

``csrc/core/cells`` in Triton; docs/semantics.md has the equations. Everything here is in registers and in the type that
the cell computes in.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .masks import drop_memory, drop_update, read_memory, split_c, zone_c


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """exp(-2|x|) never overflows. Where it is close to 1 the difference loses bits: in float32 a polynomial takes over,
    fitted to tanh(x) / x on |x| < 0.55, right to about 8e-8 of the value. In float64 the error is 1e-16, absolute.
    """
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    result = tl.where(x < 0, -t, t)
    if x.dtype == tl.float32:
        s = x * x
        p = 0.02107025310397148 - 0.006272607482969761 * s
        p = -0.053851865231990814 + s * p
        p = 0.13332580029964447 + s * p
        p = -0.33333316445350647 + s * p
        result = tl.where(tl.abs(x) < 0.55, x + x * (s * p), result)
    return result


# --------------------------------------------------------------------------------------------------------------------
# LSTM
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def lstm_memory(i, f, g, c, drops, numbers, FLAGS: tl.constexpr):
    """The new memory before zoneout, from activated gates."""
    return drop_memory(f * c + i * drop_update(g, drops, numbers, FLAGS), drops, numbers, FLAGS)


@triton.jit
def lstm_output(o, c_new, numbers, FLAGS: tl.constexpr):
    """The new h before zoneout, or what a projection reads."""
    return read_memory(o * tanh(c_new), numbers, FLAGS)


@triton.jit
def lstm_forward(i, f, g, o, c, drops, numbers, FLAGS: tl.constexpr):
    """In: pre-activations, the memory before. Out: activated gates, the memory after, the new h before zoneout."""
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c_new = lstm_memory(i, f, g, c, drops, numbers, FLAGS)
    h_new = lstm_output(o, c_new, numbers, FLAGS)
    return i, f, g, o, zone_c(c, c_new, drops, numbers, FLAGS), h_new


@triton.jit
def lstm_backward(i, f, g, o, c, dh_new, dc, drops, numbers, FLAGS: tl.constexpr):
    """In: activated gates, the memory before, the gradients at the new h and at the memory after. Out: the gradients at
    the pre-activations and at the memory before.
    """
    candidate = drop_update(g, drops, numbers, FLAGS)
    th = tanh(drop_memory(f * c + i * candidate, drops, numbers, FLAGS))
    dh = read_memory(dh_new, numbers, FLAGS)
    to_old, to_new = split_c(dc, drops, numbers, FLAGS)
    dz = drop_memory(to_new + dh * o * (1.0 - th * th), drops, numbers, FLAGS)
    di = dz * candidate * i * (1.0 - i)
    df = dz * c * f * (1.0 - f)
    dg = drop_update(dz * i, drops, numbers, FLAGS) * (1.0 - g * g)
    do = dh * th * o * (1.0 - o)
    return di, df, dg, do, to_old + dz * f


# --------------------------------------------------------------------------------------------------------------------
# GRU
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def gru_forward(r, z, n, u, h, drops, numbers, FLAGS: tl.constexpr):
    """In: pre-activations of r and z, the input part of n, u = U_n h + b_hn, the state before. Out: activated gates,
    and the new h before zoneout, unscaled.
    """
    r, z = sigmoid(r), sigmoid(z)
    n = tanh(n + r * u)
    h_new = z * h + (1.0 - z) * drop_update(n, drops, numbers, FLAGS)
    return r, z, n, drop_memory(h_new, drops, numbers, FLAGS)


@triton.jit
def gru_backward(r, z, n, u, h, dh_new, drops, numbers, FLAGS: tl.constexpr):
    """In: activated gates, u, the state before, the gradient at the new h. Out: the gradients at the pre-activations of
    r, z and n and at u, and at the state before along the leak.
    """
    e = drop_memory(dh_new, drops, numbers, FLAGS)
    candidate = drop_update(n, drops, numbers, FLAGS)
    dn = drop_update(e * (1.0 - z), drops, numbers, FLAGS) * (1.0 - n * n)
    dr = dn * u * r * (1.0 - r)
    dz = e * (h - candidate) * z * (1.0 - z)
    return dr, dz, dn, dn * r, e * z


# --------------------------------------------------------------------------------------------------------------------
# RNN
# --------------------------------------------------------------------------------------------------------------------


@triton.jit
def rnn_candidate(a, RELU: tl.constexpr):
    """The activated pre-activation; NaN stays NaN, as in torch.relu."""
    if RELU:
        a = tl.where(a <= 0, 0.0, a)
    else:
        a = tanh(a)
    return a


@triton.jit
def rnn_forward(a, drops, numbers, RELU: tl.constexpr, FLAGS: tl.constexpr):
    """In: the pre-activation. Out: the candidate, and the new h before zoneout."""
    candidate = rnn_candidate(a, RELU)
    return candidate, drop_update(candidate, drops, numbers, FLAGS)


@triton.jit
def rnn_backward(candidate, dh_new, drops, numbers, RELU: tl.constexpr, FLAGS: tl.constexpr):
    """The gradient at the pre-activation, from the candidate and the gradient at the new h."""
    da = drop_update(dh_new, drops, numbers, FLAGS)
    if RELU:
        da = tl.where(candidate <= 0, 0.0, da)
    else:
        da = da * (1.0 - candidate * candidate)
    return da
