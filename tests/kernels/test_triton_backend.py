"""What surrounds the Triton kernels: masks, arguments, fakes, schedules, compile keys, explain, doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from grids import CELLS, UNPROJECTED, all_sites, call, fits, inputs_for, module
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_rnn_dropout as frd
from fused_rnn_dropout import cli, doctor, masks, ops, schedules
from fused_rnn_dropout.layer_call import FORWARD, Keep, Kept, LayerCall
from fused_rnn_dropout.sites import FLAG, KINDS, SITE, keep_scale, stream, threshold
from fused_rnn_dropout.triton import launch

pytest.importorskip("triton", reason="the package triton is not installed")

ON_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if ON_DEVICE else "cpu"
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout")]
here = pytest.mark.gpu if ON_DEVICE else lambda test: test  # a test that runs kernels
triton_ops = ops.family("triton")


# --------------------------------------------------------------------------------------------------------------------
# Numbers and dropout: the same bits as everywhere
# --------------------------------------------------------------------------------------------------------------------


@here
@pytest.mark.parametrize("kind", [kind.number for kind in KINDS], ids=[kind.name for kind in KINDS])
def test_words_are_those_of_every_backend(kind: int) -> None:
    """All kinds, both directions, gates, a layer that fills its half word, counters at both ends."""
    row, step = torch.tensor([0, 5, 2**31, 2**32 - 2]), torch.tensor([3, 2**32 - 1])
    for rng in (torch.tensor([-1, 2**63 - 1]), torch.tensor([-(2**63), 12345678901234])):
        for of in (stream(kind, 0), stream(kind, 65535, 1, 3)):
            for n in (1, 37):
                got = triton_ops.words(rng.to(DEVICE), row.to(DEVICE), step.to(DEVICE), n, of).cpu()
                assert torch.equal(got, masks.words(rng, row, step, n, of))
                assert torch.equal(got, ops.words(rng, row, step, n, of))


@here
def test_no_words() -> None:
    rng, none = frd.draw_rng(DEVICE), torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert triton_ops.words(rng, none, none, 5, 0).shape == (0, 0, 5)


@here
@pytest.mark.parametrize("per_step", [False, True], ids=["locked", "step"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dropout_is_the_cpu_kernels(dtype: torch.dtype, packed: bool, shared: bool, per_step: bool) -> None:
    """The same elements dropped, the scale not rounded before the product: the same bits, where the interpreter
    rounds; it cuts bfloat16 off instead.
    """
    sizes, ids = torch.tensor([4, 4, 2, 1]), torch.tensor([7, 0, 2**32 - 2, 31])
    x = torch.randn((11, 37) if packed else (5, 4, 37), dtype=dtype)
    thresholds = torch.zeros(10, dtype=torch.int64).index_fill(0, torch.tensor(2), threshold(0.3))
    rng, of = frd.draw_rng("cpu"), stream(4, 3)
    tail = (2, of, per_step, shared, 1000)
    want = ops.dropout(x, rng, thresholds, sizes if packed else None, ids, *tail)
    moved = (value.to(DEVICE) for value in (x, rng, thresholds))
    got = triton_ops.dropout(*moved, sizes if packed else None, ids.to(DEVICE), *tail).cpu()
    assert got.dtype == dtype and torch.equal(got != 0, want != 0)
    if dtype == torch.bfloat16 and not ON_DEVICE:
        assert ((got - want).abs() <= torch.finfo(dtype).eps * want.abs()).all()
        scale = torch.tensor(keep_scale(threshold(0.3)), dtype=torch.float32)
        exact = (x.float() * scale)[got != 0]
        assert (got[got != 0].float().abs() <= exact.abs()).all()
    else:
        assert torch.equal(got, want)


@here
@pytest.mark.parametrize("cell", UNPROJECTED)
def test_masks_do_not_depend_on_the_split(cell: str) -> None:
    """Half a batch and later steps alone, told by example_ids and step_offset, give the rows of the whole."""
    rnn = module(cell, {"hidden_dropout": 0.3, "zoneout_h": 0.2}, (3, 5, 4), layers=1, bidirectional=False,
                 backend="triton").to(DEVICE)  # fmt: skip
    x, rng, ids = torch.randn(4, 4, 3, dtype=torch.float64, device=DEVICE), frd.draw_rng(DEVICE), [3, 1]
    out, _ = rnn(x, rng=rng)
    chosen = torch.tensor(ids, device=DEVICE)
    first, state = rnn(x[:2, ids], rng=rng, example_ids=chosen)
    second, _ = rnn(x[2:, ids], state, rng=rng, example_ids=chosen, step_offset=2)
    torch.testing.assert_close(torch.cat((first, second)), out[:, ids], rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------------------------------


_WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")
_READ_TWICE = (*SITE["dropout"].flags, *SITE["inter_layer_dropout"].flags)
_FLAGS = sum(bit for name, bit in FLAG.items() if name not in (*_READ_TWICE, "WEIGHT_HR"))
"""Those of every site that a layer without a projection may have beside the others, with every option."""


def lstm_arguments(**changed: Any) -> LayerCall:
    """Of ``triton_layer_forward``, with every site of a layer on; ``changed`` by the names of the tensors."""
    units, inputs = 3, 2
    named: dict[str, Any] = {
        "x": torch.randn(2, 4, inputs), "h0": torch.zeros(4, units), "c0": torch.zeros(4, units),
        "w_ih": torch.randn(12, inputs), "w_hh": torch.randn(12, units), "b_ih": torch.zeros(12),
        "b_hh": torch.zeros(12), "batch_sizes": None, "example_ids": None,
        "rng": torch.zeros(6, 2, dtype=torch.int64), "thresholds": torch.zeros(10, dtype=torch.int64),
        "dtype": torch.float32, "flags": _FLAGS, "layer": 0, "directions": FORWARD, "step_offset": 0, "schedule": 0,
        "keep": Keep.ALL,
    }  # fmt: skip
    assert changed.keys() <= named.keys()
    given = {name: _moved(value) for name, value in {**named, **changed}.items()}
    states = [given.pop(name) for name in ("h0", "c0")]
    weights = [given.pop(name) for name in _WEIGHTS]
    return LayerCall(cell=0, states=states, weights=[weight for weight in weights if weight is not None], **given)


def _moved(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, Tensor) and value.device.type != "meta" else value


def _each_tensor(change: Callable[[Tensor], Tensor], given: LayerCall) -> LayerCall:
    """The same call with other tensors."""
    tensors, bare = given.split()
    return bare.join([None if tensor is None else change(tensor) for tensor in tensors])[0]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "int x": ({"x": torch.zeros(2, 4, 2, dtype=torch.int32)}, "x must be float32, float64, float16 or bfloat16"),
    "2-D x": ({"x": torch.zeros(8, 2)}, r"x must be \(T, B, width\), or \(N, width\) with batch_sizes"),
    "w_ih": ({"w_ih": torch.zeros(12, 3)}, "w_ih has a shape that does not fit"),
    "w_hh": ({"w_hh": torch.zeros(12, 4)}, "w_hh has a shape that does not fit"),
    "c0": ({"c0": torch.zeros(4, 5)}, "h0 must have as many units as c0"),
    "one bias": ({"b_hh": None}, "w_hr has a shape that does not fit"),
    "no weights": (dict.fromkeys(_WEIGHTS), "weights must hold w_ih and w_hh, then b_ih and b_hh where there are"),
    "directions": ({"directions": 0}, "directions must be 1, 2 or 3, got 0"),
    "both": ({"directions": 3}, "states must hold h0 and c0 of each direction, 4 tensors, got 2"),
    "schedule": ({"schedule": 7}, r"schedule must be one of \[0, 1\], got 7"),
    "batch": ({"h0": torch.zeros(3, 3), "c0": torch.zeros(3, 3)}, "the initial state is for a batch of 3, x has 4"),
    "no steps": ({"x": torch.zeros(0, 4, 2)}, "Expected sequence length to be larger than 0 in RNN"),
    "flags": ({"flags": 2 * FLAG["MASKS_ON"]}, "flags has bits that mean nothing"),
    "thresholds": ({"thresholds": None}, "thresholds are needed where a site is configured"),
    "few thresholds": ({"thresholds": torch.zeros(9, dtype=torch.int64)}, "thresholds must have 10 elements, got 9"),
    "no rng": ({"rng": None}, "rng is needed where sites draw masks"),
    "rng": ({"rng": torch.zeros(6, 2)}, "rng must be an int64 tensor"),
    "rng of one": ({"rng": torch.zeros(2, dtype=torch.int64)}, "rng must have 6 rows of 2 elements"),
    "ids": ({"example_ids": torch.zeros(3, dtype=torch.int64)}, "example_ids must have 4 elements, got 3"),
    "layer": ({"layer": 65536}, r"layer must be in \[0, 65535\), got 65536"),
    "step_offset": ({"step_offset": 2**32 - 2}, r"every step in \[0, 2\^32 - 1\), got step_offset 4294967294"),
    "dtype": ({"dtype": torch.int64}, "dtype must be float32, float64, float16 or bfloat16"),
    "keep": ({"keep": 3}, "keep must be 0, 1 or 2, got 3"),
    "sizes": ({"x": torch.zeros(5, 2), "batch_sizes": torch.tensor([4, 2])}, "x has 5 rows, batch_sizes sum to 6"),
    "growing": ({"x": torch.zeros(5, 2), "batch_sizes": torch.tensor([2, 3])}, "batch_sizes must be positive"),
    "int32 sizes": (
        {"x": torch.zeros(5, 2), "batch_sizes": torch.tensor([4, 1], dtype=torch.int32)},
        "batch_sizes must be an int64 tensor on the CPU",
    ),
}  # fmt: skip


@here
@pytest.mark.parametrize("case", BAD)
def test_refused_arguments(case: str) -> None:
    changed, message = BAD[case]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fused_rnn_dropout.triton_layer_forward(*lstm_arguments(**changed))


@pytest.mark.skipif(ON_DEVICE, reason="values on a device are not looked at: the host would wait for it")
def test_refused_values() -> None:
    high = torch.full((10,), 2**32 + 1)
    with pytest.raises(RuntimeError, match=r"thresholds must be in \[0, 2\^32\]"):
        torch.ops.fused_rnn_dropout.triton_layer_forward(*lstm_arguments(thresholds=high))
    with pytest.raises(RuntimeError, match=r"example_ids must be in \[0, 2\^32 - 1\), got -1"):
        torch.ops.fused_rnn_dropout.triton_layer_forward(*lstm_arguments(example_ids=torch.tensor([0, 1, 2, -1])))
    rng, one = torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"counter values must be in \[0, 2\^32\), got 4294967296"):
        triton_ops.words(rng, one + 2**32, one, 4, 0)


@here
def test_what_a_forward_kept_is_not_converted() -> None:
    given = lstm_arguments()
    _, last, kept = torch.ops.fused_rnn_dropout.triton_layer_forward(*given)
    own = Kept(*kept)
    assert own.states.dim() == 2
    for name, other in (("gates", own.gates.double()), ("beside", own.beside[:3]), ("states", own.states[:3])):
        changed = list(own._replace(**{name: other}))
        with pytest.raises(RuntimeError, match=f"{name} (must be what the forward returned|has a shape that)"):
            torch.ops.fused_rnn_dropout.triton_layer_backward(None, last, *given, None, changed, 31)


@here
@pytest.mark.parametrize("cell", CELLS)
def test_strided_arguments(cell: str) -> None:
    """Inputs and states that are not dense, which kernels would read wrongly."""
    rnn = module(cell, {"hidden_dropout": 0.3}, (3, 5, 4), layers=1, bidirectional=False, backend="triton").to(DEVICE)
    x, states = inputs_for(rnn, 3, 4)
    x, *dense = (value.detach().to(DEVICE) for value in (x, *states))
    rng = frd.draw_rng(DEVICE)
    want = call(rnn, x, tuple(dense), rng=rng)
    strided = [torch.stack((value, value), -1)[..., 0].transpose(0, 1).contiguous().transpose(0, 1) for value in dense]
    got = call(rnn, x.transpose(0, 1).contiguous().transpose(0, 1), tuple(strided), rng=rng)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


# --------------------------------------------------------------------------------------------------------------------
# When it runs
# --------------------------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_no_triton() -> None:
    code = "import sys, fused_rnn_dropout as f; f.LSTM(2, 2, backend='triton'); assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_never_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors go to it only where they are asked to, and only in the interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.randn(2, 2, 3)
    assert frd.explain(frd.LSTM(3, 4), x).backend == "cpu"
    assert frd.explain(frd.LSTM(3, 4, backend="triton"), x).backend == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match='backend="triton" cannot run this: it computes on cuda tensors'):
        frd.LSTM(3, 4, backend="triton")(x)


def test_the_best_backend_of_a_device_without_the_compiled_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fused_rnn_dropout.library._no_cuda", "this build has no kernels for CUDA")
    with FakeTensorMode():
        x = torch.empty(5, 2, 3, device="cuda")
    told = frd.explain(frd.LSTM(3, 4, weight_dropout=0.5), x)
    assert told.backend == "triton" and told.why == "the best there is for cuda tensors"
    assert told.others["cuda"] == "this build has no kernels for CUDA"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_fakes_on_a_device_that_is_not_there(cell: str, dtype: torch.dtype) -> None:
    """All layers of a module on FakeTensors of device "cuda". A torch without CUDA has no autograd for them."""
    rnn = module(cell, all_sites(cell), dtype=dtype)
    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(5, 4, 6, dtype=dtype, device="cuda")
        weights = [torch.empty(w.shape, dtype=dtype, device="cuda") for w in rnn.parameters()]
        thresholds, rng = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (10, 2))
        out, *last = frd.functional.run(
            rnn.mode,
            x,
            None,
            weights,
            rnn._plan,
            thresholds,
            num_layers=2,
            bidirectional=True,
            rng=rng,
            backend="triton",
        )
    assert out.shape == (5, 4, 2 * (rnn.proj_size or rnn.hidden_size))
    assert {(value.dtype, value.device.type) for value in (out, *last)} == {(dtype, "cuda")}


def test_fakes_of_backward_on_a_device_that_is_not_there() -> None:
    given = lstm_arguments(dtype=torch.bfloat16)
    with FakeTensorMode(), torch.no_grad():
        fake = _each_tensor(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"), given)
        y, last, kept = torch.ops.fused_rnn_dropout.triton_layer_forward(*fake)
        found = torch.ops.fused_rnn_dropout.triton_layer_backward(y, last, *fake, y, kept, 15)
    assert [value.dtype for value in kept] == [torch.bfloat16, torch.float32, torch.bfloat16]
    dx, dstates, dweights = found
    assert dweights[3].shape == (0,)  # the gradient of both biases is b_ih's
    for gradient, like in zip((dx, *dstates, *dweights[:3]), fake.differentiable[:-1], strict=True):
        assert (gradient.shape, gradient.dtype, gradient.device.type) == (like.shape, like.dtype, "cuda")


@here
@pytest.mark.parametrize("keep", Keep)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_fakes_are_what_the_kernels_return(dtype: torch.dtype, keep: int) -> None:
    given = lstm_arguments(dtype=dtype, keep=int(keep))
    real = torch.ops.fused_rnn_dropout.triton_layer_forward(*given)
    with FakeTensorMode() as mode:
        expected = torch.ops.fused_rnn_dropout.triton_layer_forward(*_each_tensor(mode.from_tensor, given))
    for got, want in zip((real[0], *real[1], *real[2]), (expected[0], *expected[1], *expected[2]), strict=True):
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())


# --------------------------------------------------------------------------------------------------------------------
# Schedules, precision, words about them
# --------------------------------------------------------------------------------------------------------------------


def test_choice_of_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRD_TRITON_SCHEDULE", raising=False)

    def chosen(cell: str, units: int, projected: bool, dtype: torch.dtype, device_type: str) -> str:
        projection = {"proj_size": units // 2} if projected else {}
        rnn = getattr(frd, cell.upper())(3, units, device="meta", **projection)
        with FakeTensorMode():
            x = torch.empty(2, 3, 3, dtype=dtype, device=device_type)
        weights = frd.functional.split_weights(rnn._flat_weights, 1, True, False)
        return schedules.choose(
            "triton", schedules.Layers(rnn._plan, True, False, x, 2, False, dtype, weights, 2)
        ).schedule.name

    assert chosen("lstm", 256, False, torch.bfloat16, "cuda") == "sequence"
    assert chosen("lstm", 257, False, torch.bfloat16, "cuda") == "alternating"
    assert chosen("gru", 295, False, torch.bfloat16, "cuda") == "sequence"
    assert chosen("lstm", 256, False, torch.float32, "cuda") == "alternating"
    assert chosen("lstm", 8, True, torch.float32, "cuda") == "alternating"
    assert chosen("lstm", 8, False, torch.float64, "cuda") == "alternating"
    assert chosen("lstm", 8, False, torch.float64, "cpu") == "sequence"
    monkeypatch.setenv("FRD_TRITON_SCHEDULE", "sequence")
    assert chosen("lstm", 2000, False, torch.float32, "cuda") == "sequence"
    with pytest.raises(ValueError, match="a projection needs a product of its own"):
        chosen("lstm", 8, True, torch.float32, "cuda")
    monkeypatch.setenv("FRD_TRITON_SCHEDULE", "persistent")
    with pytest.raises(ValueError, match="FRD_TRITON_SCHEDULE should be one of alternating, sequence"):
        chosen("lstm", 8, False, torch.float32, "cuda")


def test_precision_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own setting, unless the environment names one."""
    monkeypatch.delenv("FRD_TRITON_PRECISION", raising=False)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "ieee"
        assert launch.precision(torch.float32) == "ieee"
        matmul.fp32_precision = "tf32"
        assert launch.precision(torch.float32) == "tf32"
        assert launch.precision(torch.bfloat16) == launch.precision(torch.float64) == "ieee"
        monkeypatch.setenv("FRD_TRITON_PRECISION", "tf32x3")
        assert launch.precision(torch.float32) == "tf32x3"
        monkeypatch.setenv("FRD_TRITON_PRECISION", "tf16")
        with pytest.raises(ValueError, match="FRD_TRITON_PRECISION should be one of ieee, tf32, tf32x3, got 'tf16'"):
            launch.precision(torch.float32)
    finally:
        matmul.fp32_precision = before


