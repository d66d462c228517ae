"""torch.fx, torch.jit and torch.export of models that hold our modules: as with torch.nn's, or an error with a way."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout.cells import MODULES

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


class Model(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"rnn": rnn})
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner["rnn"](x)[0])


class Mine(frd.LSTM):
    """A user's class, with a forward of its own."""

    def forward(self, x: Tensor, hx: Any = None, **options: Any) -> Any:
        out, last = super().forward(x, hx, **options)
        return 2 * out, last


def build(kind: str, **options: Any) -> nn.Module:
    """An RNN in the ways in which people come by one."""
    options = {"num_layers": 2, "bidirectional": False, **options}
    sites = {"weight_dropout": 0.5, "output_dropout": 0.3}
    if kind == "subclass":
        return Mine(6, 8, **options, **sites)
    cell, way = kind.split()
    rnn: nn.Module = getattr(nn, cell)(6, 8, **options)
    if way == "built":
        return getattr(frd, cell)(6, 8, **options, **sites)
    rnn = frd.convert(rnn, nn_subclass=way == "nn_subclass", **sites)
    if way == "copied":
        return copy.deepcopy(rnn)
    return pickle.loads(pickle.dumps(rnn)) if way == "pickled" else rnn


WAYS = ["built", "converted", "nn_subclass", "copied", "pickled"]
KINDS = [*(f"{cell} {way}" for cell in MODULES for way in WAYS), "subclass"]


# --------------------------------------------------------------------------------------------------------------------
# torch.fx
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_fx_takes_a_module_as_one_node(kind: str) -> None:
    model, x = Model(build(kind)).eval(), torch.randn(5, 2, 6)
    traced = torch.fx.symbolic_trace(model)
    assert [str(node.target) for node in traced.graph.nodes if node.op == "call_module"] == ["inner.rnn", "out"]
    assert torch.equal(traced(x), model(x))
    assert traced.get_submodule("inner.rnn") is model.inner["rnn"]

    output = traced.graph.output_node()
    with traced.graph.inserting_before(output):
        output.args = (traced.graph.call_function(torch.mul, (output.args[0], 2.0)),)
    traced.recompile()
    assert torch.equal(traced(x), 2 * model(x))


def test_fx_masks_are_those_of_the_module() -> None:
    """What is traced is the module itself: its mode, its rates and torch's generator count at each call."""
    model, x = Model(build("LSTM converted")), torch.randn(5, 2, 6)
    traced = copy.deepcopy(torch.fx.symbolic_trace(model))
    torch.manual_seed(1)
    first = traced(x)
    torch.manual_seed(1)
    assert torch.equal(first, model(x)) and not torch.equal(traced(x), first)
    assert torch.equal(traced.eval()(x), model.eval()(x))


@pytest.mark.parametrize("cell", MODULES)
def test_fx_of_the_module_itself_says_what_to_trace(cell: str) -> None:
    with pytest.raises(TypeError, match=f"cannot trace into a {cell}: trace a module that holds it.*is_leaf_module"):
        torch.fx.symbolic_trace(build(f"{cell} built"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_is_of_torch_for_fx_alone(kind: str) -> None:
    """The class, by which everybody else tells modules apart, stays where it is, and no pickle takes the name along."""
    rnn = build(kind)
    assert type(rnn).__module__ == (__name__ if kind == "subclass" else "fused_rnn_dropout.modules")
    assert "torch.nn" not in repr(rnn) and repr(rnn).startswith(f"{type(rnn).__name__}(6, 8, ")
    assert b"__module__" not in pickle.dumps(rnn) and "__module__" not in rnn.__getstate__()
    # Under this name torch.compile would take the module for one of torch's own, whose guards may be left out.
    assert not rnn.__module__.startswith("torch.nn.modules")
    if kind != "subclass":
        assert "__module__" not in frd.revert(nn.Sequential(rnn))[0].__dict__  # type: ignore[index]


# --------------------------------------------------------------------------------------------------------------------
# torch.jit
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True], ids=["itself", "inside"])
@pytest.mark.parametrize("kind", KINDS)
def test_script_names_the_ways(kind: str, held: bool) -> None:
    rnn = build(kind)
    with pytest.raises(NotImplementedError, match=rf"cannot compile {type(rnn).__name__} of") as caught:
        torch.jit.script(Model(rnn) if held else rnn)
    for way in ("torch.jit.trace", "torch.export.export", "fused_rnn_dropout.revert(model)"):
        assert way in str(caught.value)


def test_the_ways_that_script_names_are_open() -> None:
    model, x = Model(build("LSTM converted")).eval(), torch.randn(5, 2, 6)
    expected = model(x)
    scripted = torch.jit.script(nn.Sequential(torch.jit.trace(model, (x,)), nn.Tanh()))
    torch.testing.assert_close(scripted(x), expected.tanh())
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.jit.script(frd.revert(model))(x), expected)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True, "bias": False}], ids=str)
@pytest.mark.parametrize("cell", MODULES)
def test_a_trace_serves_any_number_of_steps_and_rows(cell: str, options: dict[str, Any]) -> None:
    """Saved and loaded; without states, whose zeros depend on the batch."""
    rnn = build(f"{cell} built", **options).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(rnn, (torch.randn(5, 2, 6),)), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    assert any(node.kind() == "fused_rnn_dropout::layer" for node in loaded.inlined_graph.nodes())
    for steps, batch in ((5, 2), (1, 1), (7, 3)):
        x = torch.randn(steps, batch, 6)
        torch.testing.assert_close(loaded(x), rnn(x), rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------------------------
# torch.export of packed batches
# --------------------------------------------------------------------------------------------------------------------


class Packed(nn.Module):
    """Packs, or takes what was packed outside."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, data: Tensor, batch_sizes: Tensor | None = None, lengths: Tensor | None = None) -> Any:
        if batch_sizes is None:
            assert lengths is not None
            packed = pack_padded_sequence(data, lengths)
        else:
            packed = PackedSequence(data, batch_sizes)
        out, last = self.rnn(packed)
        return out.data, last


X, LENGTHS = torch.randn(4, 3, 6), torch.tensor([4, 3, 1])


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("cell", MODULES)
def test_export_of_a_batch_that_was_packed_outside(cell: str, strict: bool) -> None:
    model = Packed(build(f"{cell} built")).eval()
    packed = pack_padded_sequence(X, LENGTHS)
    dims = ({0: torch.export.Dim("N")}, {0: torch.export.Dim("T")})
    program = torch.export.export(model, (packed.data, packed.batch_sizes), strict=strict, dynamic_shapes=dims).module()
    for lengths in (LENGTHS, torch.tensor([6, 6, 2, 1])):
        other = pack_padded_sequence(torch.randn(int(lengths[0]), len(lengths), 6), lengths)
        torch.testing.assert_close(program(other.data, other.batch_sizes), model(other.data, other.batch_sizes))


def test_export_of_packing_says_what_to_give() -> None:
    with pytest.raises(NotImplementedError, match="cannot trace pack_padded_sequence: give the model a padded tensor"):
        torch.export.export(Packed(build("LSTM built")).eval(), (X,), {"lengths": LENGTHS})


def test_export_of_a_packed_batch_on_the_reference_says_what_to_give() -> None:
    model = Packed(frd.GRU(6, 8, backend="reference")).eval()
    packed = pack_padded_sequence(X, LENGTHS)
    with pytest.raises(NotImplementedError, match="packed batch with backend='reference': give a padded tensor"):
        torch.export.export(model, (packed.data, packed.batch_sizes))
