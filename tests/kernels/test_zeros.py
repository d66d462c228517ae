"""What is dropped is 0, whatever it was; what is not dropped is not touched by what is beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grids import (
    CELLS,
    all_sites,
    assert_equal,
    call,
    candidate_rows,
    inner_sites,
    inputs_for,
    leaves_of,
    measure,
    row_of,
)
from targets import CPU, CPUS, CUDA, TRITON, Target, on
from torch import Tensor

import fused_rnn_dropout as frd

WITH_A_MEMORY = [cell for cell in CELLS if row_of(cell).carries]
poisons = pytest.mark.parametrize("poison", [float("inf"), float("nan")], ids=["inf", "nan"])
keep_and_recompute = pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])


def poisoned(value: Tensor, where: Tensor, poison: float) -> Tensor:
    return value.detach().masked_fill(where, poison).requires_grad_()


def suffixes(rnn: Any) -> tuple[str, ...]:
    return ("", "_reverse") if rnn.bidirectional else ("",)


@on(CPU, CUDA)
@keep_and_recompute
@pytest.mark.parametrize("mode", ["element", "row"])
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "RNN_RELU"])  # which closes units by itself
def test_gradients_are_zero_exactly_where_a_mask_is(target: Target, cell: str, mode: str, recompute: bool) -> None:
    weight = frd.WeightDropout(0.4, mode, inputs=True, projection=cell == "LSTM_proj")
    sites = {"input_dropout": frd.LockedDropout(0.3, "step"), "weight_dropout": weight, "hidden_dropout": 0.3}
    rnn = target.module(cell, sites, layers=1, recompute=recompute)
    x, states = inputs_for(rnn, *target.shape[:2])
    given = target.drawn(target.shape.batch)
    masks = target.masks(rnn, x, **given)
    got = measure(rnn, x, states, **given)
    for name in [name for name in masks if name.startswith("weight")]:
        gradient = got[f"d {name}"]
        kept = (masks[name] != 0).expand_as(gradient)
        if name.startswith("weight_hh"):  # hidden dropout may leave a column without an example
            kept = kept & (masks[name.replace("weight_hh", "hidden")] != 0).any(1)
        assert torch.equal(gradient != 0, kept), name
    if mode == "element":  # a row mask may leave an input without a reader
        assert torch.equal(got["d x"] != 0, masks["input"] != 0)
    else:
        assert torch.count_nonzero(got["d x"][masks["input"] == 0]) == 0
    if cell != "GRU":  # whose h_0 leaks past the recurrent product
        for direction, suffix in enumerate(suffixes(rnn)):
            assert torch.equal(got["d h0"][direction] != 0, masks[f"hidden_l0{suffix}"][0] != 0)


@on(CPU, CUDA)
@pytest.mark.parametrize("cell", WITH_A_MEMORY)
def test_dead_memory_gets_no_gradient(target: Target, cell: str) -> None:
    rnn = target.module(cell, {"cell_dropout": 0.4}, layers=1)
    x, states = inputs_for(rnn, *target.shape[:2])
    given = target.drawn(target.shape.batch)
    masks, got = target.masks(rnn, x, **given), measure(rnn, x, states, **given)
    for direction, suffix in enumerate(suffixes(rnn)):
        alive = masks[f"cell_l0{suffix}"][0] != 0
        memory, gradient = ("h_n", "d h0") if cell == "GRU" else ("c_n", "d c0")
        assert torch.equal(got[memory][direction] != 0, alive)
        assert torch.equal(got[gradient][direction] != 0, alive)


def check_dropped_infinities(target: Target, cell: str, poison: float, **kwargs: bool) -> None:
    weight = frd.WeightDropout(0.4, inputs=True, projection=cell == "LSTM_proj")
    sites: dict[str, Any] = {"input_dropout": 0.3, "weight_dropout": weight, "hidden_dropout": 0.3}
    row = row_of(cell)
    rnn = target.module(cell, sites | ({"cell_dropout": 0.3} if row.carries else {}), layers=1, **kwargs)
    x, states = inputs_for(rnn, *target.shape[:2])
    given = target.drawn(target.shape.batch)
    masks = target.masks(rnn, x, **given)
    want = measure(rnn, x, states, **given)
    x = poisoned(x, (masks["input"] == 0).expand_as(x), poison)
    unread = torch.stack([masks[f"hidden_l0{suffix}"][0] == 0 for suffix in suffixes(rnn)])
    if row.carries:
        dead = torch.stack([masks[f"cell_l0{suffix}"][0] == 0 for suffix in suffixes(rnn)])
        states = (*states[:-1], poisoned(states[-1], dead, poison))  # the memory
    if row.has_c or not row.carries:  # else h is the memory, and read past the product as well
        states = (poisoned(states[0], unread, poison), *states[1:])
    with torch.no_grad():
        for name in [name for name in masks if name.startswith("weight")]:
            rnn.get_parameter(name).masked_fill_(masks[name] == 0, poison)
    assert_equal(measure(rnn, x, states, **given), want)


@on(CPU, CUDA)
@keep_and_recompute
@poisons
@pytest.mark.parametrize("cell", CELLS)
def test_dropped_infinities_are_zero(target: Target, cell: str, poison: float, recompute: bool) -> None:
    """An inf or NaN that is dropped is 0, forward and backward: the results are those of a finite number there."""
    check_dropped_infinities(target, cell, poison, recompute=recompute)


@on(TRITON)
@poisons
@pytest.mark.parametrize("cell", CELLS)
def test_dropped_infinities_are_zero_in_one_direction(target: Target, cell: str, poison: float) -> None:
    check_dropped_infinities(target, cell, poison, bidirectional=False)


@on(CPU, CUDA)
@poisons
@pytest.mark.parametrize("cell", CELLS)
def test_dropped_states_are_zero(target: Target, cell: str, poison: float) -> None:
    """Inside a step too: a dropped candidate or memory is 0, whatever it was."""
    rnn = target.module(cell, {"update_dropout": 1.0}, layers=1)
    x, states = inputs_for(rnn, *target.shape[:2])
    want = call(rnn, x, states)
    candidate = candidate_rows(rnn)
    with torch.no_grad():
        for bias in (rnn.bias_ih_l0, rnn.bias_ih_l0_reverse):
            bias[candidate] = poison
    assert_equal(call(rnn, x, states), want)
    if not row_of(cell).has_c:
        return  # there is no memory that is not read before it is dropped
    rnn = target.module(cell, {"cell_dropout": frd.CellDropout(0.5, "step")}, layers=1)
    given = target.drawn(target.shape.batch)
    masks, want = target.masks(rnn, x, **given), call(rnn, x, states, **given)
    dropped = torch.stack([masks["cell_l0"][0] == 0, masks["cell_l0_reverse"][-1] == 0])
    assert dropped.any()
    assert_equal(call(rnn, x, (states[0], poisoned(states[1], dropped, poison)), **given), want)


def check_one_row(
    target: Target, cell: str, sites: dict[str, Any], batch: int, poison: float, dtype: torch.dtype
) -> None:
    rnn = target.module(cell, sites, dtype=dtype)
    x, states = inputs_for(rnn, target.shape.steps, batch)
    given = target.draw()
    bad = torch.zeros(batch, dtype=torch.bool, device=target.device)
    bad[2] = True
    want = measure(rnn, x, states, **given)
    got = measure(rnn, poisoned(x, bad[:, None], poison), states, **given)
    assert got["out"][:, bad].isnan().any()
    for name in ("out", "h_n", "c_n", "d x", "d h0", "d c0"):
        if name in want:
            assert torch.equal(got[name][:, ~bad], want[name][:, ~bad]), name


@on(CPUS, CUDA)
@poisons
@pytest.mark.parametrize("cell", CELLS)
def test_one_row_does_not_spoil_the_others(target: Target, cell: str, poison: float) -> None:
    check_one_row(target, cell, all_sites(cell), 7, poison, torch.float32)


@on(TRITON)
@pytest.mark.parametrize("dtype", [torch.float32], ids=str)  # in float64 a device has no sequence schedule
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_one_row_of_a_block_does_not_spoil_the_others(target: Target, cell: str, dtype: torch.dtype) -> None:
    """A program of the sequence schedule holds many rows, and products of blocks mix nothing between them."""
    check_one_row(target, cell, inner_sites(cell), 4, float("nan"), dtype)


@on(CPUS, CUDA, TRITON)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_saturated_gates(target: Target, cell: str, dtype: torch.dtype) -> None:
    """Pre-activations so large that exp overflows: gates are 0 or 1, nothing becomes NaN."""
    rnn = target.module(cell, inner_sites(cell), layers=1, dtype=dtype, bidirectional=not target.slow)
    x, states = inputs_for(rnn, *target.shape[:2])
    x = (x * (torch.finfo(dtype).max / 1e6)).detach().requires_grad_()
    results = call(rnn, x, states, **target.drawn(target.shape.batch))
    leaves = leaves_of(rnn, x, states)
    gradients = torch.autograd.grad(results["out"].sum(), [leaf for name, leaf in leaves.items() if "ih" not in name])
    assert all(value.isfinite().all() for value in (*results.values(), *gradients))