def test_precision_on_rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton does not compile what the device lacks, whatever torch is set to."""
    monkeypatch.delenv("FRD_TRITON_PRECISION", raising=False)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        for arch, found in (("gfx942:sramecc+:xnack-", "tf32"), ("gfx90a", "ieee"), ("gfx950", "ieee")):
            device = types.SimpleNamespace(gcnArchName=arch)
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, device=device: device)
            monkeypatch.delenv("FRD_TRITON_PRECISION", raising=False)
            assert launch.precision(torch.float32) == found
            monkeypatch.setenv("FRD_TRITON_PRECISION", "ieee")
            assert launch.precision(torch.float32) == "ieee"
            monkeypatch.setenv("FRD_TRITON_PRECISION", "tf32x3")
            with pytest.raises(ValueError, match="FRD_TRITON_PRECISION asks for tf32x3, .* not have on ROCm"):
                launch.precision(torch.float32)
            monkeypatch.setenv("FRD_TRITON_PRECISION", "tf32")
            if found == "tf32":
                assert launch.precision(torch.float32) == "tf32"
                continue
            with pytest.raises(ValueError, match="FRD_TRITON_PRECISION asks for tf32, .* gfx942 alone"):
                launch.precision(torch.float32)
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("hip", [None, "7.0"], ids=["cuda", "rocm"])
def test_products_of_mixed_dtypes(hip: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch where it has them; on ROCm it raises, and the operands are widened before."""
    from fused_rnn_dropout.triton.products import product

    seen: list[tuple[torch.dtype, bool]] = []
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch, "mm", lambda a, b, **given: seen.append((a.dtype, "out_dtype" in given)))
    a, b = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((2, 3), (3, 4)))
    product(a, b, torch.empty(2, 4, dtype=torch.float32, device="meta"))
    product(a, b, torch.empty(2, 4, dtype=torch.bfloat16, device="meta"))
    mixed = (torch.bfloat16, True) if hip is None else (torch.float32, False)
    assert seen == [mixed, (torch.bfloat16, False)]


