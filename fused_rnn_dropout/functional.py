"""The front door of every cell: shapes, checks, dtypes, layers and packing around the layer operators.

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
    check_input,
    check_states,
    check_thresholds,
    choose_backend,
    pair_of_each,
    resolve_rng,
    result_dtypes,
)
from .cells import CELLS
from .fakes import compute_dtype
from .layer_call import BOTH, FORWARD, Keep, side_by_side
from .layouts import NO_STEPS, exporting, known
from .options import LockedDropout
from .sites import FLAG, KIND, SITE, SITE_INDEX, Plan, stream

# --------------------------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------------------------


_KEEP_ALL, _KEEP_RECOMPUTED = int(Keep.ALL), int(Keep.STATES)  # plain numbers, as operators take them


class Call(NamedTuple):
    """What every layer of one call shares."""

    cell: str
    plan: Plan
    thresholds: Tensor | None
    masks_on: bool
    flags: tuple[int, ...]  # of each layer's operator
    rngs: Mapping[str, Tensor]
    rng: Tensor | None  # the same as the operators take them
    example_ids: Tensor | None  # of the rows as the operators see them
    step_offset: int
    batch_sizes: Tensor | None
    lengths: Tensor | None  # reference only: the input is padded there
    dtype: torch.dtype
    backend: str
    keep: int
    schedule: schedules.Schedule


class Weights(NamedTuple):
    """The tensors of one layer and direction; None where there are no biases and no projection."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None


LayerResults = tuple[Tensor, Sequence[Tensor]]
"""The output of a layer, and its last states, direction after direction."""


def _fused_layer(
    call: Call, x: Tensor, states: Sequence[Tensor], directions: Sequence[Weights], layer: int
) -> LayerResults:
    flags = call.flags[layer]
    return ops.family(call.backend).layer(
        CELLS[call.cell].number,
        x,
        states,
        [weight for weights in directions for weight in weights if weight is not None],
        call.batch_sizes,
        call.example_ids,
        call.rng if flags & FLAG["MASKS_ON"] else None,
        call.thresholds if flags else None,
        call.dtype,
        flags,
        layer,
        FORWARD if len(directions) == 1 else BOTH,
        call.step_offset,
        call.schedule.number,
        call.keep,
    )


OneDirection = Callable[[Call, Tensor, Sequence[Tensor], Weights, int, bool], tuple[Tensor, ...]]


def _each_direction(run: OneDirection) -> Callable[..., LayerResults]:
    """A layer, of what runs one direction of it."""

    def layer(
        call: Call, x: Tensor, states: Sequence[Tensor], directions: Sequence[Weights], number: int
    ) -> LayerResults:
        of_each = CELLS[call.cell].states
        own = [states[start : start + of_each] for start in range(0, len(states), of_each)]
        return side_by_side([run(call, x, own[i], w, number, i == 1) for i, w in enumerate(directions)])

    return layer


@_each_direction
def _onnx_layer(
    call: Call, x: Tensor, states: Sequence[Tensor], w: Weights, layer: int, reverse: bool
) -> tuple[Tensor, ...]:
    return onnx.layer(call.cell, x, states, *w[:4], call.dtype, reverse, call.plan.reset_after)


def _counters(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """example_ids and absolute steps of a padded x (T, B, *)."""
    steps = torch.arange(x.size(0), device=x.device) + call.step_offset
    return (torch.arange(x.size(1), device=x.device) if call.example_ids is None else call.example_ids), steps


@_each_direction
def _reference_layer(
    call: Call, x: Tensor, states: Sequence[Tensor], w: Weights, layer: int, reverse: bool
) -> tuple[Tensor, ...]:
    plan, compute = call.plan, compute_dtype(call.dtype)
    own = w if CELLS[call.cell].projects else w[:4]
    weights = [None if weight is None else weight.to(compute) for weight in own]
    factors: dict[str, Tensor] = {}
    if plan.names:
        example_ids, steps = _counters(call, x)
        assert call.thresholds is not None
        factors = masks.layer(
            plan,
            call.cell,
            call.rngs,
            call.thresholds,
            layer=layer,
            reverse=reverse,
            input_size=x.size(-1),
            hidden_size=w.w_hh.size(0) // CELLS[call.cell].gates,
            proj_size=0 if w.w_hr is None else w.w_hr.size(0),
            example_ids=example_ids,
            steps=steps,
            dtype=compute,
            masks_on=call.masks_on,
        )
        untied = plan.input_dropout is not None and not plan.input_dropout.tied
        if untied and layer == 0 and call.masks_on:
            factors["input"] = _site_mask(call, "input_dropout", x, 0, compute)
    unzoned = plan.zoneout_h is not None and plan.zoneout_h.output == "unzoned"
    initial = [state.to(compute) for state in states]
    options: dict[str, Any] = {"lengths": call.lengths, "reverse": reverse, "unzoned": unzoned}
    if not plan.reset_after:
        options["reset_after"] = False
    has_c = CELLS[call.cell].has_c
    # Under autocast the matrix products below would run in its dtype.
    with torch.autocast(x.device.type, enabled=False) if autocast_enabled(x) else nullcontext():
        equations: Any = getattr(reference, call.cell.lower())
        out, last = equations(x.to(compute), initial if has_c else initial[0], weights, factors, **options)
    return tuple(result.to(call.dtype) for result in (out, *(last if has_c else (last,))))


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
        gates=CELLS[call.cell].gates,
    )


