"""Runs a few finished cells again and compares: whether the results in the repository can be had here too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .grid import Row
from .records import task_of
from .results import Line, ResultsError
from .summary import Summary, measures

COMPARED = ("best", "train")
"""The validation loss at its best and the training loss at the end: what the tables stand on."""

WIDTH = 2.0
"""How many times the seeds' spread a figure may be off. On the same machine and versions it is off by nothing;
elsewhere sums in another order grow to another run of the same row, as different as another seed's."""


@dataclass(frozen=True)
class Comparison:
    """A figure that was recorded, the same run anew, and how far they may lie apart."""

    cell: str
    measure: str
    recorded: float
    again: float
    allowed: float

    @property
    def holds(self) -> bool:
        return abs(self.again - self.recorded) <= self.allowed

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "OFF"
        return (
            f"{self.cell}: {self.measure} {self.again:.5f}, recorded {self.recorded:.5f}, "
            f"off by {abs(self.again - self.recorded):.5f} of {self.allowed:.5f} allowed: {verdict}"
        )


def check(
    rows: Iterable[Row], done: dict[tuple[str, int], Line], cells: int, seed: int, run: Callable[[Row, int], Line]
) -> Iterator[Comparison]:
    """Runs ``cells`` of the finished cells again, chosen by ``seed``; yields a comparison for each figure.

    The seeds' spread is that of the cell's task, whose losses have a unit of their own.

    Raises:
        ResultsError: there are fewer finished cells, or none to take the seeds' spread from.
    """
    if len(done) < cells:
        raise ResultsError(f"{cells} cells to run again were asked for, and {len(done)} are finished: run more first")
    summaries = {task: Summary(line for line in done.values() if task_of(line) == task)
                 for task in set(map(task_of, done.values()))}  # fmt: skip
    by_name = {row.name: row for row in rows}
    for name, cell_seed in random.Random(seed).sample(sorted(done), cells):
        line = done[name, cell_seed]
        recorded, again = measures(line), measures(run(by_name[name], cell_seed))
        for measure in COMPARED:
            spread = summaries[task_of(line)].spread(measure)
            if spread is None:
                task = task_of(line)
                raise ResultsError(f"no row of {task} has two seeds yet, so that nothing says how far seeds lie apart")
            label = f"{name}, seed {cell_seed}"
            yield Comparison(label, measure, recorded[measure], again[measure], WIDTH * spread)
