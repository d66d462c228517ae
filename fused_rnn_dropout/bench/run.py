"""Measures contenders on shapes, and writes what it finds as it goes."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fused_rnn_dropout.program import Interrupted

from . import baselines, gpu, memory, paths
from .contenders import BY_NAME as CONTENDERS
from .contenders import Contender, runner
from .machine import environment, sgemm
from .measure import Timings, paired
from .shapes import Shape

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


class Settings(NamedTuple):
    """What to measure, and for how long.

    ``command`` is what began it, ``sites`` those of a user's own layer, both to be read in the results.
    """

    shapes: tuple[Shape, ...]
    cells: tuple[str, ...]
    tasks: tuple[str, ...]
    contenders: tuple[Contender, ...]
    threads: int
    rounds: int | None
    budget: float
    memory: bool
    scaling: bool
    compiled: bool
    output: Path
    resume: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    tf32: bool = False
    graphs: bool = False
    kernels: bool = False
    command: str = ""
    sites: str = ""

    def runner(self, contender: Contender, cell: str, shape: Shape, task: str, padded: bool = False) -> Any:
        """A call of ``task``, ready to be timed."""
        dtype = DTYPES[contender.dtype or self.dtype]
        return runner(contender.build(cell, shape), shape, task, self.device, padded, dtype)

    def module(self, contender: Contender, cell: str, shape: Shape) -> torch.nn.Module:
        """What :meth:`runner` calls."""
        return contender.build(cell, shape).to(self.device, DTYPES[contender.dtype or self.dtype])


class Progress:
    """A line on stderr that says what runs; on what is no terminal, one line for each group."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.started = total, 0, time.monotonic()
        self.live = sys.stderr.isatty()

    def group(self, title: str) -> Callable[[str], None]:
        """Begins a group; the result is called with what runs within it."""
        elapsed = time.monotonic() - self.started
        left = f", about {elapsed / self.done * (self.total - self.done) / 60:.0f} min left" if self.done else ""
        head = f"[{self.done + 1}/{self.total}{left}] {title}"
        self.done += 1
        if not self.live:
            print(head, file=sys.stderr, flush=True)
            return lambda _: None
        return lambda name: print(f"\r\033[K{head}: {name}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def taking_part(settings: Settings, shape: Shape, task: str) -> list[Contender]:
    return [
        contender
        for contender in settings.contenders
        if task in contender.tasks
        and contender.missing(settings.compiled, settings.device, settings.dtype) is None
        and shape.kind in contender.kinds
    ]


def _makers(settings: Settings, cell: str, shape: Shape, task: str) -> dict[str, Callable[[], Callable[[], None]]]:
    """What makes the runs of a group, by name."""
    chosen = taking_part(settings, shape, task)
    makers: dict[str, Callable[[], Callable[[], None]]] = {
        c.name: functools.partial(settings.runner, c, cell, shape, task) for c in chosen
    }
    if shape.kind == "packed" and "all" in makers:
        every = next(c for c in chosen if c.name == "all")
        makers["all, padded"] = functools.partial(settings.runner, every, cell, shape, task, padded=True)
    return makers


def _group(settings: Settings, cell: str, shape: Shape, task: str, tick: Callable[[str], None]) -> dict[str, Any]:
    """All contenders of one task, in one process, in paired order."""
    makers = _makers(settings, cell, shape, task)
    if settings.device != "cpu":
        return _measured_on_gpu(settings, cell, shape, task, makers, tick)
    runs = {name: make() for name, make in makers.items()}
    return _entry(cell, shape, task, _paired(settings, runs, tick))


def _measured_on_gpu(
    settings: Settings, cell: str, shape: Shape, task: str, makers: dict[str, Any], tick: Callable[[str], None]
) -> dict[str, Any]:
    """The same where one that fails must not cost the others their measurement."""
    runs, first, failed = gpu.working(makers, tick)
    timings = _paired(settings, runs, tick)._replace(first=first)
    return _entry(cell, shape, task, timings) | ({"failed": failed} if failed else {})


def _paired(settings: Settings, runs: dict[str, Callable[[], None]], tick: Callable[[str], None]) -> Timings:
    slow = [contender.name for contender in settings.contenders if contender.slow and contender.name in runs]
    return paired(runs, slow=slow, rounds=settings.rounds, budget=settings.budget, device=settings.device, tick=tick)


def _graph_group(settings: Settings, cell: str, shape: Shape, tick: Callable[[str], None]) -> dict[str, Any]:
    """Forward and backward as replays of CUDA graphs, which launch no kernel from the host."""
    graphs = [contender.name for contender in settings.contenders if contender.graph]
    makers = {
        name: (lambda make=make: gpu.graphed(make()))
        for name, make in _makers(settings, cell, shape, "train").items()
        if name in graphs
    }
    return _measured_on_gpu(settings, cell, shape, "graph", makers, tick)


def _kernels(settings: Settings, cell: str, shape: Shape, tick: Callable[[str], None]) -> list[dict[str, Any]]:
    """What the contenders launch in one forward and backward, and whether torch's have their weights in one piece."""
    found = []
    for contender in taking_part(settings, shape, "train"):
        if not contender.graph:
            continue
        tick(contender.name)
        entry: dict[str, Any] = {"cell": cell, "shape": shape.name, "contender": contender.name}
        makers = {contender.name: functools.partial(settings.runner, contender, cell, shape, "train")}
        runs, _, failed = gpu.working(makers, tick)
        if failed:  # which is in the record of the timings too
            found.append(entry | {"unknown": failed[contender.name]})
            continue
        if contender.name.startswith("torch"):
            entry["one_piece"] = baselines.in_one_piece(settings.module(contender, cell, shape))
        try:
            counts = paths.launched(runs[contender.name])
        except RuntimeError as error:  # a machine may keep its counters from us; the timings do not need them
            found.append(entry | {"unknown": f"the profiler does not work here: {error}"})
            continue
        path = {"path": paths.path_of(counts)} if contender.name.startswith("torch") else {}
        found.append(entry | path | {"kernels": counts})
    return found


def _scaling(settings: Settings, cell: str, shape: Shape, tick: Callable[[str], None]) -> dict[str, Any]:
    """Every site on, on one thread and on all of them."""
    run = settings.runner(CONTENDERS["all"], cell, shape, "train")

    def on(threads: int) -> Callable[[], None]:
        def call() -> None:
            torch.set_num_threads(threads)
            run()

        return call

    runs = {"1 thread": on(1), f"{settings.threads} threads": on(settings.threads)}
    timings = paired(runs, rounds=settings.rounds, budget=settings.budget, device=settings.device, tick=tick)
    torch.set_num_threads(settings.threads)
    return _entry(cell, shape, "scaling", timings)


def _entry(cell: str, shape: Shape, task: str, timings: Timings) -> dict[str, Any]:
    return {"cell": cell, "shape": shape.name, "task": task, **timings._asdict()}


def _memory(
    settings: Settings, cell: str, shape: Shape, there: set[tuple[str, str, str]], tick: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Peak memory of a forward and backward, of those contenders whose memory is of interest and not ``there``."""
    found = []
    for contender in taking_part(settings, shape, "train"):
        name = contender.name
        if name.removeprefix("triton-") not in memory.CONTENDER_NAMES or (cell, shape.name, name) in there:
            continue
        tick(name)
        if settings.device == "cpu":
            mib = memory.in_process(cell, shape, name, settings.threads, settings.dtype)
        else:
            makers = {name: functools.partial(settings.runner, contender, cell, shape, "train")}
            runs, _, _ = gpu.working(makers, tick)  # a failure is in the record of the timings
            if not runs:
                continue
            mib = gpu.peak_mib(runs[name])
        found.append({"cell": cell, "shape": shape.name, "contender": name, "mib": mib})
    return found


def _begun(settings: Settings) -> dict[str, Any]:
    """Results with nothing in them yet, or with ``resume`` those that the file holds already.

    Raises:
        ValueError: the file was written on another machine, with other software or other settings.
    """
    found: dict[str, Any] = {
        "environment": environment(settings.threads, settings.command),
        "device": settings.device,
        "dtype": settings.dtype,
        "shapes": [shape._asdict() for shape in settings.shapes],
        "sites": settings.sites,
        "contenders": {contender.name: contender.meaning for contender in settings.contenders},
        "ours": [contender.name for contender in settings.contenders if contender.ours],
        "skipped": {
            c.name: why
            for c in settings.contenders
            if (why := c.missing(settings.compiled, settings.device, settings.dtype)) is not None
        },
        "timings": [],
        "kernels": [],
        "memory": [],
    }
    if not settings.resume:
        return found
    earlier = load(settings.output)
    earlier.pop("complete", None)
    for part in ("processor", "cores", "torch", "fused_rnn_dropout", "instruction_set", "threads"):
        before, now = earlier["environment"][part], found["environment"][part]
        if before != now:
            raise ValueError(f"{settings.output} was measured with {part} {before}, not {now}: it cannot be resumed")
    for part in ("device", "dtype", "shapes", "sites", "skipped"):
        if earlier[part] != found[part]:
            raise ValueError(f"{settings.output} was measured with other {part}: it cannot be resumed")
    before, now = earlier["environment"]["command"], found["environment"]["command"]
    if now not in before.split("; then "):
        earlier["environment"]["command"] = f"{before}; then {now}"
    return earlier


def run(settings: Settings) -> dict[str, Any]:
    """Measures all of ``settings``; the file is written anew after every group, so that nothing is lost.

    Raises:
        ValueError: the device is not there, or the results cannot be resumed.
        OSError: the output cannot be written.
        Interrupted: by Ctrl-C; the output holds every group that was measured.
        DeviceLost: the device was there, and is no more.
    """
    gpu.check(settings.device)
    if settings.output.is_dir():
        raise IsADirectoryError(f"--output {settings.output} is a folder")
    with tempfile.TemporaryFile(dir=settings.output.absolute().parent):
        pass  # the first group takes a while, after which it would be late to find that it cannot be written
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    found = _begun(settings)

    def save() -> None:
        partial = settings.output.with_name(f"{settings.output.name}.partial")  # a run may be ended at any moment
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(settings.output)

    if settings.device == "cuda":
        gpu.products(settings.dtype, settings.tf32)
        found["environment"]["gpu"] = gpu.environment()
        found["limits"] = gpu.limits()
    if "sgemm" not in found:
        largest = sorted(settings.shapes, key=lambda shape: shape.flops("LSTM", "train"))[-2:]
        found["sgemm"] = sgemm(largest, device=settings.device, dtype=DTYPES[settings.dtype])
    parts = [*settings.tasks, *["graph"] * settings.graphs, *["scaling"] * settings.scaling]
    parts += ["memory"] * settings.memory + ["kernels"] * settings.kernels
    counted = {(entry["cell"], entry["shape"]) for entry in found["kernels"]}
    todo = [
        (cell, shape, part)
        for shape in settings.shapes
        for cell in settings.cells
        for part in parts
        if find(found, cell, shape.name, part) is None
        and (part not in ("graph", "scaling") or shape.kind != "packed")
        and (part != "kernels" or (cell, shape.name) not in counted)
    ]
    there = {(entry["cell"], entry["shape"], entry["contender"]) for entry in found["memory"]}
    progress, done = Progress(len(todo)), 0
    try:
        for cell, shape, part in todo:
            tick = progress.group(f"{cell} {shape.name} {part}")
            if part == "memory":
                found["memory"] += _memory(settings, cell, shape, there, tick)
            elif part == "kernels":
                found["kernels"] += _kernels(settings, cell, shape, tick)
            elif part == "graph":
                found["timings"].append(_graph_group(settings, cell, shape, tick))
            elif part == "scaling":
                found["timings"].append(_scaling(settings, cell, shape, tick))
            else:
                found["timings"].append(_group(settings, cell, shape, part, tick))
            save()
            done += 1
    except KeyboardInterrupt:
        progress.end()
        if not done:
            raise Interrupted("no group was done yet") from None
        kept = f"{done} of {len(todo)} groups are in {settings.output}"
        raise Interrupted(f"{kept}, and the same command with --resume goes on from there") from None
    found["complete"] = True
    save()
    progress.end()
    return found


def load(path: Path) -> dict[str, Any]:
    """A file that :func:`run` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """
    try:
        found = json.loads(path.read_text())
        if "timings" in found:
            return found
    except (ValueError, TypeError):  # no text, no JSON, or a number
        pass
    raise ValueError(f"{path} is not a result of the bench")


def find(results: dict[str, Any], cell: str, shape: str, task: str) -> dict[str, Sequence[float]] | None:
    """Seconds of each round by contender, or None where that was not measured."""
    for entry in results["timings"]:
        if (entry["cell"], entry["shape"], entry["task"]) == (cell, shape, task):
            return entry["rounds"]
    return None
