"""What a call is given, checked before any kernel runs: randomness, counters, backend, dtypes, shapes."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import library, ops
from .cells import CELLS
from .layouts import check_dense, is_dense, known
from .sites import GROUPS, SEQ, SITE, SITES, Plan, bad_threshold

Rng: TypeAlias = Tensor | Mapping[str | None, Tensor]
"""All the randomness of a call: int64[2], or one such pair per group of sites, ``None`` being the default."""

BACKENDS = ("cpu", "cuda", "triton", "reference")
GROUP_OF = {name: site.group for name, site in SITE.items()}


# --------------------------------------------------------------------------------------------------------------------
# Randomness
# --------------------------------------------------------------------------------------------------------------------


def draw_rng(device: torch.device | str | int | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Draws all the randomness of one call: give it as ``rng=``, and the same pair gives the same masks anywhere.

    Args:
        device: where the layers compute; torch's default device if None.
        generator: a private generator of that device instead of torch's default one; eager mode only.

    Returns:
        int64[2] on ``device``.

    Raises:
        ValueError: ``generator`` belongs to another kind of device.
        RuntimeError: a private generator used inside a backward pass, such as the recomputation of a checkpoint.
    """
    if generator is None:
        return ops.draw(device)
    device = torch.empty(0, device=device).device
    if generator.device.type != device.type:
        raise ValueError(f"generator should be on {device}, got one on {generator.device}")
    if torch._C._current_graph_task_id() >= 0:
        # A checkpoint restores the default generators only: this one has moved on since the forward pass.
        raise RuntimeError(
            "a private generator cannot be used inside a backward pass, where a checkpoint recomputes "
            "its forward: it would give other masks. Draw once outside and pass the result as rng="
        )
    # The call that ops.draw makes: a default generator and a private one with the same seed give the same pair.
    return torch.empty(2, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)


def _check_pair(name: str, pair: Any, device: torch.device | None) -> Tensor:
    if not isinstance(pair, Tensor):
        raise TypeError(f"{name} should be an int64 tensor of shape (2,), got {type(pair).__name__}")
    if pair.dtype != torch.int64 or tuple(pair.shape) != (2,):
        raise ValueError(
            f"{name} should be an int64 tensor of shape (2,), got {pair.dtype} of shape "
            f"{tuple(pair.shape)}: draw_rng(device) makes one"
        )
    if device is not None and pair.device != device:
        raise ValueError(f"{name} should be on {device}, where the layers compute, got {pair.device}")
    return pair


def check_rng(name: str, rng: Any, device: torch.device | None = None) -> Rng:
    """Checks that ``rng`` is what :data:`Rng` says, on ``device`` where one is given.

    Raises:
        TypeError, ValueError: it is not, or names a group that does not exist.
    """
    if not isinstance(rng, Mapping):
        return _check_pair(name, rng, device)
    for group, pair in rng.items():
        if group is not None and group not in GROUPS:
            raise ValueError(f"{name} has a key {group!r}; allowed are {', '.join(map(repr, GROUPS))} and None")
        _check_pair(f"{name}[{group!r}]", pair, device)
    return rng


def resolve_rng(
    plan: Plan, rng: Rng | None, masks_on: bool, device: torch.device, eager: bool = False
) -> dict[str, Tensor]:
    """The pair of each group that has a configured site; draws one from the default generator if ``rng`` is None.

    Nothing is drawn where no site is configured or masks are off. ``eager``: what :func:`ops.draw` asks for.

    Raises:
        TypeError, ValueError: ``rng`` is not what :data:`Rng` says, names a group that does not exist, lacks one that
            is configured, or lies on another device.
    """
    groups = plan.groups
    if rng is None:
        if not masks_on or not groups:
            return {}
        return dict.fromkeys(groups, ops.draw(device, eager))
    rng = check_rng("rng", rng, device)
    if isinstance(rng, Mapping):
        missing = [group for group in groups if group not in rng]
        if missing and None not in rng:
            raise ValueError(f"rng lacks {', '.join(map(repr, missing))}: give them, or a default under the key None")
        chosen = {group: rng[group if group in rng else None] for group in groups}
    else:
        chosen = dict.fromkeys(groups, rng)
    return chosen if masks_on else {}


def pair_of_each(rngs: Mapping[str, Tensor]) -> Tensor:
    """What :func:`resolve_rng` gives as the layer operators take it: int64 (groups, 2), a row for each group of sites.

    The rows are the same memory where all groups have one pair. A group without a configured site has any pair.
    """
    first, *others = rngs.values()
    if all(other is first for other in others):
        return first.expand(len(GROUPS), 2)
    return torch.stack([rngs.get(group, first) for group in GROUPS])


