"""The schedule that is torch's own: cuDNN with masked weights.

Where no site acts inside a step, a layer is ``torch.nn``'s on other weights. One operator writes them, masked, scaled
and in the dtype of the results, into one flat buffer laid out as cuDNN wants it, so that torch takes its views without
a copy or a warning; its gradient puts the masks on the way back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import cudnn_library
from .cudnn_library import Configuration, Layout, Weights
from .library import lib, register_fake
from .ops import _differentiable, _only_reference, _snapshot
from .sites import BETWEEN, FLAG, KIND, Plan, stream

_ops = torch.ops.fused_rnn_dropout

_WEIGHT_SITES = FLAG["WEIGHT_HH"] | FLAG["WEIGHT_IH"] | FLAG["WEIGHT_HR"]


def layers_at_once(plan: Plan, masks_on: bool, count: int) -> int:
    """How many of ``count`` neighbouring layers one call of cuDNN runs: one where a site acts between them."""
    between = any(name in BETWEEN for name in plan.names)
    return 1 if between and masks_on else count


# --------------------------------------------------------------------------------------------------------------------
# The flat buffer
# --------------------------------------------------------------------------------------------------------------------


def _pieces(flat: Tensor, where: Layout, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The views of a flat buffer. One split, whose gradient is one concatenation, gaps included."""
    order = sorted(range(len(shapes)), key=where.offsets.__getitem__)
    sizes, index, end = [], {}, 0
    for weight in order:
        if where.offsets[weight] > end:
            sizes.append(where.offsets[weight] - end)
        index[weight] = len(sizes)
        sizes.append(math.prod(shapes[weight]))
        end = where.offsets[weight] + sizes[-1]
    if where.size > end:
        sizes.append(where.size - end)
    parts = flat.split_with_sizes(sizes)
    return [parts[index[weight]].view(shape) for weight, shape in enumerate(shapes)]


# --------------------------------------------------------------------------------------------------------------------
# The operator
# --------------------------------------------------------------------------------------------------------------------


@register_fake("masked_weights")
def _(weights: list[Tensor], streams: list[int], offsets: list[int], size: int, rng: Tensor | None,
      thresholds: Tensor | None, dtype: torch.dtype, flags: int) -> Tensor:  # fmt: skip
    return weights[0].new_empty(size, dtype=dtype)


@register_fake("masked_weights_backward")
def _(grad: Tensor, weights: list[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights]


class MaskedWeights(torch.autograd.Function):
    """The gradient of ``masked_weights``: the same masks and scales, piece by piece."""

    @staticmethod
    def forward(
        ctx: Any, static: tuple[Any, ...], rng: Tensor | None, thresholds: Tensor | None, *weights: Tensor
    ) -> Any:
        streams, offsets, size, dtype, ctx.flags = static
        ctx.where = streams, offsets
        with torch._C._AutoDispatchBelowAutograd():
            thresholds = _snapshot(thresholds)
            ctx.save_for_backward(rng, thresholds, *weights)
            return _ops.masked_weights(weights, streams, offsets, size, rng, thresholds, dtype, ctx.flags)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rng, thresholds, *weights = ctx.saved_tensors
        # Those that are frozen are left out.
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        of = [[values[index] for index in wanted] for values in (weights, *ctx.where)]
        found = dict(zip(wanted, _MaskedGradients.apply(grad, *of, rng, thresholds, ctx.flags), strict=True))
        return None, None, None, *(found.get(index) for index in range(len(weights)))


class _MaskedGradients(torch.autograd.Function):
    """``masked_weights_backward`` in a graph of gradients, where it says that there is no way back."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(_ops.masked_weights_backward(*args))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(_only_reference("double backward", "masked_weights"))


def _masked_weights(
    weights: list[Tensor], streams: list[int], offsets: list[int], size: int, rng: Tensor | None,
    thresholds: Tensor | None, dtype: torch.dtype, flags: int,
) -> Tensor:  # fmt: skip
    if _differentiable("masked_weights", lambda: weights):
        return MaskedWeights.apply((streams, offsets, size, dtype, flags), rng, thresholds, *weights)
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.masked_weights(weights, streams, offsets, size, rng, thresholds, dtype, flags)


lib.impl("masked_weights", _masked_weights, "Autograd")


class _Refuse(torch.autograd.Function):
    """A gradient that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, op: str, *grads: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        return grads

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(_only_reference("double backward", ctx.op))


class _Once(torch.autograd.Function):
    """The same tensors, whose gradients refuse to be differentiated again, whatever computed them."""

    @staticmethod
    def forward(ctx: Any, op: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        ctx.set_materialize_grads(False)
        return tensors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        refused = iter(_Refuse.apply(ctx.op, *(grad for grad in grads if grad is not None)))
        return None, *(None if grad is None else next(refused) for grad in grads)


def _once_differentiable(op: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors; those that need a gradient as :class:`_Once` gives them, so that what is frozen costs nothing."""
    if not _differentiable(op, lambda: tensors):
        return tensors
    made = iter(_Once.apply(op, *(tensor for tensor in tensors if tensor.requires_grad)))
    return tuple(next(made) if tensor.requires_grad else tensor for tensor in tensors)


# --------------------------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------------------------


def layers(
    cell: str,
    plan: Plan,
    masks_on: bool,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Weights,
    first: int,
    batch_sizes: Tensor | None,
    rng: Tensor | None,
    thresholds: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """Neighbouring layers with nothing between them, all directions, by torch's own kernel.

    Args:
        cell: a name of :data:`cells.CELLS`.
        x: (T, B, I) or packed (N, I).
        states: h_0 (layers * directions, B, P) and, for an LSTM, c_0 (layers * directions, B, H).
        weights: of these layers.
        first: number of the first of these layers.
        rng, thresholds: of weight dropout; None where it is not on.
        dtype: of the results.

    Returns:
        out, h_n and, for an LSTM, c_n.

    Raises:
        RuntimeError: a second derivative is asked for, which cuDNN does not have; the message names the backend that
            does.
    """
    flags = plan.train_flags & (_WEIGHT_SITES | FLAG["WEIGHT_ROW"] | FLAG["MASKS_ON"])
    flags = flags if masks_on and flags & _WEIGHT_SITES else 0
    kinds = (KIND["WEIGHT_IH"], KIND["WEIGHT_HH"], None, None, KIND["WEIGHT_HR"])
    of = Configuration.of(cell, weights, dtype, x.device)
    flat: list[Tensor] = []
    streams: list[int] = []
    for number, directions in enumerate(weights):
        for direction, of_direction in enumerate(directions):
            for kind, weight in zip(kinds, of_direction, strict=True):
                if weight is not None:
                    flat.append(weight)
                    streams.append(-1 if kind is None else stream(kind, first + number, direction))
    where = cudnn_library.layout(of)
    given = (rng, thresholds) if flags else (None, None)
    buffer = _ops.masked_weights(flat, streams, list(where.offsets), where.size, *given, dtype, flags)

    states = [state.to(dtype).contiguous() for state in states]  # which cuDNN insists on
    x, buffer, *states = _once_differentiable("layer", x.to(dtype), buffer, *states)
    pieces = _pieces(buffer, where, of.shapes)
    # cuDNN's backward refuses what ran in its inference mode; there is no dropout in it that this would switch on.
    train = _differentiable("layer", lambda: (x, buffer, *states))
    has_bias = weights[0][0][2] is not None
    with torch.autocast(x.device.type, enabled=False):
        return cudnn_library.run(cell, x, batch_sizes, states, pieces, has_bias, len(weights), train, of.bidirectional)


__all__ = ["layers", "layers_at_once"]
