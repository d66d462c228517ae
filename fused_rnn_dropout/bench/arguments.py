"""Types of arguments that several of the bench's commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence


def names(kind: str, allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A type for argparse: names with commas between them, each once."""

    def parse(text: str) -> tuple[str, ...]:
        given = tuple(dict.fromkeys(text.split(",")))
        if wrong := [name for name in given if name not in allowed]:
            raise argparse.ArgumentTypeError(f"there is no {kind} {', '.join(wrong)}; allowed are {', '.join(allowed)}")
        return given

    return parse


def counts(text: str) -> tuple[int, ...]:
    """A type for argparse: whole numbers from 1 on, with commas between them."""
    try:
        given = tuple(dict.fromkeys(map(int, text.split(","))))
    except ValueError:
        given = ()
    if not given or min(given) < 1:
        raise argparse.ArgumentTypeError(f"should be whole numbers from 1 on with commas between them, got {text!r}")
    return given
