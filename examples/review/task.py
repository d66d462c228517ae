"""What a task is: one problem that sites are compared on, with its grid and what its tables show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .grid import Grid

Column = Callable[[Mapping[str, float]], float]
"""A figure of a table from the figures of a run; ``KeyError`` where the run has none."""


@dataclass(frozen=True)
class Section:
    """One table of a task.

    Attributes:
        name: above the table.
        base: the row that the others are compared with.
        rows: in their order, with the published figure beside each, or "".
    """

    name: str
    base: str
    rows: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """One problem.

    Attributes:
        study, tiny: make its grid, and one of a few small rows that shows that everything runs.
        columns: of its tables, beside the loss: by title, with the format of a number.
        sections: its tables; the character model has tables of its own.
    """

    study: Callable[[], Grid]
    tiny: Callable[[], Grid]
    columns: Mapping[str, tuple[Column, str]] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()


def figure(name: str) -> Column:
    """The figure of that name."""
    return lambda figures: figures[name]
