"""Tables in markdown, made of a result's JSON alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fused_rnn_dropout.cells import MODULES

from . import gpu, paths
from .contenders import BY_NAME as CONTENDERS
from .criteria import Measure, judged, packed, peak, ratio, verdicts
from .machine import environment
from .measure import Interval, median_of, ratio_of
from .shapes import Shape
from .tables import table

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
_TASKS = {
    "train": "Forward and backward",
    "forward": "Forward, keeping what backward needs",
    "eval": "Eval, forward only, no_grad",
    "graph": "Forward and backward, replayed as a CUDA graph",
}


def _product(results: dict[str, Any]) -> str:
    """What the rate of matrix products is called."""
    dtype = results.get("dtype", "float32")
    return "sgemm" if dtype == "float32" else f"Products in {dtype}"


def spread(value: Interval | None) -> str:
    """A ratio with its interval."""
    return "" if value is None else f"{value.value:.2f} ({value.low:.2f}-{value.high:.2f})"


def brief(value: Interval | None) -> str:
    return "" if value is None else f"{value.value:.2f}"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def measured_on(threads: int, command: str) -> str:
    """The machine and the software of a table that is measured now, as the beginning of a sentence."""
    e = environment(threads, command)
    return (
        f"{e['processor']}, {e['cores']} cores, "
        f"{'one thread, its own time' if threads == 1 else f'{threads} threads'}, {e['instruction_set']}, "
        f"torch {e['torch']}, fused_rnn_dropout {e['fused_rnn_dropout']}, {e['date'][:10]}"
    )


def with_misses(bars: str, missed: Sequence[str]) -> str:
    """What is asked for, and what misses it."""
    if not missed:
        return f"{bars}. All are met."
    return f"{bars}. Missed:\n\n" + "\n".join(f"- {text}" for text in missed)


def shapes_of(results: dict[str, Any]) -> list[Shape]:
    return [Shape(**shape) for shape in results["shapes"]]


def _by_name(results: dict[str, Any]) -> dict[str, Shape]:
    return {shape.name: shape for shape in shapes_of(results)}


def meaning_of(results: dict[str, Any], name: str) -> str:
    """What a contender is, in the words of its run; results of 0.1 have none."""
    known = {contender.name: contender.meaning for contender in CONTENDERS.values()}
    return results.get("contenders", known).get(name, name)


def gpu_machine(results: dict[str, Any]) -> str:
    """The device, and the limits that were measured beside the layers."""
    e, limits = results["environment"]["gpu"], results["limits"]
    clock = ", ".join(f"{name} {e[name]}" for name in gpu.CLOCKS if name in e) or "clocks unknown"
    launch = limits["launch_s"]
    backends = "; ".join(f"{name}: {state}" for name, state in e["backends"].items())
    return (
        f"{e['name']}, compute capability {e['capability']}, {e['multiprocessors']} multiprocessors, "
        f"{e['memory_mib']} MiB, L2 {e['l2_mib']:.0f} MiB, CUDA {e['cuda']}, cuDNN {e['cudnn']}, {clock}. "
        f"{results['dtype']}, TF32 {'on' if e['tf32'] else 'off'} for everyone. Backends: {backends}.\n\n"
        f"Limits measured in this run: products {1e-3 * results['sgemm']['best']:.1f} TFLOP/s (the best "
        f"of those of the two largest shapes), copies {limits['copy_gb_s']:.0f} GB/s, a launch "
        f"{1e6 * launch['one by one']:.1f} us one by one and {1e6 * launch['in a graph']:.1f} us in a graph."
    )


def machine(results: dict[str, Any]) -> str:
    e = results["environment"]
    if "gpu" in e:
        return (
            f"{gpu_machine(results)}\n\nHost: {e['processor']}, {e['cores']} cores, torch {e['torch']}, Python "
            f"{e['python']}, fused_rnn_dropout {e['fused_rnn_dropout']}, {e['date'][:10]}."
        )
    caches = ", ".join(f"{name} {size}" for name, size in e["caches"].items() if "Instruction" not in name)
    return (
        f"{e['processor']}, {e['cores']} cores ({caches or 'caches unknown'}), {e['threads']} threads, "
        f"{e['instruction_set']}, torch {e['torch']}, Python {e['python']}, "
        f"fused_rnn_dropout {e['fused_rnn_dropout']}, {e['date'][:10]}. {_product(results)}, the best "
        f"of the products of the two largest shapes: {results['sgemm']['best']:.0f} GFLOP/s."
    )


def group_table(results: dict[str, Any], entry: dict[str, Any]) -> str:
    """One group of contenders: milliseconds, ratio to torch's, rate."""
    shape, rounds = _by_name(results)[entry["shape"]], entry["rounds"]
    if not rounds:
        return "Nobody ran."
    reference = "torch" if "torch" in rounds else next(iter(rounds))
    rows = []
    for name, seconds in rounds.items():
        value = median_of(seconds)
        flops = shape.flops(entry["cell"], entry["task"]) * (1 / shape.useful() if "padded" in name else 1)
        rate = 1e-9 * flops / value.value
        share = 100 * rate / results["sgemm"]["best"]
        time = f"{milliseconds(value.value)} ({milliseconds(value.low)}-{milliseconds(value.high)})"
        rows.append(
            (meaning_of(results, name), time, spread(ratio_of(seconds, rounds[reference])),
             f"{rate:.0f} ({share:.0f} %)", milliseconds(entry["first"][name]), str(len(seconds)))
        )  # fmt: skip
    head = ("", "ms", f"/ {reference}", f"GFLOP/s (of {_product(results).lower()})", "first call, ms", "rounds")
    return table(head, rows)


