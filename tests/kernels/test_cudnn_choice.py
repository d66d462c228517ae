"""When a GPU runs cuDNN with masked weights, and that whatever cuDNN or torch would refuse is asked before.

The stand-in refuses what the real one does, so that a question that is not asked makes a test on the host fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cudnn_stand_in
import host_run
import pytest
import torch
from grids import (
    CELLS,
    TOLERANCE,
    all_sites,
    assert_same,
    call,
    fitting,
    inputs_for,
    leaves_of,
    measure,
    module,
    tolerance,
    with_gradients,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_rnn_dropout as frd
from fused_rnn_dropout import cudnn_library, schedules

pytestmark = [
    pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

T, B = 5, 4
LENGTHS = [3, 5, 1, 4]
WEIGHT = {"weight_dropout": 0.4}
CPU = torch.device("cpu")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["host", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the GPU's kernels run: on the host, by the shim, or on a GPU."""
    torch.set_num_threads(1)
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    with host_run.run_on_host():
        yield CPU


@pytest.fixture
def stand_in() -> Iterator[cudnn_stand_in.StandIn]:
    """On the host: what stands in for cuDNN."""
    torch.set_num_threads(1)
    with host_run.run_on_host():
        yield host_run.stand_in()


def schedule_of(rnn: Any, x: Any) -> str:
    return frd.explain(rnn, x).schedule


def on_host(cell: str, sites: dict[str, Any] = WEIGHT, **kwargs: Any) -> Any:
    return module(cell, sites, backend="cuda", **kwargs)


def alternates(rnn: Any, x: Any, why: str) -> None:
    found = schedule_of(rnn, x)
    assert found.startswith("alternating") and why in found, found


def agrees(rnn: Any, lengths: list[int] | None = None, **kwargs: Any) -> dict[str, Tensor]:
    """Runs a module and the reference with the same masks: whoever calls what refuses fails here."""
    x, states = inputs_for(rnn, T, B)
    given = {"rng": frd.draw_rng("cpu").to(x.device), **kwargs}
    got = measure(rnn, x, states, lengths, **given)
    rnn.backend = "reference"
    want = measure(rnn, x, states, lengths, **given)
    rnn.backend = "cuda"
    assert_same(got, want, tolerance(x.dtype, 4 * T))
    return got


# --------------------------------------------------------------------------------------------------------------------
# What a module asks for
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_the_schedule_that_is_chosen_and_why(device: torch.device, cell: str) -> None:
    def chosen(sites: dict[str, Any], train: bool = True, **kwargs: Any) -> str:
        rnn = module(cell, sites, backend="cuda", device=device, **kwargs).train(train)
        return schedule_of(rnn, inputs_for(rnn, T, B)[0])

    for name in fitting(cell, dict.fromkeys(("hidden_dropout", "update_dropout", "cell_dropout", "zoneout_h"))):
        assert chosen({name: 0.2}).startswith("alternating") and f"({name} acts inside a step)" in chosen({name: 0.2})
        # In eval only zoneout is left of these, which then takes its expectation.
        assert chosen({name: 0.2}, train=False).startswith("alternating" if name == "zoneout_h" else "cuDNN")
    paper = {"update_dropout": frd.UpdateDropout(0.2, scale="paper")}
    assert chosen(paper, train=False).startswith("alternating")
    assert "recompute=True" in chosen({}, recompute=True)
    assert "hidden_dropout, update_dropout" in chosen(all_sites(cell))
    assert chosen({"weight_dropout": 0.3, "inter_layer_dropout": 0.1}).startswith("cuDNN with masked weights")


def test_a_tracer_gets_operators(device: torch.device) -> None:
    """Without numbers cuDNN cannot be asked for its layout, and torch's own layers would be unrolled."""
    rnn = module("LSTM", WEIGHT, backend="cuda", device=device)
    x, _ = inputs_for(rnn, T, B)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(x.detach())
        alternates(rnn, fake, "a tracer would unroll")
        assert rnn(fake)[0].shape == (T, B, 2 * rnn.hidden_size)


