"""Steps and rows of a batch, and which example and which step each row of a packed one belongs to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..layouts import check_packed


def data_of(name: str, given: Any) -> tuple[Tensor, PackedSequence | None]:
    """The data of a batch, which messages call ``name``, and the batch itself where it is packed.

    Raises:
        TypeError, ValueError: ``given`` is neither a tensor nor a packed batch that torch could have made.
    """
    packed = given if isinstance(given, PackedSequence) else None
    data = given if packed is None else packed.data
    if not isinstance(data, Tensor):
        raise TypeError(f"{name} should be a Tensor or a PackedSequence, got {type(data).__name__}")
    if packed is not None:
        check_packed(packed)
    return data, packed


def vectors_of(x: Any) -> tuple[Tensor, PackedSequence | None]:
    """The numbers of a batch of vectors, and the batch itself where it is packed.

    Raises:
        TypeError, ValueError: ``x`` is none.
    """
    data, packed = data_of("x", x)
    dims = 3 if packed is None else 2
    if data.dim() != dims:
        raise ValueError(f"{'x' if packed is None else 'data of x'} should have {dims} dimensions, got {data.dim()}")
    if not data.is_floating_point():
        raise ValueError(f"x should have a floating dtype, got {data.dtype}")
    return data, packed


def counters_of_rows(packed: PackedSequence, examples: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Example and step of each row of ``packed.data``.

    Args:
        packed: rows stand step by step, in each step by falling length.
        examples: int64 (B,), in the original order.
        steps: int64 (T,).

    Returns:
        Two int64 tensors (N,).
    """
    sizes = packed.batch_sizes.to(examples.device)
    if packed.sorted_indices is not None:
        examples = examples[packed.sorted_indices]
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    within = torch.arange(packed.data.size(0), device=examples.device) - first
    return examples[within], steps.repeat_interleave(sizes)


def sizes_of(tokens: Tensor, packed: PackedSequence | None, batch_first: bool) -> tuple[int, int]:
    """Steps and rows of a batch of tokens: (T, B, ...), (B, T, ...), (T,), one token, or packed."""
    if packed is not None:
        return packed.batch_sizes.size(0), int(packed.batch_sizes[0])
    if tokens.dim() < 2:
        return (tokens.size(0) if tokens.dim() else 1), 1
    steps, batch = tokens.shape[:2]
    return (batch, steps) if batch_first else (steps, batch)


__all__ = ["counters_of_rows", "sizes_of", "vectors_of"]
