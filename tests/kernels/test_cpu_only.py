"""Instruction sets: the same masks on each of them, and what is asked for is what runs."""

from __future__ import annotations

import pytest
import torch
from grids import (
    CELLS,
    TOLERANCE,
    all_sites,
    assert_equal,
    assert_same,
    call,
    inputs_for,
    leaves_of,
    measure,
    with_gradients,
)
from targets import CPU, CPUS, Target, on

from fused_rnn_dropout import ops


@on(CPU)
@pytest.mark.parametrize("cell", CELLS)
def test_instruction_sets_export_the_same_masks(target: Target, cell: str) -> None:
    rnn = target.module(cell, all_sites(cell), (7, 37, 21))
    x, _ = inputs_for(rnn, 3, 5)
    given = target.draw()
    found = []
    for each in CPUS:
        ops.cpu_isa(each.isa)
        found.append(target.masks(rnn, x, **given))
    for masks in found[1:]:
        assert_equal(masks, found[0])


@on(CPUS)
def test_the_instruction_set_that_is_asked_for_is_taken(target: Target) -> None:
    """An unknown one is refused, and changes nothing."""
    assert ops.cpu_isa() == target.isa and CPUS[0].isa == "baseline"
    with pytest.raises(ValueError, match="choice should be one of"):
        ops.cpu_isa("sse9")
    assert ops.cpu_isa() == target.isa


@on(CPU)
@pytest.mark.parametrize("cell", CELLS)
def test_backward_may_run_on_another_instruction_set(target: Target, cell: str) -> None:
    """Masks are the same bits on all of them, so that even this is no mistake."""
    rnn = target.module(cell, all_sites(cell))
    x, states = inputs_for(rnn, *target.shape[:2])
    given = target.drawn(target.shape.batch)
    ops.cpu_isa(CPUS[-1].isa)
    want = measure(rnn, x, states, **given)
    results = call(rnn, x, states, **given)
    ops.cpu_isa(CPUS[0].isa)
    got = with_gradients(results, leaves_of(rnn, x, states), torch.float64)
    assert_same(got, want, TOLERANCE[torch.float64])
