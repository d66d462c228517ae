"""Real translations that anyone can load: the message catalogs of installed programs, read by gettext."""

from __future__ import annotations

import gettext
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..language_model.data import CorpusError
from .shipped import REQUIREMENTS

TRAIN_PACKAGES = ("Django", "pretix", "Weblate", "gramps")
VALID_PACKAGE = "wagtail"
"""Another program's text than what is trained on."""

_CONTEXT = "\x04"  # gettext puts it between the context of a message and the message


@dataclass(frozen=True)
class Pair:
    """A message in English and its translation."""

    source: str
    target: str


@dataclass(frozen=True)
class Pairs:
    """What is trained on, and what is validated on: no source of it is among those of ``train``."""

    train: tuple[Pair, ...]
    valid: tuple[Pair, ...]
    sha256: str


def _catalogs(package: str, language: str) -> Iterator[Path]:
    """The compiled catalogs of a language that an installed package has."""
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError as error:
        raise CorpusError(f"the package {package} is not installed: pip install -r {REQUIREMENTS}") from error
    ending = (language, "LC_MESSAGES")
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".mo" and file.parts[-3:-1] == ending]
    if not paths:
        raise CorpusError(f"the package {package} has no catalog of the language {language!r}")
    yield from sorted(paths)


def _messages(path: Path) -> Iterator[tuple[str, str]]:
    """Messages and translations; of plurals the first form, which belongs to the singular."""
    try:
        with path.open("rb") as file:
            # gettext looks messages up one by one, and has no public way to list them.
            catalog: dict[str | tuple[str, int], str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: {error}") from error
    for key, translated in catalog.items():
        if isinstance(key, str) or key[1] == 0:
            message = key if isinstance(key, str) else key[0]
            yield message.rpartition(_CONTEXT)[2], translated


def pairs_of(package: str, language: str, longest: int) -> list[Pair]:
    """Pairs of two to ``longest`` words on both sides, in the order of their sources, each once.

    Raises:
        CorpusError: the package is not installed, or has no catalog of the language.
    """
    found: dict[str, str] = {}
    for path in _catalogs(package, language):
        for message, translated in _messages(path):
            source, target = (" ".join(text.split()) for text in (message, translated))
            lengths = [len(text.split()) for text in (source, target)]
            if min(lengths) >= 2 and max(lengths) <= longest and source != target:
                found.setdefault(source, target)
    return [Pair(*each) for each in sorted(found.items())]


def load_pairs(language: str, longest: int) -> Pairs:
    """Those of :data:`TRAIN_PACKAGES` and of :data:`VALID_PACKAGE`. Raises ``CorpusError``, see :func:`pairs_of`."""
    train: dict[str, str] = {}
    for package in TRAIN_PACKAGES:
        for pair in pairs_of(package, language, longest):
            train.setdefault(pair.source, pair.target)
    valid = [pair for pair in pairs_of(VALID_PACKAGE, language, longest) if pair.source not in train]
    digest = hashlib.sha256()
    for pair in (*(Pair(*each) for each in train.items()), *valid):
        digest.update(f"{pair.source}\0{pair.target}\0".encode())
    return Pairs(tuple(Pair(*each) for each in train.items()), tuple(valid), digest.hexdigest())
