"""Peak resident memory of one forward and backward on the CPU, in a process of its own.

Linux only: it resets the kernel's high-water mark and reads it back.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .contenders import BY_NAME as CONTENDERS
from .contenders import runner
from .shapes import Shape

CONTENDER_NAMES = ("torch", "none", "all", "recompute")


def available() -> bool:
    """Whether this system keeps a high-water mark that can be reset."""
    return Path("/proc/self/clear_refs").exists()


def _status(field: str) -> float:
    """A field of /proc/self/status, in MiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return int(found[1]) / 1024


def measure(cell: str, shape: Shape, contender: str, dtype: str = "float32") -> float:
    """MiB that one forward and backward need beyond the module, its input and the gradient it is given."""
    tiny = Shape("tiny", 2, 2, 8, 16, "other", "")

    def made(of: Shape) -> Callable[[], None]:
        return runner(CONTENDERS[contender].build(cell, of), of, "train", dtype=getattr(torch, dtype))

    made(tiny)()  # libraries allocate their own on first use
    run = made(shape)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return _status("VmHWM") - before


def in_process(cell: str, shape: Shape, contender: str, threads: int, dtype: str = "float32") -> float:
    """:func:`measure` in a process of its own, which runs this module: ``CELL SHAPE WHO THREADS DTYPE``."""
    command = [sys.executable, "-m", __name__, cell, json.dumps(shape), contender, str(threads), dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    print(measure(sys.argv[1], Shape(*json.loads(sys.argv[2])), sys.argv[3], sys.argv[5]))
