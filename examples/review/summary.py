"""What the seeds of a row say together, and what two rows say of each other: plain means and Student's intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from .results import Line

_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t that 95 % of the values lie below in magnitude, by number of values."""


def measures(line: Line) -> dict[str, float]:
    """The figures of a run: best validation loss and its epoch; at the end the validation and the training loss and
    the gap between them; and where the task has them, the training loss with masks on, the validation loss of MC
    dropout at the best epoch, and what else it measures."""
    valid = line["valid"]
    masks = {name: line[name] for name in ("masked", "mc") if name in line}
    return (
        {
            "best": min(valid),
            "epoch": float(valid.index(min(valid)) + 1),
            "final": valid[-1],
            "train": line["train"][-1],
            "gap": valid[-1] - line["train"][-1],
        }
        | masks
        | line.get("figures", {})
    )


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` seeds. ``half`` is half the width of its 95 % interval; None where there is one seed."""

    mean: float
    half: float | None
    error: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        if len(values) < 2:
            return cls(values[0], None, None, 1)
        error = stdev(values) / math.sqrt(len(values))
        return cls(mean(values), _T[len(values)] * error, error, len(values))

    def text(self, sign: str = "") -> str:
        """``-0.105 ± 0.021``, or without an interval where there is none."""
        spread = "" if self.half is None else f" ± {self.half:.3f}"
        return f"{self.mean:{sign}.3f}{spread}"


class Summary:
    """Results by row: ``rows[name][seed]`` is the figures of a run."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = list(lines)
        self.rows: dict[str, dict[int, dict[str, float]]] = {}
        for line in self.lines:
            self.rows.setdefault(line["row"], {})[line["seed"]] = measures(line)

    def has(self, *names: str) -> bool:
        return all(name in self.rows for name in names)

    def level(self, row: str, measure: str) -> Estimate:
        """A figure of a row over its seeds."""
        return Estimate.of([figures[measure] for figures in self.rows[row].values()])

    def difference(self, row: str, other: str, measure: str) -> Estimate | None:
        """``row`` less ``other``, seed by seed; None where no seed was run of both."""
        seeds = self.rows.get(row, {}).keys() & self.rows.get(other, {}).keys()
        values = [self.rows[row][seed][measure] - self.rows[other][seed][measure] for seed in sorted(seeds)]
        return Estimate.of(values) if values else None

    def spread(self, measure: str) -> float | None:
        """Standard deviation between seeds of one row, pooled over all rows; None where no row has two seeds."""
        groups = [[figures[measure] for figures in seeds.values()] for seeds in self.rows.values() if len(seeds) > 1]
        freedom = sum(len(group) - 1 for group in groups)
        squares = sum((len(group) - 1) * stdev(group) ** 2 for group in groups)
        return math.sqrt(squares / freedom) if freedom else None


def best_rate(summary: Summary, rows: Mapping[float, str], measure: str = "best") -> float:
    """The rate whose row has the lowest mean."""
    return min(rows, key=lambda rate: summary.level(rows[rate], measure).mean)
