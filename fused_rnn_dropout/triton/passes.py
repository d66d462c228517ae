"""What the passes of a layer work on: tensors as its kernels read them, and room for what they write."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..fakes import compute_dtype
from .rows import Batch
from .weights import WeightMasks


class Pass:
    """The input and the biases of a layer as its kernels read them, and room for what they write."""

    def __init__(
        self, x: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, apart: int, batch: Batch, weights: WeightMasks
    ) -> None:
        """``apart``: how many of the last rows of U h a cell takes apart from W x."""
        self.batch = batch
        self.dtype = weights.dtype  # of values: results, and what products read
        self.compute = compute_dtype(self.dtype)  # of the state, of pre-activations, of sums
        self.x = x.reshape(batch.rows, x.shape[-1]).to(self.dtype)
        self.bias = self.bias_apart = None
        if b_ih is not None and b_hh is not None:  # summed once, so that no step reads both
            first, second = b_ih.to(self.compute), b_hh.to(self.compute)
            self.bias = first + second
            if apart:
                self.bias[-apart:] = first[-apart:]
                self.bias_apart = second[-apart:].clone()

    def values(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape)

    def sums(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape, dtype=self.compute)

    def carried(self, grad: Tensor | None, width: int) -> Tensor:
        """A caller's gradient at a final state, as a buffer of our own that steps write to."""
        room = self.sums(self.batch.batch, width)
        return room.zero_() if grad is None else room.copy_(grad)


class Forward(NamedTuple):
    """What the steps of a forward pass read and write. D is the dtype of values, S of sums; N rows, G gates."""

    bias: Tensor | None  # S [G * H]: of W x and of U h, but for what a cell takes apart
    bias_apart: Tensor | None  # S [H]: of that
    c: Tensor | None  # S [B, H], carried; of a cell that has it
    h: Tensor  # S [B, P], carried
    read: Tensor  # D [2, B, P]: h as products read it. Steps one by one use the first half alone
    out: Tensor  # D [N, P]
    states: Tensor | None  # D [N, P]: h for backward, where the output is another
    outputs: Tensor | None  # D [B, H]: what a projection reads, where there is one
    gates: Tensor | None  # D [N, G * H], activated
    beside: Tensor | None  # [N, H]: what is kept beside the gates


class Backward(NamedTuple):
    """What the steps of a backward pass read and write."""

    dout: Tensor | None  # [N, P]
    dh: Tensor  # S [B, P]: the gradient at h that is carried past the product
    dc: Tensor | None  # S [B, H]: that at c
    gates: Tensor  # D [N, G * H], activated
    beside: Tensor  # [N, H]
    states: Tensor  # D [N, P]: h after each step
    h0: Tensor  # [B, P]: a caller's
    c0: Tensor | None  # [B, H]: a caller's
    dgates: Tensor  # D [N, G * H], and H more where the cell takes a gate apart; maybe `gates`
