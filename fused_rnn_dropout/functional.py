"""The front door of every cell: layers, directions and packing around the layer operators.

:func:`run` runs a whole stack the way ``torch.nn`` does, on the fused operators or, with ``backend="reference"``, on
:mod:`reference` fed with the masks of :mod:`masks`. Both read the same counters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, invert_permutation, pack_padded_sequence, pad_packed_sequence

from . import cudnn, masks, onnx, ops, reference, schedules
from .arguments import (
    GROUP_OF,
    Rng,
    autocast_enabled,
    check_counters,
    check_thresholds,
    pair_of_each,
    resolve_rng,
)
from .cells import CELLS
from .fakes import compute_dtype
from .layer_call import BOTH, FORWARD, Keep, side_by_side
from .layouts import exporting
from .options import LockedDropout
from .prepare import Prepared, Settings, Weights, prepare, split_weights
from .sites import FLAG, KIND, SITE, SITE_INDEX, Plan, stream

# --------------------------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------------------------


_KEEP_ALL, _KEEP_RECOMPUTED = int(Keep.ALL), int(Keep.STATES)  # plain numbers, as operators take them


class Call(NamedTuple):
    """What every layer of one call shares."""

    settings: Settings
    found: Prepared
    plan: Plan
    thresholds: Tensor | None
    rngs: Mapping[str, Tensor]
    rng: Tensor | None  # the same as the operators take them
    example_ids: Tensor | None  # of the rows as the operators see them
    step_offset: int
    batch_sizes: Tensor | None
    lengths: Tensor | None  # reference only: the input is padded there


LayerResults = tuple[Tensor, Sequence[Tensor]]
"""The output of a layer, and its last states, direction after direction."""


def _fused_layer(
    call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], layer: int
) -> LayerResults:
    settings, found = call.settings, call.found
    flags, family = found.flags[layer], ops.family(found.backend)
    return (family.autograd_of_layer if found.eager else family.layer)(
        CELLS[settings.cell].number,
        x,
        states,
        weights,
        call.batch_sizes,
        call.example_ids,
        call.rng if flags & FLAG["MASKS_ON"] else None,
        call.thresholds if flags else None,
        found.dtype,
        flags,
        layer,
        BOTH if settings.bidirectional else FORWARD,
        call.step_offset,
        found.schedule.number,
        _KEEP_RECOMPUTED if settings.recompute else _KEEP_ALL,
    )


OneDirection = Callable[[Call, Tensor, Sequence[Tensor], Weights, int, bool], tuple[Tensor, ...]]


def _each_direction(run: OneDirection) -> Callable[..., LayerResults]:
    """A layer, of what runs one direction of it."""

    def layer(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], number: int) -> LayerResults:
        of_each = CELLS[call.settings.cell].states
        (directions,) = split_weights(weights, 1, call.settings.bias, call.settings.bidirectional)
        own = [states[start : start + of_each] for start in range(0, len(states), of_each)]
        return side_by_side([run(call, x, own[i], w, number, i == 1) for i, w in enumerate(directions)])

    return layer


@_each_direction
def _onnx_layer(
    call: Call, x: Tensor, states: Sequence[Tensor], w: Weights, layer: int, reverse: bool
) -> tuple[Tensor, ...]:
    return onnx.layer(call.settings.cell, x, states, *w[:4], call.found.dtype, reverse, call.plan.reset_after)


def _counters(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """example_ids and absolute steps of a padded x (T, B, *)."""
    steps = torch.arange(x.size(0), device=x.device) + call.step_offset
    return (torch.arange(x.size(1), device=x.device) if call.example_ids is None else call.example_ids), steps


@_each_direction
def _reference_layer(
    call: Call, x: Tensor, states: Sequence[Tensor], w: Weights, layer: int, reverse: bool
) -> tuple[Tensor, ...]:
    plan, compute = call.plan, compute_dtype(call.found.dtype)
    own = w if CELLS[call.settings.cell].projects else w[:4]
    weights = [None if weight is None else weight.to(compute) for weight in own]
    factors: dict[str, Tensor] = {}
    if plan.names:
        example_ids, steps = _counters(call, x)
        assert call.thresholds is not None
        factors = masks.layer(
            plan,
            call.settings.cell,
            call.rngs,
            call.thresholds,
            layer=layer,
            reverse=reverse,
            input_size=x.size(-1),
            hidden_size=w.w_hh.size(0) // CELLS[call.settings.cell].gates,
            proj_size=0 if w.w_hr is None else w.w_hr.size(0),
            example_ids=example_ids,
            steps=steps,
            dtype=compute,
            masks_on=call.settings.masks_on,
        )
        untied = plan.input_dropout is not None and not plan.input_dropout.tied
        if untied and layer == 0 and call.settings.masks_on:
            factors["input"] = _site_mask(call, "input_dropout", x, 0, compute)
    unzoned = plan.zoneout_h is not None and plan.zoneout_h.output == "unzoned"
    initial = [state.to(compute) for state in states]
    options: dict[str, Any] = {"lengths": call.lengths, "reverse": reverse, "unzoned": unzoned}
    if not plan.reset_after:
        options["reset_after"] = False
    has_c = CELLS[call.settings.cell].has_c
    # Under autocast the matrix products below would run in its dtype.
    with torch.autocast(x.device.type, enabled=False) if autocast_enabled(x) else nullcontext():
        equations: Any = getattr(reference, call.settings.cell.lower())
        out, last = equations(x.to(compute), initial if has_c else initial[0], weights, factors, **options)
    return tuple(result.to(call.found.dtype) for result in (out, *(last if has_c else (last,))))


_NOT_FUSED = {"reference": _reference_layer, onnx.BACKEND: _onnx_layer}
"""What runs a layer, of the backends that have no operator for it."""


def _site_mask(call: Call, name: str, x: Tensor, layer: int, dtype: torch.dtype) -> Tensor:
    spec, thresholds = getattr(call.plan, name), call.thresholds
    assert thresholds is not None
    example_ids, steps = _counters(call, x)
    return masks.locked(
        spec,
        thresholds[SITE_INDEX[name]],
        call.rngs[GROUP_OF[name]],
        KIND[SITE[name].kind],
        layer,
        x.size(-1),
        example_ids,
        steps,
        dtype,
        gates=CELLS[call.settings.cell].gates,
    )


def _site(call: Call, name: str, x: Tensor, layer: int) -> Tensor:
    """Dropout of a layer's input or output; x itself where the site is off, or the layer's operator masks it."""
    if not call.settings.masks_on or call.found.schedule.outer_sites:
        return x
    spec = getattr(call.plan, name)
    if spec is None:
        return x
    locked = spec if isinstance(spec, LockedDropout) else None
    if call.found.backend != "reference":
        assert call.thresholds is not None
        return ops.family(call.found.backend).dropout(
            x,
            call.rngs[GROUP_OF[name]],
            call.thresholds,
            call.batch_sizes,
            call.example_ids,
            SITE_INDEX[name],
            stream(KIND[SITE[name].kind], layer),
            locked is None or locked.per == "step",
            locked is not None and locked.batch_shared,
            call.step_offset,
        )
    if locked is not None and not locked.tied:
        return x  # one mask per gate: part of the first layer
    compute = compute_dtype(x.dtype)
    drawn, wide = _site_mask(call, name, x, layer, compute), x.to(compute)
    return (wide + drawn if masks.added(spec) else reference.apply(wide, drawn)).to(x.dtype)


def _cudnn_stack(
    call: Call, x: Tensor, hx: Sequence[Tensor], layers: list[list[Weights]], between: str
) -> tuple[Tensor, ...]:
    """All layers at once, or one after the other where a site acts between them."""
    together = cudnn.layers_at_once(call.plan, call.settings.masks_on, len(layers))
    finals: list[list[Tensor]] = [[] for _ in hx]
    for first in range(0, len(layers), together):
        if first:
            x = _site(call, between, x, first)
        some = layers[first : first + together]
        rows = slice(first * len(some[0]), (first + together) * len(some[0]))
        x, *last = cudnn.layers(
            call.settings.cell, call.plan, call.settings.masks_on, x, [state[rows] for state in hx], some, first,
            call.batch_sizes, call.rngs.get("weight"), call.thresholds, call.found.dtype,
        )  # fmt: skip
        for collected, value in zip(finals, last, strict=True):
            collected.append(value)
    return x, *(collected[0] if len(collected) == 1 else torch.cat(collected) for collected in finals)


def _in(dtype: torch.dtype, x: Tensor) -> Tensor:
    """``x`` in this dtype, without a call of torch where it has it."""
    return x if x.dtype == dtype else x.to(dtype)


def _stack(call: Call, x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All layers and directions; returns the output and one stacked final state per state of the cell."""
    settings, visible, backend = call.settings, call.found.visible, call.found.backend
    run = _NOT_FUSED.get(backend, _fused_layer)
    between = "dropout" if call.plan.inter_layer_dropout is None else "inter_layer_dropout"
    num_layers, directions = settings.num_layers, settings.directions
    x = _site(call, "input_dropout", x, 0)
    if call.found.schedule.name == schedules.CUDNN:
        x, *last = _cudnn_stack(call, x, hx, settings.split(weights), between)
        x = _site(call, "output_dropout", _in(visible, x), num_layers)
        return x, _in(visible, last[0]), *last[1:]
    if num_layers * directions == 1:
        states = [state.squeeze(0) for state in hx]
    else:  # layer after layer, direction after direction
        states = [state for row in zip(*(state.unbind(0) for state in hx), strict=True) for state in row]
    of_weights, of_states = len(weights) // num_layers, directions * len(hx)
    finals: list[Tensor] = []
    for layer in range(num_layers):
        if layer:
            x = _site(call, between, x, layer)
        own_states = states[layer * of_states : (layer + 1) * of_states]
        x, of_layer = run(call, x, own_states, weights[layer * of_weights : (layer + 1) * of_weights], layer)
        x = _in(visible, x)
        finals += of_layer
    x = _site(call, "output_dropout", x, num_layers)
    if num_layers * directions == 1:
        h_n, *others = [state.unsqueeze(0) for state in finals]
    else:
        h_n, *others = [torch.stack(finals[place :: len(hx)]) for place in range(len(hx))]
    return x, _in(visible, h_n), *others


