"""The persistent schedule: all steps of a layer in one cooperative launch, whose blocks pass h on by exchange.h.

On the host words come into sight late and in any order, by a seed (tests/cuda/host/weak_memory.h), and all blocks are
resident. Results must be those of the reference, fed with the masks of the kernels; with any seed they are the same
bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import grids
import host_run
import pytest
import torch
from comparisons import against_reference, everything, replayed
from grids import RATES, UNPROJECTED, assert_equal, assert_same, call, inputs_for, measure, module
from targets import LOW, PERSISTENT, Target, on
from torch import Tensor

import fused_rnn_dropout as frd
from fused_rnn_dropout.cells import CELLS

ALL_CELLS = tuple(CELLS)
FLOAT = [torch.float32]
"""A parameter, so that this schedule, which takes no float64, is not left out."""
OPTIONS = [
    pytest.param(cell, sites, id=f"{cell}-{name}")
    for cell in UNPROJECTED
    for name, sites in {**grids.alone(cell), **grids.options(cell)}.items()
]


def seeded(target: Target, seed: int) -> None:
    if target.on_host:
        host_run.host_module().set_seed(seed)


@on(PERSISTENT)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("sites", ["everything", "everything_unzoned", "nothing"])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_two_layers_in_both_directions(target: Target, cell: str, dtype: torch.dtype, sites: str, packed: bool) -> None:
    seeded(target, 3)
    rnn = target.module(cell, everything(target, cell)[sites], dtype=dtype)
    steps, batch, lengths = target.shape
    against_reference(target, rnn, steps, batch, lengths if packed else None)


@on(PERSISTENT)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", FLOAT)
@pytest.mark.parametrize(("cell", "sites"), OPTIONS)
def test_every_site_and_option(
    target: Target, cell: str, sites: dict[str, Any], dtype: torch.dtype, packed: bool
) -> None:
    seeded(target, 4)
    rnn = target.module(cell, sites, dtype=dtype)
    steps, batch, lengths = target.brief
    against_reference(target, rnn, steps, batch, lengths if packed else None, (False,))


SHAPES = [  # T, B, H, both directions
    (1, 1, 8, False),
    (1, 9, 17, True),
    (2, 20, 8, True),
    (2, 3, 65, False),
    (3, 16, 24, True),
    (3, 1, 200, False),
    (9, 4, 19, True),
    (9, 20, 96, False),
    (40, 2, 33, True),
    (40, 5, 48, False),
]


@on(PERSISTENT)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", UNPROJECTED)
def test_shapes_and_late_words(
    target: Target, cell: str, dtype: torch.dtype, shape: tuple[int, int, int, bool], seed: int, packed: bool
) -> None:
    """With a seed the same bits as in order, and in order what the alternating schedule computes."""
    steps, batch, units, both = shape
    torch.manual_seed(seed)
    rnn = target.module(cell, grids.inner_sites(cell), (5, units, 3), layers=1, bidirectional=both, dtype=dtype)
    x, states = inputs_for(rnn, steps, batch)
    lengths = [1 + (3 * seed + 7 * row) % steps for row in range(batch)] if packed else None
    if lengths:
        lengths[batch // 2] = steps
    given = target.draw()
    seeded(target, 0)
    in_order = measure(rnn, x, states, lengths, **given)
    seeded(target, seed)
    assert_equal(measure(rnn, x, states, lengths, **given), in_order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRD_CUDA_SCHEDULE", "alternating")
        want = measure(rnn, x, states, lengths, **given)
    within = 2 * target.tolerance(dtype, steps)
    if dtype in LOW:  # both round what they pass on, and what they keep, at other places
        within *= 2
    assert_same(in_order, want, within)


@pytest.fixture
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The shim with the schedule asked for; its device is as before afterwards."""
    with host_run.run_on_host():
        monkeypatch.setenv("FRD_CUDA_SCHEDULE", "persistent")
        shim = host_run.host_module()
        shim.take_launches()
        yield shim
        shim.set_seed(0)
        shim.set_multiprocessors(16)
        shim.set_capability(8, 0)
        shim.set_blocks_per_multiprocessor(1)


def forward(cell: str = "LSTM", **kwargs: Any) -> dict[str, Tensor]:
    kwargs = {"layers": 1, "dtype": torch.float32, "backend": "cuda", **kwargs}
    rnn = module(cell, {"hidden_dropout": 0.3}, (3, 10, 4), **kwargs)
    return call(rnn, *inputs_for(rnn, 4, 3))


