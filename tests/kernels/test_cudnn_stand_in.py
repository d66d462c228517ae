"""The way to cuDNN: that torch's functions are called as its own modules call them, and what stands in for them.

The stand-in is worth what it refuses, and what it reads that a module does not have.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import cudnn_stand_in
import host_run
import pytest
import torch
from grids import CELLS, module, pack, row_of
from torch import Tensor, nn

from fused_rnn_dropout import cells, cudnn_library

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

T, B = 5, 4


MODES = {"RNN_RELU": 0, "RNN_TANH": 1, "LSTM": 2, "GRU": 3}
"""What cuDNN calls the cells."""


@pytest.fixture
def stand_in() -> Iterator[cudnn_stand_in.StandIn]:
    """On the host: what stands in for cuDNN."""
    torch.set_num_threads(1)
    with host_run.run_on_host():
        yield host_run.stand_in()


# --------------------------------------------------------------------------------------------------------------------
# The calls of torch, which the stand-in takes the place of
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def way_to_torch() -> dict[str, Any]:
    return host_run.way_to_torch()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("cell", CELLS)
def test_torchs_layers_are_called_as_torchs_modules_call_them(
    way_to_torch: dict[str, Any], cell: str, bias: bool, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = cell.removesuffix("_proj")
    row, more = row_of(cell), {"proj_size": 4} if mode != cell else {}
    plain = getattr(nn, row.module)(6, 9, 2, bias=bias, bidirectional=True, **row.settings, **more)
    x = pack(torch.randn(T, B, 6), [5, 3, 2, 1] if packed else None)
    hx = [torch.randn(4, B, width) for width in (plain.proj_size or 9, 9)][: row.states]
    data, sizes = (x.data, x.batch_sizes) if packed else (x, None)
    seen: list[tuple[Any, ...]] = []
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        function = getattr(torch._VF, name)
        monkeypatch.setattr(torch._VF, name, lambda *a, f=function: seen.append(a) or f(*a), raising=False)
    for train in (False, True):
        plain.train(train)(x, tuple(hx) if row.has_c else hx[0])
        way_to_torch["run"](mode, data, sizes, hx, plain._flat_weights, bias, 2, train, True)
        theirs, ours = seen[-2:]
        assert len(theirs) == len(ours)
        for a, b in zip(theirs, ours, strict=True):
            pairs = zip(a, b, strict=True) if isinstance(a, (tuple, list)) else [(a, b)]
            assert all(torch.equal(p, q) if isinstance(p, Tensor) else p == q for p, q in pairs)


@pytest.mark.parametrize("cell", CELLS)
def test_torch_is_asked_for_a_layout_as_its_modules_ask(
    way_to_torch: dict[str, Any], cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [argument.name for argument in torch.ops.aten._cudnn_rnn_flatten_weight.default._schema.arguments]
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *a: seen.append(dict(zip(names, a, strict=True))))
    monkeypatch.setattr(torch.backends.cudnn.rnn, "get_cudnn_mode", MODES.get)
    weights = [torch.zeros(4, 6)]
    mode = cell.removesuffix("_proj")
    way_to_torch["flatten_weight"](weights, 5, mode, 9, 4, 2, True)
    assert seen == [
        {
            "weight_arr": weights, "weight_stride0": 5, "input_size": 6, "mode": MODES[mode],
            "hidden_size": 9, "proj_size": 4, "num_layers": 2, "batch_first": False, "bidirectional": True,
        }
    ]  # fmt: skip


def test_this_torch_is_asked(way_to_torch: dict[str, Any]) -> None:
    """What is not public is there, and says no on the CPU."""
    assert way_to_torch["acceptable"](torch.zeros(1)) is torch.cudnn_is_acceptable(torch.zeros(1)) is False
    if torch.backends.cudnn.is_available():
        assert len(way_to_torch["compiled_version"]()) == 3


# --------------------------------------------------------------------------------------------------------------------
# The stand-in
# --------------------------------------------------------------------------------------------------------------------


def given_to(
    cell: str = "LSTM", steps: int = T, dtype: torch.dtype = torch.float32, bias: bool = True
) -> dict[str, Any]:
    """Arguments of ``cudnn_library.run`` that it takes."""
    rnn = module(cell, {}, layers=1, bidirectional=False, dtype=dtype, bias=bias)
    weights = [weight.detach().clone() for weight in rnn.parameters()]
    hidden, projected = rnn.hidden_size, rnn.proj_size
    cudnn_library.flatten_weight(weights, len(weights), rnn.mode, hidden, projected, 1, False)
    states = [torch.zeros(1, B, width, dtype=dtype) for width in (projected or hidden, hidden)]
    return {
        "cell": rnn.mode, "x": torch.zeros(steps, B, 6, dtype=dtype), "batch_sizes": None,
        "states": states[: cells.CELLS[rnn.mode].states], "weights": weights, "has_bias": bias, "layers": 1,
        "train": True, "bidirectional": False,
    }  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
def test_what_the_stand_in_refuses(stand_in: cudnn_stand_in.StandIn, cell: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*single contiguous chunk")
        assert cudnn_library.run(**given_to(cell))[0].shape[:2] == (T, B)

    def refused(match: str, **changed: Any) -> None:
        with pytest.raises(RuntimeError, match=match):
            cudnn_library.run(**given_to(cell) | changed)

    given = given_to(cell)
    refused("NOT_SUPPORTED", x=torch.zeros(1, 1, 6).expand(65_536, B, 6))
    refused("NOT_SUPPORTED", x=torch.zeros(65_536, 6), batch_sizes=torch.ones(65_536, dtype=torch.int64))
    refused("BAD_PARAM", x=given["x"][:, :0])
    turned = [state.transpose(0, 2).contiguous().transpose(0, 2) for state in given["states"]]
    refused("hx is not contiguous", states=turned)
    refused("Input and hidden tensors are not the same dtype", states=[state.double() for state in given["states"]])
    refused("Input and parameter tensors are not the same dtype", x=given["x"].double(),
            states=[state.double() for state in given["states"]])  # fmt: skip
    refused("INTERNAL ASSERT", weights=given["weights"][:-1])
    if cell == "LSTM_proj":
        refused("INTERNAL ASSERT", states=[given["states"][1]] * 2)
    stand_in.version = (9, 10, 2)
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        given_to(cell, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="single contiguous chunk"):
        cudnn_library.run(**given | {"weights": [weight.clone() for weight in given["weights"]]})
    x = given["x"].requires_grad_()
    with pytest.raises(RuntimeError, match="cudnn RNN backward can only be called in training mode"):
        cudnn_library.run(**given | {"x": x, "train": False})[0].sum().backward()


@pytest.mark.parametrize("cell", CELLS)
def test_the_stand_in_reads_biases_that_a_module_does_not_have(stand_in: cudnn_stand_in.StandIn, cell: str) -> None:
    given = given_to(cell, bias=False)
    want = cudnn_library.run(**given)[0]
    assert want.isfinite().all()
    flat = given["weights"][0]
    whole = torch.empty(0).set_(flat.untyped_storage())
    places, size = cudnn_stand_in.places_of(given["cell"], 6, 19, 7 if cell == "LSTM_proj" else 0, 1, False)
    assert whole.numel() == size > sum(weight.numel() for weight in given["weights"])
    for name in ("b_ih", "b_hh"):
        cudnn_stand_in.view(whole, places[0][name]).fill_(0.5)
        got = cudnn_library.run(**given)[0]
        assert not torch.equal(got, want)
        want = got
