"""Runs whole modules through the CUDA launchers on the host: :func:`install`, or ``with run_on_host():``.

The operators of ``fused_rnn_dropout`` then have the CUDA bindings for CPU tensors too: the same schedules and kernels
as on a GPU, run by the host shim, with torch's CPU matrix products between them. So any ``frd.LSTM`` or ``frd.GRU`` on
CPU tensors, forward and backward, goes through them, with ``backend="cpu"`` as well as with ``backend="cuda"``, which
is said to be there. Where cuDNN would run, ``cudnn_stand_in`` does. pytest's option ``--on-host`` does it for a whole
run of the tests.

Memory that nobody has written to is poisoned meanwhile: what torch or the bindings allocate is full of NaN.

    python tests/host_run.py MODULE [ARGUMENT ...]   runs a module so, as ``python -m`` does
"""

from __future__ import annotations

import functools
import importlib.util
import runpy
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from cudnn_stand_in import StandIn

import fused_rnn_dropout  # noqa: F401  defines the operators
from fused_rnn_dropout import cudnn_library, library

NAMES = ("words", "dropout", "layer", "layer_forward", "layer_backward", "masked_weights", "masked_weights_backward",
         "persistent_plan")  # fmt: skip


@functools.cache
def build_module() -> ModuleType:
    """tests/cuda/build.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("frd_cuda_build", Path(__file__).parent / "cuda" / "build.py")
    assert spec and spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build


def host_module() -> ModuleType:
    """The tests' module of CUDA sources, compiled when first asked for."""
    return build_module().load()


class Installed(NamedTuple):
    operators: torch.library.Library  # kept: a library that nobody holds takes its implementations with it
    stand_in: StandIn
    deterministic: tuple[bool, bool]


installed: list[Installed] = []


def poison(on: bool = True, warn_only: bool = True) -> None:
    """Has torch fill what it allocates with NaN, integers with their largest value, or no longer.

    That is what it does where deterministic algorithms are asked for; one that there is not warns.
    """
    torch.use_deterministic_algorithms(on, warn_only=warn_only)
    assert torch.utils.deterministic.fill_uninitialized_memory  # which is torch's default


def stand_in() -> StandIn:
    """What stands in for cuDNN now."""
    return installed[-1].stand_in


def way_to_torch() -> dict[str, Any]:
    """The functions of ``cudnn_library`` that ask torch, whatever stands in for them now."""
    of = installed[0].stand_in.replaced if installed else vars(cudnn_library)
    return {name: of[name] for name in StandIn.NAMES}


def install() -> None:
    """Points the operators' CPU implementations at the CUDA launchers, until :func:`uninstall`."""
    host_module()
    overrides = torch.library.Library("fused_rnn_dropout", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")  # which is the purpose
        for name in NAMES:
            overrides.impl(name, getattr(torch.ops.frd_on_host, name).default, "CPU", allow_override=True)
    library.gpu_devices.add("cpu")
    cudnn = StandIn()
    cudnn.install()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    installed.append(Installed(overrides, cudnn, deterministic))
    poison()


def uninstall() -> None:
    """Gives the operators their CPU kernels back."""
    last = installed.pop()
    poison(*last.deterministic)
    last.stand_in.uninstall()
    if not installed:
        library.gpu_devices.discard("cpu")
    last.operators._destroy()


@contextmanager
def run_on_host() -> Iterator[None]:
    """Like :func:`install`, for as long as the context lasts."""
    install()
    try:
        yield
    finally:
        uninstall()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.modules["host_run"] = sys.modules["__main__"]  # one of this name, with what is installed
    install()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