@pytest.mark.cuda
@pytest.mark.parametrize("cell", UNPROJECTED)
def test_one_launch_for_all_steps_and_both_directions(host: ModuleType, cell: str) -> None:
    rnn = module(cell, {"zoneout_h": 0.2}, (3, 10, 4), dtype=torch.float32, backend="cuda")
    found = []
    for steps in (3, 7):
        measure(rnn, *inputs_for(rnn, steps, 3))
        found.append(host.take_launches())
    assert found[0] == found[1]
    assert found[0]["persistent_kernel"] == 4  # two layers, forward and backward


@pytest.mark.cuda
@pytest.mark.parametrize("cell", UNPROJECTED)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(
    host: ModuleType, cell: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own row, whatever the words of the exchange can carry."""
    rnn = module(cell, {}, (3, 10, 4), layers=1, bidirectional=False, dtype=torch.float32, backend="cuda")
    x, states = inputs_for(rnn, 5, 3)
    with torch.no_grad():
        x[1, 1] = value
    found = call(rnn, x, states)
    monkeypatch.setenv("FRD_CUDA_SCHEDULE", "alternating")
    want = call(rnn, x, states)
    for name in found:
        torch.testing.assert_close(found[name], want[name], rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_large_initial_states(host: ModuleType, cell: str) -> None:
    """Words of 32 bits hold nothing over 1, and a given h_0 may be anything."""
    sites: dict[str, Any] = {"zoneout_h": 0.5, "cell_dropout": RATES["cell_dropout"]}
    for some in ({}, sites, {"cell_dropout": 0.9}):
        rnn = module(cell, some, (3, 10, 4), layers=1, dtype=torch.float32, backend="cuda")
        x, states = inputs_for(rnn, 4, 3)
        states = tuple(10 * state.detach() for state in states)
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            rng = frd.draw_rng("cpu")
            found = call(rnn, x, states, rng=rng)
            patch.setenv("FRD_CUDA_SCHEDULE", "alternating")
            assert_same(found, call(rnn, x, states, rng=rng), 1e-5)


@pytest.mark.cuda
def test_what_cannot_run_is_refused(host: ModuleType) -> None:
    asks = "FRD_CUDA_SCHEDULE asks for the persistent schedule: forward, "
    with pytest.raises(ValueError, match=f"{asks}a projection: h has not the width of c"):
        forward("LSTM_proj")
    with pytest.raises(ValueError, match=f"{asks}float64: tensor cores have no products of it here"):
        forward(dtype=torch.float64)
    host.set_capability(7, 5)
    with pytest.raises(ValueError, match=f"{asks}compute capability 7.5: its products need 8.0"):
        forward()
    host.set_capability(8, 0)
    host.set_multiprocessors(1)
    with pytest.raises(ValueError, match=f"{asks}\\d+ blocks, and the device has 1 multiprocessors"):
        forward()


@pytest.mark.cuda
def test_an_operator_refuses_by_itself(host: ModuleType) -> None:
    """Whoever calls it by hand."""
    rnn = frd.LSTM(3, 4, proj_size=2)
    x, h0, c0 = torch.zeros(5, 2, 3), torch.zeros(2, 2), torch.zeros(2, 4)
    weights = [w.detach() for w in rnn._flat_weights]
    for number, why in ((2, "schedule asks for the persistent schedule: a projection"), (1, "schedule must be 0 or 2")):
        with pytest.raises(RuntimeError, match=why):
            torch.ops.fused_rnn_dropout.layer(
                0, x, [h0, c0], weights, None, None, None, None, torch.float32, 0, 0, 1, 0, number, 1
            )


@pytest.mark.cuda
def test_blocks_that_are_not_all_resident(host: ModuleType) -> None:
    """A launch that the device does not take at once is an error with a remedy, and never waits."""
    host.set_blocks_per_multiprocessor(0)
    with pytest.raises(RuntimeError, match="blocks on the device at once.*FRD_CUDA_SCHEDULE=alternating"):
        forward()


@on(PERSISTENT)
@pytest.mark.parametrize("dtype", FLOAT)
def test_a_replay_draws_anew(target: Target, dtype: torch.dtype) -> None:
    """A captured graph reads the pair of random numbers and the rates when it is replayed, and zeroes its memory."""
    rnn = target.module("LSTM", grids.inner_sites("LSTM"), layers=1, dtype=dtype)
    x, states = (part for part in inputs_for(rnn, 4, 3))
    rng = target.rng()

    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(call(rnn, x, states, rng=rng).values())

    replay = replayed(target, run)
    first = replay()
    rng.copy_(target.rng())
    second = replay()
    assert not torch.equal(first[0], second[0])
    assert_equal(dict(enumerate(second)), dict(enumerate(run())))  # type: ignore[arg-type]
