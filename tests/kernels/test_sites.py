"""Every site, every option, every two sites, and all of them, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparisons import against_reference, everything
from grids import (
    CELLS,
    RATES,
    all_sites,
    alone,
    assert_equal,
    assert_same,
    expect,
    inner_sites,
    inputs_for,
    measure,
    options,
    pairs,
)
from targets import CPU, CPUS, CUDA, TRITON, Sites, Target, cases, on

import fused_rnn_dropout as frd


def each(cell: str) -> Sites:
    return {**alone(cell), **options(cell)}


def of_a_projection(cell: str) -> Sites:
    """What acts on h and on W_hr in an LSTM with a projection: its gates are those of one without."""
    names = ("hidden", "projection", "zoneout_h")
    return {name: sites for name, sites in each(cell).items() if any(part in name for part in names)}


def each_where_it_is_slow(cell: str) -> Sites:
    return of_a_projection(cell) if cell == "LSTM_proj" else each(cell)


def other_of_a_projection(cell: str) -> Sites:
    return {name: sites for name, sites in each(cell).items() if name not in each_where_it_is_slow(cell)}


def check_each(target: Target, cell: str, sites: dict[str, Any]) -> None:
    rnn = target.module(cell, sites)
    steps, batch, lengths = target.brief if target.slow else target.shape
    for packed, recompute in target.passes(cell):
        against_reference(target, rnn, steps, batch, lengths if packed else None, recompute)


@on(CPUS, CUDA, TRITON)
@pytest.mark.parametrize(("cell", "sites"), cases(each_where_it_is_slow))
def test_training(target: Target, cell: str, sites: dict[str, Any]) -> None:
    """Results, states and every gradient, both directions, padded and packed."""
    check_each(target, cell, sites)


@on(CPUS, CUDA)
@pytest.mark.parametrize(("cell", "sites"), cases(other_of_a_projection))
def test_training_of_a_projection(target: Target, cell: str, sites: dict[str, Any]) -> None:
    """What acts at the gates alone, which are no other kernel's: not where it is slow."""
    check_each(target, cell, sites)


@on(CPUS, CUDA, TRITON)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", ["everything", "everything_unzoned", "nothing"])
@pytest.mark.parametrize("cell", CELLS)
def test_everything(target: Target, cell: str, name: str, packed: bool) -> None:
    steps, batch, lengths = target.shape
    against_reference(
        target, target.module(cell, everything(target, cell)[name]), steps, batch, lengths if packed else None
    )


@on(CUDA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("cell", "sites"), cases(each))
def test_fewer_bits(target: Target, cell: str, sites: dict[str, Any], dtype: torch.dtype) -> None:
    """Kernels with types of their own, which load several elements at once; each site beside one inside a step."""
    rnn = target.module(cell, {"zoneout_h": RATES["zoneout_h"], **sites}, (6, 20, 8), dtype=dtype)
    steps, batch, lengths = target.shape
    against_reference(target, rnn, steps, batch)
    against_reference(target, rnn, steps, batch, lengths)


@on(CPU, CUDA)
@pytest.mark.parametrize(("cell", "sites"), cases(pairs))
def test_pairs_of_sites(target: Target, cell: str, sites: dict[str, Any]) -> None:
    against_reference(target, target.module(cell, sites), 3, 3, recompute=(False,))


@on(CPU, CUDA)
@pytest.mark.parametrize("between", ["dropout", "inter_layer_dropout"])
@pytest.mark.parametrize("cell", CELLS)
def test_three_layers(target: Target, cell: str, between: str) -> None:
    """Two places between layers, each with masks of its own."""
    rnn = target.module(cell, inner_sites(cell) | {between: RATES[between]}, (4, 9, 5), layers=3)
    given = target.drawn(3)
    masks = target.masks(rnn, inputs_for(rnn, 3, 3)[0], **given)
    assert not torch.equal(masks["inter_layer_l1"], masks["inter_layer_l2"])
    against_reference(target, rnn, 3, 3, recompute=(False,), **given)


