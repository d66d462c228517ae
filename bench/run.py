"""Measures contenders on shapes, and writes what it finds as it goes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import memory
from .contenders import BY_NAME as CONTENDERS
from .contenders import Contender, runner
from .machine import environment, sgemm
from .measure import Timings, paired
from .shapes import Shape


class Settings(NamedTuple):
    """What to measure, and for how long."""

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
    device: str = "cpu"


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
        if task in contender.tasks and contender.missing(settings.compiled) is None and shape.kind in contender.kinds
    ]


def _group(settings: Settings, cell: str, shape: Shape, task: str, tick: Callable[[str], None]) -> dict[str, Any]:
    """All contenders of one task, in one process, in paired order."""
    chosen = taking_part(settings, shape, task)
    runs = {c.name: runner(c.build(cell, shape), shape, task, settings.device) for c in chosen}
    if shape.kind == "packed" and "all" in runs:
        padded = CONTENDERS["all"].build(cell, shape)
        runs["all, padded"] = runner(padded, shape, task, settings.device, padded=True)
    slow = [contender.name for contender in chosen if contender.slow]
    timings = paired(runs, slow=slow, rounds=settings.rounds, budget=settings.budget, device=settings.device, tick=tick)
    return _entry(cell, shape, task, timings)


def _scaling(settings: Settings, cell: str, shape: Shape, tick: Callable[[str], None]) -> dict[str, Any]:
    """Every site on, on one thread and on all of them."""
    run = runner(CONTENDERS["all"].build(cell, shape), shape, "train", settings.device)

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


def run(settings: Settings) -> dict[str, Any]:
    """Measures all of ``settings``; the file is written anew after every group, so that nothing is lost."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    groups = [(cell, shape) for shape in settings.shapes for cell in settings.cells]
    steps = len(settings.tasks) + settings.memory + settings.scaling
    progress = Progress(len(groups) * steps)
    found: dict[str, Any] = {
        "environment": environment(settings.threads),
        "shapes": [shape._asdict() for shape in settings.shapes],
        "skipped": {c.name: why for c in settings.contenders if (why := c.missing(settings.compiled)) is not None},
        "timings": [],
        "memory": [],
    }

    def save() -> None:
        settings.output.write_text(json.dumps(found, indent=1) + "\n")

    largest = sorted(settings.shapes, key=lambda shape: shape.flops("LSTM", "train"))[-2:]
    found["sgemm"] = sgemm(largest)
    for cell, shape in groups:
        for task in settings.tasks:
            tick = progress.group(f"{cell} {shape.name} {task}")
            found["timings"].append(_group(settings, cell, shape, task, tick))
            save()
        if settings.scaling:
            tick = progress.group(f"{cell} {shape.name} scaling")
            if shape.kind != "packed":
                found["timings"].append(_scaling(settings, cell, shape, tick))
        if settings.memory:
            tick = progress.group(f"{cell} {shape.name} memory")
            names = [c.name for c in taking_part(settings, shape, "train") if c.name in memory.CONTENDER_NAMES]
            for name in names:
                tick(name)
                mib = memory.in_process(cell, shape, name, settings.threads)
                found["memory"].append({"cell": cell, "shape": shape.name, "contender": name, "mib": mib})
        save()
    progress.end()
    return found


def load(path: Path) -> dict[str, Any]:
    """A file that :func:`run` wrote."""
    found = json.loads(path.read_text())
    if "timings" not in found:
        raise ValueError(f"{path} is not a result of python -m bench")
    return found


def find(results: dict[str, Any], cell: str, shape: str, task: str) -> dict[str, Sequence[float]] | None:
    """Seconds of each round by contender, or None where that was not measured."""
    for entry in results["timings"]:
        if (entry["cell"], entry["shape"], entry["task"]) == (cell, shape, task):
            return entry["rounds"]
    return None
