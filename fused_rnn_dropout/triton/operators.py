"""The operators of the Triton backend, by the names and with the arguments of their schemas (``csrc/bind/ops.cpp``)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..fakes import Keep
from ..schedules import SCHEDULES, SEQUENCE, sequence_obstacle, split_flags
from ..sites import SEQ, SITES
from . import gru as gru_layer
from . import lstm as lstm_layer
from . import philox
from .batch import Batch
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
from .state_sites import Sites
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


def _random(
    x: Tensor, batch: Batch, example_ids: Tensor | None, rng_state: Tensor | None, rng_hidden: Tensor | None,
    rng_weight: Tensor | None, thresholds: Tensor | None, dtype: torch.dtype, flags: int, layer: int, reverse: bool,
    step_offset: int,
) -> tuple[Sites, WeightMasks]:  # fmt: skip
    """The checked randomness of a layer: the sites of its steps, and its weight masks. ``flags`` name no schedule."""
    check_random(
        x.device, example_ids, rng_state, rng_hidden, rng_weight, thresholds, flags, layer, step_offset, batch.batch,
        batch.steps,
    )  # fmt: skip
    example_ids, rng_state, rng_hidden, rng_weight, thresholds = (
        None if tensor is None else tensor.contiguous()
        for tensor in (example_ids, rng_state, rng_hidden, rng_weight, thresholds)
    )
    sites = Sites.prepare(thresholds, rng_state, rng_hidden, example_ids, dtype, flags, layer, reverse, step_offset)
    return sites, WeightMasks(rng_weight, thresholds, flags, layer, reverse, dtype)


def _at_once(flags: int, projected: bool, batch: Batch, dtype: torch.dtype, device: torch.device) -> tuple[bool, int]:
    """Whether the sequence schedule runs the layer, as its ``flags`` say, and those of its sites.

    Backward does what its forward did. Who chooses asks before; what cannot run must not reach a kernel all the same.
    """
    of_sites, number = split_flags(flags)
    check(number in _NUMBERS, f"flags has bits that mean nothing: {flags}")
    at_once = _NUMBERS[number] == SEQUENCE
    if at_once:
        obstacle = sequence_obstacle(projected, batch.packed, dtype, device)
        check(obstacle is None, f"flags ask for the sequence schedule: {obstacle}")
    return at_once, of_sites


# --------------------------------------------------------------------------------------------------------------------
# LSTM
# --------------------------------------------------------------------------------------------------------------------


@_on_its_device
def lstm_forward(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None,
    w_hr: Tensor | None, batch_sizes: Tensor | None, example_ids: Tensor | None, rng_state: Tensor | None,
    rng_hidden: Tensor | None, rng_weight: Tensor | None, thresholds: Tensor | None, dtype: torch.dtype, flags: int,
    layer: int, reverse: bool, step_offset: int, save: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    tensors = lstm_layer.Layer(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr)
    tensors.check()
    check_floating(dtype=dtype)
    check(save in tuple(Keep), f"save must be 0, 1 or 2, got {save}")
    batch = Batch(x, batch_sizes, h0.shape[0], reverse)
    at_once, flags = _at_once(flags, w_hr is not None, batch, dtype, x.device)
    sites, weights = _random(
        x, batch, example_ids, rng_state, rng_hidden, rng_weight, thresholds, dtype, flags, layer, reverse, step_offset
    )
    return lstm_layer.forward(tensors, batch, sites, weights, at_once, save)


def lstm(*args: Any) -> tuple[Tensor, ...]:
    """Below autograd nothing is kept, whatever ``recompute``, the last argument, says."""
    return lstm_forward(*(*args[:-1], Keep.NOTHING))[:3]


@_on_its_device
def lstm_backward(
    grad_out: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None, x: Tensor, h0: Tensor, c0: Tensor,
    w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, w_hr: Tensor | None,
    batch_sizes: Tensor | None, example_ids: Tensor | None, rng_state: Tensor | None, rng_hidden: Tensor | None,
    rng_weight: Tensor | None, thresholds: Tensor | None, gates: Tensor, cells: Tensor, states: Tensor,
    dtype: torch.dtype, flags: int, layer: int, reverse: bool, step_offset: int, needs: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    tensors = lstm_layer.Layer(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr)
    tensors.check()
    check_floating(dtype=dtype)
    batch = Batch(x, batch_sizes, h0.shape[0], reverse)
    at_once, flags = _at_once(flags, w_hr is not None, batch, dtype, x.device)
    sites, weights = _random(
        x, batch, example_ids, rng_state, rng_hidden, rng_weight, thresholds, dtype, flags, layer, reverse, step_offset
    )
    return lstm_layer.backward(
        grad_out, grad_h_n, grad_c_n, tensors, gates, cells, states, batch, sites, weights, at_once, needs
    )


# --------------------------------------------------------------------------------------------------------------------
# GRU
# --------------------------------------------------------------------------------------------------------------------


@_on_its_device
def gru_forward(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None,
    batch_sizes: Tensor | None, example_ids: Tensor | None, rng_state: Tensor | None, rng_hidden: Tensor | None,
    rng_weight: Tensor | None, thresholds: Tensor | None, dtype: torch.dtype, flags: int, layer: int, reverse: bool,
    step_offset: int, save: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    tensors = gru_layer.Layer(x, h0, w_ih, w_hh, b_ih, b_hh)
    tensors.check()
    check_floating(dtype=dtype)
    check(save in tuple(Keep), f"save must be 0, 1 or 2, got {save}")
    batch = Batch(x, batch_sizes, h0.shape[0], reverse)
    at_once, flags = _at_once(flags, False, batch, dtype, x.device)
    sites, weights = _random(
        x, batch, example_ids, rng_state, rng_hidden, rng_weight, thresholds, dtype, flags, layer, reverse, step_offset
    )
    return gru_layer.forward(tensors, batch, sites, weights, at_once, save)


def gru(*args: Any) -> tuple[Tensor, ...]:
    """Below autograd nothing is kept, whatever ``recompute``, the last argument, says."""
    return gru_forward(*(*args[:-1], Keep.NOTHING))[:2]


@_on_its_device
def gru_backward(
    grad_out: Tensor | None, grad_h_n: Tensor | None, x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None, b_hh: Tensor | None, batch_sizes: Tensor | None, example_ids: Tensor | None,
    rng_state: Tensor | None, rng_hidden: Tensor | None, rng_weight: Tensor | None, thresholds: Tensor | None,
    gates: Tensor, resets: Tensor, states: Tensor, dtype: torch.dtype, flags: int, layer: int, reverse: bool,
    step_offset: int, needs: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    tensors = gru_layer.Layer(x, h0, w_ih, w_hh, b_ih, b_hh)
    tensors.check()
    check_floating(dtype=dtype)
    batch = Batch(x, batch_sizes, h0.shape[0], reverse)
    at_once, flags = _at_once(flags, False, batch, dtype, x.device)
    sites, weights = _random(
        x, batch, example_ids, rng_state, rng_hidden, rng_weight, thresholds, dtype, flags, layer, reverse, step_offset
    )
    return gru_layer.backward(grad_out, grad_h_n, tensors, gates, resets, states, batch, sites, weights, at_once, needs)
