"""Plans of a persistent launch (csrc/cuda/schedules/persistent_plan.h) for layers on GPUs, by their limits: arithmetic.

    python tools/persistent_plans.py             prints the table of docs/persistent.md
    python tools/persistent_plans.py --write     writes it there

Compiles tests/cuda/plan.cpp with the compiler that CXX names (default c++). Needs no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from fused_rnn_dropout.bench.report import between

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/persistent.md"
BEGIN, END = "<!-- python tools/persistent_plans.py --write -->", "<!-- persistent plans: end -->"
KIB = 1024
CELLS = {"LSTM": 0, "GRU": 1, "RNN_TANH": 2, "RNN_RELU": 3}
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}


class Device(NamedTuple):
    """A GPU's limits, as its vendor gives them."""

    major: int
    minor: int
    multiprocessors: int
    shared: int
    """Bytes that a block may opt in to."""


DEVICES = {
    "A100": Device(8, 0, 108, 163 * KIB),
    "A10": Device(8, 6, 72, 99 * KIB),
    "RTX 4090": Device(8, 9, 128, 99 * KIB),
    "H100": Device(9, 0, 132, 227 * KIB),
    "H200": Device(9, 0, 132, 227 * KIB),
    "B200": Device(10, 0, 148, 227 * KIB),
    "GB10": Device(12, 1, 48, 99 * KIB),
}


class Layer(NamedTuple):
    cell: str = "LSTM"
    type: str = "bfloat16"
    batch: int = 16
    units: int = 768
    projected: int | None = None
    """``units`` where it is not given."""
    directions: int = 1
    flags: int = 0
    h0: bool = False
    backward: bool = False


Plan = dict[str, int]


def build(folder: Path) -> Path:
    flags = ["-std=c++20", "-O1", "-Wno-unknown-pragmas", "-DFRD_CUDA_ON_HOST"]
    folders = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cuda'}"]
    command = [*shlex.split(os.environ.get("CXX", "c++")), *flags, *folders]
    subprocess.run([*command, ROOT / "tests/cuda/plan.cpp", "-o", folder / "plan"], check=True)
    return folder / "plan"


def plans(program: Path, asked: list[tuple[Device, Layer]]) -> list[Plan | str]:
    """A plan for each, by the names of ``PersistentPlan``, or the sentence that says what stands in its way."""
    requests = ""
    for device, layer in asked:
        numbers = (CELLS[layer.cell], TYPES[layer.type], layer.batch, layer.units,
                   layer.units if layer.projected is None else layer.projected, layer.directions, layer.flags,
                   layer.h0, layer.backward)  # fmt: skip
        requests += " ".join(str(int(number)) for number in (*device, *numbers)) + "\n"
    done = subprocess.run([program], input=requests, capture_output=True, text=True, check=True)
    found: list[Plan | str] = []
    for line in done.stdout.splitlines():
        if line.startswith("obstacle="):
            found.append(line.removeprefix("obstacle="))
        else:
            found.append({name: int(value) for name, value in (item.split("=") for item in line.split())})
    if len(found) != len(asked):
        raise RuntimeError(f"{len(asked)} requests, {len(found)} answers")
    return found


HEAD = ("layer", "rows", "GPU", "", "blocks", "units of a block", "registers", "U in registers, shared KiB",
        "exchange of a block and step, KiB", "workspace, KiB")  # fmt: skip


def table(program: Path) -> str:
    shapes = [(256, 16), (768, 16), (768, 64), (1024, 16), (1150, 20), (2048, 16)]
    layers = [Layer(cell, kind, units=units, batch=batch, backward=backward)
              for cell, kind in (("LSTM", "bfloat16"), ("GRU", "bfloat16"), ("LSTM", "float32"))
              for (units, batch), backward in itertools.product(shapes, (False, True))]  # fmt: skip
    asked = [(name, layer) for layer in layers for name in ("A100", "H100")]
    found = plans(program, [(DEVICES[name], layer) for name, layer in asked])
    rows = [HEAD, ("---",) * len(HEAD)]
    for (name, layer), plan in zip(asked, found, strict=True):
        first = (f"{layer.cell} {layer.units}, {layer.type}", str(layer.batch), name,
                 "backward" if layer.backward else "forward")  # fmt: skip
        if isinstance(plan, str):
            rows.append((*first, f"none: {plan}", *[""] * (len(HEAD) - 5)))
            continue
        inside, outside = round(plan["u_in_registers"] / KIB), round(plan["u_in_shared"] / KIB)
        rows.append((*first, f"{plan['batch_groups']} × {plan['unit_groups']}", str(plan["units"]),
                     str(plan["registers"]), f"{inside}, {outside}", f"{plan['bytes_read'] / KIB:.1f}",
                     str(round(plan["workspace"] / KIB))))  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/persistent.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = table(build(Path(folder)))
    between(PAGE, BEGIN, END, made) if options.write else print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
