"""An encoder and a decoder with attention, each with sites of its own; masks of the decoder's loop are held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout import training

from .pieces import BEGIN, END, PAD
from .training import CELLS

STEPS = {"LSTM": frd.LSTMCell, "GRU": frd.GRUCell}


class Decoder(nn.Module):
    """One step: the last token and the last context to a state, attention over the encoder's outputs, logits.

    Args:
        tokens, embedding, units: widths.
        cell: ``"LSTM"`` or ``"GRU"``.
        sites: of the cell; ``output_dropout`` of what is behind the attention.
    """

    def __init__(self, tokens: int, embedding: int, units: int, cell: str, sites: Mapping[str, Any]) -> None:
        super().__init__()
        sites = dict(sites)
        self.output = training.OutputDropout(sites.pop("output_dropout", 0.0))
        self.embedding = nn.Embedding(tokens, embedding, padding_idx=PAD)
        self.cell = STEPS[cell](embedding + units, units, **sites)
        self.score = nn.Linear(units, units, bias=False)
        self.mix = nn.Linear(2 * units, units)
        self.head = nn.Linear(units, tokens)

    def begin(self, encoded: Tensor, lengths: Tensor) -> tuple[Any, Tensor]:
        """The state and the context before the first step: h is the mean of the encoder's outputs, the rest zeros."""
        h = encoded.sum(0) / lengths[:, None]
        zeros = torch.zeros_like(h)
        return ((h, zeros) if isinstance(self.cell, frd.LSTMCell) else h), zeros

    def forward(self, ids: Tensor, state: Any, context: Tensor, encoded: Tensor, seen: Tensor) -> tuple[Any, Tensor]:
        """From ids int64 (B,) and the encoder's outputs (T, B, units) to the next state, and what logits are made of.

        ``seen`` is bool (T, B), False behind the end of a source; ``context`` (B, units) is of the step before.
        """
        state = self.cell(torch.cat((self.embedding(ids), context), dim=-1), state)
        h = state[0] if isinstance(state, tuple) else state
        scores = (encoded * self.score(h)).sum(-1).masked_fill(~seen, -torch.inf)
        attended = (scores.softmax(0)[..., None] * encoded).sum(0)
        mixed = torch.tanh(self.mix(torch.cat((attended, h), dim=-1)))
        return state, self.output(mixed[None])[0]


class Translator(nn.Module):
    """Sequence to sequence.

    Args:
        sources, targets: sizes of the two vocabularies.
        embedding, units: widths; ``units`` should be even, half of the encoder's are of each direction.
        cell: ``"LSTM"`` or ``"GRU"``.
        encoder_sites, decoder_sites: a rate or an options object by site.
    """

    def __init__(
        self,
        sources: int,
        targets: int,
        embedding: int,
        units: int,
        cell: str,
        encoder_sites: Mapping[str, Any],
        decoder_sites: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if units % 2:
            raise ValueError(f"units should be even, got {units}")
        self.embedding = nn.Embedding(sources, embedding, padding_idx=PAD)
        self.encoder = CELLS[cell](embedding, units // 2, bidirectional=True, **encoder_sites)
        self.decoder = Decoder(targets, embedding, units, cell, decoder_sites)

    def encode(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """From ids int64 (T, B) to outputs (T, B, units), 0 behind the ends, and where they are not, bool (T, B)."""
        packed = pack_padded_sequence(self.embedding(ids), lengths, enforce_sorted=False)
        encoded, _ = pad_packed_sequence(self.encoder(packed)[0], total_length=len(ids))
        return encoded, torch.arange(len(ids))[:, None] < lengths

    def forward(self, ids: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Logits (S, B, targets) of each token of ``target`` int64 (S, B), from the true ones before it."""
        encoded, seen = self.encode(ids, lengths)
        state, context = self.decoder.begin(encoded, lengths)
        token, found = torch.full((target.size(1),), BEGIN), []
        with frd.hold_masks(self.decoder):  # one mask per sequence lasts for all steps of the loop
            for following in target:
                state, context = self.decoder(token, state, context, encoded, seen)
                found.append(context)
                token = following
        return self.decoder.head(torch.stack(found))

    @torch.no_grad()
    def translate(self, ids: Tensor, lengths: Tensor, longest: int) -> list[list[int]]:
        """The most probable token at each step, ``longest`` steps at most; in eval mode."""
        self.eval()
        encoded, seen = self.encode(ids, lengths)
        state, context = self.decoder.begin(encoded, lengths)
        token = torch.full((ids.size(1),), BEGIN)
        found: list[Tensor] = []
        ended = torch.zeros(ids.size(1), dtype=torch.bool)
        while len(found) < longest and not ended.all():
            state, context = self.decoder(token, state, context, encoded, seen)
            token = self.decoder.head(context).argmax(-1)
            found.append(token)
            ended |= token == END
        return torch.stack(found).t().tolist()
