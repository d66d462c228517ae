"""What a result was measured on."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fused_rnn_dropout import __version__, library, ops

from .measure import timed
from .shapes import Shape


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def caches() -> dict[str, str]:
    """Size of each cache level that the first core sees; empty where the system does not tell."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        found[f"L{level} {kind}"] = size
    return found


def _that_matter(arguments: Sequence[str]) -> list[str]:
    """Without where the results go, and whether some were there."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--resume" and not argument.startswith("--output"):
            kept.append(argument)
        skip = argument == "--output"
    return kept


def command_line(program: str, arguments: Sequence[str]) -> str:
    """What measures the same again, for a shell."""
    return f"{program} {shlex.join(_that_matter(arguments))}".strip()


def environment(threads: int, command: str) -> dict[str, Any]:
    """All that a reader needs to judge or repeat a measurement; ``command`` is what began it."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "processor": processor(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fused_rnn_dropout": __version__,
        "instruction_set": ops.cpu_isa(),
        "threads": threads,
        "load": os.getloadavg(),
    }


def multiply_add_peak(dtype: torch.dtype, threads: int, rounds: int = 9) -> float | None:
    """Multiply-adds of all threads at once in registers, in GFLOP/s: the fastest of some rounds.

    None where the CPU's kernels do not multiply in this type.
    """
    if dtype == torch.bfloat16 and library.cpu_bf16() != "native":
        return None
    with ThreadPoolExecutor(threads) as pool:  # the operator lets go of Python's lock
        each = [sum(pool.map(ops.cpu_multiply_adds, [dtype] * threads)) for _ in range(rounds)]
    return 1e-9 * max(each)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    torch.mm(a, b, out=out)


def sgemm(
    shapes: Sequence[Shape], rounds: int = 5, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Rate of torch.mm at the products of LSTM layers of these shapes, in GFLOP/s, and the best of them."""
    rates = {}
    for shape in shapes:
        rows, units = shape.rows, 4 * shape.units
        for name, m, k, n in (
            ("x W'", rows, shape.inputs, units),
            ("dx", rows, units, shape.inputs),
            ("dW", units, rows, shape.inputs),
        ):
            a, b = (torch.randn(size, device=device, dtype=dtype) for size in ((m, k), (k, n)))
            run = functools.partial(_multiply, a, b, torch.empty(m, n, device=device, dtype=dtype))
            run()
            rates[f"{shape.name} {name}"] = 2e-9 * m * k * n / median(timed(run, device) for _ in range(rounds))
    return {"best": max(rates.values()), "products": rates}
