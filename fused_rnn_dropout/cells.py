"""The cells: a row for each, with what the operators of any cell must know of it; ``csrc/core/cells.h`` in Python."""

from __future__ import annotations

from typing import NamedTuple

from .sites import FLAG


class Cell(NamedTuple):
    """One cell, by the name of its module in ``torch.nn``."""

    name: str
    gates: int
    """Of a unit: W and U have gates * H rows."""
    has_c: bool
    """Its memory is c, beside h. A cell without c keeps its h unscaled, and cell dropout acts on h."""
    apart: bool
    """The last gate takes U h + b_hh apart from W x + b_ih; its forward keeps that with the gates."""

    @property
    def operator(self) -> str:
        return self.name.lower()

    def output_differs(self, flags: int) -> bool:
        """Whether the output is another number than the h that backward reads."""
        return bool(flags & (FLAG["UNZONED"] | (0 if self.has_c else FLAG["CELL"])))


LSTM = Cell("LSTM", gates=4, has_c=True, apart=False)
GRU = Cell("GRU", gates=3, has_c=False, apart=True)
CELLS = (LSTM, GRU)
