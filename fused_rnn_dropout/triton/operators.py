"""The operators of the Triton backend, by the names and with the arguments of their schemas (``csrc/bind/ops.cpp``)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..cells import CELLS, Cell
from ..fakes import Keep
from ..schedules import SCHEDULES, SEQUENCE, sequence_obstacle, split_flags
from ..sites import SEQ, SITES
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
    check_steps,
    check_stream,
    check_thresholds,
)
from .dropout import drop_rows
from .layer import Layer
from .rows import Batch
from .sites import Sites
from .weights import WeightMasks

_F = TypeVar("_F", bound=Callable[..., Any])

_NUMBERS = {row.number: row.name for row in SCHEDULES["triton"]}


def _on_its_device(operator: _F) -> _F:
    """Triton launches on the current device; and products into given tensors know no autograd."""

    @functools.wraps(operator)
    def call(first: Tensor | None, *args: Any) -> Any:
        like = next(arg for arg in (first, *args) if isinstance(arg, Tensor))
        with torch.no_grad(), torch.cuda.device_of(like):
            return operator(first, *args)

    return call  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------------------------
# Without a recurrence
# --------------------------------------------------------------------------------------------------------------------


@_on_its_device
def words(rng: Tensor, b: Tensor, c: Tensor, units: int, stream: int) -> Tensor:
    check_counters("b", b)
    check_counters("c", c)
    check_integers("rng", rng, 2)
    check_device(rng.device, b=b, c=c)
    check_stream(stream)
    check(0 <= units <= SEQ, f"units must be in [0, 2^32), got {units}")
    return philox.words(rng.contiguous(), b.reshape(-1).contiguous(), c.reshape(-1).contiguous(), units, stream)


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


class _Given(NamedTuple):
    """What the operators of a layer take besides its tensors."""

    batch_sizes: Tensor | None
    example_ids: Tensor | None
    rng_state: Tensor | None
    rng_hidden: Tensor | None
    rng_weight: Tensor | None
    thresholds: Tensor | None
    dtype: torch.dtype
    flags: int
    layer: int
    reverse: bool
    step_offset: int


_TENSORS = _Given._fields.index("dtype")


def _surroundings(cell: Cell, layer: Layer, given: _Given) -> tuple[Batch, Sites, WeightMasks, bool]:
    """The checked surroundings of a layer: its rows, the sites of its steps, its weight masks, and whether the sequence
    schedule runs it, as its flags say. Who chose has asked before; what cannot run must not reach a kernel in any case.
    """
    layer.check(cell)
    check_floating(dtype=given.dtype)
    device, dtype = layer.x.device, given.dtype
    batch = Batch(layer.x, given.batch_sizes, layer.h0.shape[0], given.reverse)
    flags, number = split_flags(given.flags)
    check(number in _NUMBERS, f"flags has bits that mean nothing: {given.flags}")
    at_once = _NUMBERS[number] == SEQUENCE
    if at_once:
        obstacle = sequence_obstacle(layer.w_hr is not None, batch.packed, dtype, device)
        check(obstacle is None, f"flags ask for the sequence schedule: {obstacle}")
    random = (given.example_ids, given.rng_state, given.rng_hidden, given.rng_weight, given.thresholds)
    check_random(device, *random, flags, given.layer, given.step_offset, batch.batch, batch.steps)
    example_ids, rng_state, rng_hidden, rng_weight, thresholds = (
        None if tensor is None else tensor.contiguous() for tensor in random
    )
    where = (given.layer, given.reverse)
    sites = Sites.prepare(thresholds, rng_state, rng_hidden, example_ids, dtype, flags, *where, given.step_offset)
    return batch, sites, WeightMasks(rng_weight, thresholds, flags, *where, dtype), at_once


def _parts(args: Sequence[Any], *sizes: int) -> Iterator[Sequence[Any]]:
    """Neighbouring arguments, so many at a time."""
    ends = list(itertools.accumulate(sizes))
    assert ends[-1] == len(args)
    return (args[end - size : end] for end, size in zip(ends, sizes, strict=True))


def _forward(cell: Cell, *args: Any) -> tuple[Tensor, ...]:
    tensors, given, (save,) = _parts(args, Layer.count(cell), len(_Given._fields), 1)
    check(save in tuple(Keep), f"save must be 0, 1 or 2, got {save}")
    layer = Layer.of(cell, tensors)
    return run.forward(cell, layer, *_surroundings(cell, layer, _Given(*given)), save)


def _backward(cell: Cell, *args: Any) -> tuple[Tensor, ...]:
    """What a forward kept stands between the tensors of what it was given and the rest of that."""
    sizes = (1 + cell.states, Layer.count(cell), _TENSORS, 3, len(_Given._fields) - _TENSORS, 1)
    grads, tensors, before, kept, after, (needs,) = _parts(args, *sizes)
    layer = Layer.of(cell, tensors)
    return run.backward(cell, grads, layer, kept, *_surroundings(cell, layer, _Given(*before, *after)), needs)


def _alone(forward: Callable[..., tuple[Tensor, ...]], cell: Cell, *args: Any) -> tuple[Tensor, ...]:
    """Below autograd nothing is kept, whatever ``recompute``, the last argument, says."""
    return forward(*(*args[:-1], Keep.NOTHING))[: 1 + cell.states]


lstm_forward = _on_its_device(functools.partial(_forward, CELLS["LSTM"]))
lstm_backward = _on_its_device(functools.partial(_backward, CELLS["LSTM"]))
lstm = functools.partial(_alone, lstm_forward, CELLS["LSTM"])
gru_forward = _on_its_device(functools.partial(_forward, CELLS["GRU"]))
gru_backward = _on_its_device(functools.partial(_backward, CELLS["GRU"]))
gru = functools.partial(_alone, gru_forward, CELLS["GRU"])
