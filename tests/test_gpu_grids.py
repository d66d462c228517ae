"""The grid of the CPU's kernels with tensors on a GPU: the same tests, on the alternating schedule.

``FRD_CUDA_ON_HOST=1 pytest tests/test_gpu_grids.py`` runs them on the host's tensors too, by the shim, so that what is
changed about the tests here can be tried without a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import host_run
import pytest
import test_cpu_kernels
import torch

import fused_rnn_dropout as frd
from fused_rnn_dropout import cudnn_library, ops

pytestmark = pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout")

ON_HOST = ["cpu"] if host_run.wanted else []
ELSEWHERE = {
    "test_low_precision_rounds_once": "the CPU's kernels alone promise it",
    "test_dropout_operator_does_not_round_its_scale": "test_cuda_kernels.py compares the bits",
    "test_weights_of_another_dtype": "test_cuda_kernels.py has it",
    "test_memory_is_given_back_without_gradients": "it reads the CPU allocator's record; test_gpu.py has it",
    "test_one_row_does_not_spoil_the_others": "it is about instruction sets",
    "test_saturated_gates": "it is about instruction sets",
    "test_instruction_sets_export_the_same_masks": "it is about instruction sets",
    "test_unknown_instruction_sets_are_refused": "it is about instruction sets",
    "test_backward_may_run_on_another_instruction_set": "it is about instruction sets",
}
"""Tests of the CPU's kernels that are not run here, and why."""


@pytest.fixture(autouse=True, params=[*ON_HOST, pytest.param("cuda", marks=pytest.mark.gpu)])
def on_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules, counters and draws go to the device; grids.py makes all else on that of the module."""
    device, draw = torch.device(request.param), frd.draw_rng
    build = functools.partial(test_cpu_kernels.module, backend="cuda", device=device)
    monkeypatch.setattr(test_cpu_kernels, "module", build)
    monkeypatch.setattr(test_cpu_kernels, "IDS", test_cpu_kernels.IDS.to(device))
    monkeypatch.setattr(test_cpu_kernels, "ISAS", (ops.cpu_isa(),))
    monkeypatch.setattr(frd, "draw_rng", lambda *_: draw("cpu").to(device))
    monkeypatch.setattr(cudnn_library, "obstacle", lambda *_: "the test keeps it away")
    torch.set_num_threads(1)


def test_what_is_left_out_is_there() -> None:
    assert set(ELSEWHERE) <= set(vars(test_cpu_kernels))


def _tests() -> dict[str, Any]:
    found = vars(test_cpu_kernels).items()
    return {name: test for name, test in found if name.startswith("test_") and name not in ELSEWHERE}


globals().update(_tests())
