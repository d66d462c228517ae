"""What a device shows that a host does not: streams, waiting, graphs, memory, large tensors.

A test that can run on the host does, by the shim, so that its body is tried where there is no GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparisons import replayed
from grids import (
    CELLS,
    all_sites,
    assert_equal,
    assert_same,
    call,
    cudnn_tolerance,
    inner_sites,
    inputs_for,
    leaves_of,
    measure,
    pack,
    row_of,
    tolerance,
)
from targets import CUDA_DEVICE_FREE, CUDA_FREE, Target, on
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import cudnn_library
from fused_rnn_dropout.sites import stream, threshold

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

OPS = torch.ops.fused_rnn_dropout
T, B = 5, 4
LENGTHS = [3, 5, 1, 4]
WEIGHT = {"weight_dropout": 0.4}
ALTERNATING = {"zoneout_h": 0.22}  # a site that acts inside a step, so that no other schedule is chosen


def sites_of(cell: str, schedule: str) -> dict[str, Any]:
    """Sites with which that schedule runs."""
    return all_sites(cell) if schedule == "alternating" else {**WEIGHT, "input_dropout": 0.2, "output_dropout": 0.3}


both_schedules = pytest.mark.parametrize("schedule", ["alternating", "cuDNN"])
every_cell = pytest.mark.parametrize("cell", CELLS)


def running(rnn: nn.Module, x: Any, schedule: str) -> None:
    """Fails unless that schedule is what runs."""
    assert frd.explain(rnn, x).schedule.startswith(schedule)


# --------------------------------------------------------------------------------------------------------------------
# The host and the stream
# --------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_waiting(target: Target) -> Iterator[None]:
    """Within it, whatever makes the host wait for a GPU raises."""
    if target.device != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on(CUDA_FREE)
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@both_schedules
@every_cell
def test_the_host_never_waits(target: Target, cell: str, schedule: str, packed: bool, recompute: bool) -> None:
    """Forward, backward, and a forward without gradients; packing is the caller's."""
    if schedule == "cuDNN" and (packed or recompute):
        pytest.skip("what cuDNN does with a packed batch is its own; with recompute another schedule runs")
    rnn = target.module(cell, sites_of(cell, schedule), dtype=torch.float32, recompute=recompute)
    x, states = inputs_for(rnn, T, B)
    given = pack(x, LENGTHS if packed else None)
    hx = states if rnn.mode == "LSTM" else states[0]
    running(rnn, given, schedule)

    def run() -> None:
        out = rnn(given, hx)[0]
        (out if isinstance(out, Tensor) else out.data).sum().backward(retain_graph=True)
        with torch.no_grad():
            rnn(given, hx)

    run()  # what is made once and kept may wait
    before = [leaf.grad.clone() for leaf in rnn.parameters() if leaf.grad is not None]
    with no_waiting(target):
        run()
    after = [leaf.grad for leaf in rnn.parameters() if leaf.grad is not None]
    assert len(after) == len(list(rnn.parameters()))
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@on(CUDA_FREE)
@both_schedules
@every_cell
def test_everything_runs_on_the_callers_stream(target: Target, cell: str, schedule: str) -> None:
    """Input and gradients are written there late: whoever does not wait in that stream reads what was there before."""
    rnn = target.module(cell, sites_of(cell, schedule), dtype=torch.float32)
    x, states = inputs_for(rnn, T, B)
    rng = target.rng()
    running(rnn, x, schedule)

    def run(input: Tensor, wait: Callable[[], None]) -> dict[str, Tensor]:
        leaves = leaves_of(rnn, input, states)
        wait()
        input.data.copy_(x.data)
        results = call(rnn, input, states, rng=rng)
        loss = torch.stack([result.square().sum() for result in results.values()]).sum()
        wait()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return results | {f"d {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}

    want = run(torch.full_like(x, 7.0).requires_grad_(), lambda: None)
    other = torch.full_like(x, 7.0).requires_grad_()
    if target.device == "cuda":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            got = run(other, lambda: torch.cuda._sleep(200_000_000))  # cycles: a tenth of a second
        torch.cuda.synchronize()
    else:
        got = run(other, lambda: None)
    assert_same(got, want, cudnn_tolerance(torch.float32, rnn, T))


@on(CUDA_FREE)
@both_schedules
@every_cell
def test_replays_draw_masks_of_their_own(target: Target, cell: str, schedule: str) -> None:
    """A captured call that draws its own randomness drops other elements at each replay, forward and backward alike."""
    rnn = target.module(cell, sites_of(cell, schedule), dtype=torch.float32)
    x, states = inputs_for(rnn, T, B)
    leaves = list(leaves_of(rnn, x, states).values())
    running(rnn, x, schedule)

    def run() -> tuple[Tensor, ...]:
        results = call(rnn, x, states)
        return (*results.values(), *torch.autograd.grad(results["out"].sum(), leaves))

    replay = replayed(target, run)
    first, second = replay(), replay()
    x_at = len(first) - len(leaves)
    for index in (0, x_at):  # out, and the gradient at x
        assert not torch.equal(first[index], second[index])
    for results in (first, second):
        assert all(value.isfinite().all() for value in results)
        assert (results[0] == 0).all(0).any()  # what the output's mask drops, it drops at every step
        dropped = (results[x_at] == 0).all(0)
        assert 0 < dropped.sum() < dropped.numel()
        assert torch.equal(dropped, (results[x_at] == 0).any(0))


# --------------------------------------------------------------------------------------------------------------------
# Dtypes, numbers, memory
# --------------------------------------------------------------------------------------------------------------------


@on(CUDA_DEVICE_FREE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sites", [{}, WEIGHT, ALTERNATING], ids=["none", "weight", "zoneout_h"])
@every_cell
def test_autocast_gives_its_dtype(target: Target, cell: str, sites: dict[str, Any], dtype: torch.dtype) -> None:
    """As torch's layers on cuDNN do in float16. In bfloat16 those return float16, which docs/semantics.md is about."""
    rnn = target.module(cell, sites, dtype=torch.float32)
    kwargs = row_of(cell).settings | ({"proj_size": rnn.proj_size} if rnn.proj_size else {})
    plain = getattr(nn, row_of(cell).module)(6, 19, 2, bidirectional=True, device=target.device, **kwargs)
    plain.load_state_dict(rnn.state_dict())
    x = torch.randn(T, B, 6, device=target.device, requires_grad=True)
    with torch.autocast("cuda", dtype=dtype):
        got, want = call(rnn, x, None), call(plain, x, None)
    assert all(value.dtype == dtype for value in got.values())
    if dtype == torch.float16:
        assert all(value.dtype == dtype for value in want.values())
    if not sites:
        assert_same(got, want, 2 * cudnn_tolerance(dtype, rnn, T))
    got["out"].float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in rnn.parameters())


@on(CUDA_FREE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every_cell
def test_without_sites_both_schedules_are_torchs_layers(
    target: Target,
    cell: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rnn = target.module(cell, {}, dtype=dtype)
    kwargs = row_of(cell).settings | ({"proj_size": rnn.proj_size} if rnn.proj_size else {})
    more = {"dtype": dtype, "device": target.device}
    plain = getattr(nn, row_of(cell).module)(6, 19, 2, bidirectional=True, **more, **kwargs)
    plain.load_state_dict(rnn.state_dict())
    x, states = inputs_for(rnn, T, B)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*single contiguous chunk.*")
        want = measure(plain, x, states)
        running(rnn, x, "cuDNN")
        within = cudnn_tolerance(dtype, rnn, T)
        assert_same(measure(rnn, x, states), want, within)
        monkeypatch.setattr(cudnn_library, "obstacle", lambda *_: "the test keeps it away")
        running(rnn, x, "alternating")
        assert_same(measure(rnn, x, states), want, within)


@on(CUDA_FREE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_cell
def test_runs_agree_to_the_bit(target: Target, cell: str, dtype: torch.dtype) -> None:
    """No atomic adds floats: the same numbers whenever the same thing is computed."""
    sizes, steps, batch = ((61, 200, 72), 24, 33) if target.device == "cuda" else ((5, 33, 9), 9, 33)
    rnn = target.module(cell, inner_sites(cell), sizes, layers=1, dtype=dtype)
    x, states = inputs_for(rnn, steps, batch)
    rng = target.rng()
    first = measure(rnn, x, states, rng=rng)
    for _ in range(3):
        measure(rnn, x, states)  # other masks in between, in the same memory
        assert_equal(measure(rnn, x, states, rng=rng), first)


@on(CUDA_DEVICE_FREE)
@every_cell
def test_memory_is_given_back_without_gradients(target: Target, cell: str) -> None:
    """What stays allocated after a forward pass under no_grad is its results; never was it the gates twice."""
    rnn = target.module(cell, all_sites(cell), (64, 256, 64), dtype=torch.float32)
    x, states = inputs_for(rnn, 64, 32)
    with torch.no_grad():
        call(rnn, x, states)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = call(rnn, x, states)
    own = sum(value.untyped_storage().nbytes() for value in results.values())
    assert torch.cuda.memory_allocated() - before <= own + 512 * 8  # it hands out pieces of 512 bytes
    gates = 64 * 32 * 4 * rnn.hidden_size * 4
    assert torch.cuda.max_memory_allocated() - before < 2 * gates + 4 * own


@on(CUDA_DEVICE_FREE)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@both_schedules
@every_cell
def test_another_device_than_the_current_one(target: Target, cell: str, schedule: str) -> None:
    found = []
    for index in (0, 1):
        torch.manual_seed(1)
        rnn = target.module(cell, sites_of(cell, schedule), device=f"cuda:{index}", dtype=torch.float32)
        x, states = inputs_for(rnn, T, B)
        got = measure(rnn, x, states, rng=torch.tensor([3, 4], device=x.device))
        assert all(value.device == x.device for value in got.values())
        found.append({name: value.cpu() for name, value in got.items()})
    assert torch.cuda.current_device() == 0
    assert_same(found[1], found[0], cudnn_tolerance(torch.float32, rnn, T))


# --------------------------------------------------------------------------------------------------------------------
# More elements than 32 bits count
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone_on_the_device(target: Target) -> Iterator[None]:
    """One such test at a time, whatever the number of processes; its memory goes back to the device at the end."""
    with open(Path(tempfile.gettempdir()) / "fused-rnn-dropout-large.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        if target.device == "cuda":
            torch.cuda.empty_cache()


def large(test: Any) -> Any:
    """Marks a test that fills gigabytes of a device."""
    return pytest.mark.gpu_large(pytest.mark.usefixtures("alone_on_the_device")(test))


def room(target: Target, gibibytes: float) -> None:
    """Skips where the device has less memory free."""
    if target.device == "cuda" and torch.cuda.mem_get_info()[0] < gibibytes * 2**30:
        pytest.skip(f"needs {gibibytes} GiB of free memory on the device")


def last_rows(batch: int, target: Target) -> Tensor:
    return torch.tensor([0, batch // 2, batch - 2, batch - 1], device=target.device)


@large
@on(CUDA_FREE)
def test_dropout_of_a_large_tensor(target: Target) -> None:
    """Its last rows are what they are alone."""
    room(target, 16)
    steps, batch, width = (3, 2**20, 1024) if target.device == "cuda" else (3, 70, 12)
    assert target.device != "cuda" or steps * batch * width > 2**31
    x = torch.ones(steps, batch, width, dtype=torch.bfloat16, device=target.device)
    thresholds = torch.zeros(10, dtype=torch.int64, device=target.device)
    thresholds[1] = threshold(0.3)
    rng, rows = torch.tensor([5, -6], device=target.device), last_rows(batch, target)
    site = stream(3, 0)
    for per_step in (False, True):
        got = OPS.dropout(x, rng, thresholds, None, None, 1, site, per_step, False, 17)
        alone = x[:, rows].contiguous()
        want = OPS.dropout(alone, rng, thresholds, None, rows, 1, site, per_step, False, 17)
        assert torch.equal(got[:, rows], want)
        assert 0 < (want == 0).sum() < want.numel()
        del got


@large
@on(CUDA_FREE)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_layer_with_large_tensors(target: Target, cell: str) -> None:
    """Rows of the batch do not touch each other: the last ones are what they are in a batch of their own."""
    room(target, 32)
    steps, batch, units = (9, 2**20, 64) if target.device == "cuda" else (9, 70, 8)
    gates = 4 if cell == "LSTM" else 3
    steps = steps if gates == 4 else steps + 3
    assert target.device != "cuda" or steps * batch * gates * units > 2**31
    rnn = target.module(cell, inner_sites(cell), (4, units, 4), layers=1, bidirectional=False, dtype=torch.bfloat16)
    rng, rows = target.rng(), last_rows(batch, target)
    whole = torch.randn(steps, batch, 4, dtype=torch.bfloat16, device=target.device).requires_grad_()
    alone = whole.detach()[:, rows].contiguous().requires_grad_()
    want = rnn(alone, rng=rng, example_ids=rows)[0]
    (at_alone,) = torch.autograd.grad(want, alone, torch.ones_like(want))
    got = rnn(whole, rng=rng)[0]
    (at_whole,) = torch.autograd.grad(got, whole, torch.ones_like(got))
    found = {"out": got.detach()[:, rows], "d x": at_whole[:, rows]}
    assert_same(found, {"out": want.detach(), "d x": at_alone}, tolerance(torch.bfloat16, steps))
    for name, value in found.items():
        assert torch.equal(value == 0, {"out": want, "d x": at_alone}[name] == 0)
