"""The operators of the Triton backend, by the names and with the arguments of ``csrc/bind/schemas.h``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..layer_call import NEEDS_X, Direction, Keep, Kept, LayerCall, needed, needs_of, side_by_side
from ..schedules import SCHEDULES, SEQUENCE, sequence_obstacle
from ..sites import FLAG, GROUPS, KIND, SEQ, SITE_INDEX, SITES, inner_flags, outer_site
from ..sites import stream as stream_of
from . import layer as run
from . import philox
from .checks import (
    check,
    check_counters,
    check_device,
    check_examples,
    check_floating,
    check_integers,
    check_random,
    check_shapes,
    check_steps,
    check_stream,
    check_thresholds,
)
from .dropout import drop_rows
from .layer import Layer, Surroundings
from .rows import Batch
from .sites import Sites
from .weights import WeightMasks

_F = TypeVar("_F", bound=Callable[..., Any])

_NUMBERS = {row.number: row.name for row in SCHEDULES["triton"]}


def _on_its_device(operator: _F) -> _F:
    """Triton launches on the current device; and products into given tensors know no autograd."""

    @functools.wraps(operator)
    def call(*args: Any) -> Any:
        like = next(arg for arg in args if isinstance(arg, Tensor))
        with torch.no_grad(), torch.cuda.device_of(like):
            return operator(*args)

    return call  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------------------------
# Without a recurrence
# --------------------------------------------------------------------------------------------------------------------


@_on_its_device
def words(rng: Tensor, row: Tensor, step: Tensor, n: int, stream: int) -> Tensor:
    check_counters("row", row)
    check_counters("step", step)
    check_integers("rng", rng, 2)
    check_device(rng.device, row=row, step=step)
    check_stream(stream)
    check(0 <= n <= SEQ, f"n must be in [0, 2^32), got {n}")
    return philox.words(rng.contiguous(), row.reshape(-1).contiguous(), step.reshape(-1).contiguous(), n, stream)


@_on_its_device
def dropout(
    x: Tensor, rng: Tensor, thresholds: Tensor, batch_sizes: Tensor | None, example_ids: Tensor | None, site: int,
    stream: int, per_step: bool, batch_shared: bool, step_offset: int,
) -> Tensor:  # fmt: skip
    check_floating(x=x)
    check_stream(stream)
    check(0 <= site < len(SITES), f"site must be in [0, {len(SITES)}), got {site}")
    check_thresholds(thresholds)
    check_integers("rng", rng, 2)
    check_device(x.device, rng=rng, thresholds=thresholds, example_ids=example_ids)
    batch = Batch(x, batch_sizes, None, False)
    check_steps(step_offset, batch.steps)
    check_examples(example_ids, batch.batch)
    rng, thresholds = rng.contiguous(), thresholds.contiguous()
    ids = None if example_ids is None else example_ids.contiguous()
    return drop_rows(x, batch, rng, thresholds, ids, site, stream, per_step, batch_shared, step_offset)


# --------------------------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------------------------


def _surroundings(call: LayerCall, direction: Direction) -> tuple[Layer, Surroundings]:
    """The checked tensors of one direction, and what is around them. Who chose the schedule has asked whether it can
    run; what cannot must not reach a kernel in any case.
    """
    layer = Layer(call.x, *direction[2:])
    layer.check(call.row)
    check_floating(dtype=call.dtype)
    device, flags = call.x.device, inner_flags(call.flags, writes=True)
    batch = Batch(call.x, call.batch_sizes, layer.h0.shape[0], direction.reverse)
    check(call.schedule in _NUMBERS, f"schedule must be one of {sorted(_NUMBERS)}, got {call.schedule}")
    at_once = _NUMBERS[call.schedule] == SEQUENCE
    if at_once:
        obstacle = sequence_obstacle(layer.w_hr is not None, batch.packed, call.dtype, device)
        check(obstacle is None, f"schedule asks for the sequence schedule: {obstacle}")
    random = (call.example_ids, call.rng, call.thresholds)
    check_random(device, *random, call.flags, call.layer, call.step_offset, batch.batch, batch.steps)
    example_ids, thresholds = (
        None if tensor is None else tensor.contiguous() for tensor in (call.example_ids, call.thresholds)
    )
    rows = () if call.rng is None else call.rng.unbind(0)
    rngs = {group: row.contiguous() for group, row in zip(GROUPS, rows, strict=False)}
    where = (call.layer, direction.reverse)
    column = layer.h0.shape[1] if direction.reverse and call.num_directions == 2 else 0
    written = outer_site(flags, writes=True)
    rng_written = rngs.get(written.group) if written else None
    sites = Sites.prepare(
        thresholds, rngs.get("state"), rngs.get("hidden"), rng_written, example_ids, call.dtype, flags, *where,
        call.step_offset, column,
    )  # fmt: skip
    weights = WeightMasks(rngs.get("weight"), thresholds, flags, *where, call.dtype)
    return layer, Surroundings(batch, sites, weights, at_once)


def _masked(call: LayerCall, rows: Tensor) -> Tensor:
    """What a layer reads, for all directions, or its gradient, with the mask of its site: a kernel of its own, since
    products are torch's.
    """
    site = outer_site(call.flags, writes=False)
    if site is None:
        return rows
    assert call.rng is not None and call.thresholds is not None
    batch, rng = Batch(call.x, call.batch_sizes, None, False), call.rng[GROUPS.index(site.group)].contiguous()
    bits = {name for name in site.flags if call.flags & FLAG[name]}
    shared = any(option.flag in bits for option in site.options if option.name == "batch_shared")
    ids = None if call.example_ids is None else call.example_ids.contiguous()
    return drop_rows(
        rows, batch, rng, call.thresholds.contiguous(), ids,
        SITE_INDEX[site.name], stream_of(KIND[site.kind], call.layer), site.sequence_flag not in bits, shared,
        call.step_offset,
    )  # fmt: skip


def _columns(tensor: Tensor | None, call: LayerCall, index: int) -> Tensor | None:
    """Those of one direction, in y or its gradient."""
    return tensor if tensor is None or call.num_directions == 1 else tensor.chunk(call.num_directions, -1)[index]


def _forward(call: LayerCall, keep: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    call.check()
    directions = [_surroundings(call, direction) for direction in call.each()]
    x = _masked(call, call.x)
    of_each = [run.forward(call.row, layer._replace(x=x), around, keep) for layer, around in directions]
    y, last = side_by_side([(out, *finals) for out, finals, _ in of_each])
    return y, last, [tensor for _, _, kept in of_each for tensor in kept]


@_on_its_device
def layer_forward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    call = LayerCall(*args)
    return _forward(call, call.keep)


@_on_its_device
def layer(*args: Any) -> tuple[Tensor, list[Tensor]]:
    """Below autograd nothing is kept, whatever ``keep`` says."""
    y, last, _ = _forward(LayerCall(*args), Keep.NOTHING)
    return y, last


@_on_its_device
def layer_backward(
    grad_y: Tensor | None, grad_last: list[Tensor | None], *args: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    *shared, y, kept, needs = args
    call = LayerCall(*shared)
    call.check()
    check(call.keep != Keep.NOTHING, "keep must be 1 or 2 in a backward, which reads what its forward kept")
    check(
        len(grad_last) == len(call.states),
        f"grad_last must have an element for each of states, {len(call.states)}, got {len(grad_last)}",
    )
    parts = 3 * call.num_directions
    check(
        len(kept) == parts,
        f"kept must hold gates, beside and states of each direction, {parts} tensors, got {len(kept)}",
    )
    check_floating(grad_y=grad_y)
    directions = [_surroundings(call, direction) for direction in call.each()]
    layer, around = directions[0]
    shape, of_states = around.batch.shape(call.num_directions * layer.h0.shape[1]), call.row.states
    check_shapes({"grad_y": (grad_y, shape), "y": (y, shape)})
    of_each = [needs_of(needs, index) for index in range(call.num_directions)]
    reads_x = call.keep == Keep.STATES or any(needed(own, "w_ih") for own in of_each)
    x = _masked(call, call.x) if reads_x else call.x
    dx: Tensor | None = None
    dstates: list[Tensor] = []
    dweights: list[Tensor] = []
    for index, ((layer, around), of_direction) in enumerate(zip(directions, Kept.of_each(kept), strict=True)):
        found = run.backward(
            call.row,
            layer._replace(x=x),
            around,
            (_columns(grad_y, call, index), *grad_last[index * of_states : (index + 1) * of_states]),
            _columns(y, call, index),
            of_direction,
            call.keep,
            of_each[index],
        )
        dx = found[0] if dx is None else dx + found[0]
        dstates += found[1]
        dweights += found[2]
    assert dx is not None
    dx = _masked(call, dx) if needs & NEEDS_X else dx
    return dx, dstates, dweights
