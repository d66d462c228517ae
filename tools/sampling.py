"""Samples of what is long, seeded by the commit: CI runs a part of it, and with the next commit another part."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")


def commit() -> str:
    """The hash of the commit that is checked out, or ``"none"`` outside a repository, as in an sdist."""
    try:
        done = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        return "none"
    return done.stdout.strip() if done.returncode == 0 else "none"


def sample(
    items: Sequence[T], count: int, seed: str, traits: Callable[[T], Iterable[Hashable]] = lambda item: ()
) -> list[T]:
    """Some of ``items``, in their order: ``count`` of them, or more where that takes more to have every trait once.

    Args:
        count: how many; all where there are no more.
        seed: the same seed and items give the same sample.
        traits: of an item, what at least one of the sample should have.
    """
    shuffled = random.Random(seed).sample(range(len(items)), len(items))
    chosen, seen = set[int](), set[Hashable]()
    for index in shuffled:
        if new := set(traits(items[index])) - seen:
            chosen.add(index)
            seen |= new
    for index in shuffled:
        if len(chosen) >= count:
            break
        chosen.add(index)
    return [items[index] for index in sorted(chosen)]
