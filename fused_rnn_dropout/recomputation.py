"""Forwards that a backward pass repeats, as a checkpoint does: which ones cannot know what their first run used.

A call draws its randomness from a generator that a checkpoint sets back, so that it draws the same again. A held call
(``held.py``) reads where its hold stands, which nobody sets back. It leaves a mark in the graph that it is part of, and
while a mark lives, a call inside a backward pass that may repeat it raises.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

_NAME = "fused_rnn_dropout.held"


class _Mark:
    """Lives as long as the graph that holds it."""


_marks: weakref.WeakKeyDictionary[Any, weakref.WeakSet[_Mark]] = weakref.WeakKeyDictionary()
"""By module."""
_compiled: weakref.WeakSet[_Mark] = weakref.WeakSet()
"""Of compiled calls, which do not know their module."""
_for_ever: list[_Mark] = []
_lock = threading.Lock()


def backward_pass() -> int:
    """Number of the backward pass that this thread is in, or -1."""
    return torch._C._current_graph_task_id()


def refuse() -> NoReturn:
    raise RuntimeError(
        "a layer whose masks are or were held was called inside a backward pass, where a checkpoint recomputes its "
        "forward: nothing tells which pair and step that forward had. Pass both rng= and step_offset= to the layer"
    )


def _stack() -> Iterator[Any]:
    frame: Any = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _graph_around() -> BackwardCFunction | None:
    """The autograd.Function whose forward is running, such as a reentrant checkpoint or compiled code."""
    for frame in _stack():
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount:
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, BackwardCFunction):
                return first
    return None


def _mark(graphs: Iterable[Any]) -> _Mark:
    mark = _Mark()
    for graph in graphs:
        graph.metadata.setdefault(_NAME, []).append(mark)
    return mark


def leave_mark(module: Any, results: Iterable[Tensor]) -> None:
    """Marks the graph of a held call that ran eagerly."""
    if torch.is_grad_enabled():
        mark = _mark({result.grad_fn for result in results if result.grad_fn is not None})
        if not any(result.requires_grad for result in results):
            _for_ever.append(mark)  # a checkpoint may hold it all the same, for the sake of other layers
    else:
        # Without gradients nothing is repeated, but inside the forward of an autograd.Function.
        graph = _graph_around()
        if graph is None:
            return
        mark = _mark([graph])
    with _lock:
        _marks.setdefault(module, weakref.WeakSet()).add(mark)


def leave_mark_compiled() -> None:
    """Marks the graph of a held call inside compiled code, which is running now."""
    graph = _graph_around()
    if graph is not None:
        _compiled.add(_mark([graph]))


def check(module: Any) -> None:
    """Raises where an eager call of ``module`` that is not held may repeat one that was."""
    if backward_pass() >= 0 and module in _marks and len(_marks[module]):
        refuse()


def check_compiled(eager: Callable[..., Any]) -> None:
    """The same for compiled code, which does not know its module: when it draws. Eager code draws through ``eager``."""
    if backward_pass() >= 0 and len(_compiled) and all(frame.f_code is not eager.__code__ for frame in _stack()):
        refuse()
