"""Mistakes that implementations of these techniques have made, and that cost their users months: one test for each."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from grids import (
    TOLERANCE,
    all_sites,
    assert_equal,
    assert_same,
    call,
    fits,
    inner_sites,
    inputs_for,
    leaves_of,
    measure,
    module,
    pack,
    row_of,
)
from torch import Tensor, nn

import fused_rnn_dropout as frd

pytestmark = pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout")

CELLS = ("LSTM", "GRU", "RNN_TANH")
WITH_A_MEMORY = ("LSTM", "GRU")
EXACT = TOLERANCE[torch.float64]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def one_layer(cell: str, sites: dict[str, Any], sizes: tuple[int, int, int] = (6, 19, 7), **kwargs: Any) -> nn.Module:
    return module(cell, sites, sizes, layers=1, bidirectional=False, **kwargs)


def twin(rnn: nn.Module, sites: dict[str, Any] | None = None) -> nn.Module:
    """A module of the same shape and weights with other sites."""
    other = module(
        rnn.mode,
        sites or {},
        (rnn.input_size, rnn.hidden_size, 0),
        layers=rnn.num_layers,
        bidirectional=rnn.bidirectional,
        dtype=rnn.weight_hh_l0.dtype,
    )
    other.load_state_dict(rnn.state_dict())
    return other.train(rnn.training)


def assert_rate(hits: Tensor, rate: float) -> None:
    """The share of True is ``rate`` within five standard deviations, and not so few are counted that any would be."""
    n = hits.numel()
    z = (hits.sum().item() - n * rate) / math.sqrt(n * rate * (1 - rate))
    assert n >= 500 and abs(z) < 5, f"{hits.double().mean():.4f} of {n} instead of {rate}"


# 1
@pytest.mark.parametrize("cell", CELLS)
def test_weight_dropout_that_is_silently_not_applied(cell: str) -> None:
    """The masked weight must be the one that is multiplied with, in each call anew."""
    rnn = module(cell, {"weight_dropout": 0.5})
    plain = twin(rnn)
    x, states = inputs_for(rnn, 4, 3)
    assert not torch.equal(call(rnn, x, states)["out"], call(rnn, x, states)["out"])
    rng = frd.draw_rng("cpu")
    masks = frd.export_masks(rnn, x, rng=rng)
    with torch.no_grad():
        for name, mask in masks.items():
            plain.get_parameter(name).mul_(mask)
    assert len(masks) == 4
    assert_same(call(rnn, x, states, rng=rng), call(plain, x, states), EXACT)
    # New weights are used from the next call on: nothing holds an older masked copy.
    with torch.no_grad():
        for name in masks:
            rnn.get_parameter(name).mul_(2)
            plain.get_parameter(name).mul_(2)
    assert_same(call(rnn, x, states, rng=rng), call(plain, x, states), EXACT)


# 2
@pytest.mark.parametrize("cell", CELLS)
def test_weight_dropout_without_a_gradient_for_the_raw_weight(cell: str) -> None:
    rnn = module(cell, {"weight_dropout": 0.5})
    plain = twin(rnn)
    x, states = inputs_for(rnn, 4, 3)
    rng = frd.draw_rng("cpu")
    masks = frd.export_masks(rnn, x, rng=rng)
    with torch.no_grad():
        for name, mask in masks.items():
            plain.get_parameter(name).mul_(mask)
    got, used = measure(rnn, x, states, rng=rng), measure(plain, x, states)
    for name, mask in masks.items():
        assert_same({name: got[f"d {name}"]}, {name: mask * used[f"d {name}"]}, EXACT)
    call(rnn, x, states)["out"].sum().backward()
    assert all(p.grad is not None and torch.count_nonzero(p.grad) for p in rnn.parameters())


# 3
@pytest.mark.parametrize("cell", CELLS)
def test_masks_that_stay_on_in_eval(cell: str) -> None:
    row = {"weight_dropout": frd.WeightDropout(0.5, "row", inputs=True)}
    without_zoneout = {name: rate for name, rate in all_sites(cell).items() if not name.startswith("zoneout")}
    for sites in (all_sites(cell), row, {"dropout": 0.5}, without_zoneout):
        rnn = module(cell, sites).eval()
        x, states = inputs_for(rnn, 4, 3)
        first = call(rnn, x, states)
        assert_equal(call(rnn, x, states), first)
        assert_equal(call(rnn, x, states, rng=frd.draw_rng("cpu")), first)
        if sites is not all_sites(cell) and not any(name.startswith("zoneout") for name in sites):
            assert_same(first, call(twin(rnn), x, states), EXACT)


# 4
@pytest.mark.parametrize("cell", CELLS)
def test_an_error_on_the_way_from_train_to_eval(cell: str) -> None:
    rnn = module(cell, all_sites(cell))
    x, states = inputs_for(rnn, 4, 3)
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
    seen = []
    for training in (True, False, True, False):
        rnn.train(training)
        optimizer.zero_grad()
        call(rnn, x, states)["out"].square().sum().backward()
        optimizer.step()
        seen.append(rnn.weight_hh_l0.detach().clone())
    assert all(isinstance(parameter, nn.Parameter) for parameter in rnn.parameters())
    assert set(rnn.state_dict()) == set(getattr(nn, row_of(cell).module)(6, 19, 2, bidirectional=True).state_dict())
    assert not torch.equal(seen[-1], seen[-2]), "training in eval mode still trains the weights that forward reads"

    buffer = io.BytesIO()
    torch.save(rnn.state_dict(), buffer)
    buffer.seek(0)
    loaded = module(cell, all_sites(cell)).eval()
    loaded.load_state_dict(torch.load(buffer))
    copied = copy.deepcopy(rnn)
    want = call(rnn, x, states)
    for other in (loaded, copied):
        assert_equal(call(other, x, states), want)
        rng = frd.draw_rng("cpu")
        assert_equal(call(other.train(), x, states, rng=rng), call(rnn.train(), x, states, rng=rng))
        rnn.eval()
    with torch.no_grad():
        copied.weight_hh_l0.zero_()
    assert_equal(call(rnn, x, states), want)


# 5
@pytest.mark.parametrize("cell", CELLS)
def test_masks_that_are_broadcast_along_the_wrong_axis(cell: str) -> None:
    """Locked masks are one over time and differ between examples and units; weight masks know no example."""
    rnn = one_layer(cell, {"input_dropout": 0.5, "output_dropout": 0.5, "hidden_dropout": 0.5}, (32, 32, 0))
    x, states = inputs_for(rnn, 6, 8)
    got = measure(rnn, x, states)
    for name in ("out", "d x"):
        zero = got[name] == 0
        assert torch.equal(zero, zero[:1].expand_as(zero)), f"{name}: the mask must not change with the step"
        of_examples, of_units = zero[0], zero[0].T
        assert len(of_examples.unique(dim=0)) == 8, f"{name}: each example has a mask of its own"
        assert len(of_units.unique(dim=0)) > 16, f"{name}: each unit has one"
    if cell == "LSTM":  # h_0 of a GRU leaks past the product
        assert len((got["d h0"][0] == 0).unique(dim=0)) == 8
    shared = one_layer(cell, {"output_dropout": frd.LockedDropout(0.5, batch_shared=True)}, (32, 32, 0))
    zero = call(shared, x, states)["out"] == 0
    assert torch.equal(zero, zero[:1, :1].expand_as(zero)) and 0 < zero[0, 0].sum() < 32
    # A weight mask is the same for every row of the batch: equal rows in, equal rows out, as far as products promise.
    weight = one_layer(cell, {"weight_dropout": 0.5})
    same = torch.randn(4, 1, 6, dtype=torch.float64).expand(4, 3, 6)
    out = call(weight, same, None)["out"]
    assert (out - out[:, :1]).abs().max() < 1e-12


# 6
@pytest.mark.parametrize("cell", CELLS)
def test_masks_that_are_not_drawn_anew_or_are_shared_by_the_batch(cell: str) -> None:
    per_batch = {"weight_dropout"}
    for name, rate in inner_sites(cell).items():
        rnn = one_layer(cell, {name: rate}, (32, 32, 0))
        row = torch.randn(3, 1, 32, dtype=torch.float64)
        x, states = row.expand(3, 4, 32), tuple(state[:, :1].expand(-1, 4, -1) for state in inputs_for(rnn, 1, 1)[1])
        first, second = call(rnn, x, states), call(rnn, x, states)
        joined = [torch.cat([value.flatten(0, 1) for value in (run["out"], run.get("c_n", run["h_n"]))]) for run in
                  (first, second)]  # fmt: skip
        assert not torch.equal(*joined), f"{name}: each call has masks of its own"
        rows = first["out"].transpose(0, 1).flatten(1)
        assert len(rows.unique(dim=0)) == (1 if name in per_batch else 4), f"{name}: so has each example"


# 7
def test_a_rate_that_is_used_at_another_site() -> None:
    """Every site at a rate of its own, read off the results and gradients of one LSTM step."""
    rates = {
        "input_dropout": 0.1,
        "output_dropout": 0.2,
        "hidden_dropout": 0.6,
        "weight_dropout": 0.4,
        "update_dropout": 0.7,
        "cell_dropout": 0.3,
        "zoneout_c": 0.25,
        "zoneout_h": 0.35,
    }
    rnn = one_layer("LSTM", rates, (64, 64, 0))
    x, states = inputs_for(rnn, 1, 128)
    rng = frd.draw_rng("cpu")
    got = measure(rnn, x, states, rng=rng)
    assert_rate(got["d x"] == 0, rates["input_dropout"])
    assert_rate(got["d weight_hh_l0"] == 0, rates["weight_dropout"])
    h_0, c_0, h_n, c_n = states[0], states[1], got["h_n"], got["c_n"]
    alive, kept_h = c_n != 0, h_n == h_0
    assert_rate(~alive, rates["cell_dropout"])
    assert_rate(kept_h, rates["zoneout_h"])
    assert_rate((got["out"] == 0)[h_n != 0], rates["output_dropout"])
    assert_rate((got["d h0"] == 0)[~kept_h], rates["hidden_dropout"])
    kept_c = c_n == c_0
    assert_rate(kept_c[alive], rates["zoneout_c"])
    # With a forget gate of 1 a dropped update leaves c as it was, too.
    with torch.no_grad():
        rnn.bias_ih_l0[64:128] = 1e4
    unchanged = call(rnn, x, states, rng=rng)["c_n"] == c_0
    assert_rate(unchanged[alive & ~kept_c], rates["update_dropout"])


def test_a_rate_that_is_used_at_another_site_of_a_gru() -> None:
    rates = {"input_dropout": 0.1, "output_dropout": 0.2, "weight_dropout": 0.4, "update_dropout": 0.7,
             "cell_dropout": 0.3, "zoneout_h": 0.35, "hidden_dropout": 0.6}  # fmt: skip
    rnn = one_layer("GRU", rates, (64, 64, 0))
    x, states = inputs_for(rnn, 1, 128)
    rng = frd.draw_rng("cpu")
    got = measure(rnn, x, states, rng=rng)
    assert_rate(got["d x"] == 0, rates["input_dropout"])
    assert_rate(got["d weight_hh_l0"] == 0, rates["weight_dropout"])
    alive = got["h_n"] != 0
    assert_rate(~alive, rates["cell_dropout"])
    assert_rate((got["out"] == 0)[alive], rates["output_dropout"])
    # What comes in is h_0 scaled down, what goes out is scaled up again: the old value but for rounding.
    kept = (got["h_n"] - states[0]).abs() < 1e-14
    assert_rate(kept[alive], rates["zoneout_h"])
    # With an update gate of 0, to rounding, the new state is the candidate alone: 0 where it is dropped.
    with torch.no_grad():
        rnn.bias_ih_l0[64:128] = -1e4
    candidate = call(rnn, x, states, rng=rng)["h_n"]
    assert_rate((candidate.abs() < 1e-300)[alive & ~kept], rates["update_dropout"])
    # And h_0 matters through the recurrent product only.
    del rates["cell_dropout"]
    alive_rnn = twin(rnn, rates)
    got = measure(alive_rnn, x, states)
    moved = got["h_n"] != states[0]
    assert_rate((got["d h0"].abs() < 1e-300)[moved], rates["hidden_dropout"])


# 8
FINGERPRINTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "survives"),
    "dropout": ({"input_dropout": 0.2, "output_dropout": 0.2}, "survives"),
    "hidden": ({"hidden_dropout": 0.2}, "survives"),
    "weight": ({"weight_dropout": frd.WeightDropout(0.2, inputs=True)}, "survives"),
    "update": ({"update_dropout": 0.2}, "survives"),
    "update_sequence": ({"update_dropout": frd.UpdateDropout(0.2, "sequence")}, "survives"),
    "zoneout_c": ({"zoneout_c": 0.2}, "survives"),
    "zoneout_h": ({"zoneout_h": 0.2}, "survives"),
    "cell": ({"cell_dropout": 0.2}, "fixed units die"),
    "cell_step": ({"cell_dropout": frd.CellDropout(0.2, "step")}, "all die in time"),
}


@pytest.mark.parametrize(
    ("cell", "technique"),
    [(cell, name) for cell in WITH_A_MEMORY for name in FINGERPRINTS if fits(cell, FINGERPRINTS[name][0])],
)
def test_a_mask_on_the_memory_that_belongs_elsewhere(cell: str, technique: str) -> None:
    """With gates that only remember, each technique leaves a memory of its own kind after 30 steps."""
    sites, fate = FINGERPRINTS[technique]
    rnn = one_layer(cell, sites, (4, 64, 0))
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.zero_()
        if cell == "LSTM":
            rnn.bias_ih_l0[:64], rnn.bias_ih_l0[64:128] = -1e4, 1e4  # i = 0, f = 1
        else:
            rnn.bias_ih_l0[64:128] = 1e4  # z = 1: the old state stays
    steps, batch = 30, 64
    _, states = inputs_for(rnn, 1, batch)
    x = torch.randn(steps, batch, 4, dtype=torch.float64)
    rng = frd.draw_rng("cpu")
    got = call(rnn, x, states, rng=rng)
    before, after = states[-1][0], got["c_n" if cell == "LSTM" else "h_n"][0]
    if fate == "survives":
        assert torch.equal(after, before)
        return
    alive = after != 0
    if fate == "fixed units die":
        assert torch.equal(alive, frd.export_masks(rnn, x, rng=rng)["cell_l0"][0] != 0)
        assert_rate(alive, 0.8)
        # The survivors are exact in an LSTM, and scaled down and up again once in a GRU.
        torch.testing.assert_close(after[alive], before[alive], rtol=0 if cell == "LSTM" else 1e-15, atol=0)
    else:
        assert_rate(alive, 0.8**steps)
        # Entering a GRU with masks per step scales by q, being read scales by 1/q: no growth with T in between.
        torch.testing.assert_close(after[alive], before[alive], rtol=0 if cell == "LSTM" else 1e-14, atol=0)


@pytest.mark.parametrize("cell", WITH_A_MEMORY)
def test_scales_that_compound_over_time(cell: str) -> None:
    """The memory of the survivors is neither 1/q^T times too large in training nor q^T times too small in eval."""
    rnn = one_layer(cell, {"cell_dropout": 0.5}, (4, 16, 0))
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.zero_()
        rnn.bias_ih_l0[16:32] = 1e4
    x, states = inputs_for(rnn, 50, 2)
    want = call(twin(rnn), x, states)
    assert_same(call(rnn.eval(), x, states), want, EXACT)
    memory = "c_n" if cell == "LSTM" else "h_n"
    assert (call(rnn.train(), x, states)[memory].abs() <= want[memory].abs() * (1 + 1e-12)).all()


# 9
@pytest.mark.parametrize("cell", CELLS)
def test_a_seed_that_makes_all_steps_equal(cell: str) -> None:
    steps = 12
    per_step = {
        "input_dropout": frd.LockedDropout(0.5, "step"),
        "output_dropout": frd.LockedDropout(0.5, "step"),
    }
    rnn = one_layer(cell, per_step, (32, 32, 0))
    x, states = inputs_for(rnn, steps, 2)
    torch.manual_seed(5)
    got = measure(rnn, x, states)
    for name in ("out", "d x"):
        zero = (got[name] == 0).flatten(1)
        assert len(zero.unique(dim=0)) == steps, f"{name}: every step has a mask of its own"
        assert_rate(zero, 0.5)
    for name in ("zoneout_h", "zoneout_c"):
        if not fits(cell, {name: 0.5}):
            continue
        rnn = one_layer(cell, {name: 0.5}, (32, 32, 0))
        # What one more step keeps, for each number of steps from the same seed.
        kept, old = [], states
        for step in range(steps):
            torch.manual_seed(5)
            result = call(rnn, x[step : step + 1], old, rng=torch.tensor([5, 5]), step_offset=step)
            state = ("h_n", "c_n").index("c_n" if name == "zoneout_c" else "h_n")
            new = tuple(result[key] for key in ("h_n", "c_n") if key in result)
            kept.append((new[state] == old[state]).flatten())
            old = new
        assert len(torch.stack(kept).unique(dim=0)) == steps, name


# 10
@pytest.mark.parametrize("cell", CELLS)
def test_a_dropped_infinity_that_becomes_nan(cell: str) -> None:
    rnn = one_layer(cell, {"input_dropout": 0.5, "weight_dropout": 0.5})
    x, states = inputs_for(rnn, 4, 3)
    rng = frd.draw_rng("cpu")
    masks = frd.export_masks(rnn, x, rng=rng)
    want = measure(rnn, x, states, rng=rng)
    x = x.detach().masked_fill((masks["input"] == 0).expand_as(x), math.inf).requires_grad_()
    with torch.no_grad():
        rnn.weight_hh_l0.masked_fill_(masks["weight_hh_l0"] == 0, -math.inf)
    assert_equal(measure(rnn, x, states, rng=rng), want)


# 11
@pytest.mark.parametrize("cell", CELLS)
def test_zoneout_that_is_inverted_unzoned_or_without_expectation(cell: str) -> None:
    sites = {"zoneout_h": 0.25} | ({"zoneout_c": 0.625} if cell == "LSTM" else {})
    rnn = one_layer(cell, sites, (6, 64, 0))
    x, states = inputs_for(rnn, 1, 64)
    got = call(rnn, x, states)
    kept = got["h_n"] == states[0]
    assert_rate(kept, 0.25)
    assert torch.equal(got["out"][-1], got["h_n"][0]), "the output is the state that recurs"
    plain = call(twin(rnn), x, states)
    torch.testing.assert_close(got["h_n"][~kept], plain["h_n"][~kept], rtol=1e-12, atol=1e-14)
    # Rates that fp64 and the 32 bits of a threshold hold exactly.
    expected = {"h_n": 0.25 * states[0] + 0.75 * plain["h_n"]}
    if cell == "LSTM":
        kept_c = got["c_n"] == states[1]
        assert_rate(kept_c, 0.625)
        assert_rate(kept & kept_c, 0.25 * 0.625)  # two masks, not one
        # The new h comes from the new c and not from the zoned one, which the comparison with `plain` has shown too.
        expected["c_n"] = 0.625 * states[1] + 0.375 * plain["c_n"]
    in_eval = call(rnn.eval(), x, states)
    assert_same({name: in_eval[name] for name in expected}, expected, EXACT)

    unzoned = twin(rnn.train(), {"zoneout_h": frd.Zoneout(0.5, output="unzoned")})
    got = call(unzoned, x, states)
    assert_same({"out": got["out"][0]}, {"out": plain["h_n"][0]}, EXACT)
    assert_rate(got["h_n"] == states[0], 0.5)


# 12
@pytest.mark.parametrize(
    ("cell", "site"),
    [
        (cell, site)
        for cell in CELLS
        for site in ("hidden_dropout", "weight_dropout", "zoneout_h", "update_dropout", "cell_dropout")
        if fits(cell, {site: 0.5})
    ],
)
def test_a_mask_that_the_gradient_does_not_know(cell: str, site: str) -> None:
    rnn = one_layer(cell, {site: 0.5}, (2, 3, 0))
    x, states = inputs_for(rnn, 3, 2)
    rng = frd.draw_rng("cpu")
    leaves = leaves_of(rnn, x, states)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(leaves, values, strict=True))
        hx = (named.pop("h0"), named.pop("c0")) if cell == "LSTM" else named.pop("h0")
        out, last = torch.func.functional_call(rnn, named, (named.pop("x"), hx), {"rng": rng})
        return out, *(last if isinstance(last, tuple) else (last,))

    assert torch.autograd.gradcheck(run, tuple(leaves.values()), eps=1e-6, atol=1e-7, rtol=1e-5)


# 13
@pytest.mark.parametrize("cell", CELLS)
def test_rows_that_have_ended(cell: str) -> None:
    """Their gradient is complete, their states stay, and their outputs past the end are 0."""
    rnn = module(cell, all_sites(cell))
    lengths = [2, 5, 1]
    x, states = inputs_for(rnn, 5, 3)
    rng = frd.draw_rng("cpu")

    def by_last_states(result: dict[str, Tensor]) -> Tensor:
        return sum(result[name].square().sum() for name in ("h_n", "c_n") if name in result)

    leaves = list(leaves_of(rnn, x, states).values())
    whole = call(rnn, pack(x, lengths), states, rng=rng)
    got = torch.autograd.grad(by_last_states(whole), leaves)
    alone = []
    for b, length in enumerate(lengths):
        row = slice(b, b + 1)
        own = tuple(state[:, row] for state in states)
        alone.append(call(rnn, x[:length, row], own, rng=rng, example_ids=torch.tensor([b])))
        assert torch.count_nonzero(whole["out"][length:, b]) == 0
        assert_same({"h_n": whole["h_n"][:, row]}, {"h_n": alone[-1]["h_n"]}, EXACT)
    want = torch.autograd.grad(sum(map(by_last_states, alone)), leaves)
    named = leaves_of(rnn, x, states)
    assert_same(dict(zip(named, got, strict=True)), dict(zip(named, want, strict=True)), EXACT)
    assert torch.count_nonzero(got[0][1:, 2]) == 0 and torch.count_nonzero(got[0][0, 2]) > 0


# 14
@pytest.mark.parametrize(
    ("cell", "site"),
    [
        (cell, site)
        for cell in CELLS
        for site in ("weight_dropout", "hidden_dropout", "update_dropout", "cell_dropout", "zoneout_h")
        if fits(cell, {site: 0.5})
    ],
)
def test_a_reverse_direction_that_is_forgotten(cell: str, site: str) -> None:
    rnn = module(cell, {site: 0.5}, (6, 19, 0), layers=1)
    plain = twin(rnn)
    x, states = inputs_for(rnn, 4, 3)
    rng = frd.draw_rng("cpu")
    got, without = call(rnn, x, states, rng=rng)["out"], call(plain, x, states)["out"]
    forward, reverse = got.chunk(2, -1), without.chunk(2, -1)
    for direction in range(2):
        assert not torch.allclose(forward[direction], reverse[direction]), ("forward", "reverse")[direction]
    # And it has masks of its own: a reversed input through equal weights would otherwise give the same.
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if name.endswith("_reverse"):
                parameter.copy_(rnn.get_parameter(name.removesuffix("_reverse")))
    equal = torch.randn(1, 3, 6, dtype=torch.float64)
    same = tuple(state[:1].expand(2, -1, -1) for state in states)
    one, other = call(rnn, equal, same, rng=rng)["out"].chunk(2, -1)
    assert not torch.allclose(one, other)


# 15
@pytest.mark.parametrize("cell", CELLS)
def test_manual_seed_that_is_ignored(cell: str) -> None:
    rnn = module(cell, all_sites(cell))
    x, states = inputs_for(rnn, 4, 3)

    def seeded(seed: int) -> list[dict[str, Tensor]]:
        torch.manual_seed(seed)
        return [measure(rnn, x, states) for _ in range(2)]

    first, again, other = seeded(3), seeded(3), seeded(4)
    for one, two in zip(first, again, strict=True):
        assert_equal(one, two)
    assert not torch.equal(first[0]["out"], first[1]["out"])
    assert not torch.equal(first[0]["out"], other[0]["out"])
    state = torch.get_rng_state()
    want = call(rnn, x, states)
    torch.set_rng_state(state)
    assert_equal(call(rnn, x, states), want)


# 16
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_that_differ_from_run_to_run(cell: str, threads: int) -> None:
    """Sums over many rows in fp32, where another order of additions would show."""
    rnn = module(cell, all_sites(cell), (16, 48, 0), dtype=torch.float32)
    x, states = inputs_for(rnn, 24, 32)
    rng = frd.draw_rng("cpu")
    torch.set_num_threads(threads)
    want = measure(rnn, x, states, rng=rng)
    for _ in range(4):
        assert_equal(measure(rnn, x, states, rng=rng), want)
