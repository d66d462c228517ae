"""Embedding dropout: whole words of a batch are dropped, with no mask as large as the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import masks
from ..arguments import check_counters
from ..fakes import compute_dtype
from ..layouts import check_packed
from ..reference import apply
from ..sites import SEQ
from .rated import Rated
from .rows import counters_of_rows, sizes_of

PER = ("type", "example", "token")


class EmbeddingDropout(Rated):
    """An ``nn.Embedding`` whose rows are dropped in training: e(w) = M E[w], M = 0 with probability p, else 1/(1-p).

    - ``per="type"``: M is a function of the word alone: all its occurrences in a call vanish together (Gal & Ghahramani
      2016; Merity et al. 2017, as in AWD-LSTM).
    - ``per="example"``: of the word and the example, as in Gal's released code.
    - ``per="token"``: of the word, the example and the step: occurrences are dropped one by one.

    The matrix itself stays as it is. So a decoder that is tied to it (``decoder.weight = drop.embedding.weight``) reads
    the undropped one, as it should. The trap is to write a masked copy into the embedding, which drops words of the
    decoder too.

    Whatever ``nn.Embedding`` does it does here: ``padding_idx`` (its row gets no gradient), ``max_norm``,
    ``scale_grad_by_freq`` and ``sparse``. The factor multiplies what was looked up, so the gradient of a row is M times
    its ordinary one, and exactly 0 where it was dropped.

    Args:
        embedding: the matrix; a child module, so that its weight is ``embedding.weight`` in the ``state_dict``.
        p: probability to drop a word, in [0, 1]; 0 means that the site is not there.
        per: ``"type"``, ``"example"`` or ``"token"``.
        batch_first: whether words come as (B, T); read where a mask depends on example or step.
        mc: masks on in eval too.

    Raises:
        TypeError: ``embedding`` is no ``nn.Embedding``, or a switch is no bool.
        ValueError: a rate outside [0, 1], or an unknown ``per``.
    """

    site = "embedding_dropout"
    group = "embedding"

    def __init__(
        self, embedding: nn.Embedding, p: float = 0.1, *, per: str = "type", batch_first: bool = False, mc: bool = False
    ) -> None:
        super().__init__(p, mc=mc)
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"embedding should be an nn.Embedding, got {type(embedding).__name__}")
        if per not in PER:
            raise ValueError(f"per should be one of {', '.join(map(repr, PER))}, got {per!r}")
        if not isinstance(batch_first, bool):
            raise TypeError(f"batch_first should be of type bool, got: {type(batch_first).__name__}")
        self.embedding, self.per, self.batch_first = embedding, per, batch_first
        self._place_thresholds()

    def forward(
        self,
        words: Tensor | PackedSequence,
        *,
        rng: Tensor | None = None,
        example_ids: Tensor | None = None,
        step_offset: int | None = None,
    ) -> Tensor | PackedSequence:
        """Looks words up.

        Args:
            words: int64 or int32: (T, B), (B, T) with ``batch_first``, (T,) for one sequence, or a ``PackedSequence``;
                with ``per="type"`` any shape.
            rng: int64[2]; the same pair gives the same masks. Drawn if None, the site is there and masks are on.
            example_ids: int64 (B,), as in an LSTM's forward; 0..B-1 if None.
            step_offset: absolute step of the first step; 0 if None.

        Returns:
            As ``words``, with a last dimension of ``embedding_dim``.

        Raises:
            ValueError: words of another number of dimensions.
            IndexError, RuntimeError: as ``nn.Embedding``.
        """
        if isinstance(words, PackedSequence):
            check_packed(words)
            looked_up = self._look_up(words.data, words, rng, example_ids, step_offset)
            return PackedSequence(looked_up, *words[1:])
        if not isinstance(words, Tensor):
            raise TypeError(f"words should be a Tensor or a PackedSequence, got {type(words).__name__}")
        return self._look_up(words, None, rng, example_ids, step_offset)

    def _look_up(
        self, words: Tensor, packed: PackedSequence | None, rng: Any, example_ids: Tensor | None, offset: int | None
    ) -> Tensor:
        dims = (1, 2) if packed is None else (1,)
        if self.per != "type" and words.dim() not in dims:
            allowed = " or ".join(map(str, dims))
            raise ValueError(f"words should have {allowed} dimensions where per={self.per!r}, got {words.dim()}")
        rows = self.embedding(words)
        if not self.masks_on or not self.draws:
            return rows
        steps, batch = sizes_of(words, packed, self.batch_first)
        turn = self.begin(rng, offset, steps)
        check_counters(example_ids, turn.step_offset, batch, steps, words.device)
        example, step = self._counters(words, packed, (steps, batch), example_ids, turn.step_offset)
        compute = compute_dtype(rows.dtype)
        limit, pair = self._thresholds_on(words.device)[0], self.pair(turn.rng, words.device)
        factor = masks.embedding(limit, pair, words.long(), example, step, compute)
        result = apply(rows.to(compute), factor.unsqueeze(-1)).to(rows.dtype)
        turn.end((result,))
        return result

    def _counters(
        self,
        words: Tensor,
        packed: PackedSequence | None,
        sizes: tuple[int, int],
        example_ids: Tensor | None,
        offset: int,
    ) -> tuple[Tensor | int, Tensor | int]:
        """Example and step of each word, as far as the mask is a function of them."""
        if self.per == "type":
            return 0, SEQ
        steps, batch = sizes
        examples = torch.arange(batch, device=words.device) if example_ids is None else example_ids
        times = torch.arange(steps, device=words.device) + offset
        if packed is not None:
            examples, times = counters_of_rows(packed, examples, times)
        elif words.dim() == 2:
            dim = 1 if self.batch_first else 0
            examples, times = examples.unsqueeze(dim), times.unsqueeze(1 - dim)
        return examples, times if self.per == "token" else SEQ

    def extra_repr(self) -> str:
        shown = [f"p={self.p:g}"]
        shown += [f"per={self.per!r}"] if self.per != "type" else []
        shown += [f"{name}=True" for name in ("batch_first", "mc") if getattr(self, name)]
        return ", ".join(shown)


__all__ = ["EmbeddingDropout"]
