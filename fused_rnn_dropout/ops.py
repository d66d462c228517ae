"""The operators: what the compiled library computes, with fakes for tracing and with gradients.

Each operator runs one layer in one direction. The gradient is an ``autograd.Function`` registered at the operator's
Autograd key, so an exported program keeps it; backward is an operator of its own. ``docs/design.md`` says why.

Arguments that the layer operators share, in the order of their schemas:

=============  =======================================================================================================
x              (T, B, I) time-major, or packed data (N, I) with ``batch_sizes``; any floating dtype
h0, c0         (B, P) and (B, H); P is ``proj_size``, or H
w_ih, w_hh     (G * H, I) and (G * H, P); G gates, 4 for LSTM and 3 for GRU, in torch's order
b_ih, b_hh     (G * H), or None both
w_hr           (P, H), or None
batch_sizes    int64 (T) on the CPU, rows of each step, or None
example_ids    int64 (B), the example counter of each row, or None for 0 .. B-1
rng_*          int64 (2), the randomness of the state, hidden and weight sites; None where nothing is drawn
thresholds     int64 (10), round(p * 2**32) in the order of ``sites.SITES``; None where no site is configured
dtype          dtype of the results; computation is in float64 for float64, else in float32
flags          which sites are configured, ``sites.FLAG``
layer, reverse counter of the layer, and whether the direction is the reverse one
step_offset    absolute step of the first step
recompute      keep only the states for backward, and compute the gates again there
=============  =======================================================================================================
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import fakes, library, onnx, recomputation
from .cells import CELLS, Cell
from .fakes import NEEDS, Keep
from .library import NAMESPACE, argument_names, lib, register_fake

_ops = torch.ops.fused_rnn_dropout


def _only_reference(what: str, op: str) -> str:
    return (
        f"{what} is not implemented by the fused kernels ({NAMESPACE}::{op}); build the module with "
        "backend='reference', which supports it"
    )


def functorch_active() -> bool:
    """Whether a ``torch.func`` transform is being applied; functionalisation, which tracing uses, does not count."""
    top = torch._C._functorch.peek_interpreter_stack()
    return top is not None and top.key() != torch._C._functorch.TransformType.Functionalize


def _differentiable(op: str, args: tuple[Any, ...]) -> bool:
    """Whether a call needs a graph.

    Raises:
        NotImplementedError: under a ``torch.func`` transform or with a forward-mode tangent. Both would be lost
            without a word below autograd, and inside ``torch.compile`` nobody looks for them before this.
    """
    if functorch_active():
        raise NotImplementedError(_only_reference("a torch.func transform", op))
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(_only_reference("forward-mode AD", op))
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


# --------------------------------------------------------------------------------------------------------------------
# draw: the one operator that takes from a generator
# --------------------------------------------------------------------------------------------------------------------

lib.define("draw(Tensor like) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))


def _pair(device: torch.device | str | int | None) -> Tensor:
    return torch.empty(2, dtype=torch.int64, device=device).random_(-(2**63), None)


def _draw(like: Tensor) -> Tensor:
    recomputation.check_compiled(draw)
    return _pair(like.device)


lib.impl("draw", _draw, "CompositeExplicitAutograd")


@register_fake("draw")
def _(like: Tensor) -> Tensor:
    return like.new_empty(2, dtype=torch.int64)


def draw(device: torch.device | str | int | None) -> Tensor:
    """All the randomness of one call: int64 (2) from the default generator of ``device``, torch's default if None.

    The operand is made for this draw alone, and by ``torch.empty``. Compilers merge calls of one operator on the same
    operands, and do not ask whether it is random. What ``empty`` gives they never merge: it is not a function of its
    arguments. In a program that was captured it is made anew at each call, as here. Sixteen numbers, out of which come
    two: a partitioner that has little memory takes that for a reduction, which it keeps and does not make again.

    TorchScript knows only torch's own operators as random. It would run this one once, and keep the pair as a constant.
    """
    if torch.jit.is_tracing():
        return _pair(device)
    return _ops.draw(torch.empty(16, dtype=torch.int64, device=device))


@register_fake("snapshot")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _snapshot(thresholds: Tensor | None) -> Tensor | None:
    """A copy of the rates, taken before a forward reads them: a schedule may change them before its backward.

    An operator of its own, since a compiler would make a plain clone again in the backward, out of the changed rates.
    """
    return None if thresholds is None else _ops.snapshot(thresholds)


# --------------------------------------------------------------------------------------------------------------------
# Gradients
# --------------------------------------------------------------------------------------------------------------------


def _dropout_function(dropout: Any) -> type[torch.autograd.Function]:
    class Dropout(torch.autograd.Function):
        """Dropout is linear, its mask a function of counters: its gradient is the same operator on the gradient."""

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:
            x, rng, thresholds, batch_sizes, example_ids, *ctx.static = args
            with torch._C._AutoDispatchBelowAutograd():
                kept = (rng, _snapshot(thresholds), batch_sizes, example_ids)
                ctx.save_for_backward(*kept)
                return dropout(x, *kept, *ctx.static)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            return (_in_backward(dropout, grad, *ctx.saved_tensors, *ctx.static), *[None] * 9)

    return Dropout


def _in_backward(op: Any, *args: Any) -> Any:
    """Calls an operator from a backward: straight to its kernel, unless a graph of the gradients is being made."""
    if torch.is_grad_enabled():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _layer_function(cell: Cell, forward_op: Any, backward_op: Any) -> type[torch.autograd.Function]:
    """What carries the gradients of one layer of ``cell``, by the names in the schemas of its two operators."""
    names = argument_names(forward_op)[:-1]
    tensors, thresholds = names.index("dtype"), names.index("thresholds")  # dtype: the first behind all tensors
    differentiable = names[: names.index("batch_sizes")]
    results = [result.name for result in forward_op.default._schema.returns].index("gates")
    gradients = [result.name for result in backward_op.default._schema.returns]

    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *given, recompute = args
        with torch._C._AutoDispatchBelowAutograd():
            given[thresholds] = _snapshot(given[thresholds])
            found = forward_op(*given, int(Keep.STATES if recompute else Keep.ALL))
        ctx.static = given[tensors:]
        *activations, states = found[results:]
        # `states` is empty, and has one dimension, where the output is the h that backward reads.
        ctx.save_for_backward(*given[:tensors], *activations, states if states.dim() == 2 else found[0])
        ctx.set_materialize_grads(False)
        return found[:results]

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        wanted = [name for name, want in zip(differentiable, ctx.needs_input_grad, strict=False) if want]
        needs = sum({NEEDS[name] for name in wanted if name in NEEDS})
        found = _in_backward(backward_op, *grads, *ctx.saved_tensors, *ctx.static, needs)
        by_name = dict(zip(gradients, found, strict=True))
        if "db" in by_name:  # one gradient for both biases
            by_name["db_ih"] = by_name["db_hh"] = by_name["db"]
        return tuple(by_name["d" + name] if name in wanted else None for name in (*names, "recompute"))

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return types.new_class(cell.name, (torch.autograd.Function,), {}, lambda namespace: namespace.update(members))


class _Once(torch.autograd.Function):
    """A backward operator inside a graph: usable, but not differentiable again."""

    @staticmethod
    def forward(ctx: Any, op: Any, *args: Any) -> tuple[Tensor, ...]:
        ctx.op = op
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(_only_reference("double backward", ctx.op.__name__.removesuffix("_backward")))


def _autograd(name: str, apply: Callable[..., Any], checked: int | None = None) -> None:
    """Registers what an operator does where a graph is needed; ``checked``: how many arguments decide that."""
    op = getattr(_ops, name)
    names, exported = argument_names(op), name.removeprefix("triton_")
    has_nodes = exported in onnx.OPERATORS

    def call(*args: Any) -> Any:
        if has_nodes and onnx.translating():
            return onnx.operator(exported, dict(zip(names, args, strict=True)))
        if _differentiable(name, args[:checked]):
            return apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    lib.impl(name, call, "Autograd")


# --------------------------------------------------------------------------------------------------------------------
# Families
# --------------------------------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """The operators that a backend calls."""

    words: Any
    dropout: Any
    lstm: Any
    gru: Any


_NAMES = ("words", "dropout", "lstm", "lstm_forward", "lstm_backward", "gru", "gru_forward", "gru_backward")
functions: dict[str, type[torch.autograd.Function]] = {}
"""Those that carry gradients, by the name of their operator."""


def _family(prefix: str = "") -> Family:
    """Fakes and gradients of the operators with this prefix."""
    fakes.register(prefix)
    of = {name: getattr(_ops, prefix + name) for name in _NAMES}
    functions[f"{prefix}dropout"] = function = _dropout_function(of["dropout"])
    _autograd(f"{prefix}dropout", function.apply, 1)
    for cell in CELLS.values():
        name = cell.name.lower()
        backward = of[f"{name}_backward"]
        functions[prefix + name] = function = _layer_function(cell, of[f"{name}_forward"], backward)
        _autograd(prefix + name, function.apply)
        _autograd(f"{prefix}{name}_backward", functools.partial(_Once.apply, backward))
    return Family(*(of[name].default for name in Family._fields))


def _define_triton() -> None:
    """Triton's operators: the same schemas. Their kernels, and so triton, are imported at the first call."""
    for name in _NAMES:
        schema = str(getattr(_ops, name).default._schema).removeprefix(f"{NAMESPACE}::")

        def call(*args: Any, _name: str = name) -> Any:
            from .triton import operators

            return getattr(operators, _name)(*args)

        lib.define(f"triton_{schema}")
        for key in ("CPU", "CUDA"):  # on the CPU in Triton's interpreter
            lib.impl(f"triton_{name}", call, key)