# --------------------------------------------------------------------------------------------------------------------
# What cuDNN refuses
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
@pytest.mark.parametrize(
    ("version", "capability", "takes"),
    [
        ((9, 13, 0), (8, 0), True), ((9, 13, 0), (9, 0), True), ((9, 20, 2), (12, 0), True), ((10, 0, 0), (8, 0), True),
        ((9, 12, 9), (9, 0), False), ((9, 10, 2), (9, 0), False), ((8, 99, 0), (9, 0), False),
        ((9, 13, 0), (7, 5), False), ((10, 0, 0), (7, 0), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16(
    stand_in: cudnn_stand_in.StandIn, cell: str, version: Any, capability: Any, takes: bool, autocast: bool
) -> None:
    """By torch's own rule: cuDNN 9.13 when torch was compiled, and capability 8.0."""
    stand_in.version, stand_in.device_capability = version, capability
    rnn = on_host(cell, dtype=torch.float32 if autocast else torch.bfloat16)
    x, states = inputs_for(rnn, T, B)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        dtype = rnn(x)[1][1].dtype  # float32 where the CPU's autocast promotes
        found = schedule_of(rnn, x)
        results = call(rnn, x, states)
    with_gradients(results, leaves_of(rnn, x, states), x.dtype)
    if takes or dtype == torch.float32:
        assert found.startswith(schedules.CUDNN)
    else:
        here = f"here are {version[0]}.{version[1]} and {capability[0]}.{capability[1]}"
        assert found.startswith("alternating")
        assert "cuDNN takes bfloat16 from version 9.13 and compute capability 8.0 on" in found and here in found
    for other in (torch.float16, torch.float32, torch.float64):
        rnn = on_host(cell, dtype=other)
        assert schedule_of(rnn, inputs_for(rnn, T, B)[0]).startswith(schedules.CUDNN)


def test_what_the_rule_for_bfloat16_goes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version that torch was compiled against, and the capability of the input's device, not of the current one."""

    class Library:
        getCompileVersion = staticmethod(lambda: (9, 13, 1))

    seen: list[torch.device] = []
    monkeypatch.setattr(torch.backends.cudnn, "_cudnn", Library)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda of: seen.append(of) or (7, 5))
    asked = host_run.way_to_torch()
    assert asked["compiled_version"]() == (9, 13, 1)
    assert asked["capability"](torch.device("cuda", 3)) == (7, 5)
    assert seen == [torch.device("cuda", 3)]


@pytest.mark.parametrize("cell", CELLS)
def test_long_sequences(stand_in: cudnn_stand_in.StandIn, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rnn = on_host(cell)
    for steps in (65_535, 65_536):
        padded = torch.zeros(1, 1, rnn.input_size, dtype=torch.float64).expand(steps, 1, -1)
        for x in (padded, nn.utils.rnn.pack_padded_sequence(padded, torch.tensor([steps]))):
            if steps == 65_535:
                assert schedule_of(rnn, x).startswith(schedules.CUDNN)
            else:
                alternates(rnn, x, "cuDNN takes at most 65,535 steps, here are 65,536")
    monkeypatch.setattr(cudnn_library, "MOST_STEPS", T - 1)
    for lengths in (None, LENGTHS):
        agrees(rnn, lengths)
    assert stand_in.log == []


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_batch(device: torch.device, cell: str, autocast: bool) -> None:
    """Weights have gradients all the same: zeros."""
    rnn = module(cell, WEIGHT, backend="cuda", device=device, dtype=torch.float32)
    x, states = inputs_for(rnn, T, 0)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        alternates(rnn, x, "cuDNN takes no input without elements")
        results = call(rnn, x, states)
    got = with_gradients(results, leaves_of(rnn, x, states), torch.float32)
    assert got["out"].shape == (T, 0, 2 * (rnn.proj_size or rnn.hidden_size))
    for name, parameter in rnn.named_parameters():
        assert torch.equal(got[f"d {name}"], torch.zeros_like(parameter))


@pytest.mark.parametrize("cell", CELLS)
def test_cudnn_is_off(device: torch.device, cell: str) -> None:
    rnn = module(cell, WEIGHT, backend="cuda", device=device)
    x, _ = inputs_for(rnn, T, B)
    with torch.backends.cudnn.flags(enabled=False):
        alternates(rnn, x, "torch.backends.cudnn.enabled is False")
        agrees(rnn)
    assert schedule_of(rnn, x).startswith(schedules.CUDNN)


def test_a_torch_without_cudnn(stand_in: cudnn_stand_in.StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    rnn = on_host("GRU")
    with monkeypatch.context() as context:  # ends before the stand-in does
        context.setattr(cudnn_library, "acceptable", host_run.way_to_torch()["acceptable"])
        alternates(rnn, inputs_for(rnn, T, B)[0], "this torch has no cuDNN for tensors on cpu")
        agrees(rnn)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("units", [1, 8])
def test_a_projection_to_all_units(device: torch.device, units: int, bias: bool) -> None:
    """No module has one. torch tells a projection by the widths of h and c, so it would miscount the weights."""
    gates = [(4 * units, 6), (4 * units, units)] + [(4 * units,)] * (2 if bias else 0) + [(units, units)]
    weights = [torch.randn(shape, dtype=torch.float64).to(device).requires_grad_() for shape in gates]
    hx = tuple(torch.randn(1, B, units, dtype=torch.float64).to(device).requires_grad_() for _ in range(2))
    plan = module("LSTM_proj", WEIGHT, backend="cuda", device=device)._plan
    x = torch.randn(T, B, 6, dtype=torch.float64).to(device).requires_grad_()
    thresholds = torch.full((10,), frd.sites.threshold(0.4), device=device)
    rng = frd.draw_rng("cpu").to(device)
    leaves = {"x": x, "h0": hx[0], "c0": hx[1], **dict(zip("abcde", weights, strict=False))}

    def run(backend: str) -> dict[str, Tensor]:
        found = frd.functional.run("LSTM", x, hx, weights, plan, thresholds, bias=bias, rng=rng, backend=backend)
        return with_gradients(dict(zip(("out", "h_n", "c_n"), found, strict=True)), leaves, x.dtype)

    layers = frd.functional.split_weights(weights, 1, bias, False)
    found = schedules.choose("cuda", schedules.Layers(plan, True, False, x, T, False, x.dtype, layers, B))
    assert found.schedule.name == schedules.ALTERNATING and "as many units as the memory has" in found.why
    assert_same(run("cuda"), run("reference"), TOLERANCE[torch.float64])


@pytest.mark.parametrize("cell", CELLS)
def test_deterministic_algorithms(stand_in: cudnn_stand_in.StandIn, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's layers are that where cuBLAS is told to use one workspace; nobody is told when they are not."""
    rnn = on_host(cell)
    x, _ = inputs_for(rnn, T, B)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(True)
    alternates(rnn, x, "no CUBLAS_WORKSPACE_CONFIG=:16:8 or :4096:2")
    agrees(rnn)
    for setting in (":16:8", ":4096:2", ":4096:8"):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", setting)
        assert schedule_of(rnn, x).startswith(schedules.CUDNN)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for given in ((True, True), (False, False)):
        torch.use_deterministic_algorithms(given[0], warn_only=given[1])
        assert schedule_of(rnn, x).startswith(schedules.CUDNN)


@pytest.mark.parametrize("cell", CELLS)
def test_input_and_states_that_are_not_contiguous(device: torch.device, cell: str) -> None:
    """Both as a caller's transposed ones are; the stand-in refuses such states."""
    rnn = module(cell, WEIGHT, backend="cuda", device=device, batch_first=True)
    x, states = inputs_for(rnn, B, T)
    states = tuple(state.detach().transpose(1, 2).contiguous().transpose(1, 2) for state in states)
    states = tuple(state[:, :1].expand(-1, B, -1) for state in states)
    assert not states[0].is_contiguous()
    rng = frd.draw_rng("cpu").to(device)
    got = call(rnn, x, states, rng=rng)
    rnn.backend = "reference"
    assert_same(got, call(rnn, x, states, rng=rng), 1e-11)


# --------------------------------------------------------------------------------------------------------------------
# Graphs
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [False, True], ids=["stack", "layer_by_layer"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_capture_without_a_call_before(
    stand_in: cudnn_stand_in.StandIn, cell: str, between: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first question for a layout runs kernels, which a graph would run again in each replay."""
    captures = {"now": True}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures["now"])
    rnn = on_host(cell, WEIGHT | ({"inter_layer_dropout": 0.2} if between else {}))
    x, _ = inputs_for(rnn, T, B)
    alternates(rnn, x, "a graph is being captured")
    first = agrees(rnn)
    assert stand_in.log == [] and first["out"].isfinite().all()
    captures["now"] = False
    agrees(rnn)
    assert stand_in.log.count("flatten") == (2 if between else 1)
    captures["now"] = True
    assert schedule_of(rnn, x).startswith(schedules.CUDNN)
    agrees(rnn)
    assert stand_in.log.count("flatten") == (2 if between else 1)
    # One of two layouts is not enough.
    if between:
        rnn = on_host(cell, WEIGHT | {"inter_layer_dropout": 0.2}, layers=2)
        del cudnn_library._layouts[next(reversed(cudnn_library._layouts))]
        alternates(rnn, x, "a graph is being captured")


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CELLS)
def test_a_capture_without_a_call_before_on_a_device(cell: str) -> None:
    rnn = module(cell, {}, (5, 23, 9), backend="cuda", device="cuda", dtype=torch.float32)
    x = torch.randn(T, B, 5, device="cuda")
    rng = frd.draw_rng("cpu").to("cuda")
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        rnn.recompute = True  # the alternating schedule, so that its kernels and cuBLAS are there before the capture
        call(rnn, x, None, rng=rng)
        rnn.recompute = False
        known = set(cudnn_library._layouts)
        with torch.cuda.graph(graph, stream=side):
            alternates(rnn, x, "a graph is being captured")
            got = call(rnn, x, None, rng=rng)
    graph.replay()
    torch.cuda.synchronize()
    assert set(cudnn_library._layouts) == known
    with torch.no_grad():
        assert schedule_of(rnn, x).startswith(schedules.CUDNN)
        assert_same(got, call(rnn, x, None, rng=rng), 1e-4)
