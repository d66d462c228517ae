"""Sequences longer than the chunk of steps that the CPU kernels take at a time, and products cut among threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from grids import CELLS, TOLERANCE, assert_equal, assert_same, expect, inner_sites, inputs_for, measure, module, pack

import fused_rnn_dropout as frd
from fused_rnn_dropout import ops

pytestmark = pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout")

ISAS = ops.cpu_isas()
SIZES = (9, 150, 60)  # I, H, P: a chunk holds at most 873 rows of an LSTM's gates in fp64
T, B = 50, 40
LENGTHS = [1 + (29 * b) % T for b in range(B)]


@pytest.fixture(autouse=True)
def threads_and_isa_restored() -> Iterator[None]:
    isa, threads = ops.cpu_isa(), torch.get_num_threads()
    yield
    ops.cpu_isa(isa)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize("sites_on", [False, True], ids=["plain", "everything"])
@pytest.mark.parametrize("cell", CELLS)
def test_several_chunks(cell: str, sites_on: bool, lengths: list[int] | None) -> None:
    """Results and every gradient, kept and computed again, in both directions, with each instruction set."""
    rnn = module(cell, inner_sites(cell) if sites_on else {}, SIZES, layers=1)
    x, states = inputs_for(rnn, T, B)
    given: dict[str, Any] = {"rng": frd.draw_rng("cpu"), "step_offset": 7}
    want = expect(rnn, x, states, frd.export_masks(rnn, pack(x, lengths), **given), lengths)
    for isa in ISAS:
        ops.cpu_isa(isa)
        for rnn.recompute in (False, True):
            assert_same(measure(rnn, x, states, lengths, **given), want, TOLERANCE[torch.float64])


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_for_any_number_of_threads(cell: str, dtype: torch.dtype) -> None:
    """No sum's order depends on threads: not those of the recurrence, nor those over all steps."""
    rnn = module(cell, inner_sites(cell), SIZES, layers=1, dtype=dtype)
    x, states = inputs_for(rnn, T, B)
    given: dict[str, Any] = {"rng": frd.draw_rng("cpu")}
    found = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        found.append(measure(rnn, x, states, LENGTHS, **given))
    for other in found[1:]:
        assert_equal(other, found[0])


@pytest.mark.parametrize("batch", range(1, 15))
@pytest.mark.parametrize("cell", CELLS)
def test_every_size_of_a_block_of_rows(cell: str, batch: int) -> None:
    """Each number of rows that shares one reading of the weights, and each width of a tile that is not full."""
    for units in (5, 40, 50, 64):
        rnn = module(cell, {"hidden_dropout": 0.3, "weight_dropout": 0.3}, (units + 3, units, 3), layers=1)
        x, states = inputs_for(rnn, 2, batch)
        given: dict[str, Any] = {"rng": frd.draw_rng("cpu")}
        want = expect(rnn, x, states, frd.export_masks(rnn, x, **given))
        for isa in ISAS:
            ops.cpu_isa(isa)
            assert_same(measure(rnn, x, states, **given), want, TOLERANCE[torch.float64])
