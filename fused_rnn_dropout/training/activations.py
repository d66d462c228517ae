"""Activation regularisation (AR) and temporal activation regularisation (TAR) of an output (Merity et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..fakes import compute_dtype
from ..layouts import check_packed


def activation_regularization(
    output: Tensor | PackedSequence,
    alpha: float = 2.0,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    batch_first: bool = False,
) -> Tensor:
    """AR: alpha times the mean of the squares of what is valid in ``output``.

    AWD-LSTM gives it the last layer's output *after* dropout, and adds it to the loss in training alone. The paper
    writes a norm; its code, as this function, takes a mean of squares.

    Args:
        output: (T, B, H), (B, T, H) with ``batch_first``, (T, H) for one sequence, or a ``PackedSequence``.
        alpha: the coefficient.
        lengths: int64 (B,), valid steps of each row: neither values nor gradients of the padding behind them count.
        batch_first: whether ``output`` comes as (B, T, H).

    Returns:
        0-dim, float32, or float64 for a float64 output: a sum of squares in 16 bits would overflow or stop growing.

    Raises:
        TypeError, ValueError: an argument of another type or shape.
    """
    data, valid = _steps(output, lengths, batch_first)
    return alpha * _mean_of_squares(data, valid)


def temporal_activation_regularization(
    output: Tensor | PackedSequence,
    beta: float = 1.0,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    batch_first: bool = False,
) -> Tensor:
    """TAR: beta times the mean of the squares of h_{t+1} - h_t, over the steps that both are valid.

    AWD-LSTM gives it the last layer's output *before* dropout: behind a mask drawn for each step it would measure the
    mask. The trap is a sequence of one step, where there is no difference and a mean over nothing is NaN: here it is 0.

    Args:
        output: (T, B, H), (B, T, H) with ``batch_first``, (T, H) for one sequence, or a ``PackedSequence``.
        beta: the coefficient.
        lengths: int64 (B,), valid steps of each row.
        batch_first: whether ``output`` comes as (B, T, H).

    Returns:
        0-dim, float32, or float64 for a float64 output.

    Raises:
        TypeError, ValueError: an argument of another type or shape.
    """
    data, valid = _steps(output, lengths, batch_first)
    if isinstance(output, PackedSequence):
        sizes = output.batch_sizes
        now = torch.arange(int(sizes[0]), data.size(0))
        before = now - sizes[:-1].repeat_interleave(sizes[1:])
        return beta * _mean_of_squares(data[now.to(data.device)] - data[before.to(data.device)], None)
    return beta * _mean_of_squares(data[1:] - data[:-1], None if valid is None else valid[1:])


def _steps(output: Any, lengths: Any, batch_first: bool) -> tuple[Tensor, Tensor | None]:
    """The values, time first, in the type they are summed in, and which are valid: (T, B, 1), or None for all."""
    if isinstance(output, PackedSequence):
        check_packed(output)
        if lengths is not None:
            raise ValueError("lengths should be None for a PackedSequence, which has its own")
        return _wide(output.data), None
    if not isinstance(output, Tensor):
        raise TypeError(f"output should be a Tensor or a PackedSequence, got {type(output).__name__}")
    if output.dim() not in (2, 3) or not output.is_floating_point():
        raise ValueError(
            f"output should be floating and have 2 or 3 dimensions, got {output.dtype} of shape {tuple(output.shape)}"
        )
    data = output.transpose(0, 1) if batch_first and output.dim() == 3 else output
    if lengths is None:
        return _wide(data), None
    rows = data.size(1) if data.dim() == 3 else 0
    lengths = torch.as_tensor(lengths, device=data.device)
    if lengths.dtype != torch.int64 or tuple(lengths.shape) != (rows,) or data.dim() != 3:
        raise ValueError(
            f"lengths should be int64 of shape (B,) beside a padded batch, got {lengths.dtype} of shape "
            f"{tuple(lengths.shape)} beside an output of shape {tuple(output.shape)}"
        )
    readable = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and rows and not 0 <= int(lengths.min()) <= int(lengths.max()) <= len(data):
        raise ValueError(f"lengths should be in [0, {len(data)}], got {lengths.tolist()}")
    return _wide(data), (torch.arange(data.size(0), device=data.device)[:, None] < lengths)[..., None]


def _wide(data: Tensor) -> Tensor:
    return data.to(compute_dtype(data.dtype))


def _mean_of_squares(data: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return data.square().sum() / max(data.numel(), 1)
    # Selected before it is squared: an inf or NaN of the padding must not reach a gradient either.
    count = (valid.sum() * data.size(-1)).clamp(min=1)
    return torch.where(valid, data, 0.0).square().sum() / count


__all__ = ["activation_regularization", "temporal_activation_regularization"]
