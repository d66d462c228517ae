"""Counts compile keys: what Triton would look its compiled kernels up by, for launches that never happen.

Run by test_triton_backend.py in a process of its own, where kernels are not interpreted. Prints, by kernel, how many
keys the calls of one shape need, and how many those of many shapes do.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import jit

from fused_rnn_dropout.cells import CELLS
from fused_rnn_dropout.layer_call import FORWARD, Keep, Kept, LayerCall
from fused_rnn_dropout.schedules import SCHEDULES
from fused_rnn_dropout.sites import FLAG, GROUPS, SITES
from fused_rnn_dropout.triton import operators

BACKEND = make_backend(GPUTarget("cuda", 90, 32))
INPUTS, UNITS, PROJECTED = 7, 13, 5
SEQUENCE, ALTERNATING = SCHEDULES["triton"]
CHOSEN = ("INPUT", "OUTPUT", "HIDDEN", "WEIGHT_HH", "UPDATE", "CELL", "CELL_SEQUENCE", "ZONEOUT_H", "MASKS_ON")
seen: dict[str, set[str]] = defaultdict(set)


def record(self: jit.JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """Stands in for a launch."""
    binder = jit.create_function_from_signature(self.signature, self.params, BACKEND)
    _, specialization, options = binder(*args, **options)
    seen[self.__name__].add(jit.compute_cache_key({}, specialization, options))


def state(batch: int, width: int, index: int) -> torch.Tensor:
    """One layer's part of a stacked state: where it begins in memory depends on the batch."""
    return torch.zeros(3, batch, width)[index]


def zeros(*shape: int, index: int) -> torch.Tensor:
    """Dense; of an odd ``index`` at an address that no two numbers' size divides."""
    numel = math.prod(shape)
    return torch.zeros(numel + 1)[index % 2 : index % 2 + numel].view(shape)


def run(steps: int, batch: int, sizes: list[int] | None, offset: int, index: int) -> None:
    """Every kernel of both cells, forward and backward."""
    rows = sum(sizes) if sizes else steps * batch
    x = zeros(*((rows, INPUTS) if sizes else (steps, batch, INPUTS)), index=index)
    batch_sizes = torch.tensor(sizes) if sizes else None
    rng, thresholds = torch.zeros(2, dtype=torch.int64), torch.zeros(10, dtype=torch.int64)
    operators.words(rng, torch.arange(batch), torch.arange(steps), UNITS, 0)
    for batch_shared in (False, True):
        operators.dropout(x, rng, thresholds, batch_sizes, None, 1, 3, True, batch_shared, offset)
    pairs = rng.expand(len(GROUPS), 2)
    for schedule, keep in ((SEQUENCE, Keep.ALL), (ALTERNATING, Keep.STATES)):
        for cell in CELLS.values():
            absent = [name for site in SITES if not site.fits(cell.name) for name in site.flags]
            flags = sum(FLAG[name] for name in CHOSEN if name not in absent)
            for width in (UNITS, PROJECTED)[: 2 if schedule is ALTERNATING and cell.projects else 1]:
                states = [state(batch, width, index)] + [state(batch, UNITS, index)] * cell.has_c
                gates = cell.gates * UNITS
                weights = [zeros(gates, columns, index=index) for columns in (INPUTS, width)]
                weights += [torch.zeros(gates)] * 2
                weights += [torch.zeros(width, UNITS)] * (width != UNITS)
                call = LayerCall(
                    cell.number, x, states, weights, batch_sizes, torch.arange(batch), pairs, thresholds, torch.float32,
                    flags, index, FORWARD, offset, schedule.number, keep,
                )  # fmt: skip
                y, last, kept = operators.layer_forward(*call)
                h_apart = Kept(*kept).states.dim() == 2
                operators.layer_backward(zeros(*y.shape, index=index), last, *call, None if h_apart else y, kept, 31)


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
