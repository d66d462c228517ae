"""What cuDNN with masked weights computes. Without a GPU ``cudnn_stand_in`` is cuDNN; test_cudnn_choice.py says when.

Memory is full of NaN until somebody writes to it, on the host and on a device.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import host_run
import pytest
import torch
from grids import (
    CELLS,
    ONLY_AS_A_WHOLE,
    assert_equal,
    assert_same,
    call,
    cudnn_tolerance,
    expect,
    inputs_for,
    leaves_of,
    measure,
    module,
    pack,
    with_gradients,
)
from torch import Tensor

import fused_rnn_dropout as frd
from fused_rnn_dropout import WeightDropout, cudnn, cudnn_library, schedules

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

T, B = 5, 4
LENGTHS = [3, 5, 1, 4]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["host", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the GPU's kernels run: on the host, by the shim, or on a GPU."""
    torch.set_num_threads(1)
    if request.param == "cuda":
        host_run.poison()
        yield torch.device("cuda")
        return
    with host_run.run_on_host():
        yield torch.device("cpu")


def sites_of(cell: str) -> dict[str, dict[str, Any]]:
    projection = cell == "LSTM_proj"
    return {
        "none": {},
        "weight": {"weight_dropout": 0.4},
        "weight_all": {"weight_dropout": WeightDropout(0.4, inputs=True, projection=projection)},
        "weight_row": {"weight_dropout": WeightDropout(0.4, "row", inputs=True, projection=projection)},
        "around": {"input_dropout": 0.2, "output_dropout": 0.3},
        "between": {"inter_layer_dropout": 0.3, "weight_dropout": 0.4},
        "step": {"dropout": 0.3, "weight_dropout": 0.4},
    }


CASES = [
    pytest.param(cell, name, id=f"{cell}-{name}")
    for cell in CELLS
    if cell not in ONLY_AS_A_WHOLE
    for name in sites_of(cell)
]


def schedule_of(rnn: Any, x: Any) -> str:
    return frd.explain(rnn, x).schedule


def takes_cudnn(rnn: Any, x: Any) -> None:
    """Fails unless cuDNN is what runs; skips where the device has none for that dtype."""
    found = schedule_of(rnn, x)
    if "cuDNN takes bfloat16 from" in found and rnn.weight_hh_l0.device.type == "cuda":
        pytest.skip(found)
    assert found.startswith(schedules.CUDNN), found


def check(rnn: Any, lengths: list[int] | None = None, hx: bool = True) -> None:
    """Results and gradients are the reference's, and so are the results without gradients."""
    x, states = inputs_for(rnn, T, B)
    takes_cudnn(rnn, pack(x, lengths))
    if not hx:
        states = tuple(torch.zeros_like(state).requires_grad_() for state in states)
    dtype, within = x.dtype, cudnn_tolerance(x.dtype, rnn, T)
    given = {"rng": frd.draw_rng("cpu").to(x.device), "step_offset": 7}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*single contiguous chunk.*")
        results = call(rnn, pack(x, lengths), states if hx else None, **given)
        got = with_gradients(results, leaves_of(rnn, x, states if hx else ()), dtype)
    want = expect(rnn, x, states, frd.export_masks(rnn, pack(x, lengths), **given), lengths, between=dtype)
    want = {name: value for name, value in want.items() if name in got or name not in ("d h0", "d c0")}
    assert all(value.dtype == dtype for value in got.values())
    assert_same(got, want, within)
    with torch.no_grad():
        without = call(rnn, pack(x, lengths), states if hx else None, **given)
    assert_same(without, {key: want[key] for key in without}, within)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("cell", "name"), CASES)
def test_results_and_gradients(device: torch.device, cell: str, name: str, dtype: torch.dtype, bias: bool) -> None:
    rnn = module(cell, sites_of(cell)[name], backend="cuda", device=device, dtype=dtype, bias=bias)
    check(rnn)
    check(rnn, LENGTHS)


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (1, True), (2, False), (3, True)])
@pytest.mark.parametrize("cell", CELLS)
def test_every_shape_of_a_stack(
    device: torch.device, cell: str, layers: int, bidirectional: bool, bias: bool, hx: bool
) -> None:
    for sizes in ((6, 19, 7), (32, 8, 4), (1, 1, 1)):
        if sizes[1] > 1 or cell != "LSTM_proj":
            rnn = module(cell, {"weight_dropout": 0.4}, sizes, layers=layers, bidirectional=bidirectional, bias=bias,
                         backend="cuda", device=device)  # fmt: skip
            check(rnn, None, hx)
            check(rnn, LENGTHS, hx)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("cell", "name"), CASES)
