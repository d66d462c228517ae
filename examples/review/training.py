"""One cell of the grid: a character model, trained from one seed."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fused_rnn_dropout as frd

from ..language_model.data import columns, load_sotu
from ..language_model.model import State, detach
from ..language_model.train import evaluate, segments

EXTRAS: frozenset[str] = frozenset()
"""The names in ``Settings.extras`` that a cell can be trained with: embedding dropout belongs into
:class:`CharacterModel`, activation regularisation and a second pass into :func:`update`, another optimizer or a
schedule of rates into :func:`train`. Rows of the grid with other names are listed as not run."""

CELLS = {"LSTM": frd.LSTM, "GRU": frd.GRU}


@dataclass(frozen=True)
class Settings:
    """Everything that a cell's outcome depends on, but for its seed.

    Attributes:
        sites: what ``frd.LSTM`` or ``frd.GRU`` is given: a rate or an options object by site.
        extras: what it is trained with besides the sites: a number by name of :data:`EXTRAS`.
        cell: ``"LSTM"`` or ``"GRU"``.
        layers, hidden: of the RNN.
        embedding: width of the embedding, whose weight the decoder does not share.
        characters: of the training text, from its beginning.
        valid_characters: of the validation text.
        epochs: passes over the training text.
        batch: parallel sequences.
        steps: length of a segment; the state is carried over, the gradient is not.
        rate: Adam's learning rate, constant.
        clip: largest norm of the gradient.
        passes: masks over which MC dropout averages at the end.
        backend: as ``frd.LSTM`` takes it; None is the fused one of the CPU.
    """

    sites: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, float] = field(default_factory=dict)
    cell: str = "LSTM"
    layers: int = 1
    hidden: int = 256
    embedding: int = 64
    characters: int = 60_000
    valid_characters: int = 24_000
    epochs: int = 30
    batch: int = 16
    steps: int = 64
    rate: float = 4e-3
    clip: float = 1.0
    passes: int = 10
    backend: str | None = None

    def record(self) -> dict[str, Any]:
        """All of it, for JSON: an options object as its fields."""
        return dataclasses.asdict(self)


class CharacterModel(nn.Module):
    """Embedding, an RNN of this package, decoder."""

    def __init__(self, characters: int, settings: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, settings.embedding)
        self.rnn = CELLS[settings.cell](
            settings.embedding, settings.hidden, settings.layers, backend=settings.backend, **settings.sites
        )
        self.decoder = nn.Linear(settings.hidden, characters)

    def forward(self, ids: Tensor, state: State = None) -> tuple[Tensor, State]:
        """From ids int64 (T, B) to logits (T, B, characters), and the state to carry on with."""
        hidden, state = self.rnn(self.embedding(ids), state)
        return self.decoder(hidden), state


@dataclass(frozen=True)
class Text:
    """Character ids in columns, time first: int64 (steps, batch) each.

    Attributes:
        train: what is trained on.
        seen: the beginning of ``train``, as long as ``valid``: the training loss is taken on it.
        valid: text that is never trained on.
        characters: size of the vocabulary.
        sha256: of the addresses that the text is cut from.
    """

    train: Tensor
    seen: Tensor
    valid: Tensor
    characters: int
    sha256: str


def load_text(settings: Settings) -> Text:
    """The addresses of 1960 and 1961 to train on, of 1963 to validate on. Raises ``CorpusError`` without them."""
    # The corpus has a quarter as much text to validate on as to train on, and more is wanted here.
    corpus = load_sotu("char", max(settings.characters, 4 * settings.valid_characters))
    train = columns(corpus.train[: settings.characters], settings.batch)
    valid = columns(corpus.valid[: settings.valid_characters], settings.batch, "validate")
    return Text(train, train[: len(valid)], valid, len(corpus.vocabulary), corpus.sha256)


def bits(loss: float) -> float:
    """Nats as bits, to as many digits as are worth keeping."""
    return round(loss / math.log(2), 5)


@torch.no_grad()
def averaged(model: CharacterModel, ids: Tensor, steps: int, passes: int) -> float:
    """Bits per character of MC dropout: the probabilities of ``passes`` passes with masks on, averaged."""
    model.eval()
    frd.mc_dropout(model)
    total: Tensor | None = None
    for _ in range(passes):
        state, found = None, []
        for inputs, targets in segments(ids, steps):
            logits, state = model(inputs, state)
            found.append(logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)))
        chances = torch.cat(found).double().exp()
        total = chances if total is None else total + chances
    frd.mc_dropout(model, on=False)
    assert total is not None, "at least one pass"
    return bits(-(total / passes).log().mean().item())


def update(model: CharacterModel, optimizer: torch.optim.Optimizer, ids: Tensor, targets: Tensor, state: State,
           clip: float) -> State:  # fmt: skip
    """One step of the optimizer on one segment; returns the state after it, to carry on with."""
    logits, state = model(ids, state)
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return detach(state)


def train(settings: Settings, seed: int, tell: Callable[[int], None]) -> dict[str, Any]:
    """Trains one cell.

    Args:
        settings: of the cell.
        seed: of the parameters and the masks. The order of the text is the same for all seeds.
        tell: called with the number of epochs that are done.

    Returns:
        For JSON, losses in bits per character: ``train`` and ``valid``, eval mode, after each epoch; ``masked``, the
        training text at the end with masks on; ``mc``, the validation text at the best epoch under MC
        dropout; ``ran``, what computed it; ``seconds`` in all.

    Raises:
        CorpusError: the text is missing.
        ValueError: an extra that this version does not know.
    """
    if unknown := sorted(set(settings.extras) - EXTRAS):
        raise ValueError(f"extras should be among {sorted(EXTRAS)}, got {', '.join(unknown)}")
    began = time.perf_counter()
    text = load_text(settings)
    torch.manual_seed(seed)
    model = CharacterModel(text.characters, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    curves: dict[str, list[float]] = {"train": [], "valid": []}
    best: dict[str, Tensor] = {}
    for epoch in range(1, settings.epochs + 1):
        model.train()
        state: State = None
        for inputs, targets in segments(text.train, settings.steps):
            state = update(model, optimizer, inputs, targets, state, settings.clip)
        curves["train"].append(bits(evaluate(model, text.seen, settings.steps)))
        curves["valid"].append(bits(evaluate(model, text.valid, settings.steps)))
        if curves["valid"][-1] == min(curves["valid"]):
            best = copy.deepcopy(model.state_dict())
        tell(epoch)
    masked = averaged(model, text.seen, settings.steps, passes=1)
    model.load_state_dict(best)
    mc = averaged(model, text.valid, settings.steps, settings.passes)
    explained = frd.explain(model.rnn, torch.zeros(settings.steps, settings.batch, settings.embedding))
    return curves | {
        "masked": masked,
        "mc": mc,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "text": text.sha256,
        "ran": f"{explained.backend}: {explained.schedule}",
        "seconds": round(time.perf_counter() - began, 1),
    }