def _site(call: Call, name: str, x: Tensor, layer: int) -> Tensor:
    """Dropout of a layer's input or output; x itself where the site is off, or the layer's operator masks it."""
    spec = getattr(call.plan, name)
    if spec is None or not call.masks_on or call.schedule.outer_sites:
        return x
    locked = spec if isinstance(spec, LockedDropout) else None
    if call.backend != "reference":
        assert call.thresholds is not None
        return ops.family(call.backend).dropout(
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
    return reference.apply(x.to(compute), _site_mask(call, name, x, layer, compute)).to(x.dtype)


def _cudnn_stack(
    call: Call, x: Tensor, hx: Sequence[Tensor], layers: list[list[Weights]], between: str
) -> tuple[Tensor, ...]:
    """All layers at once, or one after the other where a site acts between them."""
    together = cudnn.layers_at_once(call.plan, call.masks_on, len(layers))
    finals: list[list[Tensor]] = [[] for _ in hx]
    for first in range(0, len(layers), together):
        if first:
            x = _site(call, between, x, first)
        some = layers[first : first + together]
        rows = slice(first * len(some[0]), (first + together) * len(some[0]))
        x, *last = cudnn.layers(
            call.cell, call.plan, call.masks_on, x, [state[rows] for state in hx], some, first, call.batch_sizes,
            call.rngs.get("weight"), call.thresholds, call.dtype,
        )  # fmt: skip
        for collected, value in zip(finals, last, strict=True):
            collected.append(value)
    return x, *(collected[0] if len(collected) == 1 else torch.cat(collected) for collected in finals)


def _flags(plan: Plan, masks_on: bool, num_layers: int, schedule: schedules.Schedule) -> tuple[int, ...]:
    """Of each layer's operator. Without a site there is nothing for MASKS_ON to switch on."""
    if masks_on and schedule.outer_sites:
        return tuple(plan.layer_flags(layer, num_layers) for layer in range(num_layers))
    return (plan.train_flags if masks_on and plan.eval_flags else plan.eval_flags,) * num_layers


def _stack(
    call: Call, x: Tensor, hx: Sequence[Tensor], layers: list[list[Weights]], visible: torch.dtype
) -> tuple[Tensor, ...]:
    """All layers and directions; returns the output and one stacked final state per state of the cell."""
    run = {"reference": _reference_layer, onnx.BACKEND: _onnx_layer}.get(call.backend, _fused_layer)
    between = "dropout" if call.plan.inter_layer_dropout is None else "inter_layer_dropout"
    x = _site(call, "input_dropout", x, 0)
    if call.schedule.name == schedules.CUDNN:
        x, *last = _cudnn_stack(call, x, hx, layers, between)
        x = _site(call, "output_dropout", x.to(visible), len(layers))
        return x, last[0].to(visible), *last[1:]
    # Layer after layer, direction after direction.
    states = [state for row in zip(*(state.unbind(0) for state in hx), strict=True) for state in row]
    each = len(layers[0]) * len(hx)
    finals: list[Tensor] = []
    for layer, directions in enumerate(layers):
        if layer:
            x = _site(call, between, x, layer)
        x, of_layer = run(call, x, states[layer * each : (layer + 1) * each], directions, layer)
        x = x.to(visible)
        finals += of_layer
    x = _site(call, "output_dropout", x, len(layers))
    of_each = [finals[place :: len(hx)] for place in range(len(hx))]
    h_n, *others = [c[0].unsqueeze(0) if len(c) == 1 else torch.stack(c) for c in of_each]
    return x, h_n.to(visible), *others


# --------------------------------------------------------------------------------------------------------------------
# The front door
# --------------------------------------------------------------------------------------------------------------------


def batch_size(input: Tensor, batch_sizes: Tensor | None, sorted_indices: Tensor | None = None) -> int:
    """Number of rows of a padded (T, B, *) or packed input."""
    if batch_sizes is None:
        return input.size(1)
    if sorted_indices is not None:
        return sorted_indices.size(0)
    if not torch.compiler.is_compiling():
        return int(batch_sizes[0])
    # The one number that a packed input keeps in a tensor: without this a full graph cannot be captured.
    with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):
        batch: int = batch_sizes[0].item()  # type: ignore[assignment]  # a symbol, which int() would make a constant
    torch._check(batch >= 0)
    return batch


