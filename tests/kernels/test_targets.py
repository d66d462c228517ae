"""Targets run where they say: otherwise a whole grid of tests could pass on other kernels than those it is about."""

from __future__ import annotations

from typing import Any

import host_run
import pytest
import torch
from grids import CELLS, call, inputs_for
from targets import CPUS, CUDA, CUDA_FREE, CUDA_HOST, REFERENCE, TRITON, Target, left_out, on
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn_dropout as frd
from fused_rnn_dropout import ops

OURS = "fused_rnn_dropout::"


class Operators(TorchDispatchMode):
    """Collects the names of our operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith(OURS):
            self.names.add(func.name().removeprefix(OURS))
        return func(*args, **(kwargs or {}))


@on(CPUS, CUDA, CUDA_FREE, TRITON, REFERENCE)
@pytest.mark.parametrize("cell", CELLS)
def test_they_run_where_they_say(target: Target, cell: str) -> None:
    rnn = target.module(cell, {"output_dropout": 0.5})
    x, states = inputs_for(rnn, *target.brief[:2])
    found = frd.explain(rnn, x)
    chosen = target.schedule or {"cuda": "cuDNN"}.get(target.backend, "")
    assert found.backend == target.backend and found.schedule.startswith(chosen) and x.device.type == target.device
    assert not target.isa or ops.cpu_isa() == target.isa
    with Operators() as seen:
        call(rnn, x, states)
    assert any(name.startswith("triton_") for name in seen.names) == (target.backend == "triton")
    assert len(host_run.installed) == target.on_host


@on(CUDA_HOST)
@pytest.mark.parametrize("cell", CELLS)
def test_the_gpus_kernels_are_launched_on_the_host(target: Target, cell: str) -> None:
    rnn = target.module(cell, {})
    host = host_run.host_module()
    host.take_launches()
    call(rnn, *inputs_for(rnn, 3, 3))
    assert sum(host.take_launches().values()) >= 2 * 2 * 3  # for each layer, direction and step
    assert not host_run.stand_in().log


@on(TRITON)
@pytest.mark.parametrize("layer", CELLS)
@pytest.mark.parametrize("numbers", [torch.float64, torch.float32], ids=str)
def test_what_they_cannot(target: Target, layer: str, numbers: torch.dtype) -> None:
    """A case is left out where the library refuses it, and nowhere else."""
    rnn = target.module(layer, {}, dtype=numbers)
    x, states = inputs_for(rnn, 1, 1)
    reason = target.cannot(layer, numbers)
    assert left_out(target, {"cell": layer, "dtype": numbers}) == (reason is not None)
    if reason is None:
        call(rnn, x, states)
        return
    with pytest.raises(ValueError, match=f"asks for the sequence schedule: {reason}"):
        call(rnn, x, states)
