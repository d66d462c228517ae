"""The language model of the demonstration, written with torch.nn alone: embedding, RNN, decoder."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fused_rnn_dropout.cells import MODULES

State: TypeAlias = Tensor | tuple[Tensor, ...] | None

CELLS = {name.lower(): getattr(nn, name) for name in MODULES}


class LanguageModel(nn.Module):
    """Predicts the next token of each sequence; knows nothing of dropout.

    Args:
        tokens: size of the vocabulary.
        cell: of :data:`CELLS`.
        width: units of the embedding and of each layer.
        layers: layers of the RNN.
        spread: standard deviation of the embedding at the start, which is the decoder's weight too (Press & Wolf 2017).
    """

    def __init__(self, tokens: int, cell: str, width: int, layers: int, spread: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.rnn = CELLS[cell](width, width, layers)
        self.decoder = nn.Linear(width, tokens)
        self.decoder.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=spread)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, ids: Tensor, state: State = None) -> tuple[Tensor, State]:
        """From ids int64 (T, B) to logits (T, B, tokens), and the state to carry on with."""
        hidden, state = self.rnn(self.embedding(ids), state)
        return self.decoder(hidden), state


def detach(state: State) -> State:
    """The same state, cut from the graph that computed it."""
    if isinstance(state, Tensor) or state is None:
        return None if state is None else state.detach()
    return tuple(part.detach() for part in state)


def digest(model: nn.Module) -> str:
    """A sha256 of every parameter's name and bits."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