def split_weights(weights: Sequence[Tensor], num_layers: int, bias: bool, bidirectional: bool) -> list[list[Weights]]:
    """Flat weights in torch's order, as [layer][direction].

    Raises:
        ValueError: the number of weights fits neither a projection nor none.
    """
    directions = 2 if bidirectional else 1
    each, rest = divmod(len(weights), num_layers * directions)
    plain = 4 if bias else 2
    if rest or each not in (plain, plain + 1):
        raise ValueError(
            f"weights should hold {plain} tensors ({plain + 1} with a projection) for each of {num_layers} "
            f"layers and {directions} directions, got {len(weights)}"
        )
    result = []
    for start in range(0, len(weights), each):
        group = weights[start : start + each]
        b_ih, b_hh = (group[2], group[3]) if bias else (None, None)
        result.append(Weights(group[0], group[1], b_ih, b_hh, group[-1] if each > plain else None))
    return [result[start : start + directions] for start in range(0, len(result), directions)]


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
    packed = batch_sizes is not None
    layers = split_weights(weights, num_layers, bias, bidirectional)
    first = layers[0][0]
    check_input(cell, input, packed, weights)
    batch = batch_size(input, batch_sizes, sorted_indices)
    projected, hidden_size = first.w_hr is not None, first.w_hh.size(0) // CELLS[cell].gates
    count = num_layers * (2 if bidirectional else 1)
    expected = [(count, batch, first.w_hh.size(1)), (count, batch, hidden_size)][: CELLS[cell].states]
    if hx is not None:
        check_states(cell, hx, expected, input)
    steps = input.size(0) if batch_sizes is None else batch_sizes.size(0)
    if known(steps == 0):
        raise RuntimeError(NO_STEPS)
    chosen = choose_backend(backend, plan, input.device.type)
    check_counters(example_ids, step_offset, batch, steps, input.device)
    if plan.names:
        if thresholds is None:
            raise ValueError(f"thresholds should be given: {', '.join(plan.names)} configured")
        if thresholds.device != input.device:
            raise RuntimeError(
                f"the rates of the sites are on {thresholds.device} and the input is on {input.device}: "
                "move the whole module with .to(device)"
            )
        if chosen == "reference":  # the operators of the others look for themselves
            check_thresholds(thresholds)
    if hx is None:
        hx = [torch.zeros(size, dtype=input.dtype, device=input.device) for size in expected]
    if sorted_indices is not None:
        hx = [state.index_select(1, sorted_indices) for state in hx]
        example_ids = sorted_indices if example_ids is None else example_ids.index_select(0, sorted_indices)
    dtype, visible = result_dtypes(cell, input, packed, projected, hx[-1].dtype)
    if not torch.compiler.is_dynamo_compiling():
        if onnx.exporting():
            chosen = onnx.check_call(plan, masks_on, packed, projected, dtype, chosen)
        if torch.jit.is_tracing():
            onnx.register_torchscript()
    asked = schedules.Layers(plan, masks_on, recompute, input, steps, packed, dtype, layers, batch)
    schedule = schedules.choose(chosen, asked).schedule
    flags = _flags(plan, masks_on, num_layers, schedule)
    rngs = resolve_rng(plan, rng, masks_on, input.device)
    call = Call(
        cell,
        plan,
        thresholds if plan.names else None,
        masks_on,
        flags,
        rngs,
        pair_of_each(rngs) if any(of_layer & FLAG["MASKS_ON"] for of_layer in flags) else None,
        example_ids,
        step_offset,
        batch_sizes,
        None,
        dtype,
        chosen,
        _KEEP_RECOMPUTED if recompute else _KEEP_ALL,
        schedule,
    )
    if batch_sizes is None or chosen != "reference":
        out, *last = _stack(call, input, hx, layers, visible)
    else:
        if exporting():
            raise NotImplementedError(
                "torch.export cannot trace a packed batch with backend='reference': give a padded tensor, or export "
                "with backend=None"
            )
        padded, lengths = pad_packed_sequence(PackedSequence(input, batch_sizes))
        call = call._replace(batch_sizes=None, lengths=lengths)
        out, *last = _stack(call, padded, hx, layers, visible)
        out = pack_padded_sequence(out, lengths).data
    if sorted_indices is not None:
        unsorted_indices = invert_permutation(sorted_indices)
        assert unsorted_indices is not None
        last = [state.index_select(1, unsorted_indices) for state in last]
    return out, *last


__all__ = ["batch_size", "run", "split_weights"]
