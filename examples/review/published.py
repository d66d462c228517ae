"""The settings that papers published, over a corpus of the user's own: what ``train --recipe`` runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from torch import nn

from fused_rnn_dropout import LockedDropout

from ..language_model.data import columns
from ..language_model.train import evaluate, segments
from .folder import load_folder
from .recipe import Recipe
from .runner import duration
from .training import LanguageSettings, Text, bits, ran
from .words import ONE_WIDTH, OWN_WIDTH, build


@dataclass(frozen=True)
class RecipeSettings(LanguageSettings):
    """Those of a published recipe.

    Attributes: those of :class:`words.WordSettings`, and

        level: ``"word"`` or ``"char"``.
        published: validation and test figures of the paper.
        differs: what the paper does otherwise.
        folder: of the corpus, see :func:`folder.load_folder`.
        device: where it is trained.
    """

    sites: Mapping[str, Any]
    extras: Mapping[str, float]
    kind: str
    layers: int
    hidden: int
    embedding: int
    epochs: int
    batch: int
    steps: int
    clip: float
    published: str
    differs: str
    spread: float | None = None
    rate: float = 0.0
    level: str = "word"
    passes: int = 10
    backend: str | None = None
    folder: str = ""
    device: str = "cpu"

    task: ClassVar[str] = "published"
    unit: ClassVar[str] = "bits per token"
    cell: ClassVar[str] = "LSTM"

    def load_text(self) -> Text:
        found = load_folder(Path(self.folder), self.level)
        train, valid = (columns(found.parts[name], self.batch, name).to(self.device) for name in ("train", "valid"))
        return Text(train, train[: len(valid)], valid, len(found.vocabulary), found.sha256)

    def build(self, text: Text) -> nn.Module:
        return build(self, text).to(self.device)

    def measured(self, model: nn.Module, text: Text) -> dict[str, Any]:
        """The loss on the test text at the best epoch."""
        test = columns(load_folder(Path(self.folder), self.level).parts["test"], self.batch, "test").to(self.device)
        return {"vocabulary": text.vocabulary, "figures": {"test": bits(evaluate(model, test, self.steps))}}


def _places(p: float, per: str) -> dict[str, Any]:
    return {place: LockedDropout(p, per=per) for place in ("input_dropout", "inter_layer_dropout", "output_dropout")}


_SUM = 35
"""Zaremba's code, and Gal's after it, sums the loss over 35 steps where ours is the mean: a learning rate of 1 there is
35 here, a norm of 5 is 5 / 35, and a weight decay w is w / 35."""

RECIPES: Mapping[str, RecipeSettings] = {
    "awd-ptb": RecipeSettings(
        sites={"input_dropout": 0.4, "inter_layer_dropout": 0.25, "output_dropout": 0.4, "weight_dropout": 0.5},
        extras={"embedding_dropout": 0.1, "ar": 2.0, "tar": 1.0, "weight_decay": 1.2e-6, "random_bptt": 0.05,
                "sgd": 30.0, "nt_asgd": 5},
        kind=OWN_WIDTH, layers=3, hidden=1150, embedding=400, epochs=500, batch=20, steps=70, clip=0.25,
        published="perplexity 61.2 / 58.8 before fine-tuning (released code)",
        differs="lengths of segments are at most 20 above 70",
    ),
    "zaremba-medium": RecipeSettings(
        sites=_places(0.5, "step"), extras={"sgd": 1.0 * _SUM, "constant": 6, "decay": 1.2},
        kind=ONE_WIDTH, layers=2, hidden=650, embedding=650, spread=0.05, epochs=39, batch=20, steps=35, clip=5 / _SUM,
        published="perplexity 86.2 / 82.7",
        differs="nothing that is known",
    ),
    "gal-large": RecipeSettings(
        sites=_places(0.5, "sequence") | {"hidden_dropout": 0.3},
        extras={"embedding_dropout": 0.3, "sgd": 1.0 * _SUM, "constant": 10, "decay": 1.15,
                "weight_decay": 1e-7 / _SUM},
        kind=ONE_WIDTH, layers=2, hidden=1500, embedding=1500, spread=0.04, epochs=55, batch=20, steps=35,
        clip=10 / _SUM,
        published="perplexity 77.3 / 75.0, MC 74.1 (tied)",
        differs="a word is dropped for the whole batch, not by example; MC takes ten passes, not a thousand",
    ),
    "zoneout-char-ptb": RecipeSettings(
        sites={"zoneout_c": 0.5, "zoneout_h": 0.05}, extras={},
        kind=ONE_WIDTH, layers=1, hidden=1000, embedding=50, epochs=100, batch=32, steps=100, rate=2e-3, clip=1.0,
        level="char", published="1.362 / 1.27 bits per character",
        differs="an embedding of 50 in the place of one-hot characters; the number of epochs is ours",
    ),
}  # fmt: skip


def cost(settings: RecipeSettings, updates: int = 3) -> str:
    """What a recipe will take here, estimated from a few updates. Raises ``CorpusError`` without the corpus."""
    text = settings.load_text()
    model = settings.build(text)
    segment = text.train[: settings.steps + 1]
    extras = {name: value for name, value in settings.extras.items() if name != "random_bptt"}
    recipe = Recipe(model, replace(settings, extras=extras), segment)
    update = median([_timed(settings.device, recipe.epoch) for _ in range(updates + 1)][1:])  # the first one warms up
    evaluation = _timed(settings.device, lambda: evaluate(model, segment, settings.steps))
    in_epoch, valid = (len(list(segments(ids, settings.steps))) for ids in (text.train, text.valid))
    total = settings.epochs * (in_epoch * update + 2 * valid * evaluation)  # and as much of the training text
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{parameters:,} parameters, {text.vocabulary:,} tokens in the vocabulary, {text.train.numel():,} to train on\n"
        f"{settings.epochs} epochs of {in_epoch:,} updates at {1e3 * update:.0f} ms each ({updates} were timed)\n"
        f"with evaluation about {duration(total)} on {settings.device}, {torch.get_num_threads()} threads\n"
        f"computed by {ran(model, settings.steps, settings.batch)}"
    )


def _timed(device: str, work: Any) -> float:
    began = time.perf_counter()
    work()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
