"""The operators: what the compiled library computes, with fakes for tracing and with gradients.

A layer of any cell is one operator. The gradient is an ``autograd.Function`` registered at the operator's Autograd key,
so an exported program keeps it; backward is an operator of its own. ``docs/design.md`` says why.

Arguments that ``layer``, ``layer_forward`` and ``layer_backward`` share, in the order of their schemas; D directions:

============  ========================================================================================================
cell          number of the cell, ``cells.CELLS``
x             (T, B, I) time-major, or packed data (N, I) with ``batch_sizes``; any floating dtype
states        h0 (B, P) and, where the cell has one, c0 (B, H), direction after direction; P is ``proj_size``, or H
weights       w_ih (G * H, I) and w_hh (G * H, P), b_ih and b_hh (G * H) or neither, w_hr (P, H) or not, direction after
              direction; G gates, in torch's order
batch_sizes   int64 (T) on the CPU, rows of each step, or None
example_ids   int64 (B), the example counter of each row, or None for 0 .. B-1
rng           int64 (6, 2), a pair for each of ``sites.GROUPS``, maybe all the same memory; None where nothing is drawn
thresholds    int64 (10), round(p * 2**32) in the order of ``sites.SITES``; None where no site is configured
dtype         dtype of the results; computation is in float64 for float64, else in float32, with products of values
              of that dtype on a GPU and, where ``library.cpu_bf16`` says so, in bfloat16 on the CPU
flags         which sites are configured, ``sites.FLAG``
layer         counter of the layer
directions    1 forward, 2 reverse, 3 both
step_offset   absolute step of the first step
schedule      number of the schedule, ``schedules.SCHEDULES``
keep          what a forward keeps for its backward, ``layer_call.Keep``; nothing below autograd
============  ========================================================================================================

Results are y (T, B, D * P) or (N, D * P), the columns of the reverse direction behind the others, and the last states
in the order of ``states``. ``layer_forward`` also returns what it keeps, ``layer_call.Kept`` of each direction.
``layer_backward`` is given the gradients of y and of the last states, each of which may be missing, y itself where
backward reads h from it, what was kept, and ``needs``. It returns the gradients of x, of the states and of the weights:
each is empty where nobody asks for it, and that of b_hh where it is that of b_ih.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from . import fakes, library, onnx, recomputation
from .layer_call import Kept, LayerCall
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


def _differentiable(op: str, given: Callable[[], Iterable[Tensor | None]]) -> bool:
    """Whether a call needs a graph; ``given``: the tensors that decide it, asked for where they matter.

    Raises:
        NotImplementedError: under a ``torch.func`` transform or with a forward-mode tangent. Both would be lost
            without a word below autograd, and inside ``torch.compile`` nobody looks for them before this.
    """
    if functorch_active():
        raise NotImplementedError(_only_reference("a torch.func transform", op))
    if forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in given()
    ):
        raise NotImplementedError(_only_reference("forward-mode AD", op))
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given())


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


def draw(device: torch.device | str | int | None, eager: bool = False) -> Tensor:
    """All the randomness of one call: int64 (2) from the default generator of ``device``, torch's default if None.

    ``eager``: whether nobody but autograd looks at operators, :func:`only_autograd_asks`: then nobody needs to see one.

    The operand is made for this draw alone, and by ``torch.empty``. Compilers merge calls of one operator on the same
    operands, and do not ask whether it is random. What ``empty`` gives they never merge: it is not a function of its
    arguments. In a program that was captured it is made anew at each call, as here. Sixteen numbers, out of which come
    two: a partitioner that has little memory takes that for a reduction, which it keeps and does not make again.

    TorchScript knows only torch's own operators as random. It would run this one once, and keep the pair as a constant.
    """
    if eager or torch.jit.is_tracing():
        return _pair(device)
    return _ops.draw.default(torch.empty(16, dtype=torch.int64, device=device))


@register_fake("snapshot")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _snapshot(thresholds: Tensor | None) -> Tensor | None:
    """A copy of the rates, taken before a forward reads them: a schedule may change them before its backward.

    An operator of its own, since a compiler would make a plain clone again in the backward, out of the changed rates.
    """
    if thresholds is None:
        return None
    return thresholds.clone() if _no_mode() else _ops.snapshot.default(thresholds)


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


def _layer_function(forward_op: Any, backward_op: Any) -> type[torch.autograd.Function]:
    class Layer(torch.autograd.Function):
        """What carries the gradients of one layer. ``given`` are the tensors of ``call`` that may have one."""

        @staticmethod
        def forward(ctx: Any, call: LayerCall, *given: Tensor) -> tuple[Tensor, ...]:
            with torch._C._AutoDispatchBelowAutograd():
                call = call.with_thresholds(_snapshot(call.thresholds))
                y, last, kept = forward_op(*call)
            tensors, ctx.call = call.split()
            h_apart = Kept(*kept[:3]).states.dim() == 2  # empty, in one dimension, where backward reads h from y
            ctx.save_for_backward(*tensors, None if h_apart else y, *kept)
            ctx.set_materialize_grads(False)
            return y, *last

        @staticmethod
        def backward(ctx: Any, grad_y: Tensor | None, *grad_last: Tensor | None) -> tuple[Any, ...]:
            _, of_x, *of_others = ctx.needs_input_grad
            call, (y, *kept) = ctx.call.join(ctx.saved_tensors)
            if grad_y is None and all(grad is None for grad in grad_last):
                return (None,) * len(ctx.needs_input_grad)
            of_weights = of_others[len(call.states) :]
            needs = call.needs(of_x, of_weights)
            dx, dstates, dweights = _in_backward(backward_op, grad_y, list(grad_last), *call, y, kept, needs)
            names, found = call.weight_names * call.num_directions, list(dweights)
            if not call.row.apart:  # one gradient for both biases
                for place, name in enumerate(names):
                    found[place] = dweights[place - 1] if name == "b_hh" else found[place]
            gradients = (dx, *dstates, *found)
            return None, *(g if wanted else None for g, wanted in zip(gradients, (of_x, *of_others), strict=True))

    return Layer


class _Once(torch.autograd.Function):
    """A backward operator inside a graph: usable, but not differentiable again."""

    @staticmethod
    def forward(ctx: Any, op: Any, structure: Any, *flat: Any) -> tuple[Tensor, ...]:
        ctx.op = op
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(pytree.tree_leaves(op(*pytree.tree_unflatten(flat, structure))))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        name = ctx.op._schema.name.removeprefix(f"{NAMESPACE}::").removesuffix("_backward")
        raise RuntimeError(_only_reference("double backward", name))


def _autograd(
    name: str, tensors: Callable[..., Iterable[Tensor | None]], apply: Callable[..., Any]
) -> Callable[..., Any]:
    """Registers what an operator does where a graph is needed; ``tensors``: those of its arguments that decide it.

    Returns:
        The same for who calls it without the dispatcher, which would hand it all arguments through C++ and back: that
        takes 10 microseconds. No exporter translates it then.
    """
    op = getattr(_ops, name).default
    names, exported = argument_names(getattr(_ops, name)), name.removeprefix("triton_")
    has_nodes = exported in onnx.OPERATORS

    def call(*args: Any) -> Any:
        if _differentiable(name, lambda: tensors(*args)):
            return apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def registered(*args: Any) -> Any:
        if has_nodes and onnx.translating():
            return onnx.operator(exported, dict(zip(names, args, strict=True)))
        return call(*args)

    lib.impl(name, registered, "Autograd")
    return call


_CAN_ASK = all(
    hasattr(torch._C, name)
    for name in (
        "_dispatch_tls_local_include_set", "_dispatch_tls_is_dispatch_key_excluded", "_is_any_autocast_enabled",
    )
)  # fmt: skip
"""Whether this torch has what :func:`only_autograd_asks` needs of its inside; else all operators are dispatched."""

_keys = torch._C.DispatchKey
_INFERENCE = torch._C.DispatchKeySet(_keys.BackendSelect)
_USUAL = _INFERENCE.add(_keys.ADInplaceOrView)
"""The dispatch keys that are on where no tracer and no mode is, in inference mode and else."""


def _no_mode() -> bool:
    """Whether operators run as they are called: no compiler looks at them, no tracer and no mode."""
    if not _CAN_ASK or torch.compiler.is_compiling():
        return False
    return torch._C._dispatch_tls_local_include_set() in (_USUAL, _INFERENCE)


def only_autograd_asks(tensors: tuple[Tensor, ...]) -> bool:
    """Whether nothing looks at an operator on these before its Autograd kernel, which may then be called at once.

    A compiler would, a tracer, a mode, or a subclass of Tensor. Nor may anybody have switched autograd off, as the
    kernels of other operators do: inference mode apart, where there is no graph to make.
    """
    if not _no_mode() or torch.overrides.has_torch_function(tensors):
        return False
    off = torch._C._dispatch_tls_is_dispatch_key_excluded(_keys.AutogradFunctionality)
    return not off or (torch.is_inference_mode_enabled() and not torch.is_grad_enabled())


def _tensors_of_layer(cell: int, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], *_: Any) -> Any:
    """The tensors that may have a gradient."""
    return (x, *states, *weights)


def _tensors_among(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _layer_autograd(prefix: str) -> tuple[type[torch.autograd.Function], Callable[..., Any]]:
    """Registers the gradients of a family's layer; returns what carries them, and the layer's Autograd kernel."""
    backward = getattr(_ops, f"{prefix}layer_backward").default
    function = _layer_function(getattr(_ops, f"{prefix}layer_forward").default, backward)

    names_of_backward = argument_names(getattr(_ops, f"{prefix}layer_backward"))

    def apply(*args: Any) -> tuple[Tensor, list[Tensor]]:
        call = LayerCall(*args)
        y, *last = function.apply(call, *call.differentiable)
        return y, last

    def apply_backward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        flat, structure = pytree.tree_flatten(args)
        dx, *others = _Once.apply(backward, structure, *flat)
        count = len(dict(zip(names_of_backward, args, strict=True))["states"])
        return dx, others[:count], others[count:]

    def of_each(count: int, batched: Sequence[bool], args: Sequence[Any]) -> Any:
        """A batch of gradients, one after the other: vmap does that by itself where an operator takes no lists."""
        leaves, structure = pytree.tree_flatten(args)
        found = []
        for index in range(count):
            own = [leaf[index] if of_batch else leaf for leaf, of_batch in zip(leaves, batched, strict=True)]
            found.append(backward(*pytree.tree_unflatten(own, structure)))
        return pytree.tree_map(lambda *results: torch.stack(results), *found)

    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        leaves, structure = pytree.tree_flatten(args)
        dims = pytree.tree_leaves(in_dims)
        first = [leaf if dim is None else leaf.movedim(dim, 0) for leaf, dim in zip(leaves, dims, strict=True)]
        batched = [dim is not None for dim in dims]
        found = of_each(info.batch_size, batched, pytree.tree_unflatten(first, structure))
        return found, pytree.tree_map(lambda _: 0, found)

    def legacy_vmap(*args: Any) -> Any:
        """The same for the vmap of ``is_grads_batched``, which is another one."""
        leaves, structure = pytree.tree_flatten(args)
        batched = [isinstance(leaf, Tensor) and torch._C._dispatch_keys(leaf).has("Batched") for leaf in leaves]
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        first = [
            torch._remove_batch_dim(leaf, level, 0, 0) if of_batch else leaf
            for leaf, of_batch in zip(leaves, batched, strict=True)
        ]
        count = next(leaf for leaf, of_batch in zip(first, batched, strict=True) if of_batch).shape[0]
        torch._C._vmapmode_decrement_nesting()  # one level less for what is left
        try:
            found = of_each(count, batched, pytree.tree_unflatten(first, structure))
        finally:
            torch._C._vmapmode_increment_nesting()
        return pytree.tree_map(lambda result: torch._add_batch_dim(result, 0, level), found)

    lib.impl(f"{prefix}layer_backward", legacy_vmap, "Batched")
    torch.library.register_vmap(f"{NAMESPACE}::{prefix}layer_backward", vmap, lib=lib)
    _autograd(f"{prefix}layer_backward", lambda *args: _tensors_among(pytree.tree_leaves(args)), apply_backward)
    return function, _autograd(f"{prefix}layer", _tensors_of_layer, apply)


# --------------------------------------------------------------------------------------------------------------------
# Families
# --------------------------------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """The operators that a backend calls, and the Autograd kernel of a layer, for where :func:`only_autograd_asks`."""

    words: Any
    dropout: Any
    layer: Any
    autograd_of_layer: Callable[..., tuple[Tensor, list[Tensor]]]


_NAMES = ("words", "dropout", "layer", "layer_forward", "layer_backward")
functions: dict[str, type[torch.autograd.Function]] = {}
"""Those that carry gradients, by the name of their operator."""


def _family(prefix: str = "") -> Family:
    """Fakes and gradients of the operators with this prefix."""
    fakes.register(prefix)
    functions[f"{prefix}dropout"] = dropout = _dropout_function(getattr(_ops, f"{prefix}dropout").default)
    _autograd(f"{prefix}dropout", lambda x, *_: (x,), dropout.apply)
    functions[f"{prefix}layer"], kernel = _layer_autograd(prefix)
    operators = {name: getattr(_ops, prefix + name).default for name in ("words", "dropout", "layer")}
    return Family(**operators, autograd_of_layer=kernel)


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
words, dropout, layer, _ = _compiled


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


PHASES = ("pack", "input product", "masks", "recurrent product", "cell", "wait", "gradients", "dropout")
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


def cpu_multiply_adds(dtype: torch.dtype, rounds: int = 1_000_000) -> float:
    """Multiply-adds a second, as floating-point operations, of the calling thread with all sums in registers.

    That is what the products of the CPU kernels in use can reach at most.

    Args:
        dtype: torch.float32 or, where the kernels multiply in it, torch.bfloat16.
        rounds: how often to add to all sums: the default takes some milliseconds.

    Raises:
        RuntimeError: another dtype, or ``rounds`` below 1.
    """
    operations, ns = _ops.cpu_multiply_adds(dtype, rounds)
    return 1e9 * operations / max(ns, 1)


def cpu_isas() -> tuple[str, ...]:
    """The instruction sets that this build has kernels for and this processor can run."""
    return tuple(ISAS[isa] for isa in _ops.cpu_isa(-1)[1:])


def build_info() -> dict[str, Any]:
    """What the compiled library is: compiler, oldest torch it loads in, instruction sets, bfloat16, threads."""
    return {
        "compiler": library.compiler,
        "torch_target": "2.10",
        "isa": cpu_isa(),
        "compiled_isas": cpu_isas(),
        "bf16": library.cpu_bf16(),
        "threads": torch.get_num_threads(),
    }
