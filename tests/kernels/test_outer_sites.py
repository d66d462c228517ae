"""The sites on what a layer reads and writes, inside its operator: what an operator of their own around it computes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import host_run
import pytest
import torch
from grids import CELLS, TOLERANCE, all_sites, assert_equal, assert_same, call, inner_sites, inputs_for, measure
from targets import CPU, CPUS, CUDA_HOST, TRITON, Target, on
from test_kept import OperatorNames, kept_bytes
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import LockedDropout, schedules

_LOCKED = {
    "sequence": LockedDropout(0.3),
    "step": LockedDropout(0.3, "step"),
    "shared": LockedDropout(0.3, batch_shared=True),
    "step_shared": LockedDropout(0.3, "step", batch_shared=True),
}
OUTER: dict[str, dict[str, Any]] = {
    f"{place}_{option}": {f"{place}_dropout": spec}
    for place in ("input", "inter_layer", "output")
    for option, spec in _LOCKED.items()
} | {
    "dropout": {"dropout": 0.4},
    "all": {"input_dropout": 0.2, "inter_layer_dropout": LockedDropout(0.3, "step"), "output_dropout": 0.4},
    "all_step": {"input_dropout": _LOCKED["step"], "dropout": 0.3, "output_dropout": _LOCKED["step"]},
    "everything_dropped": {"input_dropout": 1.0, "inter_layer_dropout": 1.0, "output_dropout": 1.0},
}


@contextlib.contextmanager
def every_schedule(**fields: bool) -> Iterator[None]:
    """Within it every row of the schedules says something else."""
    with pytest.MonkeyPatch.context() as patch:
        for backend, rows in schedules.SCHEDULES.items():
            patch.setitem(schedules.SCHEDULES, backend, tuple(row._replace(**fields) for row in rows))
        yield


def around() -> contextlib.AbstractContextManager[None]:
    """Within it an operator of their own computes these sites."""
    return every_schedule(outer_sites=False)


def assert_equal_results(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """The same results, and gradients within what another order of roundings makes."""
    assert_same(got, want, tolerance)
    results = ("out", *(name for name in want if name in ("h_n", "c_n")))
    assert_equal({name: got[name] for name in results}, {name: want[name] for name in results})


def compare(rnn: nn.Module, x: Tensor, states: tuple[Tensor, ...], lengths: list[int] | None, **given: Any) -> None:
    got = measure(rnn, x, states, lengths, **given)
    with around(), OperatorNames() as seen:
        want = measure(rnn, x, states, lengths, **given)
    assert any(name.endswith("dropout") for name in seen.names)
    if rnn.bidirectional:  # the CPU masks two gradients before it sums them, not after
        assert_equal_results(got, want, TOLERANCE[x.dtype])
    else:
        assert_equal(got, want)


@on(CPUS)
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("sites", OUTER)
@pytest.mark.parametrize("cell", CELLS)
def test_they_are_those_of_an_operator_around_the_layer(
    target: Target, cell: str, sites: str, packed: bool, bidirectional: bool, dtype: torch.dtype, recompute: bool
) -> None:
    rnn = target.module(cell, OUTER[sites], bidirectional=bidirectional, dtype=dtype, recompute=recompute)
    steps, batch, lengths = target.shape
    compare(rnn, *inputs_for(rnn, steps, batch), lengths if packed else None, **target.drawn(batch))


@on(CUDA_HOST, TRITON)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("sites", ["input_sequence", "output_step_shared", "all", "all_step"])
@pytest.mark.parametrize("cell", CELLS)
def test_on_a_gpu_too(target: Target, cell: str, sites: str, packed: bool) -> None:
    rnn = target.module(cell, OUTER[sites])
    steps, batch, lengths = target.brief
    x, states = inputs_for(rnn, steps, batch)
    for rnn.recompute in (False, True):
        compare(rnn, x, states, lengths if packed else None, **target.drawn(batch))


@on(CPU, CUDA_HOST, TRITON)
@pytest.mark.parametrize("sites", ["all", "all_step", "inter_layer_step_shared", "everything_dropped"])
@pytest.mark.parametrize("cell", CELLS)
def test_whether_the_lower_layer_masks_what_is_between_or_the_upper_one(target: Target, cell: str, sites: str) -> None:
    rnn = target.module(cell, OUTER[sites], layers=3, bidirectional=False, dtype=torch.float64)
    steps, batch, lengths = target.brief
    x, states = inputs_for(rnn, steps, batch)
    given = target.drawn(batch)
    with every_schedule(writes_between=False):
        want = measure(rnn, x, states, lengths, **given)
    for rnn.recompute in (False, True):
        with every_schedule(writes_between=True):
            # A step may multiply with the mask's scale and add in one rounding.
            assert_equal_results(measure(rnn, x, states, lengths, **given), want, TOLERANCE[x.dtype])


@on(CUDA_HOST)
@pytest.mark.parametrize("sites", ["dropout", "inter_layer_sequence", "output_step"])
@pytest.mark.parametrize("cell", CELLS)
def test_what_a_step_writes_takes_no_pass_for_its_mask(target: Target, cell: str, sites: str) -> None:
    rnn = target.module(cell, OUTER[sites], layers=3, dtype=torch.float32)
    shim = host_run.host_module()
    shim.take_launches()
    measure(rnn, *inputs_for(rnn, *target.brief[:2]), **target.drawn(target.brief.batch))
    launches = shim.take_launches()
    ran = " ".join(launches)
    assert "written_masks" in ran and "drop_rows" not in ran, ran


@on(CPU, CUDA_HOST)
@pytest.mark.parametrize("sites", ["all", "all_step"])
@pytest.mark.parametrize("cell", CELLS)
def test_beside_the_sites_inside_a_step(target: Target, cell: str, sites: str) -> None:
    inside = {name: spec for name, spec in inner_sites(cell).items() if name not in OUTER[sites]}
    rnn = target.module(cell, inside | OUTER[sites], bidirectional=False)
    steps, batch, lengths = target.shape
    compare(rnn, *inputs_for(rnn, steps, batch), lengths, **target.drawn(batch))


@on(CPU)
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("sites", ["all", "all_step"])
@pytest.mark.parametrize("cell", CELLS)
def test_in_several_chunks_of_steps(target: Target, cell: str, sites: str, packed: bool, recompute: bool) -> None:
    """Wider than the blocks that masks are drawn in, with an output of the reverse direction that begins within one."""
    rnn = target.module(cell, OUTER[sites], (150, 140, 139), dtype=torch.float32, recompute=recompute)
    x, states = inputs_for(rnn, 160, 40)
    lengths = [160 - 2 * row for row in range(40)] if packed else None
    compare(rnn, x, states, lengths, **target.drawn(40))


@on(CPU)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "RNN_RELU"])  # rounding moves a relu's zeros
def test_16_bits(target: Target, cell: str, dtype: torch.dtype) -> None:
    """Here the masked rows need not be rounded to 16 bits."""
    rnn = target.module(cell, OUTER["all_step"], dtype=dtype)
    x, states = inputs_for(rnn, *target.shape[:2])
    given = target.drawn(target.shape.batch)
    got = measure(rnn, x, states, **given)
    with around():
        want = measure(rnn, x, states, **given)
    assert_same(got, want, target.tolerance(dtype, 2 * target.shape.steps))
    masks = frd.export_masks(rnn, x, **given)
    for name, mask in (("out", masks["output"]), ("d x", masks["input"])):
        assert (got[name][mask == 0] == 0).all()


@on(CPU)
@pytest.mark.parametrize("cell", CELLS)
def test_only_gradients_that_somebody_asks_for(target: Target, cell: str) -> None:
    rnn = target.module(cell, OUTER["all"], bidirectional=False, layers=1)
    x, states = inputs_for(rnn, *target.shape[:2])
    given = target.drawn(target.shape.batch)
    want = measure(rnn, x, states, **given)
    frozen = [("x", x), ("weight_ih_l0", rnn.weight_ih_l0), ("weight_hh_l0", rnn.weight_hh_l0)]
    for rnn.recompute, chosen in itertools.product((False, True), itertools.product((False, True), repeat=3)):
        for (_, leaf), wanted in zip(frozen, chosen, strict=True):
            leaf.requires_grad_(wanted)
        got = measure(rnn, x, states, **given)
        left = {f"d {name}" for (name, _), wanted in zip(frozen, chosen, strict=True) if not wanted}
        assert_equal(got, {name: value for name, value in want.items() if name not in left})


@on(CPU, CUDA_HOST)
@pytest.mark.parametrize("cell", CELLS)
def test_the_output_alone_is_masked(target: Target, cell: str) -> None:
    """Neither h_n nor the h of the next step is, and so nothing else differs from a layer without the site."""
    masked = target.module(cell, {"output_dropout": LockedDropout(0.5, "step")})
    plain = target.module(cell, {})
    plain.load_state_dict(masked.state_dict())
    x, states = inputs_for(masked, *target.shape[:2])
    given = target.draw()
    got, want = call(masked, x, states, **given), call(plain, x, states)
    factors = frd.export_masks(masked, x, **given)["output"]
    assert_equal(got, want | {"out": want["out"] * factors})
    assert 0 < int((factors == 0).sum()) < factors.numel()


@on(CPU)
@pytest.mark.parametrize("cell", CELLS)
def test_a_dropped_input_is_not_read(target: Target, cell: str) -> None:
    """It is chosen away, not multiplied with: an infinite one leaves no NaN, here or in a gradient."""
    rnn = target.module(cell, {"input_dropout": LockedDropout(0.5, "step")})
    x, states = inputs_for(rnn, *target.shape[:2])
    given = target.draw()
    want = measure(rnn, x, states, **given)
    dropped = frd.export_masks(rnn, x, **given)["input"] == 0
    with torch.no_grad():
        x[dropped] = torch.inf
    assert_equal(measure(rnn, x, states, **given), want)
    assert (want["d x"][dropped] == 0).all() and (want["d x"][~dropped] != 0).all()


@on(CPU)
@pytest.mark.parametrize("cell", CELLS)
def test_eval_masks_nothing_and_mc_does(target: Target, cell: str) -> None:
    rnn = target.module(cell, OUTER["all"])
    plain = target.module(cell, {})
    plain.load_state_dict(rnn.state_dict())
    x, states = inputs_for(rnn, *target.shape[:2])
    given = target.draw()
    trained = call(rnn, x, states, **given)
    rnn.eval()
    assert_equal(call(rnn, x, states, **given), call(plain, x, states))
    rnn.mc = True
    assert_equal(call(rnn, x, states, **given), trained)


@on(CPU, CUDA_HOST)
@pytest.mark.parametrize("cell", CELLS)
def test_no_other_operator_runs_and_no_more_is_kept(target: Target, cell: str) -> None:
    rnn = target.module(cell, all_sites(cell), dtype=torch.float32)
    x, states = inputs_for(rnn, *target.shape[:2])
    with OperatorNames() as seen:
        measure(rnn, x, states)
    assert "fused_rnn_dropout::dropout" not in seen.names
    kept = kept_bytes(rnn, x, states)
    with around():
        assert kept <= kept_bytes(rnn, x, states)


@on(CPU)
def test_flags_of_a_layer_are_those_of_its_place(target: Target) -> None:
    rnn = target.module("LSTM", OUTER["all_step"], layers=3)
    flag, plan = frd.sites.FLAG, rnn._plan
    on = flag["MASKS_ON"]
    assert [plan.layer_flags(layer, 3) for layer in range(3)] == [
        on | flag["INPUT"], on | flag["DROPOUT"], on | flag["DROPOUT"] | flag["OUTPUT"]
    ]  # fmt: skip
    below = on | flag["DROPOUT"] | flag["WRITES_BETWEEN"]
    assert [plan.layer_flags(layer, 3, writes_between=True) for layer in range(3)] == [
        below | flag["INPUT"], below, on | flag["OUTPUT"]
    ]  # fmt: skip
    assert plan.eval_flags == 0
    assert target.module("LSTM", {"output_dropout": 0.3}, layers=2)._plan.layer_flags(0, 2) == 0
