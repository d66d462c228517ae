"""Data noising of words and of what follows them, by the counts of Kneser-Ney smoothing (Xie et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .tokens import OfTokens, chosen, cumulated, ids_of, spared_ids


class Bigrams(NamedTuple):
    """Of each word: how often it has a successor, how many different ones, and how many different words precede it."""

    followed: Tensor
    successors: Tensor
    predecessors: Tensor

    @staticmethod
    def of(text: Tensor, vocabulary: int) -> Bigrams:
        """Counts, int64 (V,) each, of the pairs of words that stand one after the other along dimension 0."""
        pairs = (text[:-1].long() * vocabulary + text[1:]).flatten()
        kinds = pairs.unique()
        given = pairs // vocabulary, kinds // vocabulary, kinds % vocabulary
        return Bigrams(*(torch.bincount(words, minlength=vocabulary) for words in given))


class KneserNeyNoising(OfTokens):
    """Replaces a word of the input together with its target, as Kneser-Ney smoothing of bigrams would have it.

    In the training text let a word w have c(w) successors, N(w .) different ones, and N(. w) different words in front
    of it. A word w_t and its target w_{t+1} are replaced, both or none, with probability

        p N(w_t .) / c(w_t)

    by two words that are drawn independently of each other in proportion to N(. w) (Xie et al. 2017). So a word that
    has always had one successor is seldom noised, one that has had another each time with probability p; and a word
    that is frequent, but always behind the same one, is seldom drawn. A word without a successor stays.

    Use it in front of the model: ``words, targets = noise(text[:-1], text[1:])``. The traps. Targets are noised only
    where the input is, so that the two come from one call. The target of a step is then no longer the input of the
    next, so noise the pair and not the text. And the training loss is that of noised targets: compare losses in eval.

    Args:
        p: the paper's gamma, in [0, 1]: the probability where no successor came twice.
        text: int64 or int32 (N,), or (N, B), whose columns are texts of their own: the training text.
        vocabulary: V; words are 0 .. V-1.
        spared: ids such that a pair with one of them is never replaced: the padding, ``ignore_index`` of the loss.
        batch_first: whether texts come as (B, T) in the forward pass.
        mc: noise in eval too, where :func:`mc_dropout` is on.

    Raises:
        ValueError: a rate outside [0, 1], a text with less than two steps, or with words outside the vocabulary.
        TypeError: ``text`` is no tensor, ``vocabulary`` no int, ``spared`` no sequence of ints, or a switch no bool.
    """

    site = "data_noising"
    kind = "NOISING"
    _followed: Tensor
    _successors: Tensor
    _cumulative: Tensor
    _spared: Tensor

    def __init__(
        self,
        p: float = 0.2,
        *,
        text: Tensor,
        vocabulary: int,
        spared: Sequence[int] = (),
        batch_first: bool = False,
        mc: bool = False,
    ) -> None:
        super().__init__(p, batch_first=batch_first, mc=mc)
        if isinstance(vocabulary, bool) or not isinstance(vocabulary, int):
            raise TypeError(f"vocabulary should be of type int, got: {type(vocabulary).__name__}")
        data, packed = ids_of("text", text)
        if packed is not None:
            raise TypeError("text should be a Tensor, got PackedSequence")
        if len(data) < 2 or not data.numel():
            raise ValueError(f"text should have two steps or more, got shape {tuple(data.shape)}")
        if int(data.min()) < 0 or int(data.max()) >= vocabulary:
            raise ValueError(
                f"text should have words in [0, {vocabulary}), as vocabulary says, got {int(data.min())} to "
                f"{int(data.max())}"
            )
        counts = Bigrams.of(data, vocabulary)
        # No part of a state_dict: they are settings, as p is. All are integers, which no change of dtype touches.
        self.register_buffer("_followed", counts.followed, persistent=False)
        self.register_buffer("_successors", counts.successors, persistent=False)
        self.register_buffer("_cumulative", cumulated(counts.predecessors), persistent=False)
        self.register_buffer("_spared", spared_ids(spared, data), persistent=False)

    def forward(
        self,
        words: Any,
        targets: Any,
        *,
        rng: Tensor | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> tuple[Any, Any]:
        """Replaces.

        Args:
            words: int64 or int32: (T, B), (B, T) with ``batch_first``, (T,), or a ``PackedSequence`` of such.
            targets: what follows each of them: of the same type and shape.
            rng: int64[2]; the same pair gives the same noise. Drawn if None, the site is there and masks are on.
            example_ids: int64 (B,), as in an LSTM's forward; 0..B-1 if None.
            step_offset: absolute step of the first step; 0 if None.

        Returns:
            Words and targets, as they came; they themselves where nothing is to be replaced.

        Raises:
            TypeError, ValueError: ``words`` or ``targets`` is something else, or they do not fit each other.
            IndexError: a word outside the vocabulary.
        """
        (data, packed), (after, packed_too) = ids_of("words", words), ids_of("targets", targets)
        if data.shape != after.shape or (packed is None) != (packed_too is None):
            raise ValueError(
                f"targets should be of the type and shape of words, got {type(targets).__name__} of "
                f"{tuple(after.shape)} beside {type(words).__name__} of {tuple(data.shape)}"
            )
        if packed is not None and packed_too is not None and not _rows_match(packed, packed_too):
            raise ValueError("targets should be packed as words are, with the same lengths in the same order")
        if not self.masks_on or not self.draws:
            return words, targets
        numbers, turn = self.draw(data, packed, rng, example_ids, step_offset, 3)
        which, *by = numbers.unbind(-1)
        # Not by brackets, which take a negative id for one from the end.
        found = data.flatten().long()
        followed, successors = (of.index_select(0, found).view(data.shape) for of in (self._followed, self._successors))
        noised = which * followed < self._thresholds_on(data.device)[0] * successors  # p N(w .) / c(w), multiplied out
        for ids in (data, after) if self._spared.numel() else ():
            noised = noised & (ids.unsqueeze(-1) != self._spared).all(-1)
        results = tuple(
            torch.where(noised, chosen(self._cumulative, random).to(ids.dtype), ids)
            for ids, random in zip((data, after), by, strict=True)
        )
        turn.end(results)
        if packed is None or packed_too is None:
            return results[0], results[1]
        return PackedSequence(results[0], *packed[1:]), PackedSequence(results[1], *packed_too[1:])

    def extra_repr(self) -> str:
        spared = f", spared={tuple(self._spared.tolist())}" if self._spared.numel() else ""
        return f"{super().extra_repr()}, bigrams of {len(self._followed)} words{spared}"


def _rows_match(first: PackedSequence, second: PackedSequence) -> bool:
    """Whether each row of one stands for the same example and step as that of the other, as far as the host can see."""
    if torch.compiler.is_compiling():
        return True
    if not torch.equal(first.batch_sizes, second.batch_sizes):
        return False
    if first.data.device.type != "cpu":
        return True
    as_they_are = torch.arange(int(first.batch_sizes[0]))
    orders = [as_they_are if of.sorted_indices is None else of.sorted_indices for of in (first, second)]
    return torch.equal(*orders)


__all__ = ["Bigrams", "KneserNeyNoising"]
