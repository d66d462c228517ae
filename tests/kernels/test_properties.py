"""Random modules, shapes and sites: what holds for every one of them."""

from __future__ import annotations

import io
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from grids import (
    CELLS,
    RATES,
    TOLERANCE,
    assert_equal,
    assert_same,
    call,
    fits,
    inputs_for,
    leaves_of,
    module,
    pack,
    row_of,
    with_gradients,
)
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import CellDropout, HiddenDropout, LockedDropout, UpdateDropout, WeightDropout, Zoneout, ops
from fused_rnn_dropout.sites import SEQ

hypothesis = pytest.importorskip("hypothesis", reason="the package hypothesis is not installed")
given, st = hypothesis.given, hypothesis.strategies

EXACT = TOLERANCE[torch.float64]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# --------------------------------------------------------------------------------------------------------------------
# Strategies
# --------------------------------------------------------------------------------------------------------------------

# Next to 1 a scale is so large that rounding alone exceeds the tolerance; 1 itself is no such case.
rates = st.one_of(st.floats(0, 0.9), st.sampled_from([0.0, 0.5, 1.0]))
per = st.sampled_from(["sequence", "step"])
words = st.integers(-(2**63), 2**63 - 1)


def specs(cell: str, site: str) -> st.SearchStrategy[Any]:
    """A rate or an options object of ``site`` that the CPU backend computes."""
    if site == "dropout":
        return rates
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "hidden_dropout": st.builds(HiddenDropout, rates, batch_shared=st.booleans()),
        "weight_dropout": st.builds(
            WeightDropout,
            rates,
            st.sampled_from(["element", "row"]),
            inputs=st.booleans(),
            projection=st.booleans() if cell == "LSTM_proj" else st.just(False),
        ),
        "update_dropout": st.builds(UpdateDropout, rates, per, st.sampled_from(["inverted", "paper"])),
        "cell_dropout": st.builds(CellDropout, rates, per, st.sampled_from(["output", "paper"])),
        "zoneout_c": st.builds(Zoneout, rates, per),
        "zoneout_h": st.builds(Zoneout, rates, per, shared=st.booleans(), output=st.sampled_from(["zoned", "unzoned"])),
    }
    return st.one_of(rates, kinds.get(site, st.builds(LockedDropout, rates, per, st.booleans())))


@st.composite
def sites_of(draw: Any, cell: str) -> dict[str, Any]:
    names = [name for name in RATES if fits(cell, {name: 0.5})]
    chosen = draw(st.sets(st.sampled_from(names)))
    if {"dropout", "inter_layer_dropout"} <= chosen:
        chosen.remove("dropout")
    return {name: draw(specs(cell, name)) for name in names if name in chosen}


class Problem(NamedTuple):
    """A module on the CPU backend, its twin on the reference, and one input."""

    fused: nn.Module
    reference: nn.Module
    x: Tensor
    states: tuple[Tensor, ...] | None
    lengths: list[int] | None
    call: dict[str, Any]


@st.composite
def problems(draw: Any, packed: bool | None = None) -> Problem:
    cell = draw(st.sampled_from(CELLS))
    sizes = st.integers
    units = draw(sizes(2 if cell == "LSTM_proj" else 1, 21))
    projected = draw(sizes(1, units - 1)) if cell == "LSTM_proj" else 0
    steps, batch = draw(sizes(1, 5)), draw(sizes(1, 5))
    sites, seed = draw(sites_of(cell)), draw(sizes(0, 2**31))
    layout = {
        "layers": draw(sizes(1, 3)),
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
    }
    shape = (draw(sizes(1, 5)), units, projected)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sites between layers with one layer, zoneout_c with cell_dropout
        fused = module(cell, sites, shape, recompute=draw(st.booleans()), **layout)
        reference = module(cell, sites, shape, backend="reference", **layout)
    reference.load_state_dict(fused.state_dict())
    training = draw(st.booleans())
    fused.train(training), reference.train(training)
    x, states = inputs_for(fused, steps, batch)
    given: dict[str, Any] = {"rng": torch.tensor([draw(words), draw(words)])}
    if draw(st.booleans()):
        given["example_ids"] = torch.tensor(draw(st.lists(sizes(0, SEQ - 1), min_size=batch, max_size=batch)))
    given["step_offset"] = draw(st.one_of(st.just(0), sizes(0, SEQ - steps)))
    lengths = None
    if draw(st.booleans()) if packed is None else packed:
        lengths = draw(st.lists(sizes(1, steps), min_size=batch, max_size=batch))
        x = x.detach()[: max(lengths)].requires_grad_()
    return Problem(fused, reference, x, states if draw(st.booleans()) else None, lengths, given)


