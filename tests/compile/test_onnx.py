"""torch.onnx.export: LSTM and GRU nodes that ONNX Runtime computes as eager mode does, and what is refused, by name."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from grids import has
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout import onnx as ours
from fused_rnn_dropout.sites import Plan, acting_in_eval

onnx = pytest.importorskip("onnx", reason="onnx, with which torch.onnx exports, is missing")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime, which runs what is exported, is missing")
pytest.importorskip("onnxscript", reason="onnxscript, with which torch.onnx exports, is missing")

pytestmark = [
    pytest.mark.cpu_kernels,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

CELLS = ["LSTM", "GRU", "RNN"]
UNBATCHED: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"num_layers": 3, "batch_first": True},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
    UNBATCHED,
]
SITES: dict[str, Any] = {
    "input_dropout": 0.3,
    "output_dropout": 0.2,
    "hidden_dropout": 0.1,
    "weight_dropout": frd.WeightDropout(0.5, inputs=True),
    "update_dropout": 0.2,
    "cell_dropout": 0.3,
}
"""Every site that leaves nothing in eval but what torch.nn computes."""


class Model(nn.Module):
    """Gives an RNN's results one after the other, which is how ONNX Runtime does."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, ...]:
        out, last = self.rnn(x, hx)
        return (out, *last) if isinstance(last, tuple) else (out, last)


