"""A corpus of the user's own: the Penn Treebank or WikiText-2 in a folder, under the names that their files have."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..language_model.data import UNKNOWN, CorpusError

SPLITS = ("train", "valid", "test")
END = "<eos>"
_WORDS = ("ptb.{}.txt", "wiki.{}.tokens", "{}.txt")
_CHARACTERS = ("ptb.char.{}.txt", *_WORDS)


@dataclass(frozen=True)
class Splits:
    """Token ids int64 (N,) of each part by name; the vocabulary is that of the training text, in order of frequency."""

    parts: dict[str, Tensor]
    vocabulary: tuple[str, ...]
    sha256: str


def _read(folder: Path, split: str, names: tuple[str, ...]) -> tuple[Path, str]:
    candidates = [folder / name.format(split) for name in names]
    for path in candidates:
        if path.is_file():
            try:
                return path, path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise CorpusError(f"{path}: {error}") from error
    raise CorpusError(f"{folder} should have one of {', '.join(path.name for path in candidates)}; it has none of them")


def _tokens(path: Path, text: str, level: str) -> list[str]:
    """Words, or characters with ``_`` between words, and a sign at the end of each line."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words:
            single = level == "char" and not path.name.startswith("ptb.char.")  # whose characters stand apart already
            found += [*("_".join(words) if single else words), END]
    return found


def load_folder(folder: Path, level: str) -> Splits:
    """Reads the three parts of a corpus.

    Args:
        folder: has ``ptb.train.txt`` or ``wiki.train.tokens`` or ``train.txt``, and those for ``valid`` and ``test``;
            for characters also ``ptb.char.train.txt`` and so on, which is looked for first.
        level: ``"word"`` or ``"char"``.

    Raises:
        CorpusError: a file is missing, cannot be read or is empty, or a token of the other parts is not in the training
            text, which has no ``<unk>`` either.
    """
    digest, tokens = hashlib.sha256(), {}
    for split in SPLITS:
        path, text = _read(folder, split, _WORDS if level == "word" else _CHARACTERS)
        digest.update(text.encode() + b"\0")
        tokens[split] = _tokens(path, text, level)
        if not tokens[split]:
            raise CorpusError(f"{path}: no text in it")
    counts = sorted(Counter(tokens["train"]).items(), key=lambda item: (-item[1], item[0]))
    vocabulary = tuple(token for token, _ in counts)
    number = {token: index for index, token in enumerate(vocabulary)}
    for split, found in tokens.items():
        strange = next((token for token in found if token not in number), None)
        if strange is not None and UNKNOWN not in number:
            raise CorpusError(f"{folder}: {strange!r} of {split} is not in the training text, which has no {UNKNOWN}")
    parts = {split: torch.tensor([number[token] if token in number else number[UNKNOWN] for token in found])
             for split, found in tokens.items()}  # fmt: skip
    return Splits(parts, vocabulary, digest.hexdigest())
