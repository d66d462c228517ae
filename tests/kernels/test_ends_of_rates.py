"""Rates of 0 and of 1, next to 1, and outside: where a mask is all or nothing and a scale is 1, 0 or 2**32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparisons import everything
from grids import (
    CELLS,
    TOLERANCE,
    all_sites,
    alone,
    assert_equal,
    assert_same,
    call,
    candidate_rows,
    expect,
    inner_sites,
    inputs_for,
    measure,
    options,
    row_of,
)
from targets import CPU, CUDA, TRITON, Sites, Target, cases, on

from fused_rnn_dropout.sites import SITE_INDEX

FP64 = TOLERANCE[torch.float64]
train_and_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
one_and_next = pytest.mark.parametrize("rate", [1.0, 1 - 2**-32], ids=["1", "next_to_1"])


def each(cell: str) -> Sites:
    return {**alone(cell), **options(cell)}


@on(CPU, CUDA)
@train_and_eval
@pytest.mark.parametrize("cell", CELLS)
def test_python_zero_is_bitwise_no_site(target: Target, cell: str, training: bool) -> None:
    plain = target.module(cell, {}).train(training)
    zero = target.module(cell, dict.fromkeys(alone(cell), 0.0)).train(training)
    zero.load_state_dict(plain.state_dict())
    x, states = inputs_for(plain, *target.shape[:2])
    want = measure(plain, x, states)
    assert_equal(measure(zero, x, states), want)
    for name in alone(cell):
        if name == "dropout":
            continue
        setattr(zero, name, 0.5)
        setattr(zero, name, 0.0)
    assert_equal(measure(zero, x, states), want)


@on(CPU, CUDA)
@train_and_eval
@pytest.mark.parametrize(("cell", "sites"), cases(each))
def test_a_scheduled_zero_is_no_site_within_tolerance(
    target: Target, cell: str, sites: dict[str, Any], training: bool
) -> None:
    plain = target.module(cell, {}).train(training)
    scheduled = target.module(cell, sites).train(training)
    scheduled.load_state_dict(plain.state_dict())
    for name in sites:
        scheduled.set_rate(name, 0.0)
    assert set(scheduled.sites) == set(sites)
    x, states = inputs_for(plain, 3, 2)
    assert_same(measure(scheduled, x, states), measure(plain, x, states), FP64)


def check_rate(target: Target, rnn: Any, sites: dict[str, Any], rate: float) -> None:
    for name in sites:
        rnn.set_rate(name, rate)
    x, states = inputs_for(rnn, target.brief.steps, 2)
    given = target.draw() if rnn.training else {}
    got = measure(rnn, x, states, **given)
    assert all(value.isfinite().all() for value in got.values())
    assert_same(got, expect(rnn, x, states, target.masks(rnn, x, **given)), FP64)


@on(CPU, CUDA)
@train_and_eval
@one_and_next
@pytest.mark.parametrize(("cell", "sites"), cases(each))
def test_rates_of_one(target: Target, cell: str, sites: dict[str, Any], rate: float, training: bool) -> None:
    """Finite, and what the reference says; a rate just below 1 has a scale of 2**32 instead of 0."""
    check_rate(target, target.module(cell, sites, (3, 5, 4)).train(training), sites, rate)


@on(CPU, CUDA)
@train_and_eval
@one_and_next
@pytest.mark.parametrize("name", ["everything", "everything_unzoned", "nothing"])
@pytest.mark.parametrize("cell", CELLS)
def test_rates_of_one_everywhere(target: Target, cell: str, name: str, rate: float, training: bool) -> None:
    sites = everything(target, cell)[name]
    check_rate(target, target.module(cell, sites, (3, 5, 4)).train(training), sites, rate)


@on(TRITON)
@one_and_next
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN_TANH"])
def test_rates_of_one_in_one_layer(target: Target, cell: str, rate: float) -> None:
    """A threshold of 2**32, which a rate of 1 has, does not fit a word of 32 bits."""
    sites = everything(target, cell)["everything_unzoned"]
    check_rate(target, target.module(cell, sites), sites, rate)


@on(CUDA)
@pytest.mark.parametrize("cell", CELLS)
def test_rates_that_make_no_sense_are_the_nearest_that_do(target: Target, cell: str) -> None:
    """The host cannot look at them without waiting for the device."""
    rnn = target.module(cell, all_sites(cell), dtype=torch.float32)
    x, states = inputs_for(rnn, *target.shape[:2])
    given = target.drawn(target.shape.batch)
    found = []
    for low, high in ((0, 2**32), (-5, 2**40)):
        for name in rnn.sites:
            rnn._thresholds[SITE_INDEX[name]] = high if name in ("update_dropout", "input_dropout") else low
        found.append(measure(rnn, x, states, **given))
    assert_equal(found[1], found[0])


@on(CPU, CUDA)
@pytest.mark.parametrize(("cell", "site"), [(cell, site) for cell in CELLS for site in inner_sites(cell)])
def test_everything_dropped(target: Target, cell: str, site: str) -> None:
    """What a rate of 1 leaves, site by site, from the equations alone."""
    rnn = target.module(cell, {site: 1.0}, layers=1, bidirectional=False)
    plain = target.module(cell, {}, layers=1, bidirectional=False)
    plain.load_state_dict(rnn.state_dict())
    x, states = inputs_for(rnn, *target.shape[:2])
    got = measure(rnn, x, states)
    if site == "input_dropout":
        assert torch.count_nonzero(got["d x"]) == 0 and torch.count_nonzero(got["d weight_ih_l0"]) == 0
        assert_equal(call(rnn, x, states), call(plain, torch.zeros_like(x), states))
    elif site == "output_dropout":
        assert torch.count_nonzero(got["out"]) == 0
        assert torch.equal(got["h_n"], call(plain, x, states)["h_n"])
    elif site in ("hidden_dropout", "weight_dropout"):
        assert torch.count_nonzero(got["d weight_hh_l0"]) == 0
        with torch.no_grad():
            plain.weight_hh_l0.zero_()
        without = call(plain, x, states)
        assert_same({name: got[name] for name in without}, without, FP64)
        if cell != "GRU":  # whose h_0 leaks past the recurrent product
            assert torch.count_nonzero(got["d h0"]) == 0
    elif site == "update_dropout":
        # No candidate ever: the memory only decays, and the candidate's weights do not matter.
        memory, rows = got["c_n" if row_of(cell).has_c else "h_n"].abs(), candidate_rows(rnn)
        assert (memory <= states[-1].abs()).all()
        assert torch.count_nonzero(got["d weight_ih_l0"][rows]) == 0
        assert torch.count_nonzero(got["d bias_hh_l0"][rows]) == 0
    elif site == "cell_dropout":
        assert all(torch.count_nonzero(got[name]) == 0 for name in ("out", "h_n", "c_n") if name in got)
        assert all(torch.count_nonzero(got[name]) == 0 for name in got if name.startswith("d "))
    elif site == "zoneout_c":
        assert torch.equal(got["c_n"], states[1])
    else:
        assert torch.equal(got["h_n"], states[0]) and torch.equal(got["out"], states[0].expand_as(got["out"]))
        # c goes on as ever, but what only h reads does not matter: the output gate of an LSTM, and all of a cell whose
        # memory is h.
        unread = got["d weight_ih_l0"][3 * rnn.hidden_size if row_of(cell).has_c else 0 :]
        assert torch.count_nonzero(unread) == 0