class Packs(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(pack_padded_sequence(x, lengths))[0].data


def model(cell: str, **options: Any) -> Model:
    sites = {name: spec for name, spec in SITES.items() if has(cell, name)}
    if cell == "RNN":  # whose default is ONNX's too
        options = {"nonlinearity": "relu", **options}
    return Model(getattr(frd, cell)(5, 8, **{**sites, **options})).eval()


def inputs(rnn: Any, steps: int | None, batch: int | None, hx: bool, dtype: torch.dtype = torch.float32) -> Any:
    """x, and hx where asked for; unbatched where ``batch`` is None."""
    shape = [steps] if batch is None else [batch, steps] if rnn.batch_first else [steps, batch]
    x = torch.randn(*shape, 5, dtype=dtype)
    if not hx:
        return (x,)
    count = rnn.num_layers * (2 if rnn.bidirectional else 1)
    states = [torch.randn(count, *([] if batch is None else [batch]), 8, dtype=dtype) for _ in range(2)]
    return x, tuple(states) if rnn.mode == "LSTM" else states[0]


def dynamic(rnn: Any, hx: bool, unbatched: bool = False) -> tuple[Any, ...]:
    x = {0: "T"} if unbatched else {0: "B", 1: "T"} if rnn.batch_first else {0: "T", 1: "B"}
    state: dict[int, str] = {} if unbatched else {1: "B"}
    return (x, (state, state) if rnn.mode == "LSTM" else state) if hx else (x,)


def flat(args: Any) -> list[Tensor]:
    return [args] if isinstance(args, Tensor) else [tensor for arg in args for tensor in flat(arg)]


def session(proto: bytes) -> Any:
    return ort.InferenceSession(proto, providers=["CPUExecutionProvider"])


def export(module: Any, args: Any = (), **options: Any) -> Any:
    """The ONNX model, with nothing passed that a user would not pass."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(module, args, dynamo=True, verbose=False, **options)
    assert program is not None
    return program.model_proto


def run(found: Any, args: Any) -> list[Tensor]:
    names = [value.name for value in found.get_inputs()]
    values = {name: value.numpy() for name, value in zip(names, flat(args), strict=True)}
    return [torch.from_numpy(result) for result in found.run(None, values)]


def kinds(proto: Any) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def attributes(proto: Any, kind: str) -> list[dict[str, Any]]:
    return [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in proto.graph.node
        if node.op_type == kind
    ]


class Every(nn.Module):
    """One RNN of each layout, all exported at once: an export takes longer than all that it is asked here."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.each = nn.ModuleList([model(cell, **layout) for layout in LAYOUTS])

    def forward(self, arguments: Any) -> tuple[tuple[Tensor, ...], ...]:
        return tuple(module(*args) for module, args in zip(self.each, arguments, strict=True))

    def arguments(self, steps: int, batch: int, hx: bool) -> Any:
        return [
            inputs(module.rnn, steps, None if layout is UNBATCHED else batch, hx)
            for module, layout in zip(self.each, LAYOUTS, strict=True)
        ]


@functools.cache
def exported(cell: str, hx: bool) -> tuple[Every, Any, Any]:
    module = Every(cell)
    dims = [dynamic(of.rnn, hx, layout is UNBATCHED) for of, layout in zip(module.each, LAYOUTS, strict=True)]
    proto = export(module, (module.arguments(4, 3, hx),), dynamic_shapes=(dims,))
    return module, proto, session(proto.SerializeToString())


@functools.cache
def results(cell: str, hx: bool, steps: int, batch: int) -> tuple[list[Tensor], tuple[tuple[Tensor, ...], ...]]:
    module, _, found = exported(cell, hx)
    args = module.arguments(steps, batch, hx)
    return run(found, args), module(args)


@pytest.mark.parametrize("hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("layout", range(len(LAYOUTS)), ids=lambda layout: str(LAYOUTS[layout]))
@pytest.mark.parametrize("cell", CELLS)
def test_every_layout_is_what_eager_mode_computes(cell: str, layout: int, hx: bool) -> None:
    """T and B are dynamic; 1 is the number that a tracer would bake in."""
    for steps, batch in ((4, 3), (1, 1), (9, 2)):
        got, want = results(cell, hx, steps, batch)
        each = len(want[layout])
        for mine, theirs in zip(got[layout * each : (layout + 1) * each], want[layout], strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_each_direction_of_each_layer_is_one_node(cell: str) -> None:
    _, proto, _ = exported(cell, False)
    counts = [of.get("num_layers", 1) * (2 if of.get("bidirectional") else 1) for of in LAYOUTS]
    assert kinds(proto).count(cell) == sum(counts) and not {"Loop", "Scan"} & set(kinds(proto))
    if cell == "RNN":
        assert all(found["activations"] == [b"Relu"] for found in attributes(proto, "RNN"))
    if cell == "GRU":
        assert all(found["linear_before_reset"] == 1 for found in attributes(proto, "GRU"))


class Whole(nn.Module):
    """RNNs among other layers: converted, tied, called twice, results used in part."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(5, 6), nn.LSTM(6, 7, batch_first=True))
        self.encoder = frd.convert(inner, weight_dropout=0.5, nn_subclass=True)
        self.memory = frd.convert(nn.ModuleDict({"gru": nn.GRU(7, 7)}), output_dropout=0.3)
        self.twin = frd.GRU(7, 7)
        self.twin.weight_hh_l0 = self.memory["gru"].weight_hh_l0  # type: ignore[index]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, (_, c_n) = self.encoder(x)
        first, state = self.memory["gru"](out.transpose(0, 1), c_n)  # type: ignore[index]
        second, _ = self.memory["gru"](first, state)  # type: ignore[index]
        return self.twin(second)[1], out


@pytest.mark.parametrize("mode", ["grad", "inference_mode"])
def test_rnns_inside_a_model(mode: str) -> None:
    module = Whole().eval()
    with torch.inference_mode(mode == "inference_mode"):
        proto = export(module, (torch.randn(3, 4, 5),), dynamic_shapes=({0: "B", 1: "T"},))
        assert kinds(proto).count("LSTM") == 1 and kinds(proto).count("GRU") == 3
        x = torch.randn(2, 6, 5)
        for got, want in zip(run(session(proto.SerializeToString()), (x,)), module(x), strict=True):
            torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_program_of_torch_export_is_translated_too(cell: str, strict: bool) -> None:
    module = model(cell, num_layers=2, bidirectional=True)
    dims = ({0: torch.export.Dim("T"), 1: torch.export.Dim("B")},)
    program = torch.export.export(module, inputs(module.rnn, 4, 3, False), strict=strict, dynamic_shapes=dims)
    proto = export(program)
    assert kinds(proto).count(cell) == 4
    args = inputs(module.rnn, 6, 2, False)
    for got, want in zip(run(session(proto.SerializeToString()), args), module(*args), strict=True):
        torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_what_surrounds_a_model_stays_as_it_is(cell: str) -> None:
    """An export leaves nothing behind, nor does its check of the result: eager mode and torch.export work after it."""
    module = model(cell)
    args = inputs(module.rnn, 4, 3, False)
    before = module(*args)
    torch.onnx.export(module, args, dynamo=True, verbose=False, verify=True)
    assert all(torch.equal(a, b) for a, b in zip(before, module(*args), strict=True))
    program = torch.export.export(module, args).run_decompositions()
    assert "fused_rnn_dropout.layer" in str(program.graph)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_half_precision_is_computed_in_float32_as_on_a_cpu(cell: str, dtype: torch.dtype) -> None:
    """What comes in and goes out has the module's dtype; numpy has no bfloat16, so that a cast stands at either end."""

    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model(cell, dtype=dtype)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(result.float() for result in self.inner(x.to(dtype)))

    module = Casts().eval()
    x = torch.randn(4, 3, 5)
    proto = export(module, (x,))
    assert kinds(proto).count(cell) == 1
    for got, want in zip(run(session(proto.SerializeToString()), (x,)), module(x), strict=True):
        torch.testing.assert_close(got, want, atol=torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


def test_the_reset_gate_before_the_product() -> None:
    module = model("GRU", reset_after=False, backend="reference", num_layers=2)
    proto = export(module, inputs(module.rnn, 4, 3, False), dynamic_shapes=dynamic(module.rnn, False))
    assert [found["linear_before_reset"] for found in attributes(proto, "GRU")] == [0, 0]
    args = inputs(module.rnn, 6, 2, False)
    for got, want in zip(run(session(proto.SerializeToString()), args), module(*args), strict=True):
        torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_the_reference_backend_is_not_unrolled(cell: str) -> None:
    module = model(cell, backend="reference", bidirectional=True)
    proto = export(module, inputs(module.rnn, 4, 3, True), dynamic_shapes=dynamic(module.rnn, True))
    assert kinds(proto).count(cell) == 2
    args = inputs(module.rnn, 6, 2, True)
    for got, want in zip(run(session(proto.SerializeToString()), args), module(*args), strict=True):
        torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# dynamo=False
# --------------------------------------------------------------------------------------------------------------------


def legacy(module: nn.Module, args: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.onnx.export(module, args, buffer, dynamo=False, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("traced", [False, True], ids=["module", "traced"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_torchscript_exporter(cell: str, layout: dict[str, Any], traced: bool) -> None:
    module = model(cell, **layout)
    args = inputs(module.rnn, 4, 3, True)
    names = ["x", "h0", "c0"][: 3 if cell == "LSTM" else 2]
    axes = {"x": dynamic(module.rnn, False)[0], "h0": {1: "B"}, "c0": {1: "B"}}
    source = torch.jit.trace(module, args) if traced else module
    axes = {name: axes[name] for name in names}
    found = session(legacy(source, args, input_names=names, dynamic_axes=axes))
    for steps, batch in ((4, 3), (1, 1), (9, 2)):
        args = inputs(module.rnn, steps, batch, True)
        for got, want in zip(run(found, args), module(*args), strict=True):
            torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Refused
# --------------------------------------------------------------------------------------------------------------------

EXPORTERS = ["dynamo", "program", "torchscript"]
REFUSED = [("dynamo", "LSTM"), ("program", "GRU"), ("program", "LSTM"), ("torchscript", "GRU")]


def text(error: BaseException | None) -> str:
    """All that a user reads."""
    return "" if error is None else f"{error} {text(error.__cause__)}"


def refusal(exporter: str, module: nn.Module, args: Any) -> str:
    through = {"dynamo": export, "program": lambda *given: export(torch.export.export(*given)), "torchscript": legacy}
    # Each exporter wraps errors in a class of its own.
    with pytest.raises(Exception) as caught:
        through[exporter](module, args)
    return text(caught.value)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("cell", "sites"),
    [
        ("LSTM", {"zoneout_c": 0.1}),
        ("LSTM", {"zoneout_h": frd.Zoneout(0.1, per="sequence")}),
        ("LSTM", {"update_dropout": frd.UpdateDropout(0.2, scale="paper")}),
        ("GRU", {"cell_dropout": frd.CellDropout(0.3, scale="paper")}),
    ],
    ids=str,
)
def test_sites_that_act_in_eval(cell: str, sites: dict[str, Any], exporter: str) -> None:
    module = Model(getattr(frd, cell)(5, 8, weight_dropout=0.5, **sites)).eval()
    said = refusal(exporter, module, inputs(module.rnn, 4, 3, False))
    for part in (*sites, f"ONNX's {cell}", "in eval", "AOTInductor", "revert"):
        assert part in said
    assert "weight_dropout" not in said


@pytest.mark.parametrize(("exporter", "cell"), REFUSED)
@pytest.mark.parametrize("site", ["weight_dropout", "input_dropout"])
def test_masks_that_are_on(cell: str, site: str, exporter: str) -> None:
    """With mc, as the TorchScript exporter puts a model in eval itself."""
    module = Model(getattr(frd, cell)(5, 8, mc=True, **{site: 0.5})).eval()
    args = inputs(module.rnn, 4, 3, False)
    said = refusal(exporter, module, args)
    assert "mc_dropout(model, False)" in said and "model.eval()" in said
    assert site in said or exporter == "program"
    if exporter == "dynamo":
        frd.mc_dropout(module, False)
        assert "model.eval()" in refusal(exporter, module.train(), args)


@pytest.mark.parametrize("cell", CELLS)
def test_a_training_model_without_sites_exports(cell: str) -> None:
    module = Model(getattr(frd, cell)(5, 8)).train()
    assert kinds(export(module, inputs(module.rnn, 4, 3, False))).count(cell) == 1


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_projections(exporter: str) -> None:
    module = Model(frd.LSTM(5, 8, proj_size=3)).eval()
    said = refusal(exporter, module, inputs(module.rnn, 4, 3, False))
    assert "proj_size" in said and "projection" in said and "AOTInductor" in said


@pytest.mark.parametrize(("exporter", "cell"), REFUSED)
def test_float64(cell: str, exporter: str) -> None:
    module = model(cell, dtype=torch.float64)
    said = refusal(exporter, module, inputs(module.rnn, 4, 3, False, torch.float64))
    assert f"no {cell} for float64" in said and "model.float()" in said


class Packed(nn.Module):
    """Takes a batch that was packed outside."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, data: Tensor, batch_sizes: Tensor) -> Tensor:
        return self.rnn(PackedSequence(data, batch_sizes))[0].data


@pytest.mark.parametrize(("exporter", "cell"), REFUSED)
@pytest.mark.parametrize("ready", [False, True], ids=["packs", "packed"])
def test_packed_batches(cell: str, ready: bool, exporter: str) -> None:
    """Both where the model packs, which torch.export cannot trace, and where it is given batch_sizes."""
    x, lengths = torch.randn(4, 3, 5), torch.tensor([4, 3, 1])
    if ready:
        packed = pack_padded_sequence(x, lengths)
        said = refusal(exporter, Packed(model(cell).rnn).eval(), (packed.data, packed.batch_sizes))
    else:
        said = refusal(exporter, Packs(model(cell).rnn).eval(), (x, lengths))
    assert "padded tensor" in said
    assert "a packed batch cannot go to ONNX" in said or not ready


@pytest.mark.parametrize("cell", CELLS)
def test_the_reference_backend_needs_dynamo(cell: str) -> None:
    module = model(cell, backend="reference")
    said = refusal("torchscript", module, inputs(module.rnn, 4, 3, False))
    assert "backend='reference'" in said and "dynamo=True" in said


OPTIONS: list[tuple[str, Sequence[Any]]] = [
    ("hidden_dropout", (frd.HiddenDropout(0.1),)),
    ("weight_dropout", (frd.WeightDropout(0.1), frd.WeightDropout(0.1, mode="row", inputs=True))),
    ("update_dropout", (frd.UpdateDropout(0.1), frd.UpdateDropout(0.1, scale="paper", per="sequence"))),
    ("cell_dropout", (frd.CellDropout(0.1), frd.CellDropout(0.1, scale="paper"))),
    ("zoneout_c", (frd.Zoneout(0.1), frd.Zoneout(0.1, per="sequence"))),
    ("zoneout_h", (frd.Zoneout(0.1), frd.Zoneout(0.1, shared=True))),
]


@pytest.mark.parametrize(("name", "spec"), [(name, spec) for name, specs in OPTIONS for spec in specs], ids=str)
def test_the_flags_of_an_operator_say_what_acts_in_eval(name: str, spec: Any) -> None:
    plan = Plan.make("LSTM", {name: spec})
    assert ours.acting(plan.eval_flags) == acting_in_eval(plan)
