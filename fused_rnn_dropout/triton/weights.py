"""Weight dropout: master weights to masked, scaled weights in the dtype that products read; and masked gradients.

Linear, and so its own gradient: the same kernel takes the finished sum of dU over all steps to the gradient of the
master weight. Masks are those of ``kinds`` WEIGHT_HH, WEIGHT_IH and WEIGHT_HR, or WEIGHT_ROW by row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..fakes import compute_dtype
from ..sites import FLAG, KIND, SITE_INDEX, stream
from .launch import BLOCKS, launch
from .philox import SEQ, below, derive_key, keep_scale, philox, side_by_side

_P_WEIGHT = tl.constexpr(SITE_INDEX["weight_dropout"])
_ROW_NUMBERS = ("weight_hh", "weight_ih", "weight_hr")  # counter b of kind WEIGHT_ROW


@triton.jit(
    do_not_specialize=["rows", "number", "stream"], do_not_specialize_on_alignment=["source", "rng", "thresholds"]
)
def mask_weight_kernel(
    source,  # [rows, COLUMNS]
    target,  # [rows, COLUMNS]
    rng,  # [2]
    thresholds,  # [10]
    rows: tl.int64,
    number: tl.int64,  # of the matrix, with masks by row
    stream: tl.int64,
    COLUMNS: tl.constexpr,
    BY_ROW: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    calls: tl.constexpr = (COLUMNS + 3) // 4
    k0, k1 = derive_key(rng)
    threshold = tl.load(thresholds + _P_WEIGHT)
    scale = keep_scale(threshold).to(COMPUTE)
    fourth = stream.to(tl.uint32)
    once = fourth * 0 + SEQ

    element = tl.program_id(0).to(tl.int64) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    row, column = element // (4 * calls), element % (4 * calls)
    if BY_ROW:
        w0, w1, w2, w3 = philox((row // 4).to(tl.uint32), number.to(tl.uint32), once, fourth, k0, k1)
        lane = row % 4
        word = tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
    else:
        call = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        w0, w1, w2, w3 = philox((call % calls).to(tl.uint32), (call // calls).to(tl.uint32), once, fourth, k0, k1)
        word = side_by_side(w0, w1, w2, w3)
    inside = (row < rows) & (column < COLUMNS)
    at = row * COLUMNS + column
    value = tl.load(source + at, inside, other=0.0).to(COMPUTE)
    tl.store(target + at, tl.where(below(word, threshold), 0.0, scale * value), inside)


class WeightMasks:
    """The weight masks of one layer and direction."""

    def __init__(
        self, rng: Tensor | None, thresholds: Tensor | None, flags: int, layer: int, reverse: bool, dtype: torch.dtype
    ) -> None:
        self.rng, self.thresholds, self.flags = rng, thresholds, flags
        self.layer, self.direction, self.dtype = layer, int(reverse), dtype

    def masked(self, name: str, weight: Tensor) -> Tensor:
        """``weight`` (rows, columns) as products read it, in the dtype of the results."""
        return self._apply(name, weight, self.dtype)

    def gradient(self, name: str, grad: Tensor, dtype: torch.dtype) -> Tensor:
        """The gradient of the master weight ``name``, of that dtype, from that of the masked one."""
        return self._apply(name, grad, dtype)

    def _apply(self, name: str, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        if not self.flags & FLAG["MASKS_ON"] or not self.flags & FLAG[name.upper()]:
            return matrix.to(dtype).contiguous()
        assert self.rng is not None and self.thresholds is not None
        by_row = bool(self.flags & FLAG["WEIGHT_ROW"])
        kind = KIND["WEIGHT_ROW" if by_row else name.upper()]
        matrix = matrix.contiguous()
        target = torch.empty_like(matrix, dtype=dtype)
        rows, columns = matrix.shape
        calls = rows * triton.cdiv(columns, 4)
        launch(
            mask_weight_kernel, triton.cdiv(calls, BLOCKS.weights),
            matrix, target, self.rng, self.thresholds, rows, _ROW_NUMBERS.index(name),
            stream(kind, self.layer, self.direction), COLUMNS=columns, BY_ROW=by_row,
            COMPUTE=tl.float64 if compute_dtype(self.dtype) == torch.float64 else tl.float32, BLOCK=BLOCKS.weights,
        )  # fmt: skip
        return target
