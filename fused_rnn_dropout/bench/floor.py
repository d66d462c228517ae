"""The least time that a GPU's schedules can take, by arithmetic: nothing here was measured, and no GPU is needed.

Each launch takes at least ``latency``, however little it does; what takes longer hides that. Its work takes the longer
of two times: of its FLOPs at the peak rate, and of the bytes that caches cannot hold at the memory's bandwidth.
Launches follow one another. So this is a floor: real products of few rows come nowhere near a peak rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .count import SCHEDULES, Layer, Work, launches
from .shapes import Shape
from .tables import table

BEGIN, END = "<!-- floor:begin -->", "<!-- floor:end -->"
BYTES = {"float32": 4, "bfloat16": 2}
LATENCIES = (2e-6, 4e-6)
"""Seconds from a kernel's start to that of one that waits for it: about the first within a graph, the second or more
where the host launches each."""

GRID_BARRIER = 1.5e-6
"""Seconds that a barrier of all multiprocessors is taken to cost, for the schedule that is not there yet."""


class Gpu(NamedTuple):
    """What a vendor's data sheet says. Rates in FLOP/s by dtype, bandwidths in bytes/s, sizes in bytes."""

    name: str
    peak: dict[str, float]
    bandwidth: float
    l2: float
    multiprocessors: int
    clock: float
    shared: float  # of a multiprocessor, what one block may have

    @property
    def l2_of_one(self) -> float:
        """Bytes/s that one multiprocessor reads from L2: 64 bytes a cycle, an assumption."""
        return 64 * self.clock


GPUS = (
    Gpu("A100", {"float32": 19.5e12, "bfloat16": 312e12}, 1555e9, 40e6, 108, 1.41e9, 163 * 1024),
    Gpu("H100 SXM", {"float32": 66.9e12, "bfloat16": 989e12}, 3350e9, 50e6, 132, 1.83e9, 227 * 1024),
)


def seconds(work: Work, gpu: Gpu, dtype: str, latency: float, footprint: float) -> float:
    """Of all the launches of ``work``.

    ``footprint``: bytes of all that the schedule keeps; where L2 holds them, memory sees none of them. A recurrent
    weight stays in L2 from one step to the next if it is no more than half of it.
    """
    peak = gpu.peak[dtype]
    far = work.far if footprint > gpu.l2 else 0.0
    if work.weight > gpu.l2 / 2:
        far += work.weight
    least = max(work.flops / peak, far / gpu.bandwidth)
    if work.programs is not None:
        used = min(work.programs, gpu.multiprocessors)
        # The weight alone: what else its programs ask for is small beside it.
        from_l2 = (work.moved - work.far) / (used * gpu.l2_of_one)
        least = max(work.flops / (peak * used / gpu.multiprocessors), far / gpu.bandwidth, from_l2)
    return work.times * max(latency, least)


def footprint(layer: Layer) -> float:
    """Bytes that a forward and backward keep or write: weights, input, output, what is kept, gradients of gates."""
    shape = layer.shape
    weights = layer.gates * shape.units * (shape.inputs + shape.units) * layer.e
    values = 2 * shape.inputs + (2 + layer.wide) * shape.units
    return 2 * weights + layer.kept + layer.rows * values * layer.e


def floor(name: str, layer: Layer, gpu: Gpu, dtype: str, latency: float) -> float:
    """Seconds of a forward and backward with schedule ``name``."""
    size = footprint(layer)
    return sum(seconds(work, gpu, dtype, latency, size) for part in SCHEDULES[name](layer) for work in part)


def persistent(layer: Layer, gpu: Gpu, dtype: str, latency: float) -> float | None:
    """Seconds of a schedule that is not there: U on chip, one launch for all steps, a barrier of the grid a step.

    None where the shared memory of all multiprocessors does not hold U.
    """
    if layer.recurrent_weight > gpu.multiprocessors * gpu.shared:
        return None
    size, total = footprint(layer), 0.0
    for part in SCHEDULES["alternating"](layer):
        steps = [work for work in part if work.name in ("U h", "through U", "step")]
        total += sum(seconds(work, gpu, dtype, latency, size) for work in part if work not in steps)
        products = sum(work.times * work.flops / gpu.peak[dtype] for work in steps)
        total += latency + max(products, len(layer.sizes()) * GRID_BARRIER)
    return total


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------


