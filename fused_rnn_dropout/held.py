"""Held masks: while a model is held, each call of a layer goes on with the same pair and the next step.

A *hold* is what ``with hold_masks(model)`` enters, a *slot* is where one module of it stands. Nothing of a hold lies in
a module, so that no copy and no pickle carries one. Holds belong to a context (``contextvars``): threads and asyncio
tasks do not see each other's. Compiled code cannot read a context; it reads the holds of its thread.
"""

from __future__ import annotations

import contextvars
import threading
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import recomputation
from .arguments import Rng, draw_rng
from .library import lib, register_fake
from .sites import SEQ


class Holdable(Protocol):
    """What a hold asks of a module.

    Attributes:
        masks_on: whether a call now draws masks.
        draws: whether a call with masks on has anything to draw.
    """

    _sites: Any  # one object, which the replicas of DataParallel share with their original

    @property
    def masks_on(self) -> bool: ...

    @property
    def draws(self) -> bool: ...

    def device_of_masks(self) -> torch.device: ...


class Slot:
    """Where one module of a hold stands: its pair, None until a masked call draws it, and the step of its next call."""

    def __init__(self, module: Holdable, rng: Rng | None) -> None:
        self.module, self.rng = module, rng
        # A tensor, since compiled code takes a number that it finds outside for a constant; inside it may be a number.
        self.step: Tensor | int = (
            0 if torch.compiler.is_compiling() else torch.zeros((), dtype=torch.int64, device="cpu")
        )

    def next_step(self, steps: int) -> int:
        """The step that a call of ``steps`` steps begins with."""
        if not torch.compiler.is_compiling() or not isinstance(self.step, Tensor):
            return int(self.step)
        with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):
            step = int(self.step)
        torch._check(step >= 0)
        torch._check(step + steps <= SEQ, lambda: f"step_offset + T should be at most {SEQ} in a hold")
        return step


class Hold:
    """What :func:`hold_masks` returns; ``with hold_masks(model) as held`` gives it too. It can be entered once.

    Attributes:
        rng: by module path, the pair that the calls use, or the dict of pairs by group; None where none is drawn yet.
        step_offset: by module path, the absolute step that the next call begins with.

    Both are read-only and say how it stands now. A module that hangs in several places is listed under its first path.
    """

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self._by_path = slots
        self._slots = {id(slot.module): slot for slot in slots.values()}
        self._entered = self._traced = False
        self._backward = -1

    @property
    def rng(self) -> Mapping[str, Rng | None]:
        return types.MappingProxyType({path: slot.rng for path, slot in self._by_path.items()})

    @property
    def step_offset(self) -> Mapping[str, int]:
        return types.MappingProxyType({path: int(slot.step) for path, slot in self._by_path.items()})

    def __enter__(self) -> Hold:
        if self._entered:
            raise RuntimeError("a hold is entered once: call hold_masks() again, with rng=held.rng for the same pairs")
        self._entered = True
        if torch.compiler.is_compiling():
            self._traced = True
        else:
            self._backward = recomputation.backward_pass()
            _context.set((*_context.get(), self))
            with _lock:
                _everywhere.append(self)
        _thread.holds = (*_thread.holds, self)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._traced:
            _context.set(tuple(hold for hold in _context.get() if hold is not self))
            with _lock:
                _everywhere.remove(self)
        _thread.holds = tuple([hold for hold in _thread.holds if hold is not self])


class _Thread(threading.local):
    def __init__(self) -> None:
        # Of the instance: compiled code that found it in the class would not look again for a thread's first hold.
        self.holds: tuple[Hold, ...] = ()


_thread = _Thread()
_context: contextvars.ContextVar[tuple[Hold, ...]] = contextvars.ContextVar("fused_rnn_dropout.held", default=())
_everywhere: list[Hold] = []
"""The holds of all threads, for the replicas of DataParallel alone."""
_lock = threading.Lock()


# --------------------------------------------------------------------------------------------------------------------
# In compiled code
# --------------------------------------------------------------------------------------------------------------------

