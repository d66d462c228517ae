"""What a call is beside the numbers in its tensors: sizes, dtypes, backend, schedule. Checked, and remembered.

The calls of a loop are alike: one step after the other, of the same sizes. What was found for one of them holds for
the next, where all that it depends on is the same. :func:`_traits` says what that is, and is compared at each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import onnx, ops, schedules
from .arguments import check_input, check_states, choose_backend, result_dtypes
from .cells import CELLS
from .layouts import NO_STEPS, known
from .sites import FLAG, Plan


class Weights(NamedTuple):
    """The tensors of one layer and direction; None where there are no biases and no projection."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None


class Settings(NamedTuple):
    """What a call is told beside its tensors; ``functional.run`` says what each is."""

    cell: str
    num_layers: int
    bias: bool
    bidirectional: bool
    masks_on: bool
    backend: str | None
    recompute: bool

    @property
    def directions(self) -> int:
        """Of a layer."""
        return 2 if self.bidirectional else 1

    def split(self, weights: Sequence[Tensor]) -> list[list[Weights]]:
        """Flat weights, as [layer][direction]."""
        return split_weights(weights, self.num_layers, self.bias, self.bidirectional)


class Prepared(NamedTuple):
    """What the checks of a call found.

    Attributes:
        eager: whether nothing but autograd looks at the operators of the call: ``ops.only_autograd_asks``.
        sizes: of the initial states.
        dtype: of what the operators give.
        visible: what out and h_n are given back in.
        flags: of each layer's operator.
        draws: whether an operator of a layer draws masks.
    """

    eager: bool
    batch: int
    steps: int
    sizes: tuple[tuple[int, int, int], ...]
    backend: str
    dtype: torch.dtype
    visible: torch.dtype
    schedule: schedules.Schedule
    flags: tuple[int, ...]
    draws: bool


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
    biases = () if bias else (None, None)
    w_hr = () if each > plain else (None,)
    groups = [weights[start : start + each] for start in range(0, len(weights), each)]
    result = [Weights(*group[:2], *biases, *group[2:], *w_hr) for group in groups]
    return [result[start : start + directions] for start in range(0, len(result), directions)]


def _flags(plan: Plan, masks_on: bool, num_layers: int, schedule: schedules.Schedule) -> tuple[int, ...]:
    """Of each layer's operator. Without a site there is nothing for MASKS_ON to switch on."""
    if masks_on and schedule.outer_sites:
        return tuple(plan.layer_flags(layer, num_layers, schedule.writes_between) for layer in range(num_layers))
    return (plan.train_flags if masks_on and plan.eval_flags else plan.eval_flags,) * num_layers


def _prepare(
    settings: Settings,
    plan: Plan,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    sorted_indices: Tensor | None,
    eager: bool,
) -> Prepared:
    cell, num_layers, _, _, masks_on, backend, recompute = settings
    packed = batch_sizes is not None
    layers = settings.split(weights)
    first = layers[0][0]
    check_input(cell, input, packed, weights)
    batch = batch_size(input, batch_sizes, sorted_indices)
    projected, hidden_size = first.w_hr is not None, first.w_hh.size(0) // CELLS[cell].gates
    count = num_layers * settings.directions
    sizes = ((count, batch, first.w_hh.size(1)), (count, batch, hidden_size))[: CELLS[cell].states]
    if hx is not None:
        check_states(hx, sizes, input)
    steps = input.size(0) if batch_sizes is None else batch_sizes.size(0)
    if known(steps == 0):
        raise RuntimeError(NO_STEPS)
    chosen = choose_backend(backend, plan, input.device.type)
    memory = input.dtype if hx is None else hx[-1].dtype
    dtype, visible = result_dtypes(cell, input, packed, projected, memory)
    if not torch.compiler.is_dynamo_compiling():
        if onnx.exporting():
            chosen = onnx.check_call(plan, masks_on, packed, projected, dtype, chosen)
        if torch.jit.is_tracing():
            onnx.register_torchscript()
    asked = schedules.Layers(plan, masks_on, recompute, input, steps, packed, dtype, layers, batch)
    schedule = schedules.choose(chosen, asked).schedule
    flags = _flags(plan, masks_on, num_layers, schedule)
    draws = any(of_layer & FLAG["MASKS_ON"] for of_layer in flags)
    return Prepared(eager, batch, steps, sizes, chosen, dtype, visible, schedule, flags, draws)


def _traits(
    settings: Settings, input: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Tensor]
) -> tuple[Any, ...] | None:
    """All that :func:`_prepare` looks at beside the plan, of an eager call of the CPU's kernels without autocast.

    None where that is not all. Other backends ask their device and the environment, a packed batch has its sizes in a
    tensor, and a nested tensor has no shape.
    """
    if not input.is_cpu or torch._C._is_any_autocast_enabled():
        return None
    for weight in weights:
        if weight.is_nested:
            return None
    of_each = [(t.shape, t.dtype, t.device, t.layout) for t in (input, *(hx or ()), *weights)]
    return settings, hx is None, of_each


def prepare(
    settings: Settings,
    plan: Plan,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    sorted_indices: Tensor | None = None,
) -> Prepared:
    """Checks what ``functional.run`` is given, its counters, rates and random numbers apart.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as ``functional.run``.
    """
    eager = ops.only_autograd_asks((input, *(hx or ()), *weights))
    traits = _traits(settings, input, hx, weights) if eager and batch_sizes is None else None
    if traits is None:
        return _prepare(settings, plan, input, hx, weights, batch_sizes, sorted_indices, eager)
    remembered = plan.last_call[0]
    if remembered is not None and remembered[0] == traits:
        return remembered[1]
    found = _prepare(settings, plan, input, hx, weights, None, None, eager)
    if found.backend == "cpu":
        plan.last_call[0] = traits, found
    return found


__all__ = ["Prepared", "Settings", "Weights", "batch_size", "prepare", "split_weights"]
