"""How the rows of a batch of sequences lie in memory, and in which order a recurrence takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SEQ = 2**32 - 1


class Run(NamedTuple):
    """Consecutive steps with the same number of rows, which lie together."""

    step: int  # the earliest
    steps: int
    row: int  # the first
    batch: int  # rows of each step

    @property
    def rows(self) -> int:
        return self.steps * self.batch


class Batch:
    """Padded: the rows of step t are t * batch .. (t + 1) * batch. Packed: offsets[t] .. offsets[t] + sizes[t], where
    sizes do not grow. ``reverse`` runs each sequence from its own end.
    """

    def __init__(self, x: Tensor, batch_sizes: Tensor | None, batch: int | None, reverse: bool) -> None:
        if x.dim() != (3 if batch_sizes is None else 2):
            raise RuntimeError("x must be (T, B, width), or (N, width) with batch_sizes")
        self.reverse = reverse
        self.packed = batch_sizes is not None
        if batch_sizes is None:
            self.steps, self.batch = x.shape[:2]
            self.rows = self.steps * self.batch
            self.sizes = [self.batch] * self.steps
        else:
            if batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu":
                raise RuntimeError("batch_sizes must be an int64 tensor on the CPU")
            self.sizes = batch_sizes.reshape(-1).tolist()
            most = [x.shape[0], *self.sizes]
            if any(size <= 0 or size > before for size, before in zip(self.sizes, most, strict=False)):
                raise RuntimeError("batch_sizes must be positive, must not grow and must sum to the rows of x")
            self.steps, self.rows = len(self.sizes), sum(self.sizes)
            self.batch = self.sizes[0] if self.sizes else 0
            if x.shape[0] != self.rows:
                raise RuntimeError(f"x has {x.shape[0]} rows, batch_sizes sum to {self.rows}")
        if self.steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if batch is not None and batch != self.batch:
            raise RuntimeError(f"the initial state is for a batch of {batch}, x has {self.batch}")
        self.offsets = [0]
        for size in self.sizes[:-1]:
            self.offsets.append(self.offsets[-1] + size)

    def shape(self, width: int) -> tuple[int, ...]:
        """Of a tensor with x's leading dimensions and another width."""
        return (self.rows, width) if self.packed else (self.steps, self.batch, width)

    def time(self, s: int) -> int:
        """The step that the recurrence takes as its number s."""
        return self.steps - 1 - s if self.reverse else s

    def before(self, t: int) -> int:
        return t + 1 if self.reverse else t - 1

    def after(self, t: int) -> int:
        return t - 1 if self.reverse else t + 1

    def active(self, t: int) -> int:
        """Rows of step t; none where there is no such step."""
        return self.sizes[t] if 0 <= t < self.steps else 0

    def row(self, t: int) -> int:
        return self.offsets[t] if 0 <= t < self.steps else 0

    def continued(self, t: int) -> int:
        """How many rows of step t have a step before it in the recurrence: the first ones, as sizes do not grow."""
        return min(self.sizes[t], self.active(self.before(t)))

    def runs(self) -> Iterator[Run]:
        """All rows, in as few runs as there are; one for a padded batch."""
        first = 0
        for t in range(1, self.steps + 1):
            if t == self.steps or self.sizes[t] != self.sizes[first]:
                yield Run(first, t - first, self.offsets[first], self.sizes[first])
                first = t

    def chunks(self, most: int) -> Iterator[tuple[int, int, int, int]]:
        """(begin, end, row, rows): steps begin .. end in the order of the recurrence, as many as have at most ``most``
        rows but at least one, and their rows, which lie together.
        """
        begin = 0
        while begin < self.steps:
            end, rows = begin, 0
            while end < self.steps and (end == begin or rows + self.sizes[self.time(end)] <= most):
                rows += self.sizes[self.time(end)]
                end += 1
            yield begin, end, self.row(self.time(end - 1 if self.reverse else begin)), rows
            begin = end
