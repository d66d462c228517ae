"""Counts compile keys: what Triton would look its compiled kernels up by, for launches that never happen.

Run by test_triton_backend.py in a process of its own, where kernels are not interpreted. Prints, by kernel, how many
keys the calls of one shape need, and how many those of many shapes do.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import jit

from fused_rnn_dropout.fakes import Keep
from fused_rnn_dropout.schedules import SCHEDULES, with_schedule
from fused_rnn_dropout.sites import FLAG
from fused_rnn_dropout.triton import operators

BACKEND = make_backend(GPUTarget("cuda", 90, 32))
INPUTS, UNITS, PROJECTED = 7, 13, 5
SEQUENCE, ALTERNATING = SCHEDULES["triton"]
FLAGS = sum(FLAG[name] for name in ("HIDDEN", "WEIGHT_HH", "UPDATE", "CELL", "ZONEOUT_H", "MASKS_ON"))
seen: dict[str, set[str]] = defaultdict(set)


def record(self: jit.JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """Stands in for a launch."""
    binder = jit.create_function_from_signature(self.signature, self.params, BACKEND)
    _, specialization, options = binder(*args, **options)
    seen[self.__name__].add(jit.compute_cache_key({}, specialization, options))


def state(batch: int, width: int, index: int) -> torch.Tensor:
    """One layer's part of a stacked state: where it begins in memory depends on the batch."""
    return torch.zeros(3, batch, width)[index]


def run(steps: int, batch: int, sizes: list[int] | None, offset: int, index: int) -> None:
    """Every kernel of both cells, forward and backward."""
    rows = sum(sizes) if sizes else steps * batch
    x = torch.zeros((rows, INPUTS) if sizes else (steps, batch, INPUTS))
    batch_sizes = torch.tensor(sizes) if sizes else None
    rng, thresholds = torch.zeros(2, dtype=torch.int64), torch.zeros(10, dtype=torch.int64)
    operators.words(rng, torch.arange(batch), torch.arange(steps), UNITS, 0)
    for batch_shared in (False, True):
        operators.dropout(x, rng, thresholds, batch_sizes, None, 1, 3, True, batch_shared, offset)
    for schedule, save, reverse in ((SEQUENCE, Keep.ALL, False), (ALTERNATING, Keep.STATES, False)):
        flags = with_schedule(FLAGS, schedule)
        random = (batch_sizes, torch.arange(batch), rng, rng, rng, thresholds, torch.float32, flags, index)
        for cell, gates in (("lstm", 4), ("gru", 3)):
            for width in (UNITS, PROJECTED)[: 2 if schedule is ALTERNATING and cell == "lstm" else 1]:
                states = [state(batch, width, index)] + [state(batch, UNITS, index)] * (cell == "lstm")
                weights = [torch.zeros(gates * UNITS, INPUTS), torch.zeros(gates * UNITS, width)]
                biases = [torch.zeros(gates * UNITS)] * 2
                w_hr = [torch.zeros(width, UNITS) if width != UNITS else None] * (cell == "lstm")
                layer = (x, *states, *weights, *biases, *w_hr)
                tail = (*random, reverse, offset)
                forward = getattr(operators, f"{cell}_forward")
                count = len(states) + 1
                results = forward(*layer, *tail, save)
                *kept, h = results[count:]
                kept = (*kept, h if h.dim() == 2 else results[0])
                backward = getattr(operators, f"{cell}_backward")
                backward(*results[:count], *layer, *random[:6], *kept, *tail[6:], 31)


jit.JITFunction.run = record
run(4, 16, None, 16, 0)
run(3, 16, [16, 8, 8], 16, 0)
one = {name: len(keys) for name, keys in seen.items()}
run(1, 1, None, 0, 1)
run(2, 3, None, 1, 2)
run(64, 2, None, 2**31, 1)
run(5, 32, None, 2**32 - 100, 0)
run(1, 1, [1], 0, 2)
run(4, 5, [5, 3, 1, 1], 2**31 - 2, 1)
print(json.dumps({name: (one[name], len(keys)) for name, keys in seen.items()}))