# --------------------------------------------------------------------------------------------------------------------
# Properties
# --------------------------------------------------------------------------------------------------------------------


def results_of(rnn: nn.Module, problem: Problem) -> dict[str, Tensor]:
    results = call(rnn, pack(problem.x, problem.lengths), problem.states, **problem.call)
    return with_gradients(results, leaves_of(rnn, problem.x, problem.states or ()), torch.float64)


@hypothesis.settings(max_examples=6 * hypothesis.settings.default.max_examples)
@given(problems(), st.sampled_from(ops.cpu_isas()))
def test_kernels_equal_the_reference(problem: Problem, isa: str) -> None:
    before = ops.cpu_isa()
    ops.cpu_isa(isa)
    try:
        got = results_of(problem.fused, problem)
        again = results_of(problem.fused, problem)
    finally:
        ops.cpu_isa(before)
    assert_same(got, results_of(problem.reference, problem), EXACT)
    assert_equal(again, got)


@given(problems(packed=True))
def test_a_packed_row_is_that_row_alone(problem: Problem) -> None:
    rnn, x, states, lengths = problem.fused, problem.x, problem.states, problem.lengths
    assert lengths is not None
    ids = problem.call.get("example_ids", torch.arange(len(lengths)))
    whole = call(rnn, pack(x, lengths), states, **problem.call)
    for b, length in enumerate(lengths):
        row = slice(b, b + 1)
        own = None if states is None else tuple(state[:, row] for state in states)
        alone = call(rnn, x[:length, row], own, **{**problem.call, "example_ids": ids[row]})
        assert torch.count_nonzero(whole["out"][length:, b]) == 0
        mine = {name: value[:length, row] if name == "out" else value[:, row] for name, value in whole.items()}
        assert_same(mine, alone, EXACT)


@given(problems(packed=False), st.data())
def test_a_batch_may_be_split_and_reordered(problem: Problem, data: st.DataObject) -> None:
    rnn, x, states = problem.fused, problem.x, problem.states
    batch = x.shape[1]
    ids = problem.call.get("example_ids", torch.arange(batch))
    whole = call(rnn, x, states, **problem.call)
    order = torch.tensor(data.draw(st.permutations(range(batch))))
    for rows in order.split(data.draw(st.integers(1, batch))):
        own = None if states is None else tuple(state[:, rows] for state in states)
        part = call(rnn, x[:, rows], own, **{**problem.call, "example_ids": ids[rows]})
        assert_same(part, {name: value[:, rows] for name, value in whole.items()}, EXACT)


@given(problems())
def test_state_dicts_go_both_ways(problem: Problem) -> None:
    rnn = problem.fused
    row = row_of(rnn.mode)
    layout = {"proj_size": rnn.proj_size} if row.projects else {}
    layout |= {"bias": rnn.bias, "bidirectional": rnn.bidirectional, **row.settings}
    theirs = getattr(nn, row.module)(rnn.input_size, rnn.hidden_size, rnn.num_layers, dtype=torch.float64, **layout)
    theirs.load_state_dict(rnn.state_dict())
    assert_equal(theirs.state_dict(), rnn.state_dict())
    assert list(theirs.state_dict()) == list(rnn.state_dict())

    buffer = io.BytesIO()
    torch.save(theirs.state_dict(), buffer)
    buffer.seek(0)
    before = call(rnn, problem.x, problem.states, **problem.call)
    sites = dict(rnn.sites)
    for parameter in rnn.parameters():
        nn.init.normal_(parameter)
    rnn.load_state_dict(torch.load(buffer))
    assert dict(rnn.sites) == sites, "rates are no part of a state_dict, and loading one must not change them"
    assert_equal(call(rnn, problem.x, problem.states, **problem.call), before)


@given(st.sampled_from(CELLS), st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted), words, words)
def test_a_higher_rate_drops_more_and_never_less(cell: str, pair: list[float], first: int, second: int) -> None:
    """The same rng at two rates: what the lower one drops (zoneout: keeps), the higher one does too."""
    names = [name for name in RATES if name != "dropout" and fits(cell, {name: 0.5})]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rnn = module(cell, dict.fromkeys(names, 0.5), (3, 9, 4))
    x, rng = torch.zeros(2, 3, 3, dtype=torch.float64), torch.tensor([first, second])
    found = []
    for rate in pair:
        for name in names:
            rnn.set_rate(name, rate)
        found.append(frd.export_masks(rnn, x, rng=rng))
    low, high = found
    for name in low:
        if name.startswith("zoneout"):
            assert (high[name] >= low[name]).all(), name
        elif not name.startswith(("cell_scale", "cell_entry")):
            assert ((high[name] == 0) | (low[name] != 0)).all(), name
