"""Which schedule runs a layer and why, and every launch configuration with its reason. Imports no triton.

There is no autotuning: a configuration is read off this file, so that a run is the same on every machine and a first
call costs its compilation alone. Whoever has timings for a device changes a number here.
"""

from __future__ import annotations

from typing import NamedTuple


class Blocks(NamedTuple):
    """Elements of a program: with 128 threads, so many 128ths of it for each thread."""

    dropout: int = 128  # calls of four units each: 16 bytes of fp32 for a thread, its widest access
    weights: int = 128  # the same
    step: int = 256  # two units for a thread; enough programs for a small batch: 32 for 20 rows of 400 units


BLOCKS = Blocks()


def rows_of_chunk(width: int, itemsize: int) -> int:
    """Rows of W x that are computed at once: pre-activations are wider than the gates that are kept of them, and would
    otherwise take twice their memory. Their products are large enough to fill a device long before this size.
    """
    return max(1, 2**26 // (width * itemsize))
