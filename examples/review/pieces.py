"""Words where they are frequent, characters where they are not: text as numbers, and back without loss."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

SPACE = "\u2581"
"""Begins a piece in front of which there is a space."""
PAD, BEGIN, END, UNKNOWN = range(4)
_SPECIAL = ("<pad>", "<begin>", "<end>", "<unknown>")
_WORD = re.compile(rf"{SPACE}?\w+|{SPACE}?[^\w{SPACE}]|{SPACE}")


def split(text: str) -> list[str]:
    """Words and marks, each with its space."""
    return _WORD.findall(SPACE + text.replace(" ", SPACE))


class Pieces:
    """A vocabulary made from texts: their characters, and the words that occur often.

    Args:
        texts: to count in.
        frequent: how often a word has to occur to be one piece.
    """

    def __init__(self, texts: Iterable[str], frequent: int) -> None:
        counts = Counter(word for text in texts for word in split(text))
        words = sorted(word for word, count in counts.items() if count >= frequent)
        single = sorted({character for word in counts for character in word})
        self.tokens = (*_SPECIAL, *dict.fromkeys((*single, *words)))
        self._number = {token: index for index, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """The pieces of a text and an end; a character that was never seen is unknown."""
        found = []
        for word in split(text):
            found += [self._number[word]] if word in self._number else [self._number.get(c, UNKNOWN) for c in word]
        return [*found, END]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of pieces up to their end."""
        found = []
        for index in ids:
            if index == END:
                break
            found.append(self.tokens[index] if index >= len(_SPECIAL) else "")
        return "".join(found).replace(SPACE, " ").strip()


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids int64 (T, B) with :data:`PAD` behind the end of each, and lengths int64 (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((int(lengths.max()), len(rows)), PAD)
    for column, row in enumerate(rows):
        ids[: len(row), column] = torch.tensor(row)
    return ids, lengths
