"""The cells: a row for each, with what everything around its equations must know of it.

The equations stand in :mod:`reference`, in ``triton/cells.py`` and in ``csrc/core``.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping
from typing import NamedTuple


class Keep(enum.IntEnum):
    """What a forward keeps for its backward: all that this reads, or the states, out of which it computes the rest."""

    NOTHING = 0
    ALL = 1
    STATES = 2


class Cell(NamedTuple):
    """One row.

    The *memory* of a cell is what cell dropout and the carry of a step act on: c, or h itself where there is no c.

    Attributes:
        name: torch.nn's mode.
        number: what the operators take: its place in this table.
        module: the class that computes it, of this package and of torch.nn.
        gates: of a unit: W and U have gates * H rows, and so many activated gates are kept for backward.
        has_c: whether the memory is a c of H units beside h, which may then have fewer.
        projects: whether there may be a W_hr.
        apart: whether the last gate takes U h + b_hh apart from W x + b_ih, so that each has a gradient of its own.
        carries: whether a step adds to what the memory was.
        kept: what the gates, and what is apart in them, are called where they are counted.
        settings: what tells it from the other cells of its class, as arguments of that class.
    """

    name: str
    number: int
    module: str
    gates: int
    has_c: bool
    projects: bool
    apart: bool
    carries: bool
    kept: str
    settings: Mapping[str, str] = types.MappingProxyType({})

    @property
    def called(self) -> str:
        """Its class with an article, for messages."""
        return f"{'a' if self.module[0] == 'G' else 'an'} {self.module}"

    @property
    def states(self) -> int:
        """How many states a layer begins and ends with: h and c, or h."""
        return 2 if self.has_c else 1

    @property
    def scaled(self) -> bool:
        """Whether h is the memory: kept unscaled, and seen by whoever reads it times the scale of cell dropout."""
        return not self.has_c

    def keeps_beside(self, keep: int) -> bool:
        """Whether a forward keeps (rows, H) beside the gates, or in their place: c after each step, or what the last
        gate takes apart, which is computed again where the gates are.
        """
        return keep != Keep.NOTHING if self.has_c else self.apart and keep == Keep.ALL


def _rnn(number: int, nonlinearity: str) -> Cell:
    return Cell(
        f"RNN_{nonlinearity.upper()}",
        number,
        "RNN",
        gates=1,
        has_c=False,
        projects=False,
        apart=False,
        carries=False,
        kept="the candidate",
        settings=types.MappingProxyType({"nonlinearity": nonlinearity}),
    )


CELLS: dict[str, Cell] = {
    "LSTM": Cell(
        "LSTM",
        0,
        "LSTM",
        gates=4,
        has_c=True,
        projects=True,
        apart=False,
        carries=True,
        kept="four gates",
    ),
    "GRU": Cell(
        "GRU",
        1,
        "GRU",
        gates=3,
        has_c=False,
        projects=False,
        apart=True,
        carries=True,
        kept="r, z, n and the recurrent part of n",
    ),
    "RNN_TANH": _rnn(2, "tanh"),
    "RNN_RELU": _rnn(3, "relu"),
}
"""By name."""


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


MODULES = tuple(dict.fromkeys(cell.module for cell in CELLS.values()))
"""The classes, in the order of the table."""
A_MODULE = _listed([f"fused_rnn_dropout.{MODULES[0]}", *MODULES[1:]])
"""Any of them, for messages."""
ONE_OF_TORCHS = _listed([f"nn.{name}" for name in MODULES])
"""The same of torch.nn's."""

__all__ = ["A_MODULE", "CELLS", "MODULES", "ONE_OF_TORCHS", "Cell", "Keep"]