def kept_bytes(rnn: nn.Module, x: Tensor, states: tuple[Tensor, ...]) -> int:
    """Bytes that autograd keeps besides the parameters, the caller's states and results, and integers."""
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = call(rnn, x, states)
    known = {value.untyped_storage().data_ptr() for value in (*rnn.parameters(), *states, *results.values())}
    return sum(
        value.untyped_storage().nbytes()
        for key, value in found.items()
        if key not in known and value.is_floating_point()
    )


@here
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize(
    ("cell", "sites"),
    [
        (cell, sites)
        for cell in CELLS
        for sites in ({}, {"zoneout_h": frd.Zoneout(0.2, output="unzoned")}, {"cell_dropout": 0.2})
        if fits(cell, sites)
    ],
)
def test_bytes_kept_are_those_that_explain_names(
    cell: str, sites: dict[str, Any], recompute: bool, dtype: torch.dtype
) -> None:
    rnn = module(cell, sites, (4, 8, 3), layers=2, bidirectional=False, dtype=dtype, recompute=recompute,
                 backend="triton").to(DEVICE)  # fmt: skip
    x, states = inputs_for(rnn, 2, 2)
    x, *moved = (value.detach().to(DEVICE).requires_grad_() for value in (x, *states))
    assert kept_bytes(rnn, x, tuple(moved)) == frd.explain(rnn, x).bytes_for_backward


