"""Which example and which step each row of a packed batch belongs to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


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


__all__ = ["counters_of_rows"]
