"""FLOP formulas: every operator has one, and what torch's counter adds up is each matrix product once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch
from grids import has
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import fused_rnn_dropout as frd
from fused_rnn_dropout import ops
from fused_rnn_dropout.cells import MODULES
from fused_rnn_dropout.sites import SITE

I, H, T, B = 6, 8, 5, 3
ALL_ON = {"input_dropout": 0.2, "inter_layer_dropout": 0.2, "output_dropout": 0.2, "hidden_dropout": 0.2,
          "weight_dropout": 0.2, "update_dropout": 0.2, "cell_dropout": 0.2, "zoneout_h": 0.2}  # fmt: skip
KINDS = [*MODULES, "projected"]


def build(kind: str, **options: Any) -> Any:
    if kind == "projected":
        options["proj_size"] = 4
        kind = "LSTM"
    options = {name: value for name, value in options.items() if name not in SITE or has(kind, name)}
    return getattr(frd, kind)(I, H, **options)


def counted(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matrices(rnn: nn.RNNBase) -> list[int]:
    return [weight.numel() for weight in rnn.parameters() if weight.dim() == 2]


def backward(rnn: Any, x: Any) -> None:
    out, _ = rnn(x)
    (out.data if isinstance(out, PackedSequence) else out).sum().backward()


def test_every_operator_has_a_formula() -> None:
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()
             if name.startswith("fused_rnn_dropout::")}  # fmt: skip
    layers = {name for name in names if "Tensor" in str(getattr(torch.ops.fused_rnn_dropout, name).default._schema)}
    assert {"layer", "layer_backward", "triton_layer_forward", "draw"} <= layers
    missing = {name for name in layers if getattr(torch.ops.fused_rnn_dropout, name) not in flop_registry}
    assert not missing


@pytest.mark.parametrize("order", ["torch.utils.flop_counter, fused_rnn_dropout", "fused_rnn_dropout"])
def test_whoever_is_imported_first(order: str) -> None:
    code = (
        f"import torch, {order}\nfrom torch.utils.flop_counter import FlopCounterMode, flop_registry\n"
        "assert torch.ops.fused_rnn_dropout.layer_backward in flop_registry\n"
        "with FlopCounterMode(display=False) as c: fused_rnn_dropout.LSTM(2, 3)(torch.randn(4, 5, 2))\n"
        "assert c.get_total_flops() == 2 * 20 * 12 * 5"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("sites", [{}, ALL_ON], ids=["none", "all"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("shape", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize("kind", KINDS)
def test_forward(kind: str, shape: dict[str, Any], mode: Any, sites: dict[str, Any]) -> None:
    if shape.get("num_layers", 1) == 1:
        sites = {name: rate for name, rate in sites.items() if name != "inter_layer_dropout"}
    rnn, x = build(kind, **shape, **sites), torch.randn(T, B, I)

    def run() -> None:
        with mode():
            rnn(x)

    assert counted(run) == 2 * T * B * sum(matrices(rnn))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("wants_x", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(kind: str, wants_x: bool, recompute: bool) -> None:
    rnn = build(kind, num_layers=2, weight_dropout=0.2, recompute=recompute)
    x = torch.randn(T, B, I, requires_grad=wants_x)
    every, of_input = sum(matrices(rnn)), rnn.weight_ih_l0.numel()
    again = sum(weight.numel() for name, weight in rnn.named_parameters() if name[:9] in ("weight_ih", "weight_hh"))
    products = 3 * every - (0 if wants_x else of_input) + (again if recompute else 0)
    assert counted(lambda: backward(rnn, x)) == 2 * T * B * products


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0", "bias_hh_l0"])
def test_only_the_gradients_that_are_needed(name: str) -> None:
    rnn = build("projected").requires_grad_(False)
    weight = getattr(rnn, name).requires_grad_(True)
    w_ih, w_hh, w_hr = matrices(rnn)
    of_weight = weight.numel() if weight.dim() == 2 else 0
    products = (w_ih + w_hh + w_hr) + (w_hh + w_hr) + of_weight  # forward, back through time, the gradient
    assert counted(lambda: backward(rnn, torch.randn(T, B, I))) == 2 * T * B * products


@pytest.mark.parametrize("kind", KINDS)
def test_packed_counts_its_rows(kind: str) -> None:
    rnn, lengths = build(kind, bidirectional=True, hidden_dropout=0.3), torch.tensor([2, 5, 3])
    packed = pack_padded_sequence(torch.randn(T, B, I), lengths, enforce_sorted=False)
    rows = int(lengths.sum())
    assert counted(lambda: rnn.eval()(packed)) == 2 * rows * sum(matrices(rnn))
    of_input = rnn.weight_ih_l0.numel() + rnn.weight_ih_l0_reverse.numel()
    assert counted(lambda: backward(rnn.train(), packed)) == 2 * rows * (3 * sum(matrices(rnn)) - of_input)


def loop(rnn: nn.RNNBase, x: Tensor) -> Tensor:
    """Layers as people write them, a matmul at a time."""
    for layer in range(rnn.num_layers):
        outs = []
        for suffix in ("", "_reverse")[: 2 if rnn.bidirectional else 1]:
            w_ih, w_hh = (getattr(rnn, f"weight_{kind}_l{layer}{suffix}") for kind in ("ih", "hh"))
            w_hr = getattr(rnn, f"weight_hr_l{layer}{suffix}", None)
            h = x.new_zeros(x.size(1), rnn.proj_size or rnn.hidden_size, requires_grad=True)
            c = x.new_zeros(x.size(1), rnn.hidden_size)
            steps = []
            for step in x.unbind(0) if not suffix else x.flip(0).unbind(0):
                from_x, from_h = step @ w_ih.t(), h @ w_hh.t()
                if rnn.mode == "LSTM":
                    i, f, g, o = (from_x + from_h).chunk(4, -1)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                    h = h if w_hr is None else h @ w_hr.t()
                elif rnn.mode == "RNN_TANH":
                    h = (from_x + from_h).tanh()
                else:
                    (r, z, n), (hr, hz, hn) = from_x.chunk(3, -1), from_h.chunk(3, -1)
                    z = (z + hz).sigmoid()
                    h = (1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * h
                steps.append(h)
            outs.append(torch.stack(steps if not suffix else steps[::-1]))
        x = torch.cat(outs, -1)
    return x


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("shape", [{}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_what_a_loop_of_products_counts(kind: str, shape: dict[str, Any], backend: str | None) -> None:
    rnn = build(kind, bias=False, backend=backend, **shape)
    x = torch.randn(T, B, I, requires_grad=True)
    h0 = torch.zeros(rnn.num_layers * (2 if rnn.bidirectional else 1), B, rnn.proj_size or H, requires_grad=True)
    hx: Any = (h0, torch.zeros(h0.size(0), B, H)) if rnn.mode == "LSTM" else h0
    assert torch.allclose(rnn(x, hx)[0], loop(rnn, x), atol=1e-6)
    assert counted(lambda: rnn(x, hx)) == counted(lambda: loop(rnn, x))
    theirs = counted(lambda: loop(rnn, x).sum().backward())
    assert abs(counted(lambda: rnn(x, hx)[0].sum().backward()) - theirs) <= 0.01 * theirs


def test_by_module() -> None:
    model = nn.Sequential(frd.GRU(I, H, weight_dropout=0.3))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(T, B, I))
    assert sum(counter.get_flop_counts()["Sequential.0"].values()) == counter.get_total_flops() > 0


def test_on_meta_tensors() -> None:
    rnn = frd.LSTM(1000, 2000, device="meta", zoneout_c=0.1)
    x = torch.empty(70, 20, 1000, device="meta")
    assert counted(lambda: rnn(x)) == 2 * 70 * 20 * sum(matrices(rnn))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("kind", KINDS)
def test_triton_operators_on_meta_tensors(kind: str) -> None:
    rnn = build(kind, bidirectional=True, device="meta", backend="triton", weight_dropout=0.2)
    x = torch.empty(T, B, I, device="meta", requires_grad=True)
    assert ops.family("triton").layer is not ops.family("cpu").layer
    assert counted(lambda: rnn(x)) == 2 * T * B * sum(matrices(rnn))
    assert counted(lambda: rnn(x)[0].sum().backward()) == 3 * 2 * T * B * sum(matrices(rnn))


@pytest.mark.parametrize("kind", KINDS)
def test_cudnn(kind: str) -> None:
    rnn = build(kind, num_layers=2, bidirectional=True)
    aten, weights = torch.ops.aten, [weight.detach() for weight in rnn.parameters()]
    packed, every = torch.randn(11, I), sum(matrices(rnn))
    first = rnn.weight_ih_l0.numel() + rnn.weight_ih_l0_reverse.numel()
    shape = (2, H, rnn.proj_size, 2, False, 0.0, True, True, [3, 3, 2, 2, 1], None)
    forward = flop_registry[aten._cudnn_rnn]
    assert forward(packed, weights, len(weights) // 4, None, packed, None, *shape, out_val=None) == 2 * 11 * every
    given = (packed, weights, len(weights) // 4, packed, packed, None, packed, None, None, None, *shape, packed)
    for mask, products in (((True,) * 4, 2 * every), ((False, True, True, True), 2 * every - first),
                           ((True, True, True, False), every)):  # fmt: skip
        count = flop_registry[aten._cudnn_rnn_backward](*given, list(mask), out_val=None)
        assert count == 2 * 11 * products


def test_compiled_counts_the_same() -> None:
    rnn, x = build("LSTM", weight_dropout=0.2), torch.randn(T, B, I)
    compiled = torch.compile(rnn, backend="aot_eager")
    with torch.no_grad():
        compiled(x)
        assert counted(lambda: compiled(x)) == counted(lambda: rnn(x))
