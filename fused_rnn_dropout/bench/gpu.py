"""A CUDA device as the bench sees it: whether it is there, what it is, what its limits are, graphs and peak memory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from fused_rnn_dropout import library

from .measure import synchronize, timed

CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "driver_version")
"""What ``nvidia-smi`` is asked for."""


class DeviceLost(OSError):
    """The device does not answer any more after an error: nothing else can be measured in this process."""


def check(device: str) -> None:
    """Raises ``ValueError`` unless tensors can live on ``device``."""
    if device == "cuda" and not torch.cuda.is_available():
        built = "" if torch.version.cuda else f", and this torch ({torch.__version__}) is built without CUDA"
        raise ValueError(f"--device cuda: there is no CUDA device here{built}")


def products(dtype: str, tf32: bool) -> None:
    """The same rounding for everyone: by default torch lets cuDNN round float32 to TF32, but no product of its own.

    Told not to, cuDNN's layers do without tensor cores in bfloat16 too, so that it is told in float32 alone.
    """
    torch.backends.cudnn.allow_tf32 = tf32 or dtype != "float32"
    torch.backends.cuda.matmul.allow_tf32 = tf32


def clocks() -> dict[str, str]:
    """Clocks, power limit and driver, as ``nvidia-smi`` tells them; empty where it does not."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(query, capture_output=True, text=True)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(CLOCKS, values, strict=True)) if done.returncode == 0 and len(values) == len(CLOCKS) else {}


def environment() -> dict[str, Any]:
    """What a reader needs to know of the device and of what runs on it."""
    device = torch.cuda.get_device_properties(0)
    found = {
        "name": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_mib": device.total_memory // 2**20,
        "l2_mib": getattr(device, "L2_cache_size", 0) / 2**20,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "backends": {name: library.obstacle(name, "cuda") or "there" for name in ("cuda", "triton")},
    }
    return found | clocks()


# --------------------------------------------------------------------------------------------------------------------
# Limits
# --------------------------------------------------------------------------------------------------------------------


def bandwidth(mib: int = 1024, rounds: int = 7) -> float:
    """GB/s of a copy within the device's memory, reads and writes both counted."""
    source = torch.empty(mib * 2**20, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    copy()
    return 2e-9 * source.numel() / median(timed(copy, "cuda") for _ in range(rounds))


def launch_seconds(count: int = 1000, rounds: int = 7) -> dict[str, float]:
    """Seconds for one of many launches of a kernel that does next to nothing, one by one and in a graph."""
    number = torch.zeros(1, device="cuda")

    def launches() -> None:
        for _ in range(count):
            number.add_(1)

    launches()
    replay = graphed(launches)
    times = {"one by one": launches, "in a graph": replay}
    return {name: median(timed(run, "cuda") for _ in range(rounds)) / count for name, run in times.items()}


def limits() -> dict[str, Any]:
    """Beside the rate of products (``machine.sgemm``): what bounds a layer on this device, measured now."""
    return {"copy_gb_s": bandwidth(), "launch_s": launch_seconds()}


# --------------------------------------------------------------------------------------------------------------------
# Calls
# --------------------------------------------------------------------------------------------------------------------


def working(
    makers: Mapping[str, Callable[[], Callable[[], None]]], tick: Callable[[str], None], device: str = "cuda"
) -> tuple[dict[str, Callable[[], None]], dict[str, float], dict[str, str]]:
    """Makes each run and calls it once.

    Returns:
        The runs that did, the seconds of that call, and for the others what they said.

    Raises:
        DeviceLost: the device is of no use after such a failure.
    """
    runs, first, failed = {}, {}, {}
    for name, make in makers.items():
        tick(name)
        try:
            run = make()
            first[name] = timed(run, device)
            runs[name] = run
        except Exception as error:  # whatever it is, it goes into the report, and the others are still measured
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            try:
                synchronize(device)
            except RuntimeError as lost:
                raise DeviceLost(f"the device does not answer after {name}: {failed[name]}") from lost
    return runs, first, failed


def graphed(run: Callable[[], None]) -> Callable[[], None]:
    """``run`` as a replay of a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # lazy initialisation must not be captured
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay(_kept: object = run) -> None:  # what it reads must live as long as the graph
        graph.replay()

    return replay


def peak_mib(run: Callable[[], None]) -> float:
    """MiB that one call needs beyond what is there before it; libraries have their workspaces by then."""
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
