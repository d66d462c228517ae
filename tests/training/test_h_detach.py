"""h-detach: the forward pass is untouched, and of the gradient the way through h alone is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fused_rnn_dropout as frd
from fused_rnn_dropout.training import h_detach

T, B, I, H = 5, 2, 3, 4


def run(cell: frd.LSTMCell, x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    h = c = torch.zeros(B, H)
    for x_t in x:
        h, c = cell(x_t, (h_detach(h, p), c))
    return h, c


def test_the_forward_pass_is_untouched() -> None:
    cell, x = frd.LSTMCell(I, H), torch.randn(T, B, I)
    for a, b in zip(run(cell, x, 0.0), run(cell, x, 1.0), strict=True):
        assert torch.equal(a, b)


def test_only_the_way_through_h_is_cut() -> None:
    cell, x = frd.LSTMCell(I, H), torch.randn(T, B, I, requires_grad=True)
    whole, cut = (torch.autograd.grad(run(cell, x, p)[0].sum(), x)[0] for p in (0.0, 1.0))
    h = c = torch.zeros(B, H)
    for x_t in x:
        h, c = cell(x_t, (h.detach(), c))
    torch.testing.assert_close(cut, torch.autograd.grad(h.sum(), x)[0])
    assert (cut[0] != 0).all() and not torch.allclose(whole[:-1], cut[:-1])  # c carries it from the first step on
    torch.testing.assert_close(whole[-1], cut[-1])


def test_one_coin_for_a_step() -> None:
    h, generator = torch.ones(B, H, requires_grad=True), torch.Generator().manual_seed(0)
    coins = torch.tensor([h_detach(h, 0.3, generator=generator) is not h for _ in range(5000)]).double()
    assert abs(float(coins.mean()) - 0.3) < 5 * (0.21 / 5000) ** 0.5
    state = torch.get_rng_state()
    h_detach(h, 0.3, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="p should be a number in range"):
        h_detach(h, -0.1)
