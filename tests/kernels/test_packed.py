"""Packed sequences with sites on: the reference's results, and each row is what it would be alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparisons import against_reference
from grids import CELLS, all_sites, fitting, inner_sites, inputs_for, random_leaf, states_for
from targets import CPU, CPUS, CUDA, REFERENCE, TRITON, Target, on
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fused_rnn_dropout as frd

EVERYWHERE = (CPU, CUDA, REFERENCE)
UNPROJECTED = ("LSTM", "GRU", "RNN_TANH")
I, H = 4, 6
LENGTHS = [2, 5, 1, 3]


def most_sites(cell: str) -> dict[str, Any]:
    sites: dict[str, Any] = {"input_dropout": 0.2, "inter_layer_dropout": 0.3, "output_dropout": 0.1}
    sites |= {
        "hidden_dropout": 0.25,
        "weight_dropout": 0.5,
        "update_dropout": 0.2,
        "cell_dropout": 0.1,
        "zoneout_c": 0.2,
        "zoneout_h": 0.15,
    }
    return fitting(cell, sites)


def per_step_sites(cell: str) -> dict[str, Any]:
    sites: dict[str, Any] = {
        "input_dropout": frd.LockedDropout(0.2, per="step"),
        "dropout": 0.3,
        "output_dropout": frd.LockedDropout(0.1, per="step", batch_shared=True),
        "hidden_dropout": frd.HiddenDropout(0.25, batch_shared=True),
        "weight_dropout": frd.WeightDropout(0.5, mode="row", inputs=True),
        "cell_dropout": frd.CellDropout(0.1, per="step"),
        "zoneout_c": frd.Zoneout(0.2, per="sequence"),
        "zoneout_h": frd.Zoneout(0.15, per="sequence", output="unzoned"),
    }
    return fitting(cell, sites)


CONFIGURATIONS = {"most": most_sites, "per_step": per_step_sites}


def build(target: Target, cell: str, configuration: str, **kwargs: Any) -> nn.Module:
    return target.module(cell, CONFIGURATIONS[configuration](cell), (I, H, 3), **kwargs)


def random_input(rnn: nn.Module, steps: int, batch: int) -> Tensor:
    return random_leaf(rnn.weight_hh_l0, steps, batch, I)


def call(rnn: nn.Module, x: Any, states: tuple[Tensor, ...], **kwargs: Any) -> tuple[Any, tuple[Tensor, ...]]:
    out, last = rnn(x, states if len(states) == 2 else states[0], **kwargs)
    return out, last if isinstance(last, tuple) else (last,)


def pack(x: Tensor, how: str) -> PackedSequence:
    """Rows of x (T, B, I) cut to LENGTHS; "sorted" needs x's rows in that order already."""
    if how == "unsorted":
        return pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    if how == "sequence":
        return pack_sequence([x[:n, b] for b, n in enumerate(LENGTHS)], enforce_sorted=False)
    return pack_padded_sequence(x, torch.tensor(sorted(LENGTHS, reverse=True)))


@on(CPUS, CUDA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [[7, 7, 7], [1, 1, 1], [1, 7, 2], [2, 3, 7, 7, 1, 6, 4, 5, 3]], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths(target: Target, cell: str, lengths: list[int], dtype: torch.dtype) -> None:
    rnn = target.module(cell, all_sites(cell), (5, 33, 18), dtype=dtype)
    against_reference(target, rnn, max(lengths), len(lengths), lengths, **target.draw())


@on(TRITON)
@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 4, 2], [2, 3, 4, 4, 1, 3]], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_short_lengths(target: Target, cell: str, lengths: list[int]) -> None:
    """Rows that end, begin, or do neither; steps with as many rows as the one before and with fewer."""
    sites = {
        "input_dropout": frd.LockedDropout(0.3, "step"),
        "hidden_dropout": 0.3,
        "cell_dropout": 0.2,
        "zoneout_h": 0.2,
    }
    rnn = target.module(cell, fitting(cell, sites))
    against_reference(target, rnn, max(lengths), len(lengths), lengths, recompute=(False,), **target.draw())


@on(CPU, CUDA)
@pytest.mark.parametrize("cell", CELLS)
def test_many_lengths(target: Target, cell: str) -> None:
    """On a GPU the rows of 64 steps go by value with a launch; a mask per sequence goes on in the next one."""
    rnn = target.module(cell, inner_sites(cell), (3, 5, 4), layers=1)
    against_reference(target, rnn, 150, 3, [150, 64, 65])