_compiled = _family()
_define_triton()
_triton = _family("triton_")
words, dropout, lstm, gru = _compiled


def family(backend: str) -> Family:
    """The operators of a fused backend. ``cpu`` and ``cuda`` share theirs, which look at the device of a tensor."""
    return _triton if backend == "triton" else _compiled


# --------------------------------------------------------------------------------------------------------------------
# About the build
# --------------------------------------------------------------------------------------------------------------------


ISAS = ("baseline", "avx2", "avx512")
"""Instruction sets of the CPU kernels, in the order of ``csrc/cpu/layer.h``."""


def cpu_isa(choice: str | None = None) -> str:
    """The instruction set of the CPU kernels in use; chooses another first where ``choice`` names one of ``ISAS``.

    The environment variable ``FRD_CPU_ISA`` chooses before the first call.

    Raises:
        ValueError: ``choice`` is not in ``ISAS``, or this processor or build lacks it.
    """
    if choice is not None:
        if choice not in cpu_isas():
            raise ValueError(f"choice should be one of {', '.join(map(repr, cpu_isas()))} here, got {choice!r}")
        _ops.cpu_isa(ISAS.index(choice))
    return ISAS[_ops.cpu_isa(-1)[0]]


PHASES = ("pack", "input product", "recurrent product", "cell", "wait", "gradients", "dropout")
"""What :func:`cpu_profile` tells apart, in the order of ``csrc/cpu/profile.h``."""


def cpu_profile(on: bool) -> dict[str, float]:
    """Seconds that the CPU kernels spent in each phase since the last call, as the threads that called them saw it.

    ``pack`` masks and packs the weights that are packed at once, ``input product`` is W x, ``recurrent product``,
    ``cell`` (gates, state and their masks) and ``wait`` (for other threads) are the steps, ``gradients`` the products
    after them, ``dropout`` that of inputs and outputs.

    Args:
        on: whether to count from now on; it costs a clock reading per block of rows.
    """
    return {name: 1e-9 * ns for name, ns in zip(PHASES, _ops.cpu_profile(on), strict=True)}


def cpu_isas() -> tuple[str, ...]:
    """The instruction sets that this build has kernels for and this processor can run."""
    return tuple(ISAS[isa] for isa in _ops.cpu_isa(-1)[1:])


def build_info() -> dict[str, Any]:
    """What the compiled library is: compiler, oldest torch it loads in, instruction sets, threads."""
    return {
        "compiler": library.compiler,
        "torch_target": "2.10",
        "isa": cpu_isa(),
        "compiled_isas": cpu_isas(),
        "threads": torch.get_num_threads(),
    }