def _memory(results: dict[str, Any]) -> str:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for entry in results["memory"]:
        found.setdefault((entry["cell"], entry["shape"]), {})[entry["contender"]] = entry["mib"]
    names = sorted({name for mib in found.values() for name in mib}, key=list(CONTENDERS).index)
    rows = [
        (cell, shape, *(f"{mib[name]:.0f}" if name in mib else "" for name in names))
        for (cell, shape), mib in found.items()
    ]
    return table(("", "shape", *(f"{CONTENDERS[name].meaning}, MiB" for name in names)), rows)


def _kernels(results: dict[str, Any]) -> str:
    """Which way torch's layers took, and what everyone launches."""
    groups = [*(name for name, _ in paths.GROUPS), "other"]
    rows = []
    for entry in results["kernels"]:
        sums = {group: sum(kernels.values()) for group, kernels in entry.get("kernels", {}).items()}
        pieces = {True: "one piece", False: "apart", None: ""}[entry.get("one_piece")]
        path = f"unknown: {entry['unknown']}" if "unknown" in entry else entry.get("path", "")
        counts = (str(sums.get(group, 0) or "") for group in groups)
        rows.append((entry["cell"], entry["shape"], meaning_of(results, entry["contender"]), path, pieces, *counts))
    return table(("", "shape", "", "path", "weights", *groups), rows)


def failures(results: dict[str, Any]) -> str:
    """Every contender that failed, where and with what words; empty where none did."""
    return "\n".join(
        f"- {entry['cell']} {entry['shape']} {entry['task']}, {name}: {why}"
        for entry in results["timings"]
        for name, why in entry.get("failed", {}).items()
    )


def criteria_table(results: dict[str, Any]) -> str:
    """Every criterion on every shape, missed ones as plainly as met ones."""
    if not judged(results):
        return "The criteria of `fused_rnn_dropout/bench/criteria.py` are about float32 on a CPU: none is judged here."
    return table(
        ("criterion", "", "shape", "bar", "measured", ""),
        (
            (
                v.criterion.meaning,
                v.cell,
                v.shape,
                f"{'>=' if v.criterion.at_least else '<='} {v.criterion.bar:.2f}",
                spread(v.value),
                str(v),
            )
            for v in verdicts(results)
        ),
    )


def report(results: dict[str, Any]) -> str:
    """All of a result."""
    parts = ["# Measurements", machine(results), f"`{results['environment']['command']}`"]
    parts.append("Medians over paired rounds, with a 95 % bootstrap interval in brackets; a ratio above 1 is slower.")
    parts += [f"Left out: {name}, {why}." for name, why in results["skipped"].items()]
    if failed := failures(results):
        parts += ["## Failures", failed]
    parts += ["## Criteria", criteria_table(results)]
    for task, title in {**_TASKS, "scaling": "Threads"}.items():
        entries = [entry for entry in results["timings"] if entry["task"] == task]
        if entries:
            parts.append(f"## {title}")
        for entry in entries:
            shape = _by_name(results)[entry["shape"]]
            parts += [f"### {entry['cell']}, {shape.name} ({shape.sizes})", group_table(results, entry)]
    if results["memory"]:
        parts += ["## Peak memory of a forward and backward", _memory(results)]
    if results.get("kernels"):
        parts += ["## Kernels of a forward and backward", KERNELS, _kernels(results)]
    return "\n\n".join(parts) + "\n"


KERNELS = (
    "Counted by torch's profiler, grouped by their names (`fused_rnn_dropout/bench/paths.py`). *Path* is which way "
    "torch's own layers took, *weights* whether theirs lie in one piece of memory: apart, all of them are copied at "
    "each call."
)