def _readable(tensor: Tensor) -> bool:
    """Whether the host may look at the values: elsewhere than on the CPU it would wait for the device."""
    known = type(tensor) is Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling()
    return known and not ops.functorch_active()


def check_thresholds(thresholds: Tensor) -> None:
    """What the fused operators check of their thresholds, their values only where the host has them.

    Raises:
        ValueError: another dtype or shape than int64[10], or a rate outside [0, 1]; it names the site.
    """
    if thresholds.dtype != torch.int64 or tuple(thresholds.shape) != (len(SITES),):
        raise ValueError(
            f"thresholds should be an int64 tensor of shape ({len(SITES)},), got {thresholds.dtype} of shape "
            f"{tuple(thresholds.shape)}"
        )
    fault = bad_threshold(thresholds.tolist()) if _readable(thresholds) else None
    if fault is not None:
        raise ValueError(fault)


def check_counters(example_ids: Tensor | None, step_offset: int, batch: int, steps: int, device: torch.device) -> None:
    if type(step_offset) is not int and (
        isinstance(step_offset, bool) or not isinstance(step_offset, (int, torch.SymInt))
    ):
        raise TypeError(f"step_offset should be an int, got {type(step_offset).__name__}")
    if torch.compiler.is_compiling():
        # T is left to the kernels' own check: torch.export would make a bound of this one, and ask everybody for
        # Dim("T", max=4294967295).
        outside = known(step_offset < 0) or known(step_offset + 1 > SEQ)
    else:
        outside = step_offset < 0 or step_offset + steps > SEQ
    if outside:
        raise ValueError(
            f"step_offset should be at least 0 and step_offset + T at most {SEQ}, got {step_offset} with T = {steps}"
        )
    if example_ids is None:
        return
    if not isinstance(example_ids, Tensor):
        raise TypeError(f"example_ids should be an int64 tensor of shape ({batch},), got {type(example_ids).__name__}")
    if example_ids.dtype != torch.int64 or example_ids.dim() != 1 or known(example_ids.size(0) != batch):
        raise ValueError(
            f"example_ids should be an int64 tensor of shape ({batch},), got {example_ids.dtype} of shape "
            f"{tuple(example_ids.shape)}"
        )
    if example_ids.device != device:
        raise ValueError(f"example_ids should be on {device}, where the layers compute, got {example_ids.device}")
    if batch and _readable(example_ids):
        low, high = (int(value) for value in example_ids.aminmax())
        if low < 0 or high >= SEQ:
            raise ValueError(f"example_ids should be in [0, {SEQ}), got values from {low} to {high}")


# --------------------------------------------------------------------------------------------------------------------
# Backends and dtypes
# --------------------------------------------------------------------------------------------------------------------


def obstacle(backend: str, plan: Plan, device_type: str) -> str | None:
    """Why ``backend`` cannot compute ``plan`` on tensors of ``device_type``; None where it can."""
    if backend == "reference":
        return None
    missing = library.obstacle(backend, device_type)
    if missing is not None:
        return missing
    if plan.reference_only:
        return f"it does not compute {', '.join(plan.reference_only)}"
    return None


def best_backend(plan: Plan, device_type: str) -> str | None:
    """The fused backend that ``backend=None`` takes, or None where there is none (the reference is never a default)."""
    for backend in ("cpu", "cuda", "triton"):  # an interpreted Triton takes CPU tensors, but only when asked to
        if obstacle(backend, plan, device_type) is None:
            return backend
    return None


