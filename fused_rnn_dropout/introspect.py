"""What a module would do with an input: :func:`explain` says it in words, :func:`export_masks` in tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import held, library, masks, ops, schedules
from .arguments import (
    BACKENDS,
    GROUP_OF,
    Rng,
    check_counters,
    choose_backend,
    obstacle,
    resolve_rng,
    result_dtypes,
)
from .cell_modules import RegularizedCell
from .cells import A_MODULE, CELLS
from .fakes import compute_dtype, kept_dtypes
from .functional import split_weights
from .layouts import NO_STEPS, check_dense, check_packed
from .options import Spec, rate_of
from .rnn_base import Regularized, RegularizedRNN
from .sites import BETWEEN, KIND, SITE, SITE_INDEX, make_spec, output_differs

_AT_INPUT, _AT_OUTPUT = ("input_dropout",), ("output_dropout",)


@dataclass(frozen=True)
class _Input:
    """Sizes of an input: steps T, batch B, and the number of (step, example) pairs that a layer computes."""

    data: Tensor
    steps: int
    batch: int
    pairs: int
    packed: bool


def _check_rnn(rnn: Any, where: str) -> Any:
    if not isinstance(rnn, Regularized):
        raise TypeError(f"{where} takes a {A_MODULE}, got {type(rnn).__name__}: convert() makes them")
    return rnn


def _sizes(rnn: RegularizedRNN, x: Any) -> _Input:
    if isinstance(rnn, RegularizedCell):
        x = rnn.as_sequence(x)
    if isinstance(x, PackedSequence):
        check_packed(x)
        return _Input(x.data, x.batch_sizes.size(0), int(x.batch_sizes[0]), x.data.size(0), True)
    if not isinstance(x, Tensor):
        raise TypeError(f"x should be a Tensor or a PackedSequence, got {type(x).__name__}")
    check_dense("x", x)
    if x.dim() not in (2, 3):
        raise rnn._wrong_dims(x)
    batched = x.dim() == 3
    steps, batch = (x.size(1), x.size(0)) if rnn.batch_first and batched else (x.size(0), x.size(1) if batched else 1)
    if steps == 0:
        raise RuntimeError(NO_STEPS)
    return _Input(x, steps, batch, steps * batch, False)


def _input_sizes(rnn: RegularizedRNN) -> list[int]:
    """Width of each layer's input, then of the output."""
    width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
    return [rnn.input_size] + [width] * rnn.num_layers


# --------------------------------------------------------------------------------------------------------------------
# Masks
# --------------------------------------------------------------------------------------------------------------------


def export_masks(
    rnn: RegularizedRNN,
    x: Tensor | PackedSequence,
    rng: Rng | None = None,
    example_ids: Tensor | None = None,
    step_offset: int | None = None,
) -> dict[str, Tensor]:
    """Every mask that ``rnn(x, rng=rng, ...)`` would use now, exactly as its backend makes it.

    Args:
        rnn: an :class:`LSTM` or :class:`GRU` of this package, or a cell: then ``x`` is that of one step, and names have
            no suffix of a layer.
        x: an input; only its shape, dtype and device matter.
        rng: as in the forward pass; drawn as it would draw if None.
        example_ids: int64 (B,), as in the forward pass.
        step_offset: absolute step of the first step; 0 if None, or under ``hold_masks`` the step that is next.

    Under ``hold_masks`` these are the masks of the next call, and the hold does not go on; a pair that it has not drawn
    yet is drawn now.

    Returns:
        ``input``, ``inter_layer_l1`` (by the layer that reads), ``output``, and for each layer and direction
        ``hidden_l0``, ``weight_hh_l0_reverse``, ... for every site that is configured, in the compute dtype (fp64 for
        fp64 inputs, else fp32). Multiplicative factors, 0 or the scale, except ``cell`` (0/1, with ``cell_scale``
        beside it and ``cell_entry``, the factor on the memory that comes in) and zoneout (1 where the old value stays).
        A noise that is added has ``_noise`` behind the name of its site: ``hidden_noise_l0``, ``output_noise``.
        Shapes: (T, B, U) per step, (1, B, U) per sequence, (., 1, U) shared by the batch, (1, B, gates, U) untied,
        (rows, columns) or (rows, 1) of a weight. Rows are in the ORIGINAL order of a packed input, and steps past a
        row's end are not used. With masks off: what eval uses, such as the number z of zoneout.

    Raises:
        TypeError, ValueError, RuntimeError: as the forward pass would.
    """
    rnn, size = _check_rnn(rnn, "export_masks"), _sizes(rnn, x)
    plan, device = rnn._plan, size.data.device
    thresholds = rnn._thresholds_on(device)
    turn = held.begin(rnn, rng, step_offset, size.steps)
    rng, step_offset = turn.rng, turn.step_offset
    check_counters(example_ids, step_offset, size.batch, size.steps, device)
    backend = choose_backend(rnn.backend, plan, device.type)
    words = masks.words if backend == "reference" else ops.family(backend).words
    rngs = resolve_rng(plan, rng, rnn.masks_on, device)
    examples = torch.arange(size.batch, device=device) if example_ids is None else example_ids
    steps = torch.arange(size.steps, device=device) + step_offset
    dtype = compute_dtype(size.data.dtype)
    widths = _input_sizes(rnn)
    result: dict[str, Tensor] = {}

    def locked(called: str, name: str, layer: int, suffix: str = "") -> None:
        spec = getattr(plan, name)
        if spec is None or not rnn.masks_on:
            return
        result[masks.key_of(called, spec) + suffix] = masks.locked(
            spec, thresholds[SITE_INDEX[name]], rngs[GROUP_OF[name]], KIND[SITE[name].kind], layer, widths[layer],
            examples, steps, dtype, words, gates=CELLS[rnn.mode].gates,
        )  # fmt: skip

    locked("input", "input_dropout", 0)
    for layer in range(rnn.num_layers):
        if layer:
            for name in BETWEEN:
                locked("inter_layer", name, layer, f"_l{layer}")
        for reverse in (False, True)[: 2 if rnn.bidirectional else 1]:
            of_layer = masks.layer(
                plan, rnn.mode, rngs, thresholds, layer=layer, reverse=reverse, input_size=widths[layer],
                hidden_size=rnn.hidden_size, proj_size=rnn.proj_size, example_ids=examples, steps=steps, dtype=dtype,
                masks_on=rnn.masks_on, words=words,
            )  # fmt: skip
            suffix = "" if isinstance(rnn, RegularizedCell) else f"_l{layer}{'_reverse' if reverse else ''}"
            result |= {f"{name}{suffix}": mask for name, mask in of_layer.items()}
    locked("output", "output_dropout", rnn.num_layers)
    return result


