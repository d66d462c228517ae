"""The tests of the CPU's kernels, run on the GPU's: by the host shim, through the same operators and modules.

``FRD_CUDA_ON_HOST=1 pytest tests`` does the same with every test that has no marker ``cpu_kernels``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import host_run
import pytest
import test_cpu_kernels
import test_packed
import torch

from fused_rnn_dropout import ops

pytestmark = pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout")


@pytest.fixture(autouse=True)
def cuda_launchers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA launchers stand in for the CPU's kernels, which have instruction sets to go through."""
    torch.set_num_threads(1)
    monkeypatch.setattr(test_cpu_kernels, "ISAS", (ops.cpu_isa(),))
    with host_run.run_on_host():
        yield


def _about_the_gpu_too(test: Any) -> bool:
    marks = {mark.name for mark in getattr(test, "pytestmark", ())}
    return not marks & {"cpu_kernels", "slow"} and "instruction" not in test.__name__


for _module in (test_cpu_kernels, test_packed):
    for _name, _test in vars(_module).items():
        if _name.startswith("test_") and callable(_test) and _about_the_gpu_too(_test):
            globals()[_name] = _test
