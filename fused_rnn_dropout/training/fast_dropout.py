"""Fast dropout: the moments of what masks do, computed instead of sampled, in plain PyTorch (Wang & Manning 2013).

Every value is a Gaussian with a mean and a variance, independent of the others. Ordinary autograd goes through. There
are no kernels for it; it shows what sampled dropout converges to, and it is slow. Inverted scaling as everywhere here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from numpy.polynomial.hermite import hermgauss
from torch import Tensor

from ..options import check_rate

_HERMITE = hermgauss(13)
_NODES = tuple(math.sqrt(2) * float(node) for node in _HERMITE[0])
_WEIGHTS = tuple(float(weight) / math.sqrt(math.pi) for weight in _HERMITE[1])


class Moments(NamedTuple):
    """Mean and variance of each element; of one shape."""

    mean: Tensor
    variance: Tensor

    @staticmethod
    def of(value: Tensor) -> Moments:
        """Those of a value that is known."""
        return Moments(value, torch.zeros_like(value))


def dropped_linear(x: Moments, weight: Tensor, bias: Tensor | None, p: float) -> Moments:
    """Moments of W (x * M) + b, M = 0 with probability p and else 1/q; exact for independent x.

    With input moments m, v: mean W m + b, variance (W * W) (v + p m^2) / q. It is also, for a known x, what DropConnect
    does to a product: (W * M) x has the same moments.

    Args:
        x: (*, I).
        weight: (O, I).
        bias: (O,) or None.
        p: probability to drop, in [0, 1].

    Raises:
        ValueError: ``p`` is outside [0, 1].
    """
    p = check_rate("p", p, "an element being zeroed")
    if p == 1:
        x = Moments.of(torch.zeros_like(x.mean))
    spread = F.linear((x.variance + p * x.mean.square()) / (1 - p if p < 1 else 1), weight.square())
    return Moments(F.linear(x.mean, weight, bias), spread)


def _root(variance: Tensor) -> Tensor:
    """The standard deviation; where it is 0 its gradient, which does not exist, is 0."""
    noisy = variance > 0
    return torch.where(noisy, torch.where(noisy, variance, 1.0).sqrt(), 0.0)


def activated(x: Moments, function: Callable[[Tensor], Tensor]) -> Moments:
    """Moments of f(x) for a Gaussian x, by Gauss-Hermite quadrature.

    The papers have closed forms for them, such as sigmoid(m / sqrt(1 + pi v / 8)) for the mean of a sigmoid. Those for
    the variance are off by up to 0.027, which is more than a small variance is.
    """
    std = _root(x.variance)
    values = [function(x.mean + node * std) for node in _NODES]
    mean = sum(weight * value for weight, value in zip(_WEIGHTS, values, strict=True))
    spread = sum(weight * (value - mean).square() for weight, value in zip(_WEIGHTS, values, strict=True))
    assert isinstance(mean, Tensor) and isinstance(spread, Tensor)
    return Moments(mean, spread)


def sigmoid(x: Moments) -> Moments:
    """Moments of sigmoid(x)."""
    return activated(x, torch.sigmoid)


def tanh(x: Moments) -> Moments:
    """Moments of tanh(x)."""
    return activated(x, torch.tanh)


def product(x: Moments, y: Moments) -> Moments:
    """Moments of x * y for independent x and y, exactly."""
    variance = x.variance * y.variance + x.variance * y.mean.square() + y.variance * x.mean.square()
    return Moments(x.mean * y.mean, variance)


def add(x: Moments, y: Moments) -> Moments:
    """Moments of x + y for independent x and y, exactly."""
    return Moments(x.mean + y.mean, x.variance + y.variance)


def fast_dropout_rnn(
    x: Tensor, h0: Tensor, weights: Sequence[Tensor | None], *, input_p: float = 0.0, hidden_p: float = 0.0
) -> Moments:
    """A plain RNN with tanh whose input and hidden state are dropped at each step (Bayer et al. 2013).

    Args:
        x: (T, B, I).
        h0: (B, H).
        weights: w_ih (H, I), w_hh (H, H), b_ih and b_hh (H,) or None.
        input_p: probability to drop an input.
        hidden_p: probability to drop a unit of h before the recurrent product.

    Returns:
        Moments of h at each step, (T, B, H).
    """
    w_ih, w_hh, b_ih, b_hh = weights
    assert w_ih is not None and w_hh is not None
    h, steps = Moments.of(h0), []
    for x_t in x:
        a = dropped_linear(Moments.of(x_t), w_ih, b_ih, input_p)
        h = tanh(add(a, dropped_linear(h, w_hh, b_hh, hidden_p)))
        steps.append(h)
    return Moments(*(torch.stack(part) for part in zip(*steps, strict=True)))


def fast_dropout_lstm(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weights: Sequence[Tensor | None],
    *,
    input_p: float = 0.0,
    hidden_p: float = 0.0,
) -> Moments:
    """The same for an LSTM. Its gates, which see one mask, are taken as independent: another approximation.

    Args:
        x: (T, B, I).
        state: h_0 and c_0 (B, H).
        weights: w_ih (4H, I), w_hh (4H, H), b_ih and b_hh (4H,) or None; gates i, f, g, o.
        input_p: probability to drop an input.
        hidden_p: probability to drop a unit of h before the recurrent product.

    Returns:
        Moments of h at each step, (T, B, H).
    """
    w_ih, w_hh, b_ih, b_hh = weights
    assert w_ih is not None and w_hh is not None
    (h, c), steps = (Moments.of(part) for part in state), []
    for x_t in x:
        a = add(dropped_linear(Moments.of(x_t), w_ih, b_ih, input_p), dropped_linear(h, w_hh, b_hh, hidden_p))
        gates = zip(a.mean.chunk(4, -1), a.variance.chunk(4, -1), strict=True)
        i, f, g, o = (Moments(*gate) for gate in gates)
        c = add(product(sigmoid(f), c), product(sigmoid(i), tanh(g)))
        h = product(sigmoid(o), tanh(c))
        steps.append(h)
    return Moments(*(torch.stack(part) for part in zip(*steps, strict=True)))


def dropconnect_inference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    activation: Callable[[Tensor], Tensor],
    *,
    samples: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """What DropConnect's paper computes at test time: the mean of a((W * M) x + b), not a(W x + b) (Wan et al. 2013).

    The product is taken for a Gaussian with the mask's moments, one sample of which is drawn for each unit, and
    averaged behind the activation.

    Args:
        x: (*, I).
        weight: (O, I).
        bias: (O,) or None.
        p: probability to drop a weight.
        activation: a.
        samples: how many.
        generator: of the device of ``x``; torch's default one if None.

    Returns:
        (*, O).

    Raises:
        ValueError: ``p`` is outside [0, 1], or ``samples`` below 1.
    """
    if samples < 1:
        raise ValueError(f"samples should be at least 1, got {samples}")
    mean, variance = dropped_linear(Moments.of(x), weight, bias, p)
    noise = torch.randn((samples, *mean.shape), dtype=mean.dtype, device=mean.device, generator=generator)
    return activation(mean + _root(variance) * noise).mean(0)


__all__ = ["Moments", "activated", "add", "dropconnect_inference", "dropped_linear", "fast_dropout_lstm",
           "fast_dropout_rnn", "product", "sigmoid", "tanh"]  # fmt: skip
