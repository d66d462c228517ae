"""Counts what a step of the persistent schedule waits for, and what it draws while others wait for it.

    python tools/count_waiting.py

tests/cuda/waiting.cu runs the schedule's kernels in the host shim and counts; this builds it, with the compiler that
CXX names (default c++), and prints for each cell and pass, with every site and without: the words that a block reads in
a step, the calls of Philox of all threads and steps, and those between the last word that a thread reads of a step and
the last that it publishes then. Of times it says nothing.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

from sampling import ROOT

SOURCE = ROOT / "tests/cuda/waiting.cu"
PROGRAM = ROOT / "build/waiting/waiting"
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wno-unknown-pragmas", "-DFRD_CUDA_ON_HOST", "-x", "c++"]


class Count(NamedTuple):
    """Of one cell, pass and choice of sites."""

    case: str
    blocks: int
    steps: int  # in which words are read
    words: int  # that a block reads in each
    drawn: int  # calls of Philox
    between: int  # of them, where others wait


def build(root: Path = ROOT, program: Path = PROGRAM) -> Path:
    """The program, made of the kernels of a checkout."""
    program.parent.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{root / 'csrc'}", f"-I{root / 'tests/cuda'}"]
    command = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS, *includes, root / SOURCE.relative_to(ROOT)]
    subprocess.run([*command, "-o", program], check=True)
    return program


def count(program: Path) -> list[Count]:
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    return [Count(row[0], *map(int, row[1:])) for row in rows]


def main() -> None:
    for one in count(build()):
        print(f"{one.case:<32} {one.words:5} words of a block and step, {one.drawn:5} calls of Philox, {one.between} "
              "between poll and publish")  # fmt: skip


if __name__ == "__main__":
    main()
