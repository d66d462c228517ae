"""ONNX: the layers as ONNX's own operators of their cells, for ``torch.onnx.export`` in eval, with nothing to pass.

With ``dynamo=True`` a module's layers become nodes by :func:`layer` while torch.export runs it. A program that was
captured before holds operators, which the exporter traces once more while it takes the program apart: their Autograd
kernels (``ops.py``) give it the same nodes then. ``dynamo=False`` looks each operator up by its name, and finds what
:func:`register_torchscript` put there. All three refuse the same calls with the same words.

A node is one of torch's symbolic operators, which give zeros in torch: ``verify=True`` of ``torch.onnx.export`` would
compare with those. Products and states are float32 in ONNX, as in the CPU's kernels for float16, and for bfloat16 where
they have no products of it.
"""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .layer_call import Direction, LayerCall, side_by_side
from .library import argument_names
from .sites import ACTING_IN_EVAL, FLAG, SITES, Plan, acting_in_eval

OPERATORS = ("layer", "dropout")
"""Those that a program may hold where a module was: translated, or refused with a sentence."""


class _Node(NamedTuple):
    """A cell as ONNX has it: its operator, where its gates are among torch's, and what else the operator is told."""

    kind: str
    gates: tuple[int, ...]
    attributes: Mapping[str, Any] = types.MappingProxyType({})


_NODES = {
    "LSTM": _Node("LSTM", (0, 3, 1, 2)),  # i, o, f, c among i, f, g, o
    "GRU": _Node("GRU", (1, 0, 2), {"linear_before_reset": 1}),  # z, r, h among r, z, n
    "RNN_TANH": _Node("RNN", (0,), {"activations": ["Tanh"]}),
    "RNN_RELU": _Node("RNN", (0,), {"activations": ["Relu"]}),
}

_OPSET = 14
"""From which on the nodes below are what they are; they have not changed since."""

BACKEND = "onnx"
"""What computes the layers of a module while it is exported; no user asks for it."""

_INSTEAD = "torch.export and AOTInductor take it as it is"