@on(*EVERYWHERE)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("how", ["unsorted", "sequence", "sorted"])
@pytest.mark.parametrize("cell", CELLS)
def test_each_row_is_as_if_alone(target: Target, cell: str, how: str, configuration: str) -> None:
    rnn = build(target, cell, configuration)
    lengths = sorted(LENGTHS, reverse=True) if how == "sorted" else LENGTHS
    x, states = inputs_for(rnn, max(lengths), len(lengths))
    rng, ids = target.rng(), torch.tensor([7, 3, 11, 2**32 - 2], device=x.device)
    leaves = [x, *states, *rnn.parameters()]

    out, last = call(rnn, pack(x, how), states, rng=rng, example_ids=ids, step_offset=9)
    padded, got_lengths = pad_packed_sequence(out)
    assert got_lengths.tolist() == lengths
    probe = torch.randn_like(padded)
    loss = (padded * probe).sum() + sum((state * state).sum() for state in last)
    gradients = torch.autograd.grad(loss, leaves)

    alone_loss = torch.zeros((), dtype=torch.float64, device=x.device)
    for b, n in enumerate(lengths):
        row = slice(b, b + 1)
        row_states = tuple(state[:, row] for state in states)
        alone, alone_last = call(rnn, x[:n, row], row_states, rng=rng, example_ids=ids[row], step_offset=9)
        torch.testing.assert_close(padded[:n, row], alone, rtol=1e-10, atol=1e-12)
        assert torch.count_nonzero(padded[n:, row]) == 0
        for state, alone_state in zip(last, alone_last, strict=True):
            torch.testing.assert_close(state[:, row], alone_state, rtol=1e-10, atol=1e-12)
        alone_loss = alone_loss + (alone * probe[:n, row]).sum() + sum((state * state).sum() for state in alone_last)
    for got, expected in zip(gradients, torch.autograd.grad(alone_loss, leaves), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    for b, n in enumerate(lengths):
        assert torch.count_nonzero(gradients[0][n:, b]) == 0


@on(*EVERYWHERE)
@pytest.mark.parametrize("cell", UNPROJECTED)
def test_rows_are_named_by_their_original_order(target: Target, cell: str) -> None:
    rnn = build(target, cell, "most")
    x = random_input(rnn, 5, 4)
    states, rng = states_for(rnn, 4), target.rng()
    default, _ = call(rnn, pack(x, "unsorted"), states, rng=rng)
    named, _ = call(rnn, pack(x, "unsorted"), states, rng=rng, example_ids=torch.arange(4, device=x.device))
    assert torch.equal(default.data, named.data)
    # The same rows in another order, under their old names, give the same rows.
    order = torch.tensor([2, 0, 3, 1], device=x.device)
    lengths = torch.tensor(LENGTHS)[order.cpu()]
    moved = pack_padded_sequence(x[:, order], lengths, enforce_sorted=False)
    out, last = call(rnn, moved, tuple(state[:, order] for state in states), rng=rng, example_ids=order)
    expected, expected_last = call(rnn, pack(x, "unsorted"), states, rng=rng)
    torch.testing.assert_close(
        pad_packed_sequence(out)[0], pad_packed_sequence(expected)[0][:, order], rtol=1e-12, atol=1e-13
    )
    for mine, their in zip(last, expected_last, strict=True):
        torch.testing.assert_close(mine, their[:, order], rtol=1e-12, atol=1e-13)


@on(*EVERYWHERE)
@pytest.mark.parametrize("cell", UNPROJECTED)
def test_masks_are_exported_in_the_original_order(target: Target, cell: str) -> None:
    rnn = build(target, cell, "most")
    rnn.input_dropout = 0.5
    x, rng = random_input(rnn, 5, 4), target.rng()
    masks = frd.export_masks(rnn, pack(x, "unsorted"), rng=rng, step_offset=2)
    expected = frd.export_masks(rnn, x, rng=rng, step_offset=2)
    assert masks.keys() == expected.keys() and all(torch.equal(masks[name], expected[name]) for name in masks)
    # A value under a dropped input unit of row b changes nothing, so the mask's row b is the input's row b.
    dropped = (masks["input"] == 0).expand(5, 4, I)
    assert dropped.any(dim=-1)[0].sum() >= 2
    changed = torch.where(dropped, torch.full_like(x, 1e30), x)
    out, changed_out = (rnn(pack(value, "unsorted"), rng=rng)[0].data for value in (x, changed))
    assert torch.equal(out, changed_out)


@on(*EVERYWHERE)
def test_equal_lengths_are_the_padded_result(target: Target) -> None:
    rnn = build(target, "LSTM", "per_step")
    x, rng = random_input(rnn, 5, 3), target.rng()
    packed, last = rnn(pack_padded_sequence(x, torch.tensor([5, 5, 5])), rng=rng)
    plain, plain_last = rnn(x, rng=rng)
    torch.testing.assert_close(packed.data, plain.flatten(0, 1), rtol=1e-12, atol=1e-13)
    for mine, their in zip(last, plain_last, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-12, atol=1e-13)


@on(*EVERYWHERE)
@pytest.mark.parametrize("cell", UNPROJECTED)
def test_a_sequence_in_two_calls(target: Target, cell: str) -> None:
    """step_offset lets a forward-only layer split time without changing a bit of any per-step mask."""
    sites = most_sites(cell) | {"input_dropout": frd.LockedDropout(0.2, per="step")}
    rnn = target.module(cell, sites, (I, H, 3), bidirectional=False)
    x, rng = random_input(rnn, 6, 3), target.rng()
    whole, whole_last = rnn(x, rng=rng)
    first, middle = rnn(x[:4], rng=rng)
    second, last = rnn(x[4:], middle, rng=rng, step_offset=4)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-9, atol=1e-11)
    for mine, their in zip(last, whole_last, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-9, atol=1e-11)


@on(*EVERYWHERE)
@pytest.mark.parametrize("cell", UNPROJECTED)
def test_a_batch_in_two_calls_interleaved(target: Target, cell: str) -> None:
    rnn = build(target, cell, "most")
    x, rng, ids = random_input(rnn, 5, 4), target.rng(), torch.arange(4, device=target.device)
    whole = rnn(x, rng=rng)[0]
    for part in (slice(0, None, 2), slice(1, None, 2)):
        torch.testing.assert_close(
            rnn(x[:, part], rng=rng, example_ids=ids[part])[0], whole[:, part], rtol=1e-10, atol=1e-12
        )
