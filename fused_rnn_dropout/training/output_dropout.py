"""Locked dropout of a tensor outside a layer, for whoever needs it before dropout too, as AR and TAR do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import masks
from ..arguments import check_counters
from ..fakes import compute_dtype
from ..options import LockedDropout
from ..reference import apply
from ..sites import KIND
from .rated import Rated
from .rows import counters_of_rows, vectors_of


class OutputDropout(Rated):
    """Locked dropout (Gal & Ghahramani 2016; Merity et al. 2017): x * M, one M (1, B, D) for all steps; in eval x.

    It is what ``output_dropout`` of an LSTM computes. The trap it is made for: TAR measures x in front of the mask, AR
    behind it, and the state that is carried on has none.

    From the same pair of random numbers the mask is that of ``output_dropout`` of an LSTM with one layer.

    Args:
        p: probability to drop an element, in [0, 1].
        mc: masks on in eval too.
    """

    site = "output_dropout"
    group = "output"

    def __init__(self, p: float = 0.4, *, mc: bool = False) -> None:
        super().__init__(p, mc=mc)
        self._thresholds_on(torch.empty(0).device)

    def forward(self, x: Any, *, rng: Tensor | None = None, example_ids: Tensor | None = None) -> Any:
        """Drops.

        Args:
            x: floating, (T, B, D), or a ``PackedSequence`` of such rows.
            rng: int64[2]; drawn if None, the site is there and masks are on.
            example_ids: int64 (B,); 0..B-1 if None.

        Returns:
            As ``x``.

        Raises:
            TypeError, ValueError: ``x`` is something else.
        """
        data, packed = vectors_of(x)
        if not self.masks_on or not self.draws:
            return x
        steps, batch = data.shape[:2] if packed is None else (packed.batch_sizes.size(0), int(packed.batch_sizes[0]))
        turn = self.begin(rng, None, steps)
        check_counters(example_ids, turn.step_offset, batch, steps, data.device)
        examples = torch.arange(batch, device=data.device) if example_ids is None else example_ids
        times = torch.arange(steps, device=data.device)
        compute = compute_dtype(data.dtype)
        factor = masks.locked(
            LockedDropout(0.0), self._thresholds_on(data.device)[0], self.pair(turn.rng, data.device), KIND["OUTPUT"],
            1, data.size(-1), examples, times, compute,
        )  # fmt: skip
        if packed is not None:
            row, _ = counters_of_rows(packed, torch.arange(batch, device=data.device), times)
            factor = factor[0, row]
        result = apply(data.to(compute), factor).to(data.dtype)
        turn.end((result,))
        return result if packed is None else PackedSequence(result, *packed[1:])

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


__all__ = ["OutputDropout"]
