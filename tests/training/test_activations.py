"""AR and TAR: what is averaged, and what is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from fused_rnn_dropout.training import activation_regularization as ar
from fused_rnn_dropout.training import temporal_activation_regularization as tar

T, B, H = 6, 3, 5
LENGTHS = torch.tensor([4, 6, 1])


def output() -> Tensor:
    return torch.randn(T, B, H, dtype=torch.float64)


def test_without_padding() -> None:
    h = output()
    torch.testing.assert_close(ar(h, 2.0), 2 * h.pow(2).mean())
    torch.testing.assert_close(tar(h, 3.0), 3 * (h[1:] - h[:-1]).pow(2).mean())
    for function in (ar, tar):
        torch.testing.assert_close(function(h.transpose(0, 1), batch_first=True), function(h))
        torch.testing.assert_close(function(h[:, 0]), function(h[:, :1]))


def test_one_step_has_no_difference() -> None:
    h = output()[:1].requires_grad_()
    value = tar(h)
    assert value == 0 and value.dtype == torch.float64
    value.backward()
    assert (h.grad == 0).all()
    assert tar(pack_padded_sequence(h, torch.ones(B, dtype=torch.int64))) == 0
    assert tar(h, lengths=[1] * B) == 0


def one_by_one(h: Tensor) -> tuple[Tensor, Tensor]:
    rows = [h[: int(length), row] for row, length in enumerate(LENGTHS)]
    steps = torch.cat(rows)
    differences = torch.cat([row[1:] - row[:-1] for row in rows])
    return 2 * steps.pow(2).mean(), differences.pow(2).mean()


def test_padding_does_not_count() -> None:
    h = output()
    for step, row in ((5, 0), (2, 2)):
        h[step, row] = torch.nan
    h.requires_grad_()
    for function, right in zip((ar, tar), one_by_one(h), strict=True):
        (gradient,) = torch.autograd.grad(right, h, retain_graph=True)
        mine = function(h, lengths=LENGTHS)
        torch.testing.assert_close(mine, right)
        torch.testing.assert_close(torch.autograd.grad(mine, h)[0], gradient)
        torch.testing.assert_close(function(h, lengths=LENGTHS.tolist()), right)


@pytest.mark.parametrize("function", [ar, tar])
def test_packed(function: Any) -> None:
    h = output().requires_grad_()
    packed = function(pack_padded_sequence(h, LENGTHS, enforce_sorted=False))
    padded = function(h, lengths=LENGTHS)
    torch.testing.assert_close(packed, padded)
    torch.testing.assert_close(*(torch.autograd.grad(value, h)[0] for value in (packed, padded)))


@pytest.mark.parametrize("function", [ar, tar])
def test_sixteen_bits_are_summed_in_more(function: Any) -> None:
    h = (300 * output()).to(torch.float16)  # squares of which overflow
    assert function(h).dtype == torch.float32
    torch.testing.assert_close(function(h), function(h.float()))


@pytest.mark.parametrize("function", [ar, tar])
def test_bad_input(function: Any) -> None:
    packed = pack_padded_sequence(output(), LENGTHS, enforce_sorted=False)
    for given, options, error, message in (
        ([1.0], {}, TypeError, "output should be a Tensor or a PackedSequence, got list"),
        (output()[None], {}, ValueError, "2 or 3 dimensions"),
        (output().long(), {}, ValueError, "should be floating"),
        (packed, {"lengths": LENGTHS}, ValueError, "lengths should be None for a PackedSequence"),
        (output(), {"lengths": [1, 2, len(output()) + 1]}, ValueError, r"lengths should be in \[0, .*\], got \[1, 2, "),
        (output(), {"lengths": [1, 2, -1]}, ValueError, r"lengths should be in \[0, .*\], got \[1, 2, -1\]"),
        (output(), {"lengths": [1, 2]}, ValueError, r"lengths should be int64 of shape \(B,\)"),
        (output(), {"lengths": [1.0, 2.0, 3.0]}, ValueError, "lengths should be int64"),
    ):
        with pytest.raises(error, match=message):
            function(given, **options)