def test_explain_names_the_schedule_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRD_TRITON_SCHEDULE", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.empty(3, 2, 5)
    small, large = frd.GRU(5, 8, backend="triton"), frd.LSTM(5, 400, backend="triton")
    projected = frd.LSTM(5, 8, proj_size=4, backend="triton")
    assert frd.explain(small, x).schedule.startswith("sequence: one Triton kernel for all steps")
    assert "W_hh has no more than 512 KiB" in frd.explain(small, x).schedule
    assert "(W_hh has 2500 KiB, more than the 512 " in frd.explain(large, x).schedule
    assert "a projection needs a product of its own" in frd.explain(projected, x).schedule
    assert "c in float32" in frd.explain(frd.LSTM(5, 8, backend="triton", dtype=torch.bfloat16), x.bfloat16()).kept
    monkeypatch.setenv("FRD_TRITON_SCHEDULE", "alternating")
    assert frd.explain(small, x).schedule.endswith("(FRD_TRITON_SCHEDULE asks for it)")


def test_doctor_on_triton(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> str:
        cli.main(["doctor"])
        lines = capsys.readouterr().out.splitlines()
        return next(line for line in lines if line.startswith("backend triton"))

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "there, in the interpreter of triton" in told()
    monkeypatch.delenv("TRITON_INTERPRET")
    assert ("there, with triton" if ON_DEVICE else "no CUDA device; triton") in told()
    version = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda package: None if package == "triton" else version(package))
    assert "pip install 'fused-rnn-dropout[triton]'" in told()