def _traced() -> bool:
    """Whether tensors have no values: the exporter also runs programs, to verify what it made."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def _asked() -> bool:
    """Whether ``torch.onnx.export`` is at work. Takes microseconds, and does not import ``torch.onnx`` for it."""
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


def exporting() -> bool:
    """Whether a module is run in order to be exported to ONNX. Every call asks."""
    return (_traced() or torch.jit.is_tracing()) and _asked()


def translating() -> bool:
    """Whether an operator should give its ONNX nodes in place of its result."""
    return _traced() and _asked()


# --------------------------------------------------------------------------------------------------------------------
# What ONNX cannot say
# --------------------------------------------------------------------------------------------------------------------


def _refuse(
    cell: str, masked: Sequence[str], in_eval: Sequence[str], packed: bool, projected: bool, dtype: torch.dtype
) -> None:
    kind = _NODES[cell].kind
    if masked:
        raise NotImplementedError(
            f"ONNX's {kind} has no masks, and those of {', '.join(masked)} are on: export in eval, after model.eval() "
            f"and, with mc, fused_rnn_dropout.mc_dropout(model, False). With masks on {_INSTEAD}"
        )
    if in_eval:
        raise NotImplementedError(
            f"ONNX's {kind} cannot compute {', '.join(in_eval)}, which act{'s' if len(in_eval) == 1 else ''} in eval: "
            f"{_INSTEAD}. Without (rnn.{in_eval[0]} = 0.0, or fused_rnn_dropout.revert(model)) the model exports, and "
            "computes what torch.nn's does"
        )
    if packed:
        raise NotImplementedError(
            f"a packed batch cannot go to ONNX: give the {kind} a padded tensor and no PackedSequence; {_INSTEAD}"
        )
    if projected:
        raise NotImplementedError(f"ONNX's LSTM has no projection, and this one has proj_size: {_INSTEAD}")
    if dtype == torch.float64:
        raise NotImplementedError(
            f"ONNX Runtime has no {kind} for float64: export model.float(), or in bfloat16 or float16; {_INSTEAD}"
        )


def check_call(plan: Plan, masks_on: bool, packed: bool, projected: bool, dtype: torch.dtype, backend: str) -> str:
    """Refuses, while a module is exported, what ONNX cannot say; returns the backend of its layers.

    Where the module runs on tensors without values, its layers become nodes at once, those of the reference too, whose
    steps would be unrolled for the one T of the example. The other operators are translated in their turn.

    Raises:
        NotImplementedError: masks are on, a site acts in eval, a packed input, a projection, or float64; with
            ``dynamo=False`` the reference backend.
    """
    _refuse(plan.cell, plan.names if masks_on else (), acting_in_eval(plan), packed, projected, dtype)
    if _traced():
        return BACKEND
    if backend == "reference":
        raise NotImplementedError(
            "backend='reference' needs torch.onnx.export(..., dynamo=True): dynamo=False would unroll it for one T. "
            "Or export with rnn.backend = None"
        )
    return backend


def acting(flags: int) -> tuple[str, ...]:
    """The sites that change what eval computes, from the flags of an operator."""
    return tuple(site for flag, site in ACTING_IN_EVAL.items() if flags & FLAG[flag])


def _check_operator(call: LayerCall) -> None:
    """The same for the operator of a layer in a program that was captured before."""
    masked = [site.name for site in SITES if call.flags & FLAG["MASKS_ON"] and call.flags & FLAG[site.flag]]
    projected = "w_hr" in call.weight_names
    _refuse(call.row.name, masked, acting(call.flags), call.batch_sizes is not None, projected, call.dtype)


def _refuse_dropout(site: int) -> None:
    """An operator that is in a program where its masks are on."""
    _refuse("LSTM", [SITES[site].name], (), False, False, torch.float32)


# --------------------------------------------------------------------------------------------------------------------
# dynamo=True
# --------------------------------------------------------------------------------------------------------------------


def layer(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    dtype: torch.dtype,
    reverse: bool,
    reset_after: bool = True,
) -> tuple[Tensor, ...]:
    """One layer in one direction as an ONNX node, shaped as a layer of that cell.

    Args:
        x: (T, B, I).
        states: h_0 and, for an LSTM, c_0: (B, H).
        reset_after: ONNX's ``linear_before_reset``, GRU only.

    Returns:
        out (T, B, H), h_n (B, H) and, for an LSTM, c_n (B, H), in ``dtype``.
    """

    steps, batch, hidden, node = x.size(0), x.size(1), w_hh.size(1), _NODES[cell]

    def gates(weight: Tensor) -> Tensor:
        # Slices, as the exporter works out constants but for operators of several results.
        return torch.cat([weight.float()[index * hidden : (index + 1) * hidden] for index in node.gates])

    bias = None if b_ih is None or b_hh is None else torch.cat((gates(b_ih), gates(b_hh))).unsqueeze(0)
    attributes = {"hidden_size": hidden, "direction": "reverse" if reverse else "forward", **node.attributes}
    if not reset_after:
        attributes["linear_before_reset"] = 0
    results = torch.onnx.ops.symbolic_multi_out(
        node.kind,
        [
            x.float(),
            gates(w_ih).unsqueeze(0),
            gates(w_hh).unsqueeze(0),
            bias,
            None,  # lengths: every row has all steps
            *(state.float().unsqueeze(0) for state in states),
        ],
        attributes,
        dtypes=[torch.float32] * (1 + len(states)),
        shapes=[(steps, 1, batch, hidden), *[(1, batch, hidden)] * len(states)],
    )
    return results[0].squeeze(1).to(dtype), *(last.squeeze(0).to(dtype) for last in results[1:])


def operator(name: str, args: dict[str, Any]) -> Any:
    """What the operator ``name`` is in ONNX, from its arguments by their names.

    Raises:
        NotImplementedError: as :func:`check_call`.
    """
    if name == "dropout":
        _refuse_dropout(args["site"])
    call = LayerCall(**args)
    _check_operator(call)

    def one(d: Direction) -> tuple[Tensor, ...]:
        weights = (d.w_ih, d.w_hh, d.b_ih, d.b_hh)
        return layer(call.row.name, call.x, d.states, *weights, call.dtype, d.reverse)

    return side_by_side([one(direction) for direction in call.each()])


# --------------------------------------------------------------------------------------------------------------------
# dynamo=False
# --------------------------------------------------------------------------------------------------------------------

_SCALAR_TYPES = {5: torch.float16, 6: torch.float32, 7: torch.float64, 15: torch.bfloat16}
_ONNX_TYPES = {torch.float16: 10, torch.float32: 1, torch.bfloat16: 16}


def _constant(value: Any) -> Any:
    """The Python value of a constant in a TorchScript graph; None for anything else and for None."""
    node = value.node()
    return node.t("value").item() if node.kind() == "onnx::Constant" else None


def _given(value: Any) -> Any:
    return None if value.node().mustBeNone() else value


def _elements(value: Any) -> list[Any]:
    """Of a list in a TorchScript graph."""
    assert value.node().kind() == "prim::ListConstruct", value.node().kind()
    return list(value.node().inputs())


def _call(args: dict[str, Any]) -> LayerCall:
    """A layer's arguments in a TorchScript graph, with the numbers as Python has them."""
    found: dict[str, Any] = {"x": args["x"], "dtype": _SCALAR_TYPES[_constant(args["dtype"])]}
    found |= {name: _elements(args[name]) for name in ("states", "weights")}
    found |= {name: _given(args[name]) for name in ("batch_sizes", "example_ids", "rng", "thresholds")}
    return LayerCall(**found, **{name: _constant(value) for name, value in args.items() if name not in found})


