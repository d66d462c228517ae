"""Words in the place of characters, on the same addresses: AWD-LSTM, and stacks as Zaremba et al. have them, small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fused_rnn_dropout import training

from ..language_model.data import columns, load_sotu
from ..language_model.model import State
from .eval_tuning import eval_tuning
from .recipe import Encoded
from .training import CharacterModel, LanguageSettings, Text

OWN_WIDTH, ONE_WIDTH = "awd", "stack"
"""Kinds of models: the last layer as wide as the embedding, which the decoder shares; or one stack of equal layers."""

_SITES = ("input_dropout", "inter_layer_dropout", "output_dropout", "weight_dropout")
"""Those that ``AWDLSTM`` has rates for by default, where a row has none unless it says so."""


@dataclass(frozen=True)
class WordSettings(LanguageSettings):
    """Those of a model of words.

    Attributes:
        sites: what the layers are given: a rate or an options object by site.
        extras: what it is trained with besides the sites: a number by name of :data:`recipe.EXTRAS`.
        kind: ``"awd"``, ``training.AWDLSTM``, or ``"stack"``, a :class:`training.CharacterModel` of words.
        layers, hidden: of the RNN; ``"awd"`` has its last layer as wide as ``embedding``.
        embedding: width of the embedding.
        spread: parameters of a ``"stack"`` begin uniform within plus and minus this; as torch has it if None.
        tokens: of the training text, from its beginning.
        epochs: passes over the training text.
        batch: parallel sequences.
        steps: length of a segment; the state is carried over, the gradient is not.
        rate: Adam's learning rate; that of SGD is among the extras.
        clip: largest norm of the gradient.
        passes: masks over which MC dropout averages at the end.
        tuning: masks for each choice of :func:`eval_tuning`; 0 leaves it out.
        backend: as ``frd.LSTM`` takes it; None is the fused one of the CPU.
    """

    sites: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, float] = field(default_factory=dict)
    kind: str = OWN_WIDTH
    layers: int = 2
    hidden: int = 400
    embedding: int = 200
    spread: float | None = None
    tokens: int = 60_000
    epochs: int = 30
    batch: int = 10
    steps: int = 35
    rate: float = 2e-3
    clip: float = 0.25
    passes: int = 10
    tuning: int = 0
    backend: str | None = None

    task: ClassVar[str] = "words"
    unit: ClassVar[str] = "bits per word"
    cell: ClassVar[str] = "LSTM"

    def load_text(self) -> Text:
        """The addresses that the demonstration reads, by words."""
        corpus = load_sotu("word", self.tokens)
        train, valid = columns(corpus.train, self.batch), columns(corpus.valid, self.batch, "validate")
        return Text(train, train[: len(valid)], valid, len(corpus.vocabulary), corpus.sha256)

    def build(self, text: Text) -> nn.Module:
        return build(self, text)

    def measured(self, model: nn.Module, text: Text) -> dict[str, Any]:
        vocabulary = {"vocabulary": text.vocabulary}
        return vocabulary | eval_tuning(model, text.valid, 2 * self.steps, self.tuning) if self.tuning else vocabulary


class WordModel(training.AWDLSTM):
    """``AWDLSTM`` whose state is one tuple of h and c of each layer, as the loop of the study carries it."""

    def encode(self, words: Tensor, state: State = None, **counters: Any) -> Encoded:  # type: ignore[override]
        """From words int64 (T, B) to logits (T, B, V), the state to carry on with, and what AR and TAR take."""
        pairs = None if state is None else list(zip(state[::2], state[1::2], strict=True))
        found = super().encode(words, pairs, **counters)
        assert found.logits is not None, "it has a decoder"
        return Encoded(found.logits, tuple(part for pair in found.state for part in pair), found.raw, found.dropped)


def build(settings: Any, text: Text) -> nn.Module:
    """The model of :class:`WordSettings` or of a published recipe, which has the same fields.

    Raises:
        ValueError: an unknown kind, or extras that ``AWDLSTM`` has no place for.
    """
    counts = torch.bincount(text.train.flatten(), minlength=text.vocabulary)
    if settings.kind == ONE_WIDTH:
        model = CharacterModel(text.vocabulary, settings, counts)
        if settings.spread is not None:
            for parameter in model.parameters():
                nn.init.uniform_(parameter, -settings.spread, settings.spread)
        return model
    if settings.kind != OWN_WIDTH:
        raise ValueError(f"kind should be {OWN_WIDTH!r} or {ONE_WIDTH!r}, got {settings.kind!r}")
    if astray := sorted({"word_dropout", "data_noising"} & settings.extras.keys()):
        raise ValueError(f"extras have {' and '.join(astray)}, which kind {OWN_WIDTH!r} has no place for")
    sites: dict[str, Any] = {**dict.fromkeys(_SITES, 0.0), **settings.sites}
    sizes = settings.embedding, settings.hidden, settings.layers
    words = settings.extras.get("embedding_dropout", 0.0)
    return WordModel(text.vocabulary, *sizes, embedding_dropout=words, backend=settings.backend, **sites)
