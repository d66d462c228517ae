"""cuDNN with masked weights, and how a GPU's schedule is chosen. Without one, torch's CPU layers stand in for cuDNN."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import host_run
import pytest
import torch
from grids import (
    CELLS,
    TOLERANCE,
    all_sites,
    assert_equal,
    assert_same,
    call,
    expect,
    inputs_for,
    leaves_of,
    measure,
    module,
    pack,
    tolerance,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_rnn_dropout as frd
from fused_rnn_dropout import WeightDropout, cudnn

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

T, B = 5, 4
LENGTHS = [3, 5, 1, 4]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["host", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the GPU's kernels run: on the host, by the shim, or on a GPU."""
    torch.set_num_threads(1)
    if request.param == "cuda":
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


CASES = [pytest.param(cell, name, id=f"{cell}-{name}") for cell in CELLS for name in sites_of(cell)]


def schedule_of(rnn: Any, x: Any) -> str:
    return frd.explain(rnn, x).schedule


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("cell", "name"), CASES)
def test_results_and_gradients(device: torch.device, cell: str, name: str, dtype: torch.dtype) -> None:
    rnn = module(cell, sites_of(cell)[name], backend="cuda", device=device, dtype=dtype)
    x, states = inputs_for(rnn, T, B)
    if device.type == "cpu" or torch.cudnn_is_acceptable(x):
        assert schedule_of(rnn, x).startswith(cudnn.CUDNN)
    for lengths in (None, LENGTHS):
        given = {"rng": frd.draw_rng("cpu").to(device), "step_offset": 7}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*single contiguous chunk.*")
            got = measure(rnn, x, states, lengths, **given)
        want = expect(rnn, x, states, frd.export_masks(rnn, pack(x, lengths), **given), lengths, between=dtype)
        assert all(value.dtype == dtype for value in got.values())
        assert_same(got, want, tolerance(dtype, 2 * T))
        with torch.no_grad():
            assert_same(call(rnn, pack(x, lengths), states, **given), {key: want[key] for key in want if key[1] != " "},
                        tolerance(dtype, 2 * T))  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
def test_both_schedules_agree(device: torch.device, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same masks, and the same numbers within rounding, whichever runs."""
    rnn = module(cell, sites_of(cell)["between"], backend="cuda", device=device, layers=3)
    x, states = inputs_for(rnn, T, B)
    rng = frd.draw_rng("cpu").to(device)
    by_cudnn = measure(rnn, x, states, rng=rng)
    monkeypatch.setattr(cudnn, "_takes", lambda *_: False)
    assert schedule_of(rnn, x).startswith(cudnn.ALTERNATING)
    assert_same(by_cudnn, measure(rnn, x, states, rng=rng), TOLERANCE[torch.float64])


@pytest.mark.parametrize("cell", CELLS)
def test_the_schedule_that_is_chosen_and_why(device: torch.device, cell: str) -> None:
    def chosen(sites: dict[str, Any], train: bool = True, **kwargs: Any) -> str:
        rnn = module(cell, sites, backend="cuda", device=device, **kwargs).train(train)
        return schedule_of(rnn, inputs_for(rnn, T, B)[0])

    for name in ("hidden_dropout", "update_dropout", "cell_dropout", "zoneout_h"):
        assert chosen({name: 0.2}).startswith("alternating") and f"({name} acts inside a step)" in chosen({name: 0.2})
        # In eval only zoneout is left of these, which then takes its expectation.
        assert chosen({name: 0.2}, train=False).startswith("alternating" if name == "zoneout_h" else "cuDNN")
    paper = {"update_dropout": frd.UpdateDropout(0.2, scale="paper")}
    assert chosen(paper, train=False).startswith("alternating")
    assert "recompute=True" in chosen({}, recompute=True)
    assert "hidden_dropout, update_dropout" in chosen(all_sites(cell))
    assert chosen({"weight_dropout": 0.3, "inter_layer_dropout": 0.1}).startswith("cuDNN with masked weights")


@pytest.mark.parametrize("cell", CELLS)
def test_masks_off_in_eval(device: torch.device, cell: str) -> None:
    sites = sites_of(cell)["between"] | {"hidden_dropout": 0.3}
    rnn = module(cell, sites, backend="cuda", device=device).eval()
    plain = module(cell, {}, backend="reference", device=device)
    plain.load_state_dict(rnn.state_dict())
    x, states = inputs_for(rnn, T, B)
    assert_same(measure(rnn, x, states), measure(plain, x, states), TOLERANCE[torch.float64])


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


def test_a_tracer_gets_operators(device: torch.device) -> None:
    """Without numbers cuDNN cannot be asked for its layout, and torch's own layers would be unrolled."""
    rnn = module("LSTM", {"weight_dropout": 0.4}, backend="cuda", device=device)
    x, _ = inputs_for(rnn, T, B)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(x.detach())
        assert cudnn.choose(rnn._plan, True, False, fake, x.dtype).name == cudnn.ALTERNATING
        assert rnn(fake)[0].shape == (T, B, 2 * rnn.hidden_size)


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


@pytest.mark.parametrize("wrong", ["length", "offset", "shape", "dtype"])
def test_bad_arguments(device: torch.device, wrong: str) -> None:
    weight = torch.zeros(4, 3, device=device)
    weights, streams, offsets = [weight], [-1], [0]
    if wrong == "length":
        streams = [-1, -1]
    elif wrong == "offset":
        offsets = [1]
    elif wrong == "shape":
        weights = [weight[None]]
    else:
        weights = [weight.long()]
    with pytest.raises(RuntimeError, match="weights|offsets"):
        torch.ops.fused_rnn_dropout.masked_weights(weights, streams, offsets, 12, None, None, torch.float32, 0)
