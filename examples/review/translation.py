"""Translation, the review's second problem: rates against loss for the sites of encoder and decoder apart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..language_model.data import CorpusError
from .catalogs import Pair, load_pairs
from .pieces import PAD, Pieces, padded
from .records import CellSettings
from .shipped import REQUIREMENTS
from .training import ran
from .translator import Translator


@dataclass(frozen=True)
class TranslationSettings(CellSettings):
    """Those of a translator.

    Attributes:
        encoder_sites, decoder_sites: a rate or an options object by site.
        language: that is translated to, as catalogs call it.
        cell, embedding, hidden: of encoder and decoder.
        longest: words of a source or a target.
        frequent: how often a word occurs that is one token.
        pairs, valid_pairs: how many at most; they are drawn once, for all rows and seeds.
        epochs: passes over the pairs.
        batch: pairs in an update.
        rate: Adam's learning rate.
        clip: largest norm of the gradient.
    """

    encoder_sites: Mapping[str, Any] = field(default_factory=dict)
    decoder_sites: Mapping[str, Any] = field(default_factory=dict)
    language: str = "de"
    cell: str = "LSTM"
    embedding: int = 96
    hidden: int = 128
    longest: int = 12
    frequent: int = 5
    pairs: int = 10_000
    valid_pairs: int = 1_000
    epochs: int = 15
    batch: int = 64
    rate: float = 2e-3
    clip: float = 1.0

    task: ClassVar[str] = "translation"
    unit: ClassVar[str] = "bits per token"

    def train(self, seed: int, tell: Callable[[int], None]) -> dict[str, Any]:
        return train(self, seed, tell)


@dataclass(frozen=True)
class Batch:
    """Sources int64 (T, B) with lengths int64 (B,), and targets int64 (S, B), both padded."""

    source: Tensor
    lengths: Tensor
    target: Tensor


def loss(model: Translator, batch: Batch, reduction: str = "mean") -> Tensor:
    """Cross entropy of the tokens of the targets, padding left out."""
    logits = model(batch.source, batch.lengths, batch.target)
    return functional.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), ignore_index=PAD, reduction=reduction)


@torch.no_grad()
def evaluate(model: Translator, batches: list[Batch]) -> float:
    """Bits per token in eval mode."""
    model.eval()
    total = sum(loss(model, batch, "sum").item() for batch in batches)
    return round(total / sum(int((batch.target != PAD).sum()) for batch in batches) / math.log(2), 5)


def _sacrebleu() -> Any:
    """Raises ``CorpusError`` without it."""
    try:
        import sacrebleu
    except ImportError as error:
        install = f"pip install -r {REQUIREMENTS}"
        raise CorpusError(f"the package sacrebleu, which scores, cannot be imported ({error}): {install}") from error
    return sacrebleu


def scores(model: Translator, batches: list[Batch], references: list[str], targets: Pieces) -> dict[str, float]:
    """BLEU and chrF of greedy translations by sacrebleu, which counts words and characters of the text itself."""
    sacrebleu = _sacrebleu()
    found = [targets.decode(row) for batch in batches
             for row in model.translate(batch.source, batch.lengths, 2 * len(batch.target))]  # fmt: skip
    bleu, chrf = sacrebleu.corpus_bleu(found, [references]), sacrebleu.corpus_chrf(found, [references])
    return {"BLEU": round(bleu.score, 3), "chrF": round(chrf.score, 3)}


def _some(pairs: tuple[Pair, ...], count: int) -> list[Pair]:
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    return [pairs[index] for index in order[:count]]


def train(settings: TranslationSettings, seed: int, tell: Callable[[int], None]) -> dict[str, Any]:
    """As ``CellSettings.train``; ``figures`` has BLEU and chrF of the best epoch."""
    _sacrebleu()  # before an hour is lost for want of it
    began = time.perf_counter()
    found = load_pairs(settings.language, settings.longest)
    pairs, valid_pairs = _some(found.train, settings.pairs), _some(found.valid, settings.valid_pairs)
    sources = Pieces((pair.source for pair in pairs), settings.frequent)
    targets = Pieces((pair.target for pair in pairs), settings.frequent)

    def batch(chosen: list[Pair]) -> Batch:
        source, lengths = padded([sources.encode(pair.source) for pair in chosen])
        return Batch(source, lengths, padded([targets.encode(pair.target) for pair in chosen])[0])

    def batches(chosen: list[Pair]) -> list[Batch]:
        return [batch(chosen[at : at + settings.batch]) for at in range(0, len(chosen), settings.batch)]

    torch.manual_seed(seed)
    model = Translator(
        len(sources), len(targets), settings.embedding, settings.hidden, settings.cell, settings.encoder_sites,
        settings.decoder_sites,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), settings.rate)
    # Batches of like lengths, so that little of them is padding; their order is drawn for each epoch.
    trained = batches(sorted(pairs, key=lambda pair: (len(pair.target), pair.source)))
    seen, valid = batches(pairs[: len(valid_pairs)]), batches(valid_pairs)
    source = torch.Generator().manual_seed(seed)
    curves: dict[str, list[float]] = {"train": [], "valid": []}
    best: dict[str, Tensor] = {}
    for epoch in range(1, settings.epochs + 1):
        model.train()
        for each in _mixed(trained, source):
            optimizer.zero_grad()
            loss(model, each).backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
        curves["train"].append(evaluate(model, seen))
        curves["valid"].append(evaluate(model, valid))
        if curves["valid"][-1] == min(curves["valid"]):
            best = {name: value.clone() for name, value in model.state_dict().items()}
        tell(epoch)
    model.load_state_dict(best)
    return curves | {
        "figures": scores(model, valid, [pair.target for pair in valid_pairs], targets),
        "pairs": [len(pairs), len(valid_pairs)],
        "vocabularies": [len(sources), len(targets)],
        "text": found.sha256,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "ran": ran(model, settings.longest, settings.batch),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _mixed(batches: list[Batch], source: torch.Generator) -> Iterator[Batch]:
    for index in torch.randperm(len(batches), generator=source):
        yield batches[index]
