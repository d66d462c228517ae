"""Types of arguments that several of the bench's commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from .measure import Effort


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


def add_counts(parser: argparse.ArgumentParser, name: str, meaning: str, default: Sequence[int]) -> None:
    """An option of :func:`counts`."""
    shown = ",".join(map(str, default))
    parser.add_argument(f"--{name}", type=counts, default=tuple(default), help=f"{meaning} (default: {shown})")


def add_page(parser: argparse.ArgumentParser) -> None:
    """The page that a command writes its tables into."""
    parser.add_argument("page", type=Path, nargs="?", help="put the tables between the markers of this page")


def add_effort(parser: argparse.ArgumentParser, of: str, threads: int = 2, budget: float = 10.0) -> None:
    """The options that :func:`effort` reads. ``of``: what the budget is for."""
    parser.add_argument("--threads", type=int, default=threads, help=f"of torch (default: {threads})")
    parser.add_argument("--rounds", type=int, help="paired rounds (default: what --budget allows, at least 5)")
    parser.add_argument("--budget", type=float, default=budget, help=f"seconds for {of} (default: {budget:g})")


def effort(options: argparse.Namespace) -> Effort:
    return Effort(options.threads, options.rounds, options.budget)