# Compiled code has looked at its hold before it runs. This operator stands in its forward, to see where it runs: tagged
# as one that draws, so that a partitioner does not run it again in the backward.
lib.define("held(Tensor rng) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))


def _held(rng: Tensor) -> Tensor:
    _check_not_repeated(_context.get())
    recomputation.leave_mark_compiled()
    return rng.clone()


lib.impl("held", _held, "CompositeExplicitAutograd")


@register_fake("held")
def _(rng: Tensor) -> Tensor:
    return torch.empty_like(rng)


def _seen(rng: Rng) -> Rng:
    op = torch.ops.fused_rnn_dropout.held
    return {group: op(pair) for group, pair in rng.items()} if isinstance(rng, Mapping) else op(rng)


# --------------------------------------------------------------------------------------------------------------------
# Calls
# --------------------------------------------------------------------------------------------------------------------


def _find(module: Holdable) -> tuple[Hold, Slot] | None:
    """The innermost hold that names ``module``, and its slot there."""
    holds = _thread.holds if torch.compiler.is_compiling() else _context.get()
    found = None
    if holds:
        key = id(module)
        for hold in holds:
            if key in hold._slots:
                found = hold, hold._slots[key]
    return found


def is_held(module: Holdable) -> bool:
    """Whether a hold names ``module`` here and now."""
    return _find(module) is not None


def _draw(module: Holdable) -> Tensor:
    device = module.device_of_masks()
    if torch.compiler.is_compiling():
        return draw_rng(device)
    with torch.inference_mode(False):  # the next call may need a gradient
        return draw_rng(device)


def _check_not_repeated(holds: tuple[Hold, ...]) -> None:
    """Raises inside a backward pass, but where the hold itself was entered in it: then the whole of it is repeated."""
    backward = recomputation.backward_pass()
    if backward >= 0 and all(hold._backward != backward for hold in holds):
        recomputation.refuse()


def _check_not_recorded(module: Holdable) -> None:
    capturing = (
        not torch.compiler.is_compiling() and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    )
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or capturing:
        raise RuntimeError(
            f"a held {type(module).__name__} cannot be exported, traced or captured in a CUDA graph: the program would "
            "keep one step. Pass rng= and step_offset= to it, or leave hold_masks"
        )


def _check_no_replica(module: Holdable) -> None:
    """DataParallel runs copies in threads of their own, which no hold reaches; it shares its module's dicts."""
    if vars(module).get("_is_replica", False):  # as an attribute, nn.Module would look for it in all its dicts
        with _lock:
            held = any(slot.module._sites is module._sites for hold in _everywhere for slot in hold._slots.values())
        if held:
            raise RuntimeError(
                "hold_masks does not reach the replicas of DataParallel: pass rng= and step_offset= to the layer, or "
                "use DistributedDataParallel"
            )


class Turn(NamedTuple):
    """What one call uses, and what it tells its slot afterwards."""

    rng: Rng | None
    step_offset: int
    slot: Slot | None = None
    steps: int = 0

    def end(self, results: tuple[Tensor, ...]) -> None:
        """After the call went well: the next one begins ``steps`` later."""
        if self.slot is None:
            return
        if self.steps:
            self.slot.step = self.slot.step + self.steps
        if self.rng is not None and not torch.compiler.is_compiling():
            recomputation.leave_mark(self.slot.module, results)


def begin(module: Holdable, rng: Rng | None, step_offset: int | None, steps: int) -> Turn:
    """What a call of ``module`` with these arguments and ``steps`` steps uses; a pair that is drawn for a hold is kept.

    Raises:
        RuntimeError: the call is held, or may repeat one that was, and nobody can say with which pair and step.
    """
    given = 0 if step_offset is None else step_offset
    if rng is not None or not module.masks_on:
        return Turn(rng, given)
    compiling = torch.compiler.is_compiling()
    found = _find(module)
    if found is None:
        if not compiling:
            _check_no_replica(module)
            recomputation.check(module)
        return Turn(None, given)
    hold, slot = found
    _check_not_recorded(module)
    if not compiling:
        _check_not_repeated((hold,))
    if slot.rng is None and module.draws:
        slot.rng = _draw(module)
    pair = slot.rng
    if compiling and not hold._traced and pair is not None:
        pair = _seen(pair)
    if step_offset is None:
        return Turn(pair, slot.next_step(steps), slot, steps)
    return Turn(pair, given, slot)
