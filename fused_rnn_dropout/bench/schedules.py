"""``bench schedules``: the schedules of a GPU side by side, and the table of its times by which they are chosen.

Each schedule first has to give the numbers of ``backend="reference"``; one that does not is told of, and never named.
Then calls are timed as users make them, in paired rounds, over a grid of sizes. A row of the table covers what lies
between neighbouring sizes of the grid where one schedule was the fastest at all corners, or a size of the grid alone.
So nothing is said of sizes beyond those that were measured, nor of those between which another one becomes the fastest.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import torch
from torch import nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import library, schedule_table
from fused_rnn_dropout.schedule_table import Bounds, Kind, Row, Size
from fused_rnn_dropout.schedules import NAMES, VARIABLES

from . import gpu
from .contenders import BY_NAME, layer, rates_of, runner
from .machine import environment
from .measure import paired
from .shapes import Shape, cell_of
from .tables import table

TORCH = "torch"
"""``torch.nn``'s layer without dropout, which stands beside the schedules and is none: cuDNN's, on a GPU."""

CHECKED = 12
"""Steps of the comparison with the reference, which is slow."""

CELLS = ("LSTM", "GRU")
HIDDEN, BATCH, STEPS = (256, 512, 1024), (1, 16, 64), (32, 512)


class Contender(NamedTuple):
    """A schedule of a backend, by the name that asks for it."""

    backend: str
    schedule: str

    def __str__(self) -> str:
        return self.schedule if self.backend == "cuda" else f"{self.backend}, {self.schedule}"


CONTENDERS = tuple(Contender(backend, name) for backend, names in NAMES.items() for name in names)


class Point(NamedTuple):
    """One size, measured.

    Attributes:
        kind: without a backend, which is ``""``.
        microseconds: of a step, by contender, and of torch's layer.
        beside: why others did not take part, by contender.
        wrong: those whose numbers are not the reference's, or that failed, and what they said.
    """

    kind: Kind
    size: Size
    microseconds: dict[Contender | str, float]
    beside: dict[Contender, str]
    wrong: dict[Contender | str, str]


class Grid(NamedTuple):
    """What to measure."""

    cells: tuple[str, ...] = CELLS
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    hidden: tuple[int, ...] = HIDDEN
    batch: tuple[int, ...] = BATCH
    steps: tuple[int, ...] = STEPS
    rounds: int | None = None
    budget: float = 0.5


@contextmanager
def asked(contender: Contender | str) -> Iterator[None]:
    """Within it calls of its backend take its schedule, or raise."""
    if isinstance(contender, str):
        yield
        return
    name = VARIABLES[contender.backend]
    before = os.environ.get(name)
    os.environ[name] = contender.schedule
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def device_of_kernels() -> str:
    """Where a GPU's kernels run: on CUDA, or on the CPU where the tests have put them there.

    Raises:
        ValueError: there is no CUDA device.
    """
    others = sorted(library.gpu_devices - {"cuda"})
    if not others:
        gpu.check("cuda")
    return others[0] if others else "cuda"


def _build(cell: str, hidden: int, inside: bool, backend: str, device: str, dtype: torch.dtype) -> nn.Module:
    sites: dict[str, Any] = rates_of(cell) if inside else {}
    shape = Shape("grid", 1, 1, hidden, hidden, "other", "")
    return layer(frd, cell, shape, backend=backend, **sites).to(device, dtype)


# --------------------------------------------------------------------------------------------------------------------
# Right first
# --------------------------------------------------------------------------------------------------------------------


def _numbers(rnn: Any, x: torch.Tensor, rng: torch.Tensor, gradients: bool) -> list[torch.Tensor]:
    """Output and, where asked for, every gradient."""
    given = x.to(rnn.weight_hh_l0.dtype).requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        out, _ = rnn(given, rng=rng)
    if not gradients:
        return [out]
    found = torch.autograd.grad(out.double().square().sum(), [given, *rnn.parameters()])
    return [out.detach(), *found]


def difference(rnn: nn.Module, exact: nn.Module, x: torch.Tensor, gradients: bool) -> float:
    """The largest difference to the reference in float64 on the same masks, relative to the largest of its tensor."""
    rng = frd.draw_rng(x.device)
    ours, theirs = (_numbers(of, x, rng, gradients) for of in (rnn, exact))
    largest = 0.0
    for got, want in zip(ours, theirs, strict=True):
        apart = (got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-30)
        largest = max(largest, float(apart)) if apart == apart else float("inf")
    return largest


def tolerance(dtype: torch.dtype) -> float:
    """Several times the rounding of one step, over :data:`CHECKED` of them: another mask or word is far beyond it."""
    return max(1e-4, float(4 * torch.finfo(dtype).eps * (CHECKED + 1) ** 0.5))


# --------------------------------------------------------------------------------------------------------------------
# Then timed
# --------------------------------------------------------------------------------------------------------------------


class Bench(NamedTuple):
    """One cell, dtype and width of a grid: the layers that are measured, each on its backend."""

    kind: Kind
    hidden: int
    device: str
    layers: dict[Contender | str, nn.Module]
    exact: nn.Module

    @staticmethod
    def of(kind: Kind, hidden: int, device: str) -> Bench:
        dtype: torch.dtype = getattr(torch, kind.dtype)
        given = (kind.cell, hidden, kind.inside)
        layers: dict[Contender | str, nn.Module] = {
            one: _build(*given, one.backend, device, dtype)
            for one in CONTENDERS
            if library.obstacle(one.backend, device) is None
        }
        if not layers:
            raise ValueError(f"nothing can be measured: {library.obstacle('cuda', device)}")
        state = next(iter(layers.values())).state_dict()
        for one in layers.values():
            one.load_state_dict(state)
        exact = _build(*given, "reference", device, torch.float64)
        exact.load_state_dict(state)
        shape = Shape("grid", 1, 1, hidden, hidden, "other", "")
        layers[TORCH] = BY_NAME["torch"].build(kind.cell, shape).to(device, dtype)
        return Bench(kind, hidden, device, layers, exact)

    def measure(self, batch: int, steps: Sequence[int], grid: Grid) -> Iterator[Point]:
        """Of one batch size, for each number of steps."""
        beside: dict[Contender, str] = {}
        wrong: dict[Contender | str, str] = {}
        x = torch.randn(min(CHECKED, max(steps)), batch, self.hidden, device=self.device)
        for one, rnn in self.layers.items():
            if isinstance(one, str):
                continue
            try:
                with asked(one), torch.set_grad_enabled(self.kind.gradients):
                    frd.explain(cast(Any, rnn), x.to(getattr(torch, self.kind.dtype)))
            except ValueError as error:
                beside[one] = str(error).partition("schedule: ")[2] or str(error)
                continue
            try:
                with asked(one):
                    apart = difference(rnn, self.exact, x, self.kind.gradients)
                if not apart <= tolerance(getattr(torch, self.kind.dtype)):
                    wrong[one] = f"its numbers differ from the reference's by {apart:.2g} of the largest"
            except Exception as error:  # whatever it is, it is told, and the others are still measured
                wrong[one] = f"{type(error).__name__}: {(str(error) or ' ').splitlines()[0]}"
        for number in steps:
            yield self._timed(Size(self.hidden, batch, number), grid, beside, dict(wrong))

    def _timed(self, size: Size, grid: Grid, beside: dict[Contender, str], wrong: dict[Contender | str, str]) -> Point:
        shape = Shape("grid", size.steps, size.batch, size.hidden_size, size.hidden_size, "other", "")
        task = "train" if self.kind.gradients else "eval"
        by_name: dict[str, Contender | str] = {}
        makers: dict[str, Callable[[], Callable[[], None]]] = {}
        for one, rnn in self.layers.items():
            if one not in beside and one not in wrong:
                by_name[str(one)] = one
                makers[str(one)] = partial(self._run, one, rnn, shape, task)
        runs, _, failed = gpu.working(makers, lambda _: None, self.device)
        wrong |= {by_name[name]: why for name, why in failed.items()}
        rounds = paired(runs, rounds=grid.rounds, budget=grid.budget, device=self.device).rounds
        times = {by_name[name]: 1e6 * median(of) / size.steps for name, of in rounds.items()}
        return Point(self.kind, size, times, beside, wrong)

    def _run(self, one: Contender | str, rnn: nn.Module, shape: Shape, task: str) -> Callable[[], None]:
        run = runner(rnn, shape, task, self.device, dtype=getattr(torch, self.kind.dtype))
        if task == "eval":
            rnn.train()  # without gradients, but with masks: what MC dropout runs

        def call() -> None:
            with asked(one):
                run()

        return call


def measure(grid: Grid, tell: Callable[[str], None]) -> Iterator[list[Point]]:
    """The points of a grid, those of a cell, dtype and width at a time.

    Raises:
        ValueError: there is no CUDA device, or no kernels for it.
        DeviceLost: the device was there, and is no more.
    """
    device = device_of_kernels()
    name = schedule_table.device_name(torch.empty(0, device=device).device)
    for dtype, cell, hidden in itertools.product(grid.dtypes, grid.cells, grid.hidden):
        gpu.products(dtype, tf32=False)
        found: list[Point] = []
        tell(f"{cell} {dtype} H={hidden}")
        for inside, gradients in itertools.product((True, False), (True, False)):
            kind = Kind(name, "", cell_of(cell).name, dtype, 1, inside, gradients)
            bench = Bench.of(kind, hidden, device)
            for batch in grid.batch:
                found += bench.measure(batch, grid.steps, grid)
        yield found


# --------------------------------------------------------------------------------------------------------------------
# The table
# --------------------------------------------------------------------------------------------------------------------


def _bounds(values: Sequence[int]) -> list[Bounds]:
    """From a value to its neighbour, and each value alone."""
    ordered = sorted(set(values))
    return [*itertools.pairwise(ordered), *((value, value) for value in ordered)]


def _within(inner: tuple[Bounds, ...], outer: tuple[Bounds, ...]) -> bool:
    return all(least <= low and high <= most for (low, high), (least, most) in zip(inner, outer, strict=True))


def rows(points: Sequence[Point]) -> list[Row]:
    """The rows of a table that points are enough for; none within another."""
    found: list[Row] = []
    for kind in dict.fromkeys(point.kind for point in points):
        of_kind = {point.size: point for point in points if point.kind == kind}
        axes = [_bounds([size[axis] for size in of_kind]) for axis in range(len(Size._fields))]
        boxes = sorted(itertools.product(*axes), key=lambda box: sum(low == high for low, high in box))
        for backend in NAMES:
            taken: list[tuple[Bounds, ...]] = []
            for box in boxes:
                corners = [of_kind[Size(*corner)] for corner in sorted(set(itertools.product(*box)))]
                if any(_within(box, other) for other in taken):
                    continue
                row = _row(kind._replace(backend=backend), box, corners)
                if row is not None:
                    taken.append(box)
                    found.append(row)
    return found


def _row(kind: Kind, bounds: tuple[Bounds, ...], corners: Sequence[Point]) -> Row | None:
    """A row for what lies between corners; None where not one schedule was the fastest at all of them."""
    times = [
        {one.schedule: us for one, us in corner.microseconds.items()
         if isinstance(one, Contender) and one.backend == kind.backend}
        for corner in corners
    ]  # fmt: skip
    fastest = {min(of, key=of.__getitem__) if of else None for of in times}
    if len(fastest) != 1 or None in fastest:
        return None
    (schedule,) = fastest
    assert schedule is not None
    everywhere = [name for name in times[0] if all(name in of for of in times)]
    spread = {name: (min(of[name] for of in times), max(of[name] for of in times)) for name in everywhere}
    rounded = {name: (float(f"{low:.4g}"), float(f"{high:.4g}")) for name, (low, high) in spread.items()}
    hidden, batch, steps = bounds
    return Row(kind, hidden, batch, steps, schedule, rounded)


def text_of(points: Sequence[Point], command: str) -> str:
    """All points side by side, in markdown, and what did not take part or failed."""
    names = [one for one in (*CONTENDERS, TORCH) if any(one in point.microseconds for point in points)]
    lines = []
    for point in points:
        kind, times = point.kind, point.microseconds
        ours = [one for one in times if isinstance(one, Contender)]
        lines.append((
            kind.cell, kind.dtype, "every site" if kind.inside else "no site", ", ".join(map(str, point.size)),
            "forward and backward" if kind.gradients else "forward",
            *(f"{times[one]:.3g}" if one in times else "" for one in names),
            str(min(ours, key=times.__getitem__)) if ours else "",
        ))  # fmt: skip
    head = ("", "dtype", "", "H, B, T", "", *(f"{one}, us a step" for one in names), "fastest")
    e = environment(torch.get_num_threads(), command)
    device = points[0].kind.device if points else "nothing"
    parts = [
        f"Schedules on {device}, torch {e['torch']}, CUDA {torch.version.cuda}, fused_rnn_dropout "
        f"{e['fused_rnn_dropout']}, {e['date'][:10]}: medians of paired rounds, in microseconds of a step. `torch` is "
        "torch.nn's layer without dropout.",
        table(head, lines),
    ]
    for title, of in (
        ("Failed:", [(point, one, why) for point in points for one, why in point.wrong.items()]),
        ("Not taking part:", [(point, one, why) for point in points for one, why in point.beside.items()]),
    ):
        said = dict.fromkeys(
            f"- {point.kind.cell} {point.kind.dtype} H={point.size.hidden_size} B={point.size.batch}, {one}: {why}"
            for point, one, why in of
        )
        parts += [title, "\n".join(said)] if said else []
    return "\n\n".join([*parts, f"Made by `{command}`."])


def schedules(grid: Grid, output: Path, command: str) -> tuple[str, bool]:
    """Measures all of it, and writes the table after each cell, dtype and width, so that nothing is lost.

    Returns:
        The text, and whether anything failed.
    """
    points: list[Point] = []
    e = environment(torch.get_num_threads(), command)
    about = {name: e[name] for name in ("date", "command", "torch", "fused_rnn_dropout")} | {"cuda": torch.version.cuda}
    for found in measure(grid, lambda text: print(text, file=sys.stderr, flush=True)):
        points += found
        output.write_text(schedule_table.text_of(rows(points), about), "utf-8")
        output.with_suffix(".md").write_text(text_of(points, command) + "\n", "utf-8")
    return text_of(points, command), any(point.wrong for point in points)
