"""What the forward and backward passes of both cells share."""

from __future__ import annotations

from torch import Tensor

from ..fakes import compute_dtype
from .batch import Batch
from .weights import WeightMasks


class Pass:
    """The input and the biases of a layer as its kernels read them, and room for what they write."""

    def __init__(self, x: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, batch: Batch, weights: WeightMasks) -> None:
        self.batch = batch
        self.dtype = weights.dtype  # of values: results, and what products read
        self.compute = compute_dtype(self.dtype)  # of the state, of pre-activations, of sums
        self.x = x.reshape(batch.rows, x.shape[-1]).to(self.dtype)
        self.b_ih = None if b_ih is None else b_ih.contiguous()
        self.b_hh = None if b_hh is None else b_hh.contiguous()

    def values(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape)

    def sums(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape, dtype=self.compute)

    def carried(self, grad: Tensor | None, width: int) -> Tensor:
        """A caller's gradient at a final state, as a buffer of our own that steps write to."""
        room = self.sums(self.batch.batch, width)
        return room.zero_() if grad is None else room.copy_(grad)