@on(CPU, CUDA)
@pytest.mark.parametrize("cell", CELLS)
def test_no_bias(target: Target, cell: str) -> None:
    against_reference(target, target.module(cell, all_sites(cell), bias=False), *target.shape)


# --------------------------------------------------------------------------------------------------------------------
# Eval
# --------------------------------------------------------------------------------------------------------------------


def check_eval(target: Target, cell: str, sites: dict[str, Any], steps: int, batch: int, **kwargs: Any) -> None:
    rnn = target.module(cell, sites, **kwargs).eval()
    x, states = inputs_for(rnn, steps, batch)
    want = expect(rnn, x, states, target.masks(rnn, x))
    for rnn.recompute in (False,) if target.slow else (False, True):
        assert_same(measure(rnn, x, states), want, target.tolerance(x.dtype, steps))


def in_eval(cell: str) -> Sites:
    """What differs from no site at all once masks are off: expectations."""
    return {name: sites for name, sites in options(cell).items() if "paper" in name or "zoneout" in name}


def off_in_eval(cell: str) -> Sites:
    return {name: sites for name, sites in each(cell).items() if name not in in_eval(cell)}


@on(CPUS, CUDA, TRITON)
@pytest.mark.parametrize(("cell", "sites"), cases(in_eval))
def test_eval(target: Target, cell: str, sites: dict[str, Any]) -> None:
    """Masks off, which is legal to differentiate."""
    check_eval(target, cell, sites, *target.brief[:2])


@on(CPUS, CUDA)
@pytest.mark.parametrize(("cell", "sites"), cases(off_in_eval))
def test_eval_of_what_is_off(target: Target, cell: str, sites: dict[str, Any]) -> None:
    check_eval(target, cell, sites, *target.brief[:2])


@on(CPUS, CUDA, TRITON)
@pytest.mark.parametrize("name", ["everything", "everything_unzoned", "nothing"])
@pytest.mark.parametrize("cell", CELLS)
def test_eval_of_everything(target: Target, cell: str, name: str) -> None:
    check_eval(target, cell, everything(target, cell)[name], *target.brief[:2])


@on(CUDA)
@pytest.mark.parametrize(("cell", "sites"), cases(options))
def test_eval_in_fewer_bits(target: Target, cell: str, sites: dict[str, Any]) -> None:
    beside = {"zoneout_h": RATES["zoneout_h"], **sites}
    check_eval(target, cell, beside, 3, 4, widths=(6, 20, 8), layers=1, dtype=torch.bfloat16)


def check_mc(target: Target, cell: str, sites: dict[str, Any]) -> None:
    rnn = target.module(cell, sites)
    x, states = inputs_for(rnn, *target.brief[:2])
    given = target.drawn(target.brief.batch)
    in_training = measure(rnn, x, states, **given)
    frd.mc_dropout(rnn.eval())
    assert_equal(measure(rnn, x, states, **given), in_training)
    rnn.mc = False
    if sites:
        assert not torch.equal(measure(rnn, x, states)["out"], in_training["out"])


@on(CPU, CUDA)
@pytest.mark.parametrize(("cell", "sites"), cases(each))
def test_mc(target: Target, cell: str, sites: dict[str, Any]) -> None:
    """Masks on in eval: what training computes."""
    check_mc(target, cell, sites)


@on(CPU, CUDA)
@pytest.mark.parametrize("name", ["everything", "everything_unzoned", "nothing"])
@pytest.mark.parametrize("cell", CELLS)
def test_mc_of_everything(target: Target, cell: str, name: str) -> None:
    check_mc(target, cell, everything(target, cell)[name])


@on(TRITON)
@pytest.mark.parametrize("cell", CELLS)
def test_mc_of_one_layer(target: Target, cell: str) -> None:
    check_mc(target, cell, inner_sites(cell))