def _amount(value: float, unit: str) -> str:
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def counts(cells: Sequence[str], shapes: Sequence[Shape], dtype: str) -> str:
    """Launches, FLOPs and bytes of every schedule."""
    rows = []
    for cell in cells:
        for shape in shapes:
            layer = Layer(cell, shape, BYTES[dtype])
            for name, count in SCHEDULES.items():
                parts = count(layer)
                whole = name in ("cuDNN", "Triton, sequence")
                step = [
                    [work for work in part if work.name in ("U h", "through U", "step", "all steps", "cuDNN's steps")]
                    for part in parts
                ]
                steps = len(layer.sizes())
                rows.append((
                    cell, shape.name, name,
                    *(" + ".join(str(launches(part, product)) for part in parts) for product in (False, True)),
                    _amount(sum(work.times * work.flops for work in step[0]) / steps, "FLOP"),
                    *(_amount(sum(work.times * work.moved for work in part) / steps, "B") for part in step),
                    _amount(sum(work.times * work.flops for part in parts for work in part), "FLOP"),
                    "as cuDNN does" if name == "cuDNN" else _amount(layer.kept, "B"),
                    "-" if whole and name == "cuDNN" else _amount(layer.kept_states, "B"),
                ))  # fmt: skip
    head = (
        "", "shape", "schedule", "kernels, forward + backward", "products", "FLOPs of a step",
        "bytes of a step, forward", "backward", "FLOPs of all", "kept for backward", "with recompute",
    )  # fmt: skip
    return table(head, rows)


def _milliseconds(value: float | None) -> str:
    return "U too large" if value is None else f"{1e3 * value:.3g}"


def floors(cells: Sequence[str], shapes: Sequence[Shape], dtypes: Sequence[str], gpu: Gpu) -> str:
    """Milliseconds of a forward and backward, at the lower and the higher latency."""
    rows = []
    for cell in cells:
        for shape in shapes:
            for dtype in dtypes:
                layer = Layer(cell, shape, BYTES[dtype])
                of_schedules = [
                    " - ".join(_milliseconds(floor(name, layer, gpu, dtype, latency)) for latency in LATENCIES)
                    for name in SCHEDULES
                ]
                least = [persistent(layer, gpu, dtype, latency) for latency in LATENCIES]
                ratio = floor("alternating", layer, gpu, dtype, LATENCIES[0]) / least[0] if least[0] else None
                rows.append((
                    cell, shape.name, dtype, *of_schedules,
                    "U too large" if least[0] is None else " - ".join(map(_milliseconds, least)),
                    "" if ratio is None else f"{ratio:.1f}",
                ))  # fmt: skip
    head = ("", "shape", "dtype", *SCHEDULES, "(persistent)", "alternating / (persistent)")
    return table(head, rows)


def page(cells: Sequence[str], shapes: Sequence[Shape], dtypes: Sequence[str]) -> str:
    """All tables, in markdown."""
    low, high = (f"{1e6 * latency:.0f}" for latency in LATENCIES)
    parts = [f"Counts in {dtypes[0]}, every site, one layer in one direction:", counts(cells, shapes, dtypes[0])]
    for gpu in GPUS:
        rates = ", ".join(f"{gpu.peak[dtype] / 1e12:g} TFLOP/s {dtype}" for dtype in dtypes)
        parts += [
            f"Floor on an {gpu.name} ({rates}, {gpu.bandwidth / 1e9:g} GB/s, L2 {gpu.l2 / 1e6:g} MB) in milliseconds "
            f"of a forward and backward, at {low} and {high} us a launch. Arithmetic, not a measurement:",
            floors(cells, shapes, dtypes, gpu),
        ]
    return "\n\n".join(parts)
