"""The least that a step of the persistent schedule can take, from its plans (tools/persistent_plans.py): arithmetic.

    python tools/persistent_floor.py             prints the tables of docs/gpu.md
    python tools/persistent_floor.py --write     writes them there

A step is a chain: a word's way from block to block, what a block reads of the others from L2, and the longer of its
products and its reading of U from shared memory. What goes to memory meanwhile bounds it too. Gates, sums of warps,
barriers and polls in vain take nothing here. Needs a C++ compiler (CXX, default c++) and no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from persistent_plans import DEVICES, KIB, ROOT, Device, Layer, Plan, build, plans

from fused_rnn_dropout.bench.floor import GPUS, Gpu
from fused_rnn_dropout.bench.report import between
from fused_rnn_dropout.bench.tables import table
from fused_rnn_dropout.cells import CELLS

PAGE = ROOT / "docs/gpu.md"
BEGIN, END = "<!-- python tools/persistent_floor.py --write -->", "<!-- persistent floor: end -->"
STEPS = 1024
PASSES = (False, True)
"""Forward, then backward."""


class Place(NamedTuple):
    """A GPU, its limits, and the seconds from a store in one block to a load in another that sees it."""

    gpu: Gpu
    limits: Device
    hop: float


PLACES = {
    "A100": Place(GPUS[0], DEVICES["A100"], 0.9e-6),
    "H100": Place(GPUS[1], DEVICES["H100"], 0.65e-6),
}
"""The H100's hop is what others measured for a release and an acquire, the A100's is assumed."""

TENSOR = {"bfloat16": (2, 1, 4096), "float16": (2, 1, 4096), "float32": (4, 6, 2048)}
"""Of a dtype: bytes; how much longer than bfloat16 as many FLOPs take, for float32 three products of tf32 at half its
rate; FLOPs of a tile's product."""

PUBLISHED = (
    ("cuDNN, `torch.nn`, W x included", "float16", "2.01", "5.19"),
    ("FlashRNN, fused, W x not included", "bfloat16", "4.87", "13.6"),
    ("haste", "float32", "18.4", "43.9"),
)
"""Milliseconds of others on an H100 SXM, forward, and forward and backward: from the figures of FlashRNN (Pöppel et al.
2024, arXiv:2412.07752)."""


def memory(layer: Layer) -> int:
    """Bytes of a step that go to memory and come from it, of all rows, where a backward follows."""
    cell, (e, *_) = CELLS[layer.cell], TENSOR[layer.type]
    c = 4 * cell.has_c
    kept = (cell.gates + cell.apart) * e + c + e  # gates, c, h
    of_unit = kept + ((cell.gates + cell.apart) * e + e if layer.backward else cell.gates * e)
    return layer.batch * layer.units * of_unit


def step(plan: Plan, layer: Layer, place: Place) -> float:
    """Seconds."""
    gpu, (_, times, flops) = place.gpu, TENSOR[layer.type]
    products = plan["row_tiles"] * plan["batch_tiles"] * plan["k_tiles"] * flops * times
    product = products / (gpu.peak["bfloat16"] / gpu.multiprocessors)
    from_shared = plan["u_in_shared"] / (128 * gpu.clock)
    chain = place.hop + plan["bytes_read"] / gpu.l2_of_one + max(product, from_shared)
    return max(chain, memory(layer) / gpu.bandwidth)


def _found(program: Path, layers: list[Layer]) -> dict[tuple[str, Layer], Plan | str]:
    asked = [(name, layer) for layer in layers for name in PLACES]
    made = plans(program, [(PLACES[name].limits, layer) for name, layer in asked])
    return dict(zip(asked, made, strict=True))


def floors(program: Path) -> str:
    """A row for each layer and pass. float16 has the plans of bfloat16."""
    sizes = itertools.product(("LSTM", "GRU"), ("bfloat16", "float32"), (256, 768, 1024, 1150, 2048), (16, 64), PASSES)
    layers = [Layer(cell, kind, batch, units, backward=back) for cell, kind, units, batch, back in sizes]
    found = _found(program, layers)
    rows = []
    for layer in layers:
        cells: list[str] = []
        for name, place in PLACES.items():
            plan = found[name, layer]
            if isinstance(plan, str):
                cells += ["does not fit", "", ""]
                continue
            seconds = step(plan, layer, place)
            cells += [f"{1e6 * seconds:.2f}, {1e3 * STEPS * seconds:.2f}", f"{plan['bytes_read'] / KIB:.0f}",
                      f"{plan['words_read']:,}"]  # fmt: skip
        kind = "bfloat16, float16" if layer.type == "bfloat16" else layer.type
        rows.append((f"{layer.cell} {layer.units}", kind, str(layer.batch),
                     "backward" if layer.backward else "forward", *cells, f"{memory(layer) / KIB:.0f}"))  # fmt: skip
    head = ["", "dtype", "B", ""]
    for name in PLACES:
        head += [f"{name}: us a step, ms of all", "KiB from L2", "words"]
    return table([*head, "memory, KiB"], rows)


def beside(program: Path) -> str:
    """The layer of which others have published figures: H 768, B 16, T 1024, on an H100."""
    rows = [(who, dtype, "measured by others", forward, both) for who, dtype, forward, both in PUBLISHED]
    for dtype in ("float16", "bfloat16", "float32"):
        layers = [Layer("LSTM", dtype, 16, 768, backward=back) for back in PASSES]
        found = _found(program, layers)
        parts = []
        for layer in layers:
            plan = found["H100", layer]
            assert isinstance(plan, dict)
            parts.append(1e3 * STEPS * step(plan, layer, PLACES["H100"]))
        who = "persistent, its recurrence alone"
        rows.append((who, dtype, "floor, arithmetic", f"{parts[0]:.2f}", f"{sum(parts):.2f}"))
    return table(("", "dtype", "", "forward, ms", "forward and backward, ms"), rows)


def text(program: Path) -> str:
    return f"{floors(program)}\n\nAn LSTM of 768 units, 16 rows, 1,024 steps on an H100:\n\n{beside(program)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/gpu.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = text(build(Path(folder)))
    between(PAGE, BEGIN, END, made) if options.write else print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