def check_backend(backend: Any) -> None:
    """Raises ``ValueError`` unless ``backend`` is None or one of :data:`BACKENDS`."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend should be None or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def choose_backend(backend: str | None, plan: Plan, device_type: str) -> str:
    """The backend that will run: ``backend`` itself, or the best fused one for None.

    Raises:
        ValueError: an unknown backend, or one that cannot compute ``plan`` there. Nothing falls back in silence: the
            message names ``backend="reference"``.
        NotImplementedError: a fused backend under a ``torch.func`` transform.
    """
    check_backend(backend)
    name = backend or best_backend(plan, device_type)
    if name is None:
        if plan.reference_only:
            raise ValueError(
                f'no fused backend computes {", ".join(plan.reference_only)}: pass backend="reference", which does'
            )
        raise ValueError(
            f"there is no fused backend for tensors on {device_type}: "
            + "; ".join(f"{other}: {obstacle(other, plan, device_type)}" for other in BACKENDS[:-1])
            + '. Move them to the CPU, or pass backend="reference", which computes on any device'
        )
    reason = None if backend is None else obstacle(name, plan, device_type)  # best_backend has asked
    if reason is not None:
        raise ValueError(f'backend="{name}" cannot run this: {reason}. Pass backend="reference", which can')
    # Compiled code is not looked at here but in the operators, when they are traced.
    if name != "reference" and not torch.compiler.is_compiling() and ops.functorch_active():
        raise NotImplementedError(
            f'backend="{name}" does not support vmap, torch.func transforms or forward-mode '
            'differentiation: pass backend="reference", which does'
        )
    return name


def autocast_enabled(input: Tensor) -> bool:
    """Whether autocast is on for the device of ``input``."""
    if not torch._C._is_any_autocast_enabled():  # quickly told
        return False
    return input.device.type != "meta" and torch.is_autocast_enabled(input.device.type)


def result_dtypes(
    cell: str, input: Tensor, packed: bool, projected: bool, memory: torch.dtype
) -> tuple[torch.dtype, torch.dtype]:
    """Dtype of a layer's results, and the one that out and h_n are given back in: what torch.nn gives.

    On a GPU they have autocast's dtype, where torch's cuDNN layers give float16 for bfloat16 as well.

    ``memory`` is the dtype of the state that is the memory: c_0, or h_0 where there is no c.
    """
    device_type = input.device.type
    if not autocast_enabled(input) or input.dtype == torch.float64:
        return input.dtype, input.dtype
    autocast = torch.get_autocast_dtype(device_type)
    if device_type != "cpu":
        return autocast, autocast
    # torch's CPU layers without oneDNN run their matrix products in the autocast dtype but promote at each addition
    # to the state, and a projection comes last, so that only c keeps the wider dtype there.
    promoted = torch.promote_types(memory, autocast)
    if projected:
        return promoted, autocast
    widens = CELLS[cell].carries and (packed or not CELLS[cell].has_c)
    return (promoted, promoted) if widens else (autocast, autocast)


# --------------------------------------------------------------------------------------------------------------------
# Shapes
# --------------------------------------------------------------------------------------------------------------------


def check_input(cell: str, input: Tensor, packed: bool, weights: Sequence[Tensor]) -> None:
    """Checks the shape of a dense input, and that the weights are what can be computed with it."""
    dims, given, device = 2 if packed else 3, input.shape, input.device
    if len(given) != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {len(given)}")
    if not input.is_floating_point():
        raise TypeError(f"input of {CELLS[cell].called} should have a floating dtype, got {input.dtype}")
    for weight in weights:
        if weight.device != device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, found input tensor at "
                f"{device} and parameter tensor at {weight.device}"
            )
        if not is_dense(weight):
            check_dense(f"a weight of {CELLS[cell].called}", weight)
        if not weight.is_floating_point():
            raise TypeError(f"a weight of {CELLS[cell].called} should have a floating dtype, got {weight.dtype}")
    inputs = weights[0].shape[1]
    if given[-1] != inputs:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {inputs}, got {given[-1]}")


def check_states(hx: Sequence[Tensor], expected: Sequence[tuple[int, int, int]], input: Tensor) -> None:
    """Checks dense states against the sizes that the input and the weights ask for."""
    compiling = torch.compiler.is_compiling()
    for index, (state, size) in enumerate(zip(hx, expected, strict=True)):
        given = state.shape
        # Compiled code may not know a size, and compares those that it knows.
        differs = any(map(known, map(operator.ne, given, size))) if compiling else given != size
        if len(given) != 3 or differs:
            torch_name = "hidden" if len(expected) == 1 else f"hidden[{index}]"
            raise RuntimeError(f"Expected {torch_name} size {size}, got {list(given)}")
        if compiling:
            # Where the batch is not known yet, such as the number that a packed input keeps, it is checked in the run.
            torch._check(given[1] == size[1], lambda: "hx has another batch size than the packed input")
        if state.device == input.device and state.dtype == input.dtype:
            continue
        name = "hx" if len(expected) == 1 else f"hx[{index}]"
        if state.device != input.device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, found input tensor at "
                f"{input.device} and hidden tensor at {state.device}: move {name}"
            )
        if not (autocast_enabled(input) and state.is_floating_point()):
            raise RuntimeError(
                "Input and hidden tensors are not the same dtype, found input tensor with "
                f"{input.dtype} and hidden tensor with {state.dtype}: convert {name}"
            )
