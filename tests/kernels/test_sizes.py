"""Sizes that fill no register, no tile, no block and no wide load, and some that do."""

from __future__ import annotations

import pytest
import torch
from comparisons import against_reference
from grids import CELLS, all_sites, inner_sites, inputs_for, measure
from targets import CPU, CPUS, CUDA, TRITON, Target, on

# H, B, T. Every H with every B and every T; 257 takes the wide tiles of the CPU's backward with 16 lanes.
SIZES = [
    (1, 1, 1), (1, 3, 2), (1, 17, 7), (3, 1, 2), (3, 3, 7), (3, 17, 1), (31, 1, 7), (31, 3, 1), (31, 17, 2),
    (33, 1, 1), (33, 3, 7), (33, 17, 2), (127, 1, 2), (127, 3, 1), (127, 17, 7), (16, 6, 3), (257, 7, 3),
]  # fmt: skip
# Another square of them, with one that fills a block of the GPU's kernels.
MORE_SIZES = [
    (1, 1, 2), (1, 3, 7), (1, 17, 1), (3, 1, 7), (3, 3, 1), (3, 17, 2), (31, 1, 1), (31, 3, 7), (31, 17, 2),
    (33, 1, 2), (33, 3, 1), (33, 17, 7), (127, 1, 7), (127, 3, 2), (127, 17, 1), (200, 1, 1), (200, 3, 2), (200, 17, 7),
]  # fmt: skip
# Every H with some B and some T: no block of Triton's is full, several are needed, the last holds one unit or one row.
FEW_SIZES = [(1, 1, 1), (3, 17, 2), (31, 3, 7), (33, 17, 1), (33, 1, 7), (127, 3, 2)]
# Layers of so few rows beside their units that the CPU's products run along those of its weights, and of one row more.
FEW_ROWS = [(70, 1, 1), (257, 4, 1), (260, 2, 2), (200, 1, 3), (261, 1, 4), (257, 5, 1)]


def with_cells(sizes: list[tuple[int, int, int]]) -> list[tuple[str, int, int, int]]:
    """A projection is narrower than the memory, so there is none of one unit."""
    return [(cell, *each) for cell in CELLS for each in sizes if (cell, each[0]) != ("LSTM_proj", 1)]


def check(
    target: Target,
    cell: str,
    units: int,
    batch: int,
    steps: int,
    dtype: torch.dtype,
    recompute: tuple[bool, ...],
    inputs: int = 5,
) -> None:
    rnn = target.module(cell, inner_sites(cell), (inputs, units, max(1, units - 4)), layers=1, dtype=dtype)
    against_reference(target, rnn, steps, batch, recompute=recompute)


@on(CPUS, CUDA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("cell", "units", "batch", "steps"), with_cells(SIZES))
def test_sizes(target: Target, cell: str, units: int, batch: int, steps: int, dtype: torch.dtype) -> None:
    check(target, cell, units, batch, steps, dtype, (False,))


@on(CPUS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("cell", "units", "batch", "steps"), with_cells(FEW_ROWS))
def test_few_rows(target: Target, cell: str, units: int, batch: int, steps: int, dtype: torch.dtype) -> None:
    check(target, cell, units, batch, steps, dtype, (False, True), inputs=units)  # so that W is wide too


@on(CUDA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("cell", "units", "batch", "steps"), with_cells(MORE_SIZES))
def test_more_sizes(target: Target, cell: str, units: int, batch: int, steps: int, dtype: torch.dtype) -> None:
    check(target, cell, units, batch, steps, dtype, (False, True))


@on(TRITON)
@pytest.mark.parametrize(("units", "batch", "steps"), FEW_SIZES)
@pytest.mark.parametrize("cell", CELLS)
def test_few_sizes(target: Target, cell: str, units: int, batch: int, steps: int) -> None:
    units += (cell, units) == ("LSTM_proj", 1)
    # Masks of a weight do not depend on the schedule, and a large one takes the interpreter seconds.
    sites = {name: rate for name, rate in inner_sites(cell).items() if name != "weight_dropout" or units < 100}
    rnn = target.module(cell, sites, (5, units, max(1, units - 4)), bidirectional=False)
    against_reference(target, rnn, steps, batch, recompute=(False,), **target.draw())


@on(CPU, CUDA, TRITON)
@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_batch(target: Target, cell: str) -> None:
    rnn = target.module(cell, all_sites(cell))
    for rnn.recompute in (False, True):
        got = measure(rnn, *inputs_for(rnn, target.shape.steps, 0))
        assert got["out"].shape == (target.shape.steps, 0, 2 * (rnn.proj_size or rnn.hidden_size))
        assert all(torch.count_nonzero(value) == 0 for value in got.values())
        assert got["d weight_hh_l0"].shape == rnn.weight_hh_l0.shape
