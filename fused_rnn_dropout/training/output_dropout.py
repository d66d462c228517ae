"""Locked dropout of a tensor outside a layer, for whoever needs it before dropout too, as AR and TAR do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import masks
from ..arguments import check_counters
from ..fakes import compute_dtype
from ..reference import apply
from ..sites import KIND, SEQ, stream
from .rated import Drawing, Rated
from .rows import counters_of_rows, vectors_of


def locked(
    module: Drawing,
    x: Any,
    rng: Tensor | None,
    example_ids: Tensor | None,
    factor: Callable[[Tensor, torch.dtype], Tensor],
) -> Any:
    """``x`` times factors (1, B, D), made of the numbers that ``output_dropout`` of an LSTM with one layer reads.

    Args:
        module: whose call it is.
        x: (T, B, D), or packed.
        rng: int64[2], or None.
        example_ids: int64 (B,), or None.
        factor: from the numbers and a dtype to the factors.

    Raises:
        TypeError, ValueError: ``x``, ``rng`` or ``example_ids`` is something else.
    """
    data, packed = vectors_of(x)
    steps, batch = data.shape[:2] if packed is None else (packed.batch_sizes.size(0), int(packed.batch_sizes[0]))
    turn, device = module.begin(rng, None, steps), data.device
    check_counters(example_ids, turn.step_offset, batch, steps, device)
    examples = torch.arange(batch, device=device) if example_ids is None else example_ids
    once = torch.full((1,), SEQ, dtype=torch.int64, device=device)
    pair, compute = module.pair(turn.rng, device), compute_dtype(data.dtype)
    drawn = factor(masks.words(pair, examples, once, data.size(-1), stream(KIND["OUTPUT"], 1)), compute)
    if packed is not None:
        row, _ = counters_of_rows(packed, torch.arange(batch, device=device), torch.arange(steps, device=device))
        drawn = drawn[0, row]
    result = apply(data.to(compute), drawn).to(data.dtype)
    turn.end((result,))
    return result if packed is None else PackedSequence(result, *packed[1:])


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
        if not self.masks_on or not self.draws:
            vectors_of(x)
            return x
        return locked(self, x, rng, example_ids, self._of_numbers)

    def _of_numbers(self, random: Tensor, dtype: torch.dtype) -> Tensor:
        return masks.factor(random, self._thresholds_on(random.device)[0], dtype)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


__all__ = ["OutputDropout"]
