"""Noise on the words of a text: word dropout, and data noising (Xie et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import masks
from ..fakes import compute_dtype
from ..reference import apply
from .rows import vectors_of
from .tokens import OfTokens, chosen, cumulated, ids_of, spared_ids


class WordDropout(OfTokens):
    """Drops whole words of an embedded text: y[t, b] = M[t, b] x[t, b], M = 0 with probability p, else 1.

    Each occurrence has its own M, so that the model sees the sentence with words missing (Iyyer et al. 2015, who call
    it word dropout; Dai & Le 2015). Put it behind the embedding, and in front of whatever takes the mean.

    The trap is the scale. ``EmbeddingDropout(per="token")`` divides what is left by 1 - p; word dropout does not, in
    released code either: a word is there or it is not, and the model reads vectors of their usual length. ``scaled``
    divides nevertheless, for models that add vectors up.

    Args:
        p: probability to drop a word, in [0, 1].
        scaled: whether M is 1 / (1-p) in the place of 1.
        batch_first: whether texts come as (B, T, E).
        mc: masks on in eval too.

    Raises:
        ValueError: a rate outside [0, 1].
        TypeError: a switch is no bool.
    """

    site = "word_dropout"
    kind = "WORD"
    _switches = ("scaled", "batch_first", "mc")

    def __init__(self, p: float = 0.05, *, scaled: bool = False, batch_first: bool = False, mc: bool = False) -> None:
        super().__init__(p, batch_first=batch_first, mc=mc)
        if not isinstance(scaled, bool):
            raise TypeError(f"scaled should be of type bool, got: {type(scaled).__name__}")
        self.scaled = scaled

    def forward(
        self,
        x: Any,
        *,
        rng: Tensor | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> Any:
        """Drops.

        Args:
            x: floating, (T, B, E), (B, T, E) with ``batch_first``, or a ``PackedSequence`` of such rows.
            rng: int64[2]; the same pair gives the same masks. Drawn if None, the site is there and masks are on.
            example_ids: int64 (B,), as in an LSTM's forward; 0..B-1 if None.
            step_offset: absolute step of the first step; 0 if None.

        Returns:
            As ``x``.

        Raises:
            TypeError, ValueError: ``x`` is something else.
        """
        data, packed = vectors_of(x)
        if not self.masks_on or not self.draws:
            return x
        numbers, turn = self.draw(data, packed, rng, example_ids, step_offset, 1)
        compute = compute_dtype(data.dtype)
        factor = (masks.factor if self.scaled else masks.binary)(numbers, self._thresholds_on(data.device)[0], compute)
        result = apply(data.to(compute), factor).to(data.dtype)
        turn.end((result,))
        return result if packed is None else PackedSequence(result, *packed[1:])


class DataNoising(OfTokens):
    """Replaces words of a text at random, each with probability p: smoothing for neural language models.

    Xie et al. 2017 have two noises, of which the first resembles linear interpolation with a uniform distribution, the
    second interpolation with the unigram distribution, as n-gram models are smoothed:

    - blank, ``DataNoising(p, blank=id)``: the word becomes a blank. With the id of an unknown word this is the word
      dropout of decoders (Bowman et al. 2016).
    - unigram, ``DataNoising(p, counts=counts)``: the word becomes one that is drawn in proportion to its count.

    The traps. Noise goes on the input of the model alone, never on what it shall predict:
    ``model(noise(text[:-1]))`` against ``text[1:]``. And what a batch is padded with, or ends sentences, is a word too:
    name it in ``spared``. (Bigram Kneser-Ney noising of the same paper changes targets too: :class:`KneserNeyNoising`.)

    Args:
        p: probability to replace a word, in [0, 1].
        blank: id of the blank.
        counts: (V,), how often each word occurs, at least 0 and not all 0; in its place any weights.
        spared: ids of words that are never replaced.
        batch_first: whether texts come as (B, T).
        mc: noise in eval too, where :func:`mc_dropout` is on.

    Raises:
        ValueError: a rate outside [0, 1], both or neither of ``blank`` and ``counts``, or counts as they cannot be.
        TypeError: a switch is no bool, or ``spared`` is no sequence of ints.
    """

    site = "data_noising"
    kind = "NOISING"
    _cumulative: Tensor | None
    _spared: Tensor

    def __init__(
        self,
        p: float = 0.1,
        *,
        blank: int | None = None,
        counts: Tensor | Sequence[float] | None = None,
        spared: Sequence[int] = (),
        batch_first: bool = False,
        mc: bool = False,
    ) -> None:
        super().__init__(p, batch_first=batch_first, mc=mc)
        if (blank is None) == (counts is None):
            raise ValueError("DataNoising takes blank or counts, one of them: what a word is replaced by")
        if blank is not None and (isinstance(blank, bool) or not isinstance(blank, int) or blank < 0):
            raise ValueError(f"blank should be the id of a word, got {blank!r}")
        self.blank = blank
        # No part of a state_dict: they are settings, as p is.
        cumulative = None if counts is None else cumulated(counts)
        self.register_buffer("_cumulative", cumulative, persistent=False)
        self.register_buffer("_spared", spared_ids(spared, cumulative), persistent=False)

    def forward(
        self,
        words: Any,
        *,
        rng: Tensor | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> Any:
        """Replaces.

        Args:
            words: int64 or int32: (T, B), (B, T) with ``batch_first``, (T,), or a ``PackedSequence`` of such.
            rng: int64[2]; the same pair gives the same noise. Drawn if None, the site is there and masks are on.
            example_ids: int64 (B,), as in an LSTM's forward; 0..B-1 if None.
            step_offset: absolute step of the first step; 0 if None.

        Returns:
            As ``words``; the words themselves where nothing is to be replaced.

        Raises:
            TypeError, ValueError: ``words`` is something else.
        """
        data, packed = ids_of("words", words)
        if not self.masks_on or not self.draws:
            return words
        numbers, turn = self.draw(data, packed, rng, example_ids, step_offset, 2)
        which, by = numbers.unbind(-1)
        noised = which < self._thresholds_on(data.device)[0]
        if self._spared.numel():
            noised = noised & (data.unsqueeze(-1) != self._spared).all(-1)
        if self.blank is not None:
            result = data.masked_fill(noised, self.blank)
        else:
            assert self._cumulative is not None
            result = torch.where(noised, chosen(self._cumulative, by).to(data.dtype), data)
        turn.end((result,))
        return result if packed is None else PackedSequence(result, *packed[1:])

    def extra_repr(self) -> str:
        by = f"counts of {len(self._cumulative)} words" if self._cumulative is not None else f"blank={self.blank}"
        spared = f", spared={tuple(self._spared.tolist())}" if self._spared.numel() else ""
        return f"{super().extra_repr()}, {by}{spared}"


__all__ = ["DataNoising", "WordDropout"]
