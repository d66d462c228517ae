"""Weight dropout: master weights to masked, scaled weights in the dtype that products read; and masked gradients.

Linear, and so its own gradient: the same kernel takes the finished sum of dU over all steps to the gradient of the
master weight. Masks are those of the kinds WEIGHT_HH, WEIGHT_IH and WEIGHT_HR, or by row WEIGHT_HH_ROWS and so on.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..fakes import compute_dtype
from ..sites import FLAG, KIND, SITE_INDEX, stream
from .launch import BLOCKS, aligned, launch
from .philox import FIELDS, SEQ, derive_key, dropped_of_calls, keep_scale, product_of, spread

_P_WEIGHT = tl.constexpr(SITE_INDEX["weight_dropout"])


@triton.jit(do_not_specialize=["rows", "stream"], do_not_specialize_on_alignment=["rng", "thresholds"])
def mask_weight_kernel(
    source,  # [rows, COLUMNS]
    target,  # [rows, COLUMNS]
    rng,  # [2]
    thresholds,  # [10]
    rows: tl.int64,
    stream: tl.int64,
    COLUMNS: tl.constexpr,
    BY_ROW: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    calls: tl.constexpr = (COLUMNS + FIELDS - 1) // FIELDS
    k0, k1 = derive_key(rng)
    threshold = tl.load(thresholds + _P_WEIGHT)
    scale = keep_scale(threshold).to(COMPUTE)
    fourth = stream.to(tl.uint32)
    once = product_of(fourth * 0 + SEQ)

    call = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    of_row = (call // calls).to(tl.uint32)
    if BY_ROW:
        bits = dropped_of_calls(of_row // FIELDS, fourth * 0, once, fourth, threshold, k0, k1)
        bits = (bits >> of_row % FIELDS & 1) * 0xFF
    else:
        bits = dropped_of_calls((call % calls).to(tl.uint32), of_row, once, fourth, threshold, k0, k1)
    element = tl.program_id(0).to(tl.int64) * (FIELDS * BLOCK) + tl.arange(0, FIELDS * BLOCK)
    row, column = element // (FIELDS * calls), element % (FIELDS * calls)
    inside = (row < rows) & (column < COLUMNS)
    at = row * COLUMNS + column
    value = tl.load(source + at, inside, other=0.0).to(COMPUTE)
    tl.store(target + at, tl.where(spread(bits), 0.0, scale * value), inside)


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
            return aligned(matrix.to(dtype))
        assert self.rng is not None and self.thresholds is not None
        by_row = bool(self.flags & FLAG["WEIGHT_ROW"])
        kind = KIND[f"{name.upper()}_ROWS" if by_row else name.upper()]
        matrix = aligned(matrix)
        target = torch.empty_like(matrix, dtype=dtype)
        rows, columns = matrix.shape
        calls = rows * triton.cdiv(columns, FIELDS.value)
        launch(
            mask_weight_kernel, triton.cdiv(calls, BLOCKS.weights),
            matrix, target, self.rng, self.thresholds, rows,
            stream(kind, self.layer, self.direction), COLUMNS=columns, BY_ROW=by_row,
            COMPUTE=tl.float64 if compute_dtype(self.dtype) == torch.float64 else tl.float32, BLOCK=BLOCKS.weights,
        )  # fmt: skip
        return target
