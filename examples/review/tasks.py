"""The tasks of the review, in the order in which they are run: that of the character model, tier 3, translation."""

from __future__ import annotations

from collections.abc import Mapping

from . import digits, grid, intervals, memory, translation_grid, words_grid
from .records import CHARACTERS
from .task import Task

TASKS: Mapping[str, Task] = {
    CHARACTERS: Task(grid.study, grid.tiny),
    "words": words_grid.TASK,
    "digits": digits.TASK,
    "memory": memory.TASK,
    "intervals": intervals.TASK,
    "translation": translation_grid.TASK,
}
