"""What sites cost: a forward and backward of the library with them beside one without, in paired rounds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import fused_rnn_dropout as frd
from fused_rnn_dropout.sites import SITE

from .contenders import BY_NAME, RATES, layer, runner
from .measure import Effort, Interval, median_of, ratio_of
from .report import measured_on, milliseconds, spread, with_misses
from .shapes import Shape
from .tables import table

BEGIN, END = "<!-- sites:begin -->", "<!-- sites:end -->"
ONE = ("update_dropout", "zoneout_h")
"""The state sites that are measured alone: one that multiplies, one that chooses."""

ALONE = tuple(name for name in RATES if not SITE[name].needs)
"""The sites that may be measured alone: every cell has them."""

ONE_BAR = 1.03


class Bar(NamedTuple):
    """How much a forward and backward may take with every site, over one without; of some shapes."""

    most: float
    meaning: str

    @staticmethod
    def of(shape: Shape) -> Bar | None:
        if shape.units >= 512:
            return Bar(1.04, "512 units and more")
        if shape.kind == "small" or shape.name == "medium":
            return Bar(1.07, "fewer units")
        return None  # of the rest nothing is said


class Row(NamedTuple):
    """One cell and shape. ``over``: ratios of medians to the call without a site, by what is on."""

    cell: str
    shape: Shape
    rounds: int
    none: Interval  # seconds
    over: dict[str, Interval]

    def missed(self) -> Iterator[str]:
        """What lies above its bar, in words."""
        bar = Bar.of(self.shape)
        bars = dict.fromkeys(self.over, ONE_BAR) | {"every site": None if bar is None else bar.most}
        for name, most in bars.items():
            if most is not None and round(self.over[name].value, 2) > most:  # as it is printed
                yield f"{self.cell} {self.shape.name}, {name}: {spread(self.over[name])}, above {most:.2f}"


def measure(cell: str, shape: Shape, one: Sequence[str], effort: Effort) -> Row:
    """Times no site, each of ``one`` alone and every site, in every round."""
    builders: dict[str, Any] = {"none": partial(BY_NAME["none"].build, cell, shape)}
    builders |= {name: partial(layer, frd, cell, shape, **{name: RATES[name]}) for name in one}
    builders["every site"] = partial(BY_NAME["all"].build, cell, shape)
    runs = {name: runner(build(), shape, "train") for name, build in builders.items()}
    found = effort.paired(runs)
    none = found.pop("none")
    return Row(cell, shape, len(none), median_of(none), {name: ratio_of(taken, none) for name, taken in found.items()})


def text_of(rows: Sequence[Row], threads: int, command: str) -> str:
    """The table, what it was measured on, and what lies above its bar, in markdown."""
    names = list(rows[0].over) if rows else []
    head = ("", "shape", "T, B, I, H", "rounds", "no site, ms", *(f"{name} / no site" for name in names))
    lines = [
        (
            row.cell,
            row.shape.name,
            row.shape.sizes,
            str(row.rounds),
            milliseconds(row.none.value),
            *(spread(row.over[name]) for name in names),
        )
        for row in rows
    ]
    missed = [text for row in rows for text in row.missed()]
    bars = {bar.meaning: bar.most for row in rows if (bar := Bar.of(row.shape)) is not None}
    asked = ", ".join(f"{most:.2f} ({meaning})" for meaning, most in bars.items())
    return "\n\n".join([
        f"Forward and backward, ratios of medians with a 95 % interval. {measured_on(threads, command)}.",
        table(head, lines),
        with_misses(f"Bars: every site {asked or 'none'}; one site {ONE_BAR:.2f}", missed),
        f"Made by `{command}`.",
    ])  # fmt: skip


def sites(
    cells: Sequence[str],
    shapes: Sequence[Shape],
    one: Sequence[str],
    effort: Effort,
    command: str,
) -> str:
    """Measures all of it; what :func:`text_of` says."""
    effort.begin()
    rows = []
    for cell in cells:
        for shape in shapes:
            rows.append(row := measure(cell, shape, one, effort))
            over = ", ".join(f"{name} {spread(ratio)}" for name, ratio in row.over.items())
            print(f"{cell} {shape.name}: {over}", file=sys.stderr, flush=True)
    return text_of(rows, effort.threads, command)
