"""Packed sequences with sites on: a row's result is what that row alone would give, whatever it is packed with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fused_rnn_dropout as frd

pytestmark = pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout")

BACKENDS = ("cpu", "reference")
CELLS = ("LSTM", "GRU")
I, H = 4, 6
LENGTHS = [2, 5, 1, 3]


def all_sites(cell: str) -> dict[str, Any]:
    sites: dict[str, Any] = {"input_dropout": 0.2, "inter_layer_dropout": 0.3, "output_dropout": 0.1}
    sites |= {
        "hidden_dropout": 0.25,
        "weight_dropout": 0.5,
        "update_dropout": 0.2,
        "cell_dropout": 0.1,
        "zoneout_h": 0.15,
    }
    return sites | ({"zoneout_c": 0.2} if cell == "LSTM" else {})


def per_step_sites(cell: str) -> dict[str, Any]:
    sites: dict[str, Any] = {
        "input_dropout": frd.LockedDropout(0.2, per="step"),
        "dropout": 0.3,
        "output_dropout": frd.LockedDropout(0.1, per="step", batch_shared=True),
        "hidden_dropout": frd.HiddenDropout(0.25, batch_shared=True),
        "weight_dropout": frd.WeightDropout(0.5, mode="row", inputs=True),
        "cell_dropout": frd.CellDropout(0.1, per="step"),
        "zoneout_h": frd.Zoneout(0.15, per="sequence", output="unzoned"),
    }
    return sites | ({"zoneout_c": frd.Zoneout(0.2, per="sequence")} if cell == "LSTM" else {})


CONFIGURATIONS = {"all": all_sites, "per_step": per_step_sites}


def build(cell: str, configuration: str, backend: str, **kwargs: Any) -> nn.Module:
    sites = CONFIGURATIONS[configuration](cell)
    return getattr(frd, cell)(I, H, 2, bidirectional=True, dtype=torch.float64, backend=backend, **sites, **kwargs)


def states_of(rnn: nn.Module, batch: int) -> tuple[Tensor, ...]:
    widths = [rnn.proj_size or H, H][: 2 if rnn.mode == "LSTM" else 1]
    return tuple(torch.randn(4, batch, width, dtype=torch.float64, requires_grad=True) for width in widths)


def call(rnn: nn.Module, x: Any, states: tuple[Tensor, ...], **kwargs: Any) -> tuple[Any, tuple[Tensor, ...]]:
    out, last = rnn(x, states if rnn.mode == "LSTM" else states[0], **kwargs)
    return out, last if isinstance(last, tuple) else (last,)


def pack(x: Tensor, how: str) -> PackedSequence:
    """Rows of x (T, B, I) cut to LENGTHS; "sorted" needs x's rows in that order already."""
    if how == "unsorted":
        return pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    if how == "sequence":
        return pack_sequence([x[:n, b] for b, n in enumerate(LENGTHS)], enforce_sorted=False)
    return pack_padded_sequence(x, torch.tensor(sorted(LENGTHS, reverse=True)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("how", ["unsorted", "sequence", "sorted"])
@pytest.mark.parametrize(("cell", "proj"), [("LSTM", 0), ("LSTM", 3), ("GRU", 0)])
def test_each_row_is_as_if_alone(cell: str, proj: int, how: str, configuration: str, backend: str) -> None:
    rnn = build(cell, configuration, backend, **({"proj_size": proj} if proj else {}))
    lengths = sorted(LENGTHS, reverse=True) if how == "sorted" else LENGTHS
    x = torch.randn(max(lengths), len(lengths), I, dtype=torch.float64, requires_grad=True)
    states, rng = states_of(rnn, len(lengths)), frd.draw_rng("cpu")
    ids = torch.tensor([7, 3, 11, 2**32 - 2])
    leaves = [x, *states, *rnn.parameters()]

    out, last = call(rnn, pack(x, how), states, rng=rng, example_ids=ids, step_offset=9)
    padded, got_lengths = pad_packed_sequence(out)
    assert got_lengths.tolist() == lengths
    probe = torch.randn_like(padded)
    loss = (padded * probe).sum() + sum((state * state).sum() for state in last)
    gradients = torch.autograd.grad(loss, leaves)

    alone_loss = torch.zeros((), dtype=torch.float64)
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_rows_are_named_by_their_original_order(cell: str, backend: str) -> None:
    rnn = build(cell, "all", backend)
    x = torch.randn(5, 4, I, dtype=torch.float64)
    states, rng = states_of(rnn, 4), frd.draw_rng("cpu")
    default, _ = call(rnn, pack(x, "unsorted"), states, rng=rng)
    named, _ = call(rnn, pack(x, "unsorted"), states, rng=rng, example_ids=torch.arange(4))
    assert torch.equal(default.data, named.data)
    # The same rows in another order, under their old names, give the same rows.
    order = torch.tensor([2, 0, 3, 1])
    lengths = torch.tensor(LENGTHS)[order]
    moved = pack_padded_sequence(x[:, order], lengths, enforce_sorted=False)
    out, last = call(rnn, moved, tuple(state[:, order] for state in states), rng=rng, example_ids=order)
    expected, expected_last = call(rnn, pack(x, "unsorted"), states, rng=rng)
    torch.testing.assert_close(
        pad_packed_sequence(out)[0], pad_packed_sequence(expected)[0][:, order], rtol=1e-12, atol=1e-13
    )
    for mine, their in zip(last, expected_last, strict=True):
        torch.testing.assert_close(mine, their[:, order], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_masks_are_exported_in_the_original_order(cell: str, backend: str) -> None:
    rnn = build(cell, "all", backend)
    rnn.input_dropout = 0.5
    x, rng = torch.randn(5, 4, I, dtype=torch.float64), frd.draw_rng("cpu")
    masks = frd.export_masks(rnn, pack(x, "unsorted"), rng=rng, step_offset=2)
    expected = frd.export_masks(rnn, x, rng=rng, step_offset=2)
    assert masks.keys() == expected.keys() and all(torch.equal(masks[name], expected[name]) for name in masks)
    # A value under a dropped input unit of row b changes nothing, so the mask's row b is the input's row b.
    dropped = (masks["input"] == 0).expand(5, 4, I)
    assert dropped.any(dim=-1)[0].sum() >= 2
    changed = torch.where(dropped, torch.full_like(x, 1e30), x)
    out, changed_out = (rnn(pack(value, "unsorted"), rng=rng)[0].data for value in (x, changed))
    assert torch.equal(out, changed_out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_lengths_are_the_padded_result(backend: str) -> None:
    rnn = build("LSTM", "per_step", backend)
    x, rng = torch.randn(5, 3, I, dtype=torch.float64), frd.draw_rng("cpu")
    packed, last = rnn(pack_padded_sequence(x, torch.tensor([5, 5, 5])), rng=rng)
    plain, plain_last = rnn(x, rng=rng)
    torch.testing.assert_close(packed.data, plain.flatten(0, 1), rtol=1e-12, atol=1e-13)
    for mine, their in zip(last, plain_last, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_two_calls(cell: str, backend: str) -> None:
    """step_offset lets a forward-only layer split time without changing a bit of any per-step mask."""
    sites = all_sites(cell) | {"input_dropout": frd.LockedDropout(0.2, per="step")}
    rnn = getattr(frd, cell)(I, H, 2, dtype=torch.float64, backend=backend, **sites)
    x, rng = torch.randn(6, 3, I, dtype=torch.float64), frd.draw_rng("cpu")
    whole, whole_last = rnn(x, rng=rng)
    first, middle = rnn(x[:4], rng=rng)
    second, last = rnn(x[4:], middle, rng=rng, step_offset=4)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-9, atol=1e-11)
    for mine, their in zip(last, whole_last, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_in_two_calls_interleaved(cell: str, backend: str) -> None:
    rnn = build(cell, "all", backend)
    x, rng, ids = torch.randn(5, 4, I, dtype=torch.float64), frd.draw_rng("cpu"), torch.arange(4)
    whole = rnn(x, rng=rng)[0]
    for part in (slice(0, None, 2), slice(1, None, 2)):
        torch.testing.assert_close(
            rnn(x[:, part], rng=rng, example_ids=ids[part])[0], whole[:, part], rtol=1e-10, atol=1e-12
        )