def _symbolic(name: str, names: Sequence[str], g: Any, *values: Any) -> Any:
    """Adds the nodes of one operator to a TorchScript graph: :func:`operator`, in that exporter's terms."""
    args = dict(zip(names, values, strict=True))
    if name == "dropout":
        _refuse_dropout(_constant(args["site"]))
    call = _call(args)
    _check_operator(call)
    of_each = [_symbolic_direction(g, call, direction) for direction in call.each()]
    y, last = side_by_side(of_each, lambda outs: g.op("Concat", *outs, axis_i=2))
    return y, g.op("prim::ListConstruct", *last)


def _symbolic_direction(g: Any, call: LayerCall, d: Direction) -> list[Any]:
    """The node of one direction, and what shapes its results as :func:`layer` does."""
    node, w_hh = _NODES[call.row.name], d.w_hh
    rows = w_hh.type().sizes()[0]  # type: ignore[attr-defined]  # a value of the graph
    hidden = rows // call.row.gates

    def ints(*numbers: int) -> Any:
        return g.op("Constant", value_t=torch.tensor(numbers))

    def shaped(value: Any, *shape: int) -> Any:
        return g.op("Reshape", value, ints(*shape))

    def gates(weight: Any) -> Any:
        weight = g.op("Cast", weight, to_i=1)
        starts = [index * hidden for index in node.gates]
        parts = [g.op("Slice", weight, ints(start), ints(start + hidden), ints(0)) for start in starts]
        return g.op("Concat", *parts, axis_i=0)

    none = bias = g.op("prim::Constant")
    none.setType(torch._C.OptionalType.ofTensor())
    if d.b_ih is not None:
        bias = shaped(g.op("Concat", gates(d.b_ih), gates(d.b_hh), axis_i=0), 1, 2 * rows)
    results = g.op(
        node.kind,
        g.op("Cast", call.x, to_i=1),
        shaped(gates(d.w_ih), 1, rows, -1),
        shaped(gates(w_hh), 1, rows, hidden),
        bias,
        none,
        *(shaped(g.op("Cast", state, to_i=1), 1, -1, hidden) for state in d.states),
        outputs=1 + len(d.states),
        hidden_size_i=hidden,
        direction_s="reverse" if d.reverse else "forward",
        **{f"{name}_{'i' if isinstance(value, int) else 's'}": value for name, value in node.attributes.items()},
    )
    # Zero copies a number of the input's shape: (T, 1, B, H) to (T, B, H).
    found = [shaped(results[0], 0, -1, hidden), *(shaped(last, -1, hidden) for last in results[1:])]
    return [g.op("Cast", result, to_i=_ONNX_TYPES[call.dtype]) for result in found]


@functools.cache
def register_torchscript() -> None:
    """Tells torch's exporter of TorchScript graphs (``dynamo=False``) of the operators, once.

    That exporter passes keyword arguments by position, so that an LSTM or GRU must lie inside a module for it.
    """
    register = getattr(torch.onnx, "register_custom_op_symbolic", None)
    if register is None:  # it is deprecated, and will be gone
        return
    for name, prefix in itertools.product(OPERATORS, ("", "triton_")):
        names = argument_names(getattr(torch.ops.fused_rnn_dropout, prefix + name))
        register(f"fused_rnn_dropout::{prefix}{name}", functools.partial(_symbolic, name, names), _OPSET)
