"""The cells: a row for each, with what everything around its equations must know of it.

The equations stand in :mod:`reference`, in ``triton/cells.py`` and in ``csrc/core``.
"""

from __future__ import annotations

from typing import NamedTuple

from .sites import FLAG


class Cell(NamedTuple):
    """One row.

    The *memory* of a cell is what cell dropout and the carry of a step act on: c, or h itself where there is no c.

    Attributes:
        name: of its class.
        number: what the operators take: its place in this table.
        gates: of a unit: W and U have gates * H rows, and so many activated gates are kept for backward.
        has_c: whether the memory is a c of H units beside h, which may then have fewer.
        projects: whether there may be a W_hr.
        apart: whether the last gate takes U h + b_hh apart from W x + b_ih, so that each has a gradient of its own.
        kept: what the gates, and what is apart in them, are called where they are counted.
    """

    name: str
    number: int
    gates: int
    has_c: bool
    projects: bool
    apart: bool
    kept: str

    @property
    def states(self) -> int:
        """How many states a layer begins and ends with: h and c, or h."""
        return 2 if self.has_c else 1

    @property
    def scaled(self) -> bool:
        """Whether h is the memory: kept unscaled, and seen by whoever reads it times the scale of cell dropout."""
        return not self.has_c

    def output_differs(self, flags: int) -> bool:
        """Whether the output has other numbers than the h that backward reads."""
        masked = flags & FLAG["MASKS_ON"] and flags & FLAG["OUTPUT"]
        return bool(masked or flags & (FLAG["UNZONED"] | (FLAG["CELL"] if self.scaled else 0)))


CELLS: dict[str, Cell] = {
    "LSTM": Cell("LSTM", 0, gates=4, has_c=True, projects=True, apart=False, kept="four gates"),
    "GRU": Cell(
        "GRU",
        1,
        gates=3,
        has_c=False,
        projects=False,
        apart=True,
        kept="r, z, n and the recurrent part of n",
    ),
}
"""By name."""

__all__ = ["CELLS", "Cell"]