# --------------------------------------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explanation:
    """What a forward pass would run. ``print`` it, or read its fields.

    Attributes:
        module: class and sizes of the module.
        input: sizes, dtype and device of the input.
        backend: the backend that runs.
        schedule: how its recurrence runs over time, and why so where the backend has several ways.
        walk: each schedule of the backend that was looked at, best first, and why it was not taken, or that it was.
        why: why this backend.
        others: what keeps each other backend away, or that nothing does.
        masks_on: whether masks are drawn now, and why.
        layers: each layer and direction, or place around them, with its sites.
        bytes_for_backward: bytes kept for the backward pass; None where autograd decides (the reference).
        kept: what those bytes are.
    """

    module: str
    input: str
    backend: str
    schedule: str
    walk: Mapping[str, str]
    why: str
    others: Mapping[str, str]
    masks_on: str
    layers: Mapping[str, str]
    bytes_for_backward: int | None
    kept: str

    def __str__(self) -> str:
        amount = "as autograd decides" if self.bytes_for_backward is None else f"{self.bytes_for_backward:,} bytes"
        lines = [
            f"{self.module} on {self.input}",
            f"  backend    {self.backend} ({self.why})",
            f"  schedule   {self.schedule}",
            "  walk       " + "; ".join(f"{name}: {what}" for name, what in self.walk.items()),
            f"  masks      {self.masks_on}",
            "  sites      " + ("" if self.layers else "none configured"),
            *(f"    {place:<24} {sites}" for place, sites in self.layers.items()),
            f"  backward   keeps {amount}: {self.kept}",
            "  others",
            *(f"    {name:<10} {reason}" for name, reason in self.others.items()),
        ]
        return "\n".join(line.rstrip() for line in lines)


def _spelled(name: str, spec: Spec) -> str:
    rate = rate_of(spec)
    return f"{name}={rate:g}" if rate == 0 or make_spec(name, rate) == spec or name == "dropout" else f"{name}={spec!r}"


def _places(rnn: RegularizedRNN) -> dict[str, str]:
    at = {name: _spelled(name, spec) for name, spec in rnn.sites.items() if name not in BETWEEN or rnn.num_layers > 1}
    around = (*BETWEEN, *_AT_INPUT, *_AT_OUTPUT)
    within = ", ".join(text for name, text in at.items() if name not in around)
    places: dict[str, str] = {}

    def put(place: str, names: tuple[str, ...]) -> None:
        found = ", ".join(at[name] for name in names if name in at)
        if found:
            places[place] = found

    put("input", _AT_INPUT)
    for layer in range(rnn.num_layers):
        if layer:
            put(f"between layers {layer - 1} and {layer}", BETWEEN)
        for suffix in ("", " reverse")[: 2 if rnn.bidirectional else 1]:
            if within:
                places[f"layer {layer}{suffix}"] = within
    put("output", _AT_OUTPUT)
    return places


