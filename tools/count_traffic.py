"""Counts what CUDA's kernels ask of memory: the sectors of 32 bytes that their warps' requests touch.

    python tools/count_traffic.py [TEXT]      # only cases whose names contain TEXT

tests/cuda/traffic.cu runs kernels in the host shim and counts; this builds it, with g++ (or what FRD_GXX names), and
prints for each array of each case its requests, its sectors, and the bytes of all sectors over those that the kernel
uses: 1 where every sector is asked for once and used whole. Of times it says nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from sampling import ROOT

SOURCE = ROOT / "tests/cuda/traffic.cu"
PROGRAM = ROOT / "build/traffic/traffic"
SECTOR = 32
# A call before each access, of a vector as a whole.
CALLS = ["-O1", "-g1", "-fno-tree-sra", "-fsanitize=kernel-address", "--param", "asan-stack=0", "--param",
         "asan-globals=0", "--param", "asan-instrumentation-with-call-threshold=0"]  # fmt: skip
FLAGS = ["-std=c++20", *CALLS, "-Wno-unknown-pragmas", "-DFRD_CUDA_ON_HOST", "-x", "c++"]


class Count(NamedTuple):
    """Of all accesses of one kind to one array."""

    case: str
    array: str
    way: str  # load or store
    requests: int
    sectors: int
    asked: int  # bytes, as often as a thread asks for them
    used: int  # bytes, each once
    all: int  # bytes of the array

    @property
    def ratio(self) -> float:
        return SECTOR * self.sectors / self.used


def compiler() -> str:
    """
    Raises:
        SystemExit: there is no g++.
    """
    found = shutil.which(os.environ.get("FRD_GXX", "g++"))
    if not found:
        raise SystemExit("there is no g++, whose calls before accesses this counts: FRD_GXX names one")
    return found


def build(root: Path = ROOT, program: Path = PROGRAM) -> Path:
    """The program, made of the kernels of a checkout."""
    program.parent.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{root / 'csrc'}", f"-I{root / 'tests/cuda'}"]
    source = root / SOURCE.relative_to(ROOT)
    subprocess.run([compiler(), *FLAGS, *includes, str(source), "-o", str(program)], check=True)
    return program


def count(program: Path) -> list[Count]:
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    return [Count(*row[:3], *map(int, row[3:])) for row in rows]  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="", metavar="TEXT")
    text = parser.parse_args().text
    print(f"{'case':<48} {'array':<10} {'':<5} requests  sectors  used bytes  sector bytes / used")
    for one in count(build()):
        if text in one.case:
            print(f"{one.case:<48} {one.array:<10} {one.way:<5} {one.requests:8} {one.sectors:8} {one.used:11}  "
                  f"{one.ratio:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
