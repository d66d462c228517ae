"""bfloat16 on the CPU, in its own products: what is rounded where, and how far off that is.

What is exported as masks, and what a row gives beside others or alone, on one thread or three, are the same bits.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparisons import against_reference, everything
from grids import (
    CELLS,
    RATES,
    all_sites,
    assert_equal,
    call,
    inputs_for,
    measure,
    row_of,
)
from targets import CPU_BF16, CPU_EXACT, HAS_BF16, Target, cases, on
from test_sites import each

import fused_rnn_dropout as frd
from fused_rnn_dropout import library, ops
from fused_rnn_dropout.bench import rounding

BF16 = torch.bfloat16
EPS = torch.finfo(BF16).eps


@on(CPU_BF16)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("widths", [(6, 20, 8), (7, 33, 17), (1, 17, 5), (3, 130, 65)], ids=str)
@pytest.mark.parametrize("name", ["everything", "everything_unzoned", "nothing"])
@pytest.mark.parametrize("cell", CELLS)
def test_everything(target: Target, cell: str, name: str, widths: tuple[int, int, int], packed: bool) -> None:
    """Even and odd sums, and tiles that are whole or not."""
    steps, batch, lengths = target.shape
    rnn = target.module(cell, everything(target, cell)[name], widths, dtype=BF16)
    against_reference(target, rnn, steps, batch, lengths if packed else None)


@on(CPU_BF16)
@pytest.mark.parametrize(("cell", "sites"), cases(each))
def test_each_site(target: Target, cell: str, sites: dict[str, Any]) -> None:
    rnn = target.module(cell, {"zoneout_h": RATES["zoneout_h"], **sites}, (6, 20, 8), dtype=BF16)
    steps, batch, lengths = target.shape
    against_reference(target, rnn, steps, batch)
    against_reference(target, rnn, steps, batch, lengths)


@on(CPU_BF16)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("cell", CELLS)
def test_threads_do_not_matter(target: Target, cell: str, recompute: bool, packed: bool) -> None:
    """Over several chunks of steps, whose rows are an odd number."""
    rnn = target.module(cell, all_sites(cell), (37, 75, 35), dtype=BF16, recompute=recompute)
    x, states = inputs_for(rnn, 71, 21)
    lengths = [71 - 3 * row for row in range(21)] if packed else None
    given = target.drawn(21)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(measure(rnn, x, states, lengths, **given))
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


@on(CPU_BF16)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_alone_is_the_same_as_beside_others(target: Target, cell: str, steps: int) -> None:
    """Alone it meets weights as they lie, among many a copy; what others hold, even NaN, is nothing to it."""
    for left_out in ("", "weight_dropout"):
        sites = {name: spec for name, spec in all_sites(cell).items() if name != left_out}
        rnn = target.module(cell, sites, (13, 35, 17), dtype=BF16)
        x, states = inputs_for(rnn, steps, 30)
        given = {"example_ids": torch.arange(30), **target.draw()}
        with torch.no_grad():
            x[:, 1::2] = torch.nan
            together = call(rnn, x, states, **given)["out"]
            for row in (0, 14, 28):
                own = {**given, "example_ids": given["example_ids"][row : row + 1]}
                alone = call(rnn, x[:, row : row + 1], tuple(s[:, row : row + 1] for s in states), **own)["out"]
                assert torch.equal(alone[:, 0], together[:, row]) and alone.isfinite().all()


@on(CPU_BF16)
@pytest.mark.parametrize("cell", CELLS)
def test_masks_are_those_of_float32(target: Target, cell: str) -> None:
    """Exported, and as they act: what they zero in float32 is zero, and where nothing cancels nothing else."""
    low = target.module(cell, all_sites(cell), (7, 21, 9), dtype=BF16)
    single = target.module(cell, all_sites(cell), (7, 21, 9), dtype=torch.float32)
    single.load_state_dict(low.state_dict())
    x, states = inputs_for(low, 6, 5)
    given = target.drawn(5)
    assert_equal(target.masks(low, x, **given), target.masks(single, x.float(), **given))
    got = measure(low, x, states, **given)
    leaf = x.detach().float().requires_grad_()
    want = measure(single, leaf, tuple(s.detach().float().requires_grad_() for s in states), **given)
    if cell != "RNN_RELU":  # whose own zeros rounding moves
        assert all((got[name][value == 0] == 0).all() for name, value in want.items())
        assert all(torch.equal(got[name] == 0, want[name] == 0) for name in want if "weight_hh" in name)


@on(CPU_BF16)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN_TANH"])
def test_gradients_of_weights_are_summed_in_float32(target: Target, cell: str) -> None:
    """Thousands of terms over many chunks. Under autocast the weights are float32, and so are their gradients."""
    rnn = target.module(cell, {}, (5, 24, 0), layers=1, bidirectional=False, dtype=torch.float32)
    for weight in rnn.parameters():
        weight.data = weight.data.to(BF16).float()  # what the kernels read is what the reference reads
    x = torch.rand(4000, 3, 5).to(BF16)
    state = torch.zeros(1, 3, 24, dtype=BF16)
    hx = (state, state.clone()) if row_of(cell).has_c else state
    with torch.autocast("cpu", dtype=BF16):
        out, _ = rnn(x, hx)
    assert out.dtype == BF16
    out.float().sum().backward()
    got = {name: weight.grad for name, weight in rnn.named_parameters()}
    rnn.zero_grad()
    rnn.double()
    rnn(x.double())[0].sum().backward()
    for name, weight in rnn.named_parameters():
        value = got[name]
        assert value.dtype == torch.float32 and not torch.equal(value, value.to(BF16).float())
        error = (value.double() - weight.grad).abs().max() / weight.grad.abs().max()
        assert error <= EPS / 4, f"{name}: {error / EPS:.2f} eps"


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_errors_are_at_most_those_of_torch(name: str) -> None:
    """Root mean squares over five seeds, without sites. docs/cpu.md has the table."""
    ways = [target.bf16 for target in CPU_BF16]
    try:
        found = rounding.errors(name, ways)
    except ValueError as error:
        pytest.skip(str(error))
    for result, by_way in found.items():
        for way in ways:
            assert 0 < by_way[way] <= 1.05 * by_way["torch.nn"], f"{result}, {way}: {by_way}"


@pytest.mark.parametrize(
    ("how", "isa", "more"),
    [("exakt", "", "got exakt"), ("native", "baseline", "got native, and this processor or FRD_CPU_ISA has not got")],
)
@pytest.mark.parametrize("run", ["layer", "dropout"])
def test_what_is_not_there_is_refused(how: str, isa: str, more: str, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRD_CPU_BF16", how)
    x, before = torch.zeros(2, 3, 4, dtype=BF16), ops.cpu_isa()
    rnn = frd.LSTM(4, 5, dtype=BF16)
    dropout = torch.ops.fused_rnn_dropout.dropout
    keys, thresholds = torch.tensor([1, 2]), torch.full((10,), 2**31)
    calls = {
        "layer": lambda: rnn(x),
        "dropout": lambda: dropout(x, keys, thresholds, None, None, 0, 6, True, False, 0),
    }
    try:
        if isa:
            ops.cpu_isa(isa)
        with pytest.raises(RuntimeError, match=f"FRD_CPU_BF16 must be exact, emulated or.*{more}"):
            calls[run]()
        with pytest.raises(RuntimeError, match="FRD_CPU_BF16"):
            library.cpu_bf16()
        rnn.float()(x.float())  # which is nothing to it
    finally:
        ops.cpu_isa(before)


def test_what_runs_unless_something_else_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's products where the instruction set in use has them, the exact ones elsewhere."""
    monkeypatch.delenv("FRD_CPU_BF16", raising=False)
    before = ops.cpu_isa()
    try:
        for isa in ops.cpu_isas():
            ops.cpu_isa(isa)
            assert library.cpu_bf16() == ("native" if HAS_BF16 and isa == "avx512" else "exact")
            for how in ("exact", "emulated"):
                with monkeypatch.context() as within:
                    within.setenv("FRD_CPU_BF16", how)
                    assert library.cpu_bf16() == how
    finally:
        ops.cpu_isa(before)


@on(CPU_EXACT, CPU_BF16)
def test_a_backward_is_given_what_its_forward_kept(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not take float32 for bfloat16 where the environment has changed in between."""
    rnn = target.module("LSTM", {}, layers=1, dtype=BF16)
    x, states = inputs_for(rnn, 3, 2)
    out = call(rnn, x, states)["out"]
    monkeypatch.setenv("FRD_CPU_BF16", "exact" if target in CPU_BF16 else "emulated")
    with pytest.raises(RuntimeError, match="must be what the forward returned"):
        out.sum().backward()
