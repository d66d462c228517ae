"""What the modules share that act on single words of a text: a mask of step and example, and words drawn by counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import masks
from ..arguments import Rng, check_counters
from ..held import Turn
from ..sites import KIND, stream
from .rated import Rated
from .rows import counters_of_rows, data_of, sizes_of


class OfTokens(Rated):
    """A module whose mask is of step and example: one occurrence of a word, whatever the word is."""

    kind: ClassVar[str]
    group = "word"
    _switches: ClassVar[tuple[str, ...]] = ("batch_first", "mc")

    def __init__(self, p: float, *, batch_first: bool, mc: bool) -> None:
        super().__init__(p, mc=mc)
        if not isinstance(batch_first, bool):
            raise TypeError(f"batch_first should be of type bool, got: {type(batch_first).__name__}")
        self.batch_first = batch_first
        self._thresholds_on(torch.empty(0).device)

    def draw(
        self,
        tokens: Tensor,
        packed: PackedSequence | None,
        rng: Rng | None,
        example_ids: Tensor | None,
        step_offset: int | None,
        count: int,
    ) -> tuple[Tensor, Turn]:
        """``count`` random numbers of 32 bits for each token, in a last dimension behind those of the tokens."""
        steps, batch = sizes_of(tokens, packed, self.batch_first)
        turn = self.begin(rng, step_offset, steps)
        device = tokens.device
        check_counters(example_ids, turn.step_offset, batch, steps, device)
        examples = torch.arange(batch, device=device) if example_ids is None else example_ids
        times = torch.arange(steps, device=device)
        pair, of_kind = self.pair(turn.rng, device), stream(KIND[self.kind], 0)
        numbers = masks.words(pair, examples, times + turn.step_offset, count, of_kind)
        if packed is not None:
            row, time = counters_of_rows(packed, torch.arange(batch, device=device), times)
            return numbers[time, row], turn
        if tokens.dim() == 1:
            return numbers[:, 0], turn
        return (numbers.transpose(0, 1) if self.batch_first else numbers), turn

    def extra_repr(self) -> str:
        shown = [f"p={self.p:g}"]
        return ", ".join(shown + [f"{name}=True" for name in self._switches if getattr(self, name)])


def ids_of(name: str, words: Any) -> tuple[Tensor, PackedSequence | None]:
    """The ids of a text, and the text itself where it is packed.

    Raises:
        TypeError, ValueError: ``words``, which the message calls ``name``, is none.
    """
    data, packed = data_of(name, words)
    if data.dtype not in (torch.int64, torch.int32) or data.dim() not in ((1, 2) if packed is None else (1,)):
        raise ValueError(
            f"{name} should be int64 or int32 with 1 or 2 dimensions, got {data.dtype} of shape {tuple(data.shape)}"
        )
    return data, packed


def spared_ids(spared: Sequence[int], beside: Tensor | None) -> Tensor:
    """int64 (n,): words that are left alone, on the device of ``beside``.

    Raises:
        TypeError: ``spared`` is no sequence of ints.
    """
    ids = spared.tolist() if isinstance(spared, Tensor) else spared
    if not isinstance(ids, Iterable) or any(isinstance(word, bool) or not isinstance(word, int) for word in ids):
        raise TypeError(f"spared should hold ids of words, got {spared!r}")
    return torch.tensor(tuple(ids), dtype=torch.int64, device=None if beside is None else beside.device)


def cumulated(counts: Tensor | Sequence[float]) -> Tensor:
    """int64 (V,): a number of 32 bits means the first word whose entry is above it, so that no count of 0 is drawn."""
    weights = torch.as_tensor(counts, dtype=torch.float64)
    if weights.dim() != 1 or not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()) or not weights.sum():
        raise ValueError("counts should be of shape (V,), finite, at least 0 and not all 0")
    sums = weights.cumsum(0)
    return (sums / sums[-1] * 2**32).round().to(torch.int64)


def chosen(cumulative: Tensor, random: Tensor) -> Tensor:
    """The word that each 32-bit number means, of what :func:`cumulated` made."""
    return torch.searchsorted(cumulative, random.contiguous(), right=True)


__all__ = ["OfTokens", "chosen", "cumulated", "ids_of", "spared_ids"]
