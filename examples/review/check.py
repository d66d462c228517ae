"""Runs a few finished cells again and compares: whether the results in the repository can be had here too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .grid import Grid, Row
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
    grid: Grid, done: dict[tuple[str, int], Line], cells: int, seed: int, run: Callable[[Row, int], Line]
) -> Iterator[Comparison]:
    """Runs ``cells`` of the finished cells again, chosen by ``seed``; yields a comparison for each figure.

    Raises:
        ResultsError: there are fewer finished cells, or none to take the seeds' spread from.
    """
    if len(done) < cells:
        raise ResultsError(f"{cells} cells to run again were asked for, and {len(done)} are finished: run more first")
    summary = Summary(done.values())
    rows = {row.name: row for row in grid.rows}
    for name, cell_seed in random.Random(seed).sample(sorted(done), cells):
        recorded, again = measures(done[name, cell_seed]), measures(run(rows[name], cell_seed))
        for measure in COMPARED:
            spread = summary.spread(measure)
            if spread is None:
                raise ResultsError("no row has two seeds yet, so that nothing says how far seeds lie apart")
            label = f"{name}, seed {cell_seed}"
            yield Comparison(label, measure, recorded[measure], again[measure], WIDTH * spread)
