"""Fast dropout and DropConnect's inference against samples: the moments that they claim."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fused_rnn_dropout as frd
from fused_rnn_dropout.training import fast_dropout as fast

N, B, I, H, P = 20_000, 2, 30, 25, 0.3
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def mask(*shape: int, p: float = P) -> Tensor:
    return torch.nn.functional.dropout(torch.ones(shape, dtype=torch.float64), p)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def assert_moments(found: fast.Moments, samples: Tensor, approximately: float = 0.0) -> None:
    """Within 5 standard errors, beside what the approximation may be wrong by."""
    mean, variance = samples.mean(0), samples.var(0)
    fourth = (samples - mean).pow(4).mean(0)
    error = ((fourth - variance.square()).clamp(min=0) / len(samples)).sqrt()
    for mine, right, spread in (
        (found.mean, mean, (variance / len(samples)).sqrt()),
        (found.variance, variance, error),
    ):
        excess = float(((mine - right).abs() - 5 * spread).max())
        assert excess <= approximately


def test_the_product_of_a_dropped_input_is_exact() -> None:
    mean, variance, weight, bias = randn(B, I), randn(B, I).square(), randn(H, I), randn(H)
    x = mean + variance.sqrt() * randn(N, B, I)
    samples = (x * mask(N, B, I)) @ weight.t() + bias
    assert_moments(fast.dropped_linear(fast.Moments(mean, variance), weight, bias, P), samples)


def test_dropped_weights_have_the_same_moments() -> None:
    x, weight = randn(I), randn(H, I)
    assert_moments(fast.dropped_linear(fast.Moments.of(x), weight, None, P), (weight * mask(N, H, I)) @ x)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activations(name: str) -> None:
    mean, variance = torch.linspace(-3, 3, 13, dtype=torch.float64), torch.full((13,), 0.7, dtype=torch.float64)
    samples = getattr(torch, name)(mean + variance.sqrt() * randn(N, 13))
    assert_moments(getattr(fast, name)(fast.Moments(mean, variance)), samples, approximately=0.001)
    known = getattr(fast, name)(fast.Moments.of(mean))
    torch.testing.assert_close(known.mean, getattr(torch, name)(mean), **EXACT)
    assert (known.variance < 1e-25).all()


def test_products_and_sums_are_exact() -> None:
    x, y = (fast.Moments(randn(4), randn(4).square()) for _ in range(2))
    a, b = (part.mean + part.variance.sqrt() * randn(N, 4) for part in (x, y))
    assert_moments(fast.product(x, y), a * b)
    assert_moments(fast.add(x, y), a + b)


def weights(gates: int) -> list[Tensor]:
    return [0.2 * randn(gates * H, I), 0.2 * randn(gates * H, H), randn(gates * H), randn(gates * H)]


def test_a_step_of_an_lstm() -> None:
    x, w, state = randn(1, B, I), weights(4), (0.5 * randn(B, H), randn(B, H))
    found = fast.fast_dropout_lstm(x, state, w, input_p=0.2, hidden_p=P)
    masks = {"input": mask(1, N * B, I, p=0.2), "hidden": mask(1, N * B, H)}
    repeated = [value.repeat(N, 1) for value in state]
    out, _ = frd.reference.lstm(x.repeat(1, N, 1), (repeated[0], repeated[1]), w, masks)
    samples = out[0].unflatten(0, (N, B))
    assert_moments(fast.Moments(found.mean[0], found.variance[0]), samples, approximately=0.03)
    plain, _ = frd.reference.lstm(x, state, w)
    assert (found.mean - plain).abs().max() > 0.02  # it is not what eval of sampled dropout computes


def test_steps_of_a_plain_rnn() -> None:
    wide = 300  # the sum of few terms is skew and no Gaussian
    x, h0 = randn(2, B, wide), 0.5 * randn(B, H)
    w = [0.06 * randn(H, wide), 0.2 * randn(H, H), randn(H), randn(H)]
    found = fast.fast_dropout_rnn(x, h0, w, input_p=0.2, hidden_p=P)
    h, steps = h0.expand(N, B, H), []
    for x_t in x:
        a = (x_t * mask(N, B, wide, p=0.2)) @ w[0].t() + (h * mask(N, B, H)) @ w[1].t() + w[2] + w[3]
        h = a.tanh()
        steps.append(h)
    # Units of h are taken as independent, which after the first step they are not.
    for step, approximately in enumerate((0.02, 0.04)):
        assert_moments(fast.Moments(found.mean[step], found.variance[step]), steps[step], approximately)
    plain, right = frd.reference.rnn_tanh(x, h0, w)[0], torch.stack(steps).mean(1)
    assert (found.mean - right).abs().max() < 0.5 * (plain - right).abs().max()


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_without_dropout_it_is_the_layer(cell: str) -> None:
    x, h0 = randn(3, B, I), randn(B, H)
    if cell == "lstm":
        w, state = weights(4), (h0, randn(B, H))
        found, right = fast.fast_dropout_lstm(x, state, w), frd.reference.lstm(x, state, w)[0]
    else:
        w = weights(1)
        found, right = fast.fast_dropout_rnn(x, h0, w), frd.reference.rnn_tanh(x, h0, w)[0]
    torch.testing.assert_close(found.mean, right, **EXACT)
    assert (found.variance < 1e-25).all()
    for part in w:
        part.requires_grad_()
    if cell == "lstm":
        outs = fast.fast_dropout_lstm(x, state, w).mean, frd.reference.lstm(x, state, w)[0]
    else:
        outs = fast.fast_dropout_rnn(x, h0, w).mean, frd.reference.rnn_tanh(x, h0, w)[0]
    for mine, right in zip(*(torch.autograd.grad(out.square().sum(), w) for out in outs), strict=True):
        torch.testing.assert_close(mine, right)


def test_everything_dropped() -> None:
    weight, bias = randn(H, I), randn(H)
    mean, variance = fast.dropped_linear(fast.Moments(randn(B, I), randn(B, I).square()), weight, bias, 1.0)
    assert torch.equal(mean, bias.expand(B, H)) and (variance == 0).all()


def test_gradients() -> None:
    x, w = randn(2, 1, 2).requires_grad_(), [randn(8, *size).requires_grad_() for size in ((2,), (2,), (), ())]
    state = (randn(1, 2).requires_grad_(), randn(1, 2).requires_grad_())

    def run(x: Tensor, h: Tensor, c: Tensor, *w: Tensor) -> Any:
        return tuple(fast.fast_dropout_lstm(x, (h, c), w, input_p=0.2, hidden_p=P))

    assert torch.autograd.gradcheck(run, (x, *state, *w))


def test_dropconnect_inference() -> None:
    x, weight, bias = randn(B, 40), randn(H, 40), randn(H)
    found = fast.dropconnect_inference(x, weight, bias, 0.5, torch.relu, samples=20_000)
    samples = torch.einsum("bi,nhi->nbh", x, weight * mask(20_000, H, 40, p=0.5)).add(bias).relu()
    spread = samples.std(0) / 20_000**0.5
    assert ((found - samples.mean(0)).abs() < 10 * spread + 0.1).all()
    assert ((found - (x @ weight.t() + bias).relu()).abs() > 10 * spread + 0.1).any()  # nor the mean network's
    seeded = [fast.dropconnect_inference(x, weight, bias, 0.5, torch.relu, samples=3,
                                         generator=torch.Generator().manual_seed(4)) for _ in range(2)]  # fmt: skip
    assert torch.equal(*seeded)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="p should be a number in range"):
        fast.dropped_linear(fast.Moments.of(randn(B, I)), randn(H, I), None, 1.2)
    with pytest.raises(ValueError, match="samples should be at least 1, got 0"):
        fast.dropconnect_inference(randn(B, I), randn(H, I), None, 0.5, torch.relu, samples=0)