_OVER_TORCH = (
    ("every site / torch, train", ratio("train", "all", "torch")),
    ("sites on weights, input, output / torch, train", ratio("train", "weights", "torch")),
    ("no site / torch, train", ratio("train", "none", "torch")),
    ("every site / torch, eval", ratio("eval", "all", "torch")),
    ("memory, every site / torch", peak("all")),
    ("memory, recompute / torch", peak("recompute")),
)
_TODAYS = (
    ("weight-drop wrapper / ours, sites on weights, input, output", ratio("train", "weight-drop", "weights")),
    ("fastai's WeightDropout / the same", ratio("train", "fastai", "weights")),
    ("Python loop over x[t] / ours, every site", ratio("train", "loop", "all")),
    ("over x.unbind()", ratio("train", "careful-loop", "all")),
    ("that, its step compiled", ratio("train", "compiled", "all")),
)


_SHORT = (_OVER_TORCH[0], _OVER_TORCH[4], _TODAYS[0], _TODAYS[2])
_SHORT_SHAPES = ("awd", "awd-wide", "medium", "small")
"""Columns and shapes of the README's table."""


def _ratios(results: dict[str, Any], columns: Sequence[tuple[str, Measure]], shapes: Sequence[Shape] = ()) -> str:
    """A row for each cell and shape, without the columns and rows for which nothing was measured."""
    rows = {
        (cell, shape): [brief(measure(results, cell, shape)) for _, measure in columns]
        for cell in MODULES
        for shape in shapes or shapes_of(results)
    }
    found = [index for index in range(len(columns)) if any(values[index] for values in rows.values())]
    if not found:
        return ""
    return table(
        ("", "shape", "T, B, I, H", *(columns[index][0] for index in found)),
        [
            (cell, shape.name, shape.sizes, *(values[index] for index in found))
            for (cell, shape), values in rows.items()
            if any(values)
        ],
    )


_MEANING = "Ratios of medians; torch is `torch.nn`'s layer **without any dropout**, and above 1 we are slower."


def short(results: dict[str, Any]) -> str:
    """The README's table: some of :func:`summary`'s columns, of four shapes, or of all where none of these was run."""
    shapes = [shape for shape in shapes_of(results) if shape.name in _SHORT_SHAPES]
    ours = "In a column of another over ours, above 1 we are faster."
    return f"{_MEANING} {ours} {machine(results)}\n\n{_ratios(results, _SHORT, shapes)}"


def summary(results: dict[str, Any]) -> str:
    """The table of docs/benchmarks.md: ratios, below 1 where the library is faster or smaller, and what was missed."""
    lines = [
        f"{_MEANING} {machine(results)}",
        _ratios(results, _OVER_TORCH),
    ]
    if todays := _ratios(results, _TODAYS):
        lines += ["What people train with today over ours, forward and backward; above 1 we are faster:", todays]
    for cell in MODULES:
        for shape in shapes_of(results):
            value = packed(results, cell, shape) if shape.kind == "packed" else None
            if value is not None:
                lines.append(
                    f"A packed {cell} batch that fills {100 * shape.useful():.0f} % of its padded one costs "
                    f"{value.value:.2f} times that share of the padded one's time."
                )
    missed = [v for v in verdicts(results) if not v.met]
    if not judged(results):
        lines.append(criteria_table(results))
    elif missed:
        lines.append("Short of what we set out to reach (`fused_rnn_dropout/bench/criteria.py`):")
        lines.append(
            "\n".join(
                f"- {v.criterion.meaning}, {v.cell} {v.shape}: {spread(v.value)}, {v} of {v.criterion.bar:.2f}"
                for v in missed
            )
        )
    else:
        lines.append("Every criterion of `fused_rnn_dropout/bench/criteria.py` is met in this run.")
    lines.append(f"Made by `{results['environment']['command']}`, then `python -m bench pages`.")
    return "\n\n".join(lines)


def between(path: Path, begin: str, end: str, inside: str) -> None:
    """Replaces what stands between the markers of a page.

    Raises:
        ValueError: the markers are not there, once and in order.
    """
    text = path.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{path} should hold {begin} and {end} once each, in this order")
    before, rest = text.split(begin)
    path.write_text(f"{before}{begin}\n{inside}\n{end}{rest.split(end)[1]}")


def into_pages(results: dict[str, Any], root: Path) -> None:
    """Puts the tables between the markers of README.md and docs/benchmarks.md below ``root``."""
    between(root / "README.md", BEGIN, END, short(results))
    between(root / "docs" / "benchmarks.md", BEGIN, END, summary(results))