# --------------------------------------------------------------------------------------------------------------------
# The front door
# --------------------------------------------------------------------------------------------------------------------


def run(
    cell: str,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    plan: Plan,
    thresholds: Tensor | None = None,
    *,
    num_layers: int = 1,
    bias: bool = True,
    bidirectional: bool = False,
    masks_on: bool = True,
    batch_sizes: Tensor | None = None,
    sorted_indices: Tensor | None = None,
    rng: Rng | None = None,
    example_ids: Tensor | None = None,
    step_offset: int = 0,
    backend: str | None = None,
    recompute: bool = False,
) -> tuple[Tensor, ...]:
    """All layers and directions of a cell.

    Args:
        cell: its name in :data:`cells.CELLS`.
        input: (T, B, I), or packed data (N, I) with ``batch_sizes``.
        hx: h_0 (layers * directions, B, P) and, where the cell has one, c_0 (layers * directions, B, H), rows in their
            ORIGINAL order; zeros if None. P is the projection's width, H without one.
        weights: flat, in torch's order, for each layer and direction: w_ih, w_hh, then b_ih, b_hh with ``bias``, then
            w_hr with a projection.
        plan: which sites are configured, with which options.
        thresholds: int64[10] on the input's device, in the order of ``sites.SITES``; needed where a site is configured.
        num_layers: number of layers.
        bias: whether ``weights`` hold biases.
        bidirectional: whether there are two directions.
        masks_on: train or MC mode; otherwise what eval computes.
        batch_sizes: int64 on the CPU, of a ``PackedSequence``.
        sorted_indices: original row of each packed row, of a ``PackedSequence``; its rows are 0..B-1 if None.
        rng: int64[2] on the input's device, or a dict of such by group with the default under None; drawn if None.
        example_ids: int64 (B,), the example counter of each row in its ORIGINAL order; 0..B-1 if None.
        step_offset: absolute step of the first step.
        backend: None for the best fused one that is there, or one of ``BACKENDS``.
        recompute: keep less for backward and compute it again there.

    Returns:
        out (T, B, directions * P) or packed (N, directions * P), then the last states in the shapes of ``hx``, rows in
        their original order, in the dtypes that torch.nn gives.

    Raises:
        RuntimeError, ValueError, TypeError: a bad argument, in torch.nn's words where it has some.
        NotImplementedError: a ``torch.func`` transform on a fused backend.
    """
    settings = Settings(cell, num_layers, bias, bidirectional, masks_on, backend, recompute)
    found = prepare(settings, plan, input, hx, weights, batch_sizes, sorted_indices)
    device = input.device
    check_counters(example_ids, step_offset, found.batch, found.steps, device)
    if plan.names:
        if thresholds is None:
            raise ValueError(f"thresholds should be given: {', '.join(plan.names)} configured")
        if thresholds.device != device:
            raise RuntimeError(
                f"the rates of the sites are on {thresholds.device} and the input is on {device}: "
                "move the whole module with .to(device)"
            )
        if found.backend == "reference":  # the operators of the others look for themselves
            check_thresholds(thresholds)
    if hx is None:
        hx = [torch.zeros(size, dtype=input.dtype, device=device) for size in found.sizes]
    if sorted_indices is not None:
        hx = [state.index_select(1, sorted_indices) for state in hx]
        example_ids = sorted_indices if example_ids is None else example_ids.index_select(0, sorted_indices)
    rngs = resolve_rng(plan, rng, masks_on, device, found.eager)
    call = Call(
        settings,
        found,
        plan,
        thresholds if plan.names else None,
        rngs,
        pair_of_each(rngs) if found.draws else None,
        example_ids,
        step_offset,
        batch_sizes,
        None,
    )
    if batch_sizes is None or found.backend != "reference":
        out, *last = _stack(call, input, hx, weights)
    else:
        if exporting():
            raise NotImplementedError(
                "torch.export cannot trace a packed batch with backend='reference': give a padded tensor, or export "
                "with backend=None"
            )
        padded, lengths = pad_packed_sequence(PackedSequence(input, batch_sizes))
        call = call._replace(batch_sizes=None, lengths=lengths)
        out, *last = _stack(call, padded, hx, weights)
        out = pack_padded_sequence(out, lengths).data
    if sorted_indices is not None:
        unsorted_indices = invert_permutation(sorted_indices)
        assert unsorted_indices is not None
        last = [state.index_select(1, unsorted_indices) for state in last]
    return out, *last


__all__ = ["run", "split_weights"]