# --------------------------------------------------------------------------------------------------------------------
# Compilation
# --------------------------------------------------------------------------------------------------------------------


def compile_keys() -> dict[str, list[int]]:
    """By kernel, the number of its compile keys after calls of one layer with several T, B, offsets and packings."""
    script = ROOT / "tests" / "kernels" / "triton_keys.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], check=True, capture_output=True, text=True, env=environment, cwd=ROOT
    )
    return json.loads(done.stdout)


def test_a_new_length_or_batch_compiles_nothing() -> None:
    """The keys that Triton itself would look its compiled kernels up by, of every launch, counted without a device."""
    found = compile_keys()
    assert len(found) == 25, sorted(found)
    for kernel, (one, many) in found.items():
        assert many == one, f"{kernel}: {one} keys for one shape, {many} for many"


@pytest.mark.parametrize("case", ["prepare", "gru backward bf16"])
def test_budgets_hold(case: str) -> None:
    """One kernel or two for every target; tools/compile_triton.py without arguments compiles all."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = [sys.executable, "tools/compile_triton.py", "-k", case]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "hip:gfx942" in done.stdout and "cuda:120" in done.stdout


def test_the_release_of_triton_picks_its_budgets() -> None:
    """A bug fix release has the table of its minor version; of a release without one a sentence says so."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = """if True:
        import sys
        sys.path[:0] = ["tools", "."]
        from compile_triton import choose_table
        tables = {release: {"brought_by": f"torch of {release}"} for release in ("3.6", "3.10")}
        print(choose_table(tables, "3.10.1")["brought_by"])
        choose_table(tables, "3.1.0")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout == "torch of 3.10\n" and done.returncode == 1
    there = "it has 3.6 (torch of 3.6), 3.10 (torch of 3.10)"
    assert done.stderr.startswith("error: tests/budgets/triton.json has no table for Triton 3.1.0; " + there)
    assert done.stderr.count("\n") == 1
