"""bfloat16 on the CPU: beside float32, beside torch.nn's layers, and beside what the processor can multiply."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from . import memory
from .contenders import BY_NAME as CONTENDERS
from .contenders import runner
from .machine import multiply_add_peak, sgemm
from .measure import Effort, Interval, median_of, ratio_of
from .report import brief, measured_on, milliseconds, spread, with_misses
from .run import DTYPES
from .shapes import Shape
from .tables import table

BEGIN, END = "<!-- dtypes:begin -->", "<!-- dtypes:end -->"
SHAPES = ("awd", "awd-wide", "zaremba", "medium", "wide", "pixels", "small")
NARROW, WIDE = "bfloat16", "float32"

TRAIN_BAR, EVAL_BAR, GAIN_BAR, MEMORY_BAR = 0.80, 0.85, 1.45, 0.60
"""Of torch.nn's time in bfloat16, forward and backward, and in eval; of float32's time over bfloat16's, from 512 units
on; of float32's memory beyond the module."""
SHARES = {
    ("bfloat16", "awd-wide"): 0.75,
    ("bfloat16", "wide"): 0.75,
    ("float32", "small"): 0.65,
    ("float32", "pixels"): 0.50,
}
"""What a forward and backward with every site should reach of the processor's multiply-adds, by dtype and shape."""


class Rates(NamedTuple):
    """GFLOP/s in one dtype: multiply-adds in registers, and torch's products; None where nothing multiplies in it."""

    peak: float | None
    products: float


class Row(NamedTuple):
    """One cell and shape.

    Attributes:
        ours: seconds of a forward and backward with every site, by dtype.
        train, eval: ours in bfloat16 over torch.nn's, which has no site.
        gain: ours in float32 over ours in bfloat16.
        memory: ours in bfloat16 over ours in float32, beyond the module; None where that was not measured.
    """

    cell: str
    shape: Shape
    ours: Mapping[str, Interval]
    train: Interval
    eval: Interval
    gain: Interval
    memory: float | None

    def rate(self, dtype: str) -> float:
        """GFLOP/s of the products, all else that the layer does included."""
        return 1e-9 * self.shape.flops(self.cell, "train") / self.ours[dtype].value

    def share(self, dtype: str, rates: Mapping[str, Rates]) -> float | None:
        """That over the processor's multiply-adds."""
        most = rates[dtype].peak
        return None if most is None else self.rate(dtype) / most

    def missed(self, rates: Mapping[str, Rates]) -> Iterator[str]:
        """What lies on the wrong side of its bar, in words; as it is printed."""
        name = f"{self.cell} {self.shape.name}"
        for what, value, most in (("train", self.train, TRAIN_BAR), ("eval", self.eval, EVAL_BAR)):
            if round(value.value, 2) > most:
                yield f"{name}, {what} / torch.nn: {spread(value)}, above {most:.2f}"
        if self.shape.units >= 512 and round(self.gain.value, 2) < GAIN_BAR:
            yield f"{name}, float32 / bfloat16: {spread(self.gain)}, below {GAIN_BAR:.2f}"
        if self.memory is not None and round(self.memory, 2) > MEMORY_BAR:
            yield f"{name}, memory: {self.memory:.2f}, above {MEMORY_BAR:.2f}"
        for (dtype, shape), least in SHARES.items():
            share = self.share(dtype, rates) if shape == self.shape.name else None
            if share is not None and round(share, 2) < least:
                yield f"{name}, share of the peak in {dtype}: {_percent(share)}, below {_percent(least)}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def measure(cell: str, shape: Shape, with_memory: bool, effort: Effort) -> Row:
    """Times both dtypes of ours beside torch.nn's in bfloat16, in every round."""

    def run(contender: str, task: str, dtype: str) -> Callable[[], None]:
        return runner(CONTENDERS[contender].build(cell, shape), shape, task, dtype=DTYPES[dtype])

    tasks = ("train", "eval")
    runs = {f"torch {task}": run("torch", task, NARROW) for task in tasks}
    runs |= {f"ours {task}": run("all", task, NARROW) for task in tasks}
    runs[WIDE] = run("all", "train", WIDE)
    found = effort.paired(runs)
    of_memory = None
    if with_memory:
        narrow, wide = (memory.in_process(cell, shape, "all", effort.threads, dtype) for dtype in (NARROW, WIDE))
        of_memory = narrow / wide
    return Row(
        cell,
        shape,
        {WIDE: median_of(found[WIDE]), NARROW: median_of(found["ours train"])},
        ratio_of(found["ours train"], found["torch train"]),
        ratio_of(found["ours eval"], found["torch eval"]),
        ratio_of(found[WIDE], found["ours train"]),
        of_memory,
    )


def text_of(rows: Sequence[Row], rates: Mapping[str, Rates], threads: int, command: str) -> str:
    """The tables, what they were measured on, and what misses its bar, in markdown."""
    lines = [
        (
            row.cell,
            row.shape.name,
            row.shape.sizes,
            milliseconds(row.ours[NARROW].value),
            spread(row.train),
            spread(row.eval),
            spread(row.gain),
            *(_percent(row.share(dtype, rates)) for dtype in (WIDE, NARROW)),
            "" if row.memory is None else f"{row.memory:.2f}",
        )
        for row in rows
    ]
    head = (
        "", "shape", "T, B, I, H", "bfloat16, ms", "/ torch.nn, train", "/ torch.nn, eval", "float32 / bfloat16",
        "of the peak, float32", "of the peak, bfloat16", "memory, / float32",
    )  # fmt: skip
    of_machine = [
        (dtype, "" if found.peak is None else f"{found.peak:.0f}", f"{found.products:.0f}")
        for dtype, found in rates.items()
    ]
    shares = ", ".join(f"{_percent(least)} ({dtype} {shape})" for (dtype, shape), least in SHARES.items())
    bars = (
        f"Bars: {TRAIN_BAR:.2f} and {EVAL_BAR:.2f} of torch.nn, {GAIN_BAR:.2f} from 512 units on, memory "
        f"{MEMORY_BAR:.2f}, of the peak {shares}"
    )
    return "\n\n".join([
        "Every site on, forward and backward, but for eval; torch.nn's layers are in bfloat16 and have no dropout. "
        f"Ratios of medians with a 95 % interval. {measured_on(threads, command)}.",
        table(head, lines),
        "What the processor multiplies, in GFLOP/s: sums that stay in registers, on all threads at once, which is the "
        "peak, and the best of torch's products of the two largest shapes.",
        table(("", "registers", "torch's products"), of_machine),
        with_misses(bars, [text for row in rows for text in row.missed(rates)]),
        f"Made by `{command}`.",
    ])  # fmt: skip


def dtypes(cells: Sequence[str], shapes: Sequence[Shape], with_memory: bool, effort: Effort, command: str) -> str:
    """Measures all of it; what :func:`text_of` says."""
    effort.begin()
    largest = sorted(shapes, key=lambda shape: shape.flops("LSTM", "train"))[-2:]
    rates = {
        name: Rates(multiply_add_peak(DTYPES[name], effort.threads), sgemm(largest, dtype=DTYPES[name])["best"])
        for name in (WIDE, NARROW)
    }
    rows = []
    for cell in cells:
        for shape in shapes:
            rows.append(row := measure(cell, shape, with_memory, effort))
            said = f"train {brief(row.train)}, eval {brief(row.eval)}, float32 / bfloat16 {brief(row.gain)}"
            print(f"{cell} {shape.name}: {said}", file=sys.stderr, flush=True)
    return text_of(rows, rates, effort.threads, command)
