"""``python -m fused_rnn_dropout doctor``: what can run here, what is missing and how to get it, and a self check."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch

from . import library
from .cells import MODULES


def self_check() -> dict[str, float]:
    """Compares forward and backward of the CPU kernels with the reference, in fp64, on small layers with masks on.

    Returns:
        By cell, the largest difference of any output or gradient, relative to the largest value of that tensor.
    """
    import fused_rnn_dropout as frd

    largest = {}
    for name in MODULES:
        cell = getattr(frd, name)
        torch.manual_seed(0)
        sites: dict[str, Any] = {"input_dropout": 0.3, "weight_dropout": 0.5, "update_dropout": 0.2, "zoneout_h": 0.1}
        fused = cell(5, 7, 2, bidirectional=True, dtype=torch.float64, backend="cpu", **sites)
        slow = cell(5, 7, 2, bidirectional=True, dtype=torch.float64, backend="reference", **sites)
        slow.load_state_dict(fused.state_dict())
        x, rng = torch.randn(6, 3, 5, dtype=torch.float64), frd.draw_rng("cpu")
        results = []
        for rnn in (fused, slow):
            given = x.clone().requires_grad_()
            out, _ = rnn(given, rng=rng)
            out.square().sum().backward()
            results.append([out.detach(), given.grad, *(weight.grad for weight in rnn.parameters())])
        largest[name] = max(
            float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in zip(*results, strict=True)
        )
    return largest


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def counted(number: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _how_to_get_cuda() -> str:
    nvcc = shutil.which("nvcc")
    there = f"nvcc is {nvcc}" if nvcc else "there is no nvcc on the PATH"
    first = "install a build of torch for CUDA, then " if torch.version.cuda is None else ""
    return (
        f"to get it, {first}build fused_rnn_dropout anew from its sources with FRD_CUDA=1 set, where the nvcc of the "
        f"CUDA that torch is built for, by its first number, is on the PATH or in CUDA_HOME ({there})"
    )


def about_launcher() -> str:
    """Whether Triton can compile the small C program with which it starts each kernel."""
    missing = []
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]  # as Triton looks for it
    found = next(filter(None, map(shutil.which, compilers)), None)
    if found is None:
        missing.append(f"a C compiler ({' or '.join(compilers)}; Debian, Ubuntu: apt install gcc)")
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        missing.append(f"Python.h in {headers} (Debian, Ubuntu: apt install python3-dev)")
    if missing:
        return f"Triton compiles a small launcher in C at its first use on a GPU; missing: {', '.join(missing)}"
    return f"there: {found} and Python.h, with which Triton compiles a small launcher at its first use on a GPU"


def about_cuda() -> str:
    """Whether the compiled CUDA kernels can run here, and what is missing."""
    missing = library.obstacle("cuda", "cuda")
    if missing is not None:
        return f"not there: {missing}; {_how_to_get_cuda()}"
    if not torch.cuda.is_available():
        return f"its kernels for CUDA {torch.version.cuda} are loaded, but torch finds no GPU here"
    return f"there: kernels for CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}"


def about_triton() -> str:
    """Whether Triton's kernels can run here, and what is missing."""
    version = version_of("triton")
    if version is None:
        return "missing: the package triton; pip install 'fused-rnn-dropout[triton]'"
    if library.triton_interpreted():
        return f"there, in the interpreter of triton {version} (TRITON_INTERPRET=1): on CPU tensors, to try it out"
    if not torch.cuda.is_available():
        return f"no CUDA device; triton {version} is installed, and TRITON_INTERPRET=1 runs its kernels on CPU tensors"
    return f"there, with triton {version}: float32, float64, bfloat16 and float16 on CUDA tensors"


def about_cpu(bf16: str) -> str:
    """What the CPU's kernels take, and how they run bfloat16."""
    if bf16 == "exact":
        return "there: float32 and float64; bfloat16 and float16 compute in float32"
    return f"there: float32, float64 and bfloat16 ({bf16} products); float16 computes in float32"


def report() -> int:
    """Prints everything; returns 1 where the self check fails, else 0."""
    import fused_rnn_dropout as frd

    from . import ops

    info = ops.build_info()
    lines: list[tuple[str, str]] = [
        ("python", f"{platform.python_version()} at {sys.executable}"),
        ("system", f"{platform.platform()}, {counted(os.cpu_count() or 1, 'processor')}"),
        ("torch", f"{torch.__version__}, {counted(torch.get_num_threads(), 'thread')}, CUDA "
                  f"{torch.version.cuda or 'not in this build'}"),
        ("fused_rnn_dropout", f"{frd.__version__} at {Path(frd.__file__).parent}"),
        ("kernels", f"loaded; built with compiler {info['compiler']}, needs torch >= {info['torch_target']}"),
        ("instruction set", f"{info['isa']}, of {', '.join(info['compiled_isas'])} in the library"),
        ("backend cpu", about_cpu(info["bf16"])),
        ("backend reference", "there: plain PyTorch, slow, every option, any device"),
        ("backend cuda", about_cuda()),
        ("backend triton", about_triton()),
        ("triton's launcher", about_launcher()),
    ]  # fmt: skip
    for label, text in lines:
        print(f"{label:<18} {text}")
    tolerance = 1e-12
    try:
        differences = self_check()
    except Exception as error:  # whatever a broken build raises is what the doctor is asked for
        print(f"{'self check':<18} FAILED: {type(error).__name__}: {error}")
        return 1
    well = all(difference <= tolerance for difference in differences.values())  # a NaN is not well either
    found = ", ".join(f"{cell} {difference:.1e}" for cell, difference in differences.items())
    print(f"{'self check':<18} {'ok' if well else 'FAILED'}: cpu against reference, forward and backward in float64, "
          f"largest relative difference {found} (allowed {tolerance:.0e})")  # fmt: skip
    return 0 if well else 1
