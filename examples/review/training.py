"""One cell of a grid of language models, trained from one seed; and the character model of the study."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import training

from ..language_model.data import columns, load_sotu
from ..language_model.model import State
from ..language_model.train import evaluate, segments
from .recipe import Encoded, Recipe, check_extras
from .records import CHARACTERS, CellSettings

CELLS = {"LSTM": frd.LSTM, "GRU": frd.GRU}


@dataclass(frozen=True)
class Text:
    """Token ids in columns, time first: int64 (steps, batch) each.

    Attributes:
        train: what is trained on.
        seen: the beginning of ``train``, as long as ``valid``: the training loss is taken on it.
        valid: text that is never trained on.
        vocabulary: how many tokens there are.
        sha256: of the text that they are cut from.
    """

    train: Tensor
    seen: Tensor
    valid: Tensor
    vocabulary: int
    sha256: str


class LanguageSettings(CellSettings):
    """What :func:`train` asks of a language model's settings. Attributes: see :class:`Settings`."""

    sites: Mapping[str, Any]
    extras: Mapping[str, float]
    batch: int
    steps: int
    rate: float
    clip: float
    passes: int

    def load_text(self) -> Text:
        """What is trained on. Raises ``CorpusError`` where it is missing."""
        raise NotImplementedError

    def build(self, text: Text) -> Any:
        """The model, its parameters drawn from torch's generator, with ``encode`` as :class:`CharacterModel` has it."""
        raise NotImplementedError

    def measured(self, model: Any, text: Text) -> dict[str, Any]:
        """What its lines have besides the losses, measured at the best epoch."""
        return {}

    def train(self, seed: int, tell: Callable[[int], None]) -> dict[str, Any]:
        return train(self, seed, tell)


@dataclass(frozen=True)
class Settings(LanguageSettings):
    """Those of the character model.

    Attributes:
        sites: what ``frd.LSTM`` or ``frd.GRU`` is given: a rate or an options object by site.
        extras: what it is trained with besides the sites: a number by name of :data:`recipe.EXTRAS`.
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

    task: ClassVar[str] = CHARACTERS
    unit: ClassVar[str] = "bits per character"

    def load_text(self) -> Text:
        return load_text(self)

    def build(self, text: Text) -> CharacterModel:
        return CharacterModel(text.vocabulary, self, torch.bincount(text.train.flatten(), minlength=text.vocabulary))


class CharacterModel(nn.Module):
    """Embedding, an RNN of this package, decoder.

    TAR reads the output before dropout, so that with it ``output_dropout`` is a module behind the RNN, where it is
    otherwise a site of the RNN.

    Args:
        characters: size of the vocabulary.
        settings: of the cell.
        counts: (characters,), how often each occurs in the training text, by which data noising draws; all alike if
            None.
    """

    def __init__(self, characters: int, settings: Settings, counts: Tensor | None = None) -> None:
        super().__init__()
        sites, extras, output = dict(settings.sites), settings.extras, 0.0
        if "tar" in extras:
            output = sites.pop("output_dropout", 0.0)
        counts = torch.ones(characters) if counts is None else counts
        self.noise = training.DataNoising(extras.get("data_noising", 0.0), counts=counts)
        embedding = nn.Embedding(characters, settings.embedding)
        self.embedding = training.EmbeddingDropout(embedding, extras.get("embedding_dropout", 0.0))
        self.words = training.WordDropout(extras.get("word_dropout", 0.0))
        self.rnn = CELLS[settings.cell](
            settings.embedding, settings.hidden, settings.layers, backend=settings.backend, **sites
        )
        self.output = training.OutputDropout(output)
        self.decoder = nn.Linear(settings.hidden, characters)

    def encode(self, ids: Tensor, state: State = None) -> Encoded:
        """From ids int64 (T, B) to logits (T, B, characters), the state to carry on with, and what AR and TAR take."""
        raw, state = self.rnn(self.words(self.embedding(self.noise(ids))), state)
        dropped = self.output(raw)
        return Encoded(self.decoder(dropped), state, raw, dropped)

    def forward(self, ids: Tensor, state: State = None) -> tuple[Tensor, State]:
        """The logits and the state of :meth:`encode`."""
        logits, state, *_ = self.encode(ids, state)
        return logits, state


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
def averaged(model: nn.Module, ids: Tensor, steps: int, passes: int) -> float:
    """Bits per token of MC dropout: the probabilities of ``passes`` passes with masks on, averaged."""
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


def train(
    settings: LanguageSettings,
    seed: int,
    tell: Callable[[int], None],
    show: Callable[[int, float, float], None] = lambda epoch, seen, valid: None,
) -> dict[str, Any]:
    """Trains one cell.

    Args:
        settings: of the cell.
        seed: of the parameters and the masks. The order of the text is the same for all seeds.
        tell: called with the number of epochs that are done.
        show: called with that, and the training and the validation loss.

    Returns:
        For JSON, losses in bits per token: ``train`` and ``valid``, eval mode, after each epoch; ``masked``, the
        training text at the end with masks on; ``mc``, the validation text at the best epoch under MC
        dropout; ``ran``, what computed it; ``seconds`` in all; and what the settings measure.

    Raises:
        CorpusError: the text is missing.
        ValueError: extras that are not known, or do not go together.
    """
    check_extras(settings.extras)
    began = time.perf_counter()
    text = settings.load_text()
    torch.manual_seed(seed)
    model = settings.build(text)
    recipe = Recipe(model, settings, text.train)
    curves: dict[str, list[float]] = {"train": [], "valid": []}
    best: dict[str, Tensor] = {}
    updates_at_best = 0
    for epoch in range(1, settings.epochs + 1):
        recipe.begin(epoch, best)
        recipe.epoch()
        with recipe.averaged():
            curves["train"].append(bits(evaluate(model, text.seen, settings.steps)))
            curves["valid"].append(bits(evaluate(model, text.valid, settings.steps)))
            if curves["valid"][-1] == min(curves["valid"]):
                best = copy.deepcopy(model.state_dict())
                updates_at_best = recipe.schedule.last_step if recipe.schedule else 0
        recipe.observe(curves["valid"][-1])
        tell(epoch)
        show(epoch, curves["train"][-1], curves["valid"][-1])
    with recipe.averaged():
        masked = averaged(model, text.seen, settings.steps, passes=1)
    model.load_state_dict(best)
    if recipe.schedule:  # masks of MC dropout at the rates of the best epoch
        recipe.schedule.go_to(updates_at_best)
    mc = averaged(model, text.valid, settings.steps, settings.passes)
    return curves | {
        "masked": masked,
        "mc": mc,
        **settings.measured(model, text),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "text": text.sha256,
        "ran": ran(model, settings.steps, settings.batch),
        "seconds": round(time.perf_counter() - began, 1),
    }


def ran(model: nn.Module, steps: int, batch: int) -> str:
    """What computes the first layer of this package in ``model``."""
    layer = next(module for module in model.modules() if isinstance(module, (frd.LSTM, frd.GRU)))
    device = next(layer.parameters()).device
    explained = frd.explain(layer, torch.zeros(steps, batch, layer.input_size, device=device))
    return f"{explained.backend}: {explained.schedule}"