def _schedule(rnn: RegularizedRNN, size: _Input, backend: str) -> tuple[schedules.Choice, str]:
    """The schedule that would run, by the walk that a call does, and what it says of its own."""
    dtype, _ = result_dtypes(rnn.mode, size.data, size.packed, rnn.proj_size > 0, size.data.dtype)
    weights: Any = rnn._flat_weights
    layers = split_weights(weights, rnn.num_layers, rnn.bias, rnn.bidirectional)
    given = (rnn.masks_on, rnn.recompute, size.data, size.steps, size.packed, dtype, layers, size.batch)
    asked = schedules.Layers(rnn._plan, *given)
    found = schedules.choose(backend, asked)
    return found, found.schedule.tells(asked) or ""


def _kept(rnn: RegularizedRNN, size: _Input, backend: str, schedule: schedules.Schedule) -> tuple[int | None, str]:
    """Bytes that the forward pass keeps for backward, from the shapes alone, and what they are."""
    needs = torch.is_grad_enabled() and (size.data.requires_grad or any(w.requires_grad for w in rnn.parameters()))
    if not needs:
        return 0, "no gradient is asked for" if torch.is_grad_enabled() else "grad mode is off"
    if backend == "reference":
        return None, "every intermediate result, masks included"
    if schedule.name == schedules.CUDNN:
        return None, "what cuDNN reserves, the masked weights, and each layer's input and output"
    dtype, visible = result_dtypes(rnn.mode, size.data, size.packed, rnn.proj_size > 0, size.data.dtype)
    gpu = backend in ("cuda", "triton") or size.data.device.type in library.gpu_devices
    values, memory = kept_dtypes(gpu, dtype)
    plan, h, cell = rnn._plan, rnn.proj_size or rnn.hidden_size, CELLS[rnn.mode]
    out_is_h = visible == values and not output_differs(cell, plan.eval_flags)
    directions = 2 if rnn.bidirectional else 1
    # h is the output, which the caller or the next layer holds anyway, unless something stands in between: a mask that
    # a layer draws on what it reads does not.
    reads_masked = schedule.writes_between or not schedule.outer_sites
    between = any(name in BETWEEN for name in plan.names) and reads_masked
    dropped = [between] * (rnn.num_layers - 1) + [plan.output_dropout is not None]
    apart = [not out_is_h or (rnn.masks_on and site) for site in dropped]
    width, names = 0, ["h"] if any(apart) else []
    if cell.has_c:
        width += rnn.hidden_size * memory.itemsize
        names.insert(0, "c" if memory == values else f"c in {str(memory)[6:]}")
    if not rnn.recompute:
        width += (cell.gates + cell.apart) * rnn.hidden_size * values.itemsize
        names.insert(0, cell.kept)
    states = directions * (rnn.num_layers * width + sum(apart) * h * values.itemsize)
    first, *rest = _input_sizes(rnn)[:-1]
    inputs = first * size.data.dtype.itemsize + sum(rest) * visible.itemsize
    names.append("each layer's input")
    return size.pairs * (states + inputs), " + ".join(names) + f" ({str(values)[6:]})"


def explain(rnn: RegularizedRNN, x: Tensor | PackedSequence) -> Explanation:
    """Which path ``rnn(x)`` would take now, and why: backend, schedule, sites, masks, memory kept for backward.

    Args:
        rnn: an :class:`LSTM` or :class:`GRU` of this package.
        x: an input; only its shape, dtype and device matter.

    Returns:
        An :class:`Explanation`, which prints as a short report.

    Raises:
        TypeError, ValueError, RuntimeError: as the forward pass would, where no backend can run.
    """
    rnn, size = _check_rnn(rnn, "explain"), _sizes(rnn, x)
    plan, device_type = rnn._plan, size.data.device.type
    backend = choose_backend(rnn.backend, plan, device_type)
    why = "asked for" if rnn.backend else f"the best there is for {device_type} tensors"
    others = {}
    for name in BACKENDS:
        if name != backend:
            reason = obstacle(name, plan, device_type)
            others[name] = reason or ("runs only when asked for" if name == "reference" else "could run, ranks lower")
    if not plan.names:
        masks_on = "none: no site is configured"
    elif rnn.training:
        masks_on = "on: training"
    else:
        masks_on = "on: mc=True, in eval" if rnn.mc else "off: eval"
    (schedule, reason, walk), more = _schedule(rnn, size, backend)
    kept_bytes, kept = _kept(rnn, size, backend, schedule)
    kind = "packed " if size.packed else ""
    given = f"{kind}T={size.steps} B={size.batch} {str(size.data.dtype)[6:]} on {size.data.device}"
    return Explanation(
        f"{type(rnn).__name__}({rnn.extra_repr()})",
        given,
        backend,
        f"{schedule.name}: {schedule.says}" + (f" ({reason})" if reason else "") + (f"; {more}" if more else ""),
        walk,
        why,
        others,
        masks_on,
        _places(rnn),
        kept_bytes,
        kept,
    )


__all__ = ["Explanation", "explain", "export_masks"]
