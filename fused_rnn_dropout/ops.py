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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .sites import FLAG

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"the compiled library fused_rnn_dropout._C cannot be loaded ({error}). Python is importing the package from "
        f"{__file__}: where that is a checkout, build it there with `pip install -e .`; it needs torch 2.10 or later"
    ) from error

_NAMESPACE = "fused_rnn_dropout"
_ops = torch.ops.fused_rnn_dropout
_lib = torch.library.Library(_NAMESPACE, "FRAGMENT")

ISAS = ("baseline", "avx2", "avx512")
"""Instruction sets of the CPU kernels, in the order of ``csrc/cpu/schedule.h``."""


def _only_reference(what: str, op: str) -> str:
    return (
        f"{what} is not implemented by the fused kernels ({_NAMESPACE}::{op}); build the module with "
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


def _register_fake(name: str, batch_sizes: int = -1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a fake that checks that all tensors but the argument number ``batch_sizes`` share a device.

    One tensor on the meta device sends a whole call to its fake, whose empty results would pass for real ones.
    """

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any) -> Any:
            tensors = [arg for index, arg in enumerate(args) if index != batch_sizes and isinstance(arg, Tensor)]
            devices = sorted({str(tensor.device) for tensor in tensors})
            if len(devices) > 1:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{devices[0]} and {devices[1]}!"
                )
            return fake(*args)

        return torch.library.register_fake(f"{_NAMESPACE}::{name}", checked, lib=_lib)

    return register


# --------------------------------------------------------------------------------------------------------------------
# draw: the one operator that takes from a generator
# --------------------------------------------------------------------------------------------------------------------

_lib.define("draw(Tensor like) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))


def _draw(like: Tensor) -> Tensor:
    return torch.empty(2, dtype=torch.int64, device=like.device).random_(-(2**63), None)


_lib.impl("draw", _draw, "CompositeExplicitAutograd")


@_register_fake("draw")
def _(like: Tensor) -> Tensor:
    return like.new_empty(2, dtype=torch.int64)


def draw(like: Tensor) -> Tensor:
    """All the randomness of one call: int64 (2) from the default generator of ``like``'s device."""
    return _ops.draw(like)


@_register_fake("snapshot")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _snapshot(thresholds: Tensor | None) -> Tensor | None:
    """A copy of the rates, taken before a forward reads them: a schedule may change them before its backward.

    An operator of its own, since a compiler would make a plain clone again in the backward, out of the changed rates.
    """
    return None if thresholds is None else _ops.snapshot(thresholds)


# --------------------------------------------------------------------------------------------------------------------
# words and dropout
# --------------------------------------------------------------------------------------------------------------------


@_register_fake("words")
def _(rng: Tensor, b: Tensor, c: Tensor, units: int, stream: int) -> Tensor:
    shape = (c.shape[0], b.shape[0], units)
    return rng.new_empty((*shape, 4) if stream & 0xFF in (0, 1, 2, 6) else shape)


def words(rng: Tensor, b: Tensor, c: Tensor, units: int, stream: int) -> Tensor:
    """The raw 32-bit words that the CPU kernels draw, as int64.

    Args:
        rng: int64 (2).
        b, c: int64 (nb) and (nc), values of the second and third counter word.
        units: how many values of the first: units, or units of which four share a counter.
        stream: the fourth counter word, ``sites.stream(kind, layer, direction)``.

    Returns:
        int64 (nc, nb, units, 4) for kinds whose counter is a unit, else (nc, nb, units).
    """
    return _ops.words(rng, b, c, units, stream)


@_register_fake("dropout", batch_sizes=3)
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class _Dropout(torch.autograd.Function):
    """Dropout is linear and its mask a function of counters, so its gradient is the same operator on the gradient."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, rng, thresholds, batch_sizes, example_ids, *ctx.static = args
        with torch._C._AutoDispatchBelowAutograd():
            kept = (rng, _snapshot(thresholds), batch_sizes, example_ids)
            ctx.save_for_backward(*kept)
            return _ops.dropout(x, *kept, *ctx.static)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (_ops.dropout(grad, *ctx.saved_tensors, *ctx.static), *[None] * 9)


def _dropout_autograd(*args: Any) -> Tensor:
    if _differentiable("dropout", args[:1]):
        return _Dropout.apply(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.dropout(*args)


_lib.impl("dropout", _dropout_autograd, "Autograd")
dropout = _ops.dropout.default

# --------------------------------------------------------------------------------------------------------------------
# The layers
# --------------------------------------------------------------------------------------------------------------------

_SAVE_ALL, _SAVE_STATES = 1, 2  # the `save` argument of the *_forward operators
_NEEDS_X, _NEEDS_W_IH, _NEEDS_W_HH, _NEEDS_BIAS, _NEEDS_W_HR = 1, 2, 4, 8, 16  # `needs` of the *_backward operators


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _lstm_states_apart(dtype: torch.dtype, flags: int) -> bool:
    """Whether the states that backward reads are another tensor than the output."""
    return dtype != _compute_dtype(dtype) or bool(flags & FLAG["UNZONED"])


def _gru_states_apart(dtype: torch.dtype, flags: int) -> bool:
    return dtype != _compute_dtype(dtype) or bool(flags & (FLAG["UNZONED"] | FLAG["CELL"]))


def _rows(x: Tensor) -> Any:
    return x.shape[0] * x.shape[1] if x.dim() == 3 else x.shape[0]


@_register_fake("lstm", batch_sizes=8)
def _(x: Tensor, h0: Tensor, c0: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dtype = args[-6]
    out = x.new_empty((*x.shape[:-1], h0.shape[1]), dtype=dtype)
    return out, h0.new_empty(h0.shape, dtype=dtype), c0.new_empty(c0.shape, dtype=dtype)


@_register_fake("lstm_forward", batch_sizes=8)
def _(x: Tensor, h0: Tensor, c0: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dtype, flags, save = args[-6], args[-5], args[-1]
    units, rows, compute = c0.shape[1], _rows(x), _compute_dtype(dtype)
    out = x.new_empty((*x.shape[:-1], h0.shape[1]), dtype=dtype)
    gates = x.new_empty((rows, 4 * units) if save == _SAVE_ALL else 0, dtype=compute)
    cells = x.new_empty((rows, units) if save else 0, dtype=compute)
    states = x.new_empty((rows, h0.shape[1]) if save and _lstm_states_apart(dtype, flags) else 0, dtype=compute)
    return out, h0.new_empty(h0.shape, dtype=dtype), c0.new_empty(c0.shape, dtype=dtype), gates, cells, states


def _gradients(needs: int, compute: torch.dtype, *wanted: tuple[int, Tensor | None]) -> list[Tensor]:
    """Fakes of a backward's results: a dense gradient for each tensor that needs one, an empty tensor else."""
    found = []
    for bit, like in wanted:
        shape = like.shape if like is not None and (not bit or needs & bit) else 0
        some = like if like is not None else next(t for _, t in wanted if t is not None)
        found.append(some.new_empty(shape, dtype=like.dtype if like is not None else compute))
    return found


@_register_fake("lstm_backward", batch_sizes=11)
def _(*args: Any) -> tuple[Tensor, ...]:
    x, h0, c0, w_ih, w_hh, b_ih, _, w_hr = args[3:11]
    return tuple(
        _gradients(
            args[-1], _compute_dtype(args[-6]), (_NEEDS_X, x), (0, h0), (0, c0), (_NEEDS_W_IH, w_ih),
            (_NEEDS_W_HH, w_hh), (_NEEDS_BIAS, b_ih), (_NEEDS_W_HR, w_hr),
        )
    )  # fmt: skip


@_register_fake("gru", batch_sizes=6)
def _(x: Tensor, h0: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dtype = args[-6]
    return x.new_empty((*x.shape[:-1], h0.shape[1]), dtype=dtype), h0.new_empty(h0.shape, dtype=dtype)


@_register_fake("gru_forward", batch_sizes=6)
def _(x: Tensor, h0: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dtype, flags, save = args[-6], args[-5], args[-1]
    units, rows, compute = h0.shape[1], _rows(x), _compute_dtype(dtype)
    out = x.new_empty((*x.shape[:-1], units), dtype=dtype)
    gates = x.new_empty((rows, 3 * units) if save == _SAVE_ALL else 0, dtype=compute)
    resets = x.new_empty((rows, units) if save == _SAVE_ALL else 0, dtype=compute)
    states = x.new_empty((rows, units) if save and _gru_states_apart(dtype, flags) else 0, dtype=compute)
    return out, h0.new_empty(h0.shape, dtype=dtype), gates, resets, states


@_register_fake("gru_backward", batch_sizes=8)
def _(*args: Any) -> tuple[Tensor, ...]:
    x, h0, w_ih, w_hh, b_ih, b_hh = args[2:8]
    return tuple(
        _gradients(
            args[-1], _compute_dtype(args[-6]), (_NEEDS_X, x), (0, h0), (_NEEDS_W_IH, w_ih), (_NEEDS_W_HH, w_hh),
            (_NEEDS_BIAS, b_ih), (_NEEDS_BIAS, b_hh),
        )
    )  # fmt: skip


def _forward(
    ctx: Any, op: Any, args: tuple[Any, ...], outputs: int, tensors: int, states_apart: Any
) -> tuple[Tensor, ...]:
    """Runs a ``*_forward`` operator and keeps what its backward reads."""
    *args, recompute = args  # type: ignore[assignment]
    with torch._C._AutoDispatchBelowAutograd():
        args[tensors - 1] = _snapshot(args[tensors - 1])  # type: ignore[index]
        results = op(*args, _SAVE_STATES if recompute else _SAVE_ALL)
    ctx.static = args[tensors:]
    dtype, flags = ctx.static[:2]
    *activations, states = results[outputs:]
    ctx.save_for_backward(*args[:tensors], *activations, states if states_apart(dtype, flags) else results[0])
    ctx.set_materialize_grads(False)
    return results[:outputs]


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        return _forward(ctx, _ops.lstm_forward, args, 3, 14, _lstm_states_apart)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if all(grad is None for grad in grads):
            return (None,) * 20
        x, _, _, w_ih, w_hh, b_ih, b_hh, w_hr = wanted = ctx.needs_input_grad[:8]
        needs = (
            x * _NEEDS_X | w_ih * _NEEDS_W_IH | w_hh * _NEEDS_W_HH | (b_ih or b_hh) * _NEEDS_BIAS | w_hr * _NEEDS_W_HR
        )
        dx, dh0, dc0, dw_ih, dw_hh, db, dw_hr = _ops.lstm_backward(*grads, *ctx.saved_tensors, *ctx.static, needs)
        found = (dx, dh0, dc0, dw_ih, dw_hh, db, db, dw_hr)
        return (*(grad if want else None for grad, want in zip(found, wanted, strict=True)), *[None] * 12)


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        return _forward(ctx, _ops.gru_forward, args, 2, 12, _gru_states_apart)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if all(grad is None for grad in grads):
            return (None,) * 18
        x, _, w_ih, w_hh, b_ih, b_hh = wanted = ctx.needs_input_grad[:6]
        needs = x * _NEEDS_X | w_ih * _NEEDS_W_IH | w_hh * _NEEDS_W_HH | (b_ih or b_hh) * _NEEDS_BIAS
        found = _ops.gru_backward(*grads, *ctx.saved_tensors, *ctx.static, needs)
        return (*(grad if want else None for grad, want in zip(found, wanted, strict=True)), *[None] * 12)


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


def _register_layer(name: str, function: type[torch.autograd.Function]) -> None:
    layer, backward = getattr(_ops, name), getattr(_ops, f"{name}_backward")

    def layer_autograd(*args: Any) -> tuple[Tensor, ...]:
        if _differentiable(name, args):
            return function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return layer(*args)

    def backward_autograd(*args: Any) -> tuple[Tensor, ...]:
        if _differentiable(name, args):
            return _Once.apply(backward, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return backward(*args)

    _lib.impl(name, layer_autograd, "Autograd")
    _lib.impl(f"{name}_backward", backward_autograd, "Autograd")


_register_layer("lstm", _LSTM)
_register_layer("gru", _GRU)

lstm = _ops.lstm.default
gru = _ops.gru.default

# --------------------------------------------------------------------------------------------------------------------
# About the build
# --------------------------------------------------------------------------------------------------------------------


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

    ``pack`` masks and packs the weights, ``input product`` is W x, ``recurrent product``, ``cell`` (gates, state and their
    masks) and ``wait`` (for other threads) are the steps, ``gradients`` the products after them, ``dropout`` that of inputs
    and outputs.

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
        "compiler": _C.compiler,
        "torch_target": "2.10",
        "isa": cpu_isa(),
        "compiled_isas": cpu_isas(),
        "threads": torch.get_num_threads(),
    }
