"""Runs the cells that have no result yet, one after the other; a second runner beside it takes other cells."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any, TextIO

from fused_rnn_dropout.program import Interrupted

from . import results
from .grid import Row


def one_line(row: Row, seed: int, tell: Callable[[int], None]) -> results.Line:
    """Trains one cell and returns its line of results."""
    origin = results.provenance()
    found = row.settings.train(seed, tell)
    return {"row": row.name, "seed": seed, "settings": row.settings.record()} | found | origin


def duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


class Display:
    """Shows where a runner stands: a line that changes on a terminal, and one that stays for each finished cell."""

    def __init__(self, cells: int, stream: TextIO | None = None) -> None:
        self.cells, self.stream = cells, stream or sys.stdout

    def left(self, done: dict[Any, results.Line]) -> str:
        """The computing that is left, from the seconds that cells have taken so far."""
        seconds = [line["seconds"] for line in done.values()]
        return f"about {duration(mean(seconds) * (self.cells - len(done)))} of computing left" if seconds else ""

    def epoch(self, row: Row, seed: int, epoch: int, began: float) -> None:
        if self.stream.isatty():
            left = (time.perf_counter() - began) * (row.settings.epochs / epoch - 1)
            bar = "#" * round(30 * epoch / row.settings.epochs)
            text = f"\r\033[K  {row.name}, seed {seed}  [{bar:<30}] epoch {epoch}, about {left:.0f} s of it left"
            print(text, end="", file=self.stream, flush=True)

    def cell(self, row: Row, line: results.Line, done: dict[Any, results.Line]) -> None:
        best = min(line["valid"])
        text = (
            f"[{len(done)}/{self.cells}] {row.name}, seed {line['seed']}: {best:.3f} {row.settings.unit} in epoch "
            f"{line['valid'].index(best) + 1}, {line['seconds']:.0f} s; {self.left(done)}"
        )
        clear = "\r\033[K" if self.stream.isatty() else ""
        print(f"{clear}{text}", file=self.stream, flush=True)


def run(cells: Iterable[tuple[Row, int]], path: Path, display: Display) -> int:
    """Runs what is missing in ``path`` and not claimed by another runner; returns how many cells this one ran.

    Args:
        cells: rows and seeds in the order in which they are run.
        path: of the results.
        display: is told of each epoch and each cell.

    Raises:
        CorpusError, ResultsError, OSError: the text or the file of results is not as it should be.
        Interrupted: by Ctrl-C. The cell that was being run is lost, every finished one is in ``path``.
    """
    ran, cells = 0, list(cells)
    rows = [row for row, _ in cells]
    try:
        done = results.of_grid(results.load(path), rows)
        for row, seed in cells:
            if (row.name, seed) in done:
                continue
            with results.claim(path, row.name, seed) as ours:
                # Read anew under the claim: another runner may have finished this cell in the meantime.
                done = results.of_grid(results.load(path), rows)
                if not ours or (row.name, seed) in done:
                    continue
                began = time.perf_counter()
                line = one_line(row, seed, lambda epoch: display.epoch(row, seed, epoch, began))  # noqa: B023  at once
                results.append(path, line)
                ran += 1
                display.cell(row, line, done | {(row.name, seed): line})
    except KeyboardInterrupt:
        raise Interrupted(f"what is finished is in {path}; the same command goes on from there") from None
    return ran