def test_autocast(device: torch.device, cell: str, name: str, dtype: torch.dtype, bias: bool) -> None:
    """Weights are cast once, into the buffer; every gradient has the dtype of what it belongs to."""
    rnn = module(cell, sites_of(cell)[name], backend="cuda", device=device, dtype=torch.float32, bias=bias)
    x, states = inputs_for(rnn, T, B)
    given = {"rng": frd.draw_rng("cpu").to(device)}
    with torch.autocast(device.type, dtype=dtype):
        takes_cudnn(rnn, x)
        results = call(rnn, x, states, **given)
    assert results["out"].dtype == (dtype if cell == "LSTM" or device.type == "cuda" else results["out"].dtype)
    got = with_gradients(results, leaves_of(rnn, x, states), dtype)
    assert all(value.dtype == torch.float32 for name, value in got.items() if name.startswith("d "))
    want = expect(rnn, x, states, frd.export_masks(rnn, x, **given), between=results["out"].dtype)
    # Weights and input are rounded too: each of them once, as what is kept is.
    assert_same(got, want, 2 * cudnn_tolerance(dtype, rnn, T))


@pytest.mark.parametrize("cell", CELLS)
def test_both_schedules_agree(device: torch.device, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same masks, and the same numbers within rounding, whichever runs."""
    rnn = module(cell, sites_of(cell)["between"], backend="cuda", device=device, layers=3)
    x, states = inputs_for(rnn, T, B)
    rng = frd.draw_rng("cpu").to(device)
    by_cudnn = measure(rnn, x, states, rng=rng)
    monkeypatch.setattr(cudnn_library, "obstacle", lambda *_: "the test keeps it away")
    assert schedule_of(rnn, x).startswith(schedules.ALTERNATING)
    assert_same(by_cudnn, measure(rnn, x, states, rng=rng), cudnn_tolerance(torch.float64, rnn, T))


@pytest.mark.parametrize("cell", CELLS)
def test_masks_off_in_eval(device: torch.device, cell: str) -> None:
    sites = sites_of(cell)["between"] | {"hidden_dropout": 0.3}
    rnn = module(cell, sites, backend="cuda", device=device).eval()
    plain = module(cell, {}, backend="reference", device=device)
    plain.load_state_dict(rnn.state_dict())
    x, states = inputs_for(rnn, T, B)
    assert_same(measure(rnn, x, states), measure(plain, x, states), cudnn_tolerance(torch.float64, rnn, T))


@pytest.mark.parametrize("cell", CELLS)
def test_weights_are_one_chunk(device: torch.device, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of one buffer, which nobody copies, of as many elements as cuDNN asks for."""
    seen: list[list[torch.Tensor]] = []
    pieces = cudnn._pieces
    monkeypatch.setattr(cudnn, "_pieces", lambda *args: seen.append(pieces(*args)) or seen[-1])
    rnn = module(cell, {"weight_dropout": 0.4}, backend="cuda", device=device, dtype=torch.float32)
    x, states = inputs_for(rnn, T, B)
    call(rnn, x, states)
    assert len(seen) == 1 and len(seen[0]) == len(list(rnn.parameters()))  # all layers and directions at once
    assert len({piece.untyped_storage().data_ptr() for piece in seen[0]}) == 1
    assert seen[0][0].untyped_storage().nbytes() >= 4 * sum(p.numel() for p in rnn.parameters())


@pytest.mark.parametrize("leaf", ["x", "weight_hh_l0", "h0"])
@pytest.mark.parametrize("cell", CELLS)
def test_double_backward_is_refused(device: torch.device, cell: str, leaf: str) -> None:
    rnn = module(cell, {"weight_dropout": 0.4}, backend="cuda", device=device)
    x, states = inputs_for(rnn, T, B)
    leaves = leaves_of(rnn, x, states)
    (gradient,) = torch.autograd.grad(call(rnn, x, states)["out"].sum(), leaves[leaf], create_graph=True)
    for other in ("x", "weight_hh_l0"):
        with pytest.raises(RuntimeError, match="double backward is not implemented.*backend='reference'"):
            torch.autograd.grad(gradient.sum(), leaves[other], retain_graph=True)


@pytest.mark.parametrize("cell", CELLS)
def test_states_that_are_not_contiguous(device: torch.device, cell: str) -> None:
    rnn = module(cell, {"weight_dropout": 0.4}, backend="cuda", device=device)
    x, states = inputs_for(rnn, T, B)
    rng = frd.draw_rng("cpu").to(device)
    turned = tuple(state.detach().transpose(0, 2).contiguous().transpose(0, 2) for state in states)
    assert not turned[0].is_contiguous()
    assert_equal(call(rnn, x, turned, rng=rng), call(rnn, x, states, rng=rng))


def test_gradient_in_eval_mode(device: torch.device) -> None:
    """cuDNN's own inference mode has none."""
    rnn = module("LSTM", {"weight_dropout": 0.4}, backend="cuda", device=device).eval()
    x, states = inputs_for(rnn, T, B)
    assert schedule_of(rnn, x).startswith("cuDNN")
    call(rnn, x, states)["out"].sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_rates_change_before_backward(device: torch.device) -> None:
    rnn = module("GRU", {"weight_dropout": 0.4}, backend="cuda", device=device)
    x, states = inputs_for(rnn, T, B)
    leaves, rng = list(leaves_of(rnn, x, states).values()), frd.draw_rng("cpu").to(device)
    want = torch.autograd.grad(call(rnn, x, states, rng=rng)["out"].sum(), leaves)
    loss = call(rnn, x, states, rng=rng)["out"].sum()
    rnn.set_rate("weight_dropout", 0.9)
    assert_equal(dict(enumerate(torch.autograd.grad(loss, leaves))), dict(enumerate(want)))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_frozen_costs_nothing(device: torch.device, cell: str, bias: bool) -> None:
    """cuDNN is asked for the gradients of weights only where one of them needs one."""
    rnn = module(cell, {"weight_dropout": 0.4}, backend="cuda", device=device, bias=bias)
    x, states = inputs_for(rnn, T, B)
    rng, of_all = frd.draw_rng("cpu").to(device), leaves_of(rnn, x, states)
    want = with_gradients(call(rnn, x, states, rng=rng), of_all, x.dtype)
    some = [name for name in of_all if name.startswith("weight_hh")]
    for needing in (["x"], ["h0"], ["x", "h0"], some, ["x", some[0]]):
        for name, leaf in of_all.items():
            leaf.requires_grad_(name in needing)
        if device.type == "cpu":
            host_run.stand_in().log.clear()
        results = call(rnn, x, states, rng=rng)
        got = with_gradients(results, {name: of_all[name] for name in needing}, x.dtype)
        assert_same(got, {name: want[name] for name in got}, cudnn_tolerance(x.dtype, rnn, T))
        of_weights = ["gradients of the weights"] if any(name in some for name in needing) else []
        if device.type == "cpu":
            log = ["forward in training", "gradients of the input", *of_weights]
            assert host_run.stand_in().log == log, needing
        else:
            assert cudnn_asks_for_weights(results["out"]) == bool(of_weights), needing
        (gradient,) = torch.autograd.grad(
            call(rnn, x, states, rng=rng)["out"].sum(), of_all[needing[0]], create_graph=True
        )
        with pytest.raises(RuntimeError, match="double backward is not implemented.*backend='reference'"):
            torch.autograd.grad(gradient.sum(), of_all[needing[0]])


def cudnn_asks_for_weights(out: Tensor) -> bool:
    """Whether the node of cuDNN in a graph has an edge to anything but the input and the states."""
    todo, seen = [out.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "CudnnRnn" in node.name():
            return any(
                "Split" in behind.name() or "View" in behind.name() for behind, _ in node.next_functions if behind
            )
        todo += [behind for behind, _ in node.next_functions]
    raise AssertionError("cuDNN is not in the graph")


@pytest.mark.parametrize("cell", CELLS)
def test_a_backward_can_run_twice(device: torch.device, cell: str) -> None:
    rnn = module(cell, {"weight_dropout": 0.4}, backend="cuda", device=device, bias=False)
    x, states = inputs_for(rnn, T, B)
    loss, leaves = call(rnn, x, states)["out"].sum(), leaves_of(rnn, x, states)
    first, second = (torch.autograd.grad(loss, list(leaves.values()), retain_graph=True) for _ in range(2))
    assert_equal(dict(enumerate(first)), dict(enumerate(second)))


# --------------------------------------------------------------------------------------------------------------------
# The buffer
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_all_of_the_buffer_is_written(device: torch.device, source: torch.dtype, target: torch.dtype) -> None:
    """Gaps before, between and behind the weights are 0, in whatever order these lie."""
    weights = [torch.randn(shape).to(device, source) for shape in ((4, 3), (5,), (2, 0), (1, 1))]
    for offsets, size in (([2, 20, 16, 40], 47), ([30, 9, 0, 3], 42), ([0, 12, 17, 17], 18)):
        assert torch.empty(3, dtype=target, device=device).isnan().all()
        flat = torch.ops.fused_rnn_dropout.masked_weights(weights, [-1] * 4, offsets, size, None, None, target, 0)
        want = torch.zeros(size, dtype=target, device=device)
        for weight, offset in zip(weights, offsets, strict=True):
            want[offset : offset + weight.numel()] = weight.flatten().to(target)
        assert flat.dtype == target and torch.equal(flat, want)


@pytest.mark.parametrize("wrong", ["length", "offset", "overlap", "shape", "dtype"])
def test_bad_arguments(device: torch.device, wrong: str) -> None:
    weight = torch.zeros(4, 3, device=device)
    weights, streams, offsets = [weight], [-1], [0]
    if wrong == "length":
        streams = [-1, -1]
    elif wrong == "offset":
        offsets = [1]
    elif wrong == "overlap":
        weights, streams, offsets = [weight[:2], weight[2:]], [-1, -1], [0, 5]
    elif wrong == "shape":
        weights = [weight[None]]
    else:
        weights = [weight.long()]
    with pytest.raises(RuntimeError, match="weights|offsets"):
        torch.ops.fused_rnn_dropout.masked_weights(weights, streams, offsets, 12, None, None, torch.float32, 0)
