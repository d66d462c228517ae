"""The pictures of ``docs/review.md``, drawn from the results alone. Needs matplotlib."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import Any

from .grid import NONE, Grid, Sweep
from .sections import SECTIONS
from .summary import Summary

_TRAIN, _VALID, _BASE = "tab:orange", "tab:blue", "0.55"


def panels(count: int, *, sharey: bool) -> tuple[Any, list[Any]]:
    """A figure of ``count`` small axes, four in a row."""
    from matplotlib.figure import Figure

    columns = min(count, 4)
    rows = math.ceil(count / columns)
    size = (max(7.0, 3.2 * columns + 0.4), 2.6 * rows + 0.5)  # wide enough for its title
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _started(summary: Summary, grid: Grid) -> list[Sweep]:
    """The sweeps of which the base and two rates were run at least: a line with fewer points would say nothing."""
    ran = [sweep for sweep in grid.sweeps if summary.has(sweep.base)]
    return [sweep for sweep in ran if sum(summary.has(row) for row in sweep.rows.values()) >= 2]


def _points(summary: Summary, sweep: Sweep, measure: str) -> list[tuple[float, list[float]]]:
    """A figure of every seed at every rate that was run."""
    rows = {0.0: sweep.base, **sweep.rows}
    return [(rate, [figures[measure] for figures in summary.rows[row].values()])
            for rate, row in sorted(rows.items()) if summary.has(row)]  # fmt: skip


def _line(axes: Any, points: list[tuple[float, list[float]]], color: str, label: str) -> None:
    """The mean over seeds, and each seed as a dot."""
    axes.plot([rate for rate, _ in points], [mean(values) for _, values in points], color=color, label=label)
    scattered = [(rate, value) for rate, values in points for value in values]
    axes.plot(*zip(*scattered, strict=True), "o", color=color, markersize=3, alpha=0.6)


def sweep_panel(axes: Any, summary: Summary, sweep: Sweep) -> None:
    """The validation loss of a sweep against its rate, at the best epoch and at the last."""
    _line(axes, _points(summary, sweep, "best"), _VALID, "validation, best epoch")
    _line(axes, _points(summary, sweep, "final"), _BASE, "validation, last epoch")
    axes.axhline(summary.level(sweep.base, "best").mean, color=_VALID, linewidth=0.8, linestyle=":")
    axes.set_title(sweep.name, fontsize="small")
    axes.set_xlabel("rate")
    axes.grid(alpha=0.3)


def rates(summary: Summary, grid: Grid, path: Path) -> None:
    """The loss against the rate, a panel for each sweep: the U."""
    sweeps = _started(summary, grid)
    figure, drawn = panels(len(sweeps), sharey=True)
    for axes, sweep in zip(drawn, sweeps, strict=True):
        sweep_panel(axes, summary, sweep)
    drawn[0].set_ylabel("bits per character")
    drawn[0].legend(fontsize="x-small")
    figure.suptitle("Validation loss against rate (lines: mean; points: seeds; dotted: rate 0)", fontsize="medium")
    figure.savefig(path, dpi=110)


def gaps(summary: Summary, grid: Grid, path: Path) -> None:
    """The training loss and the gap between validation and training loss against the rate."""
    sweeps = _started(summary, grid)
    figure, drawn = panels(len(sweeps), sharey=True)
    for axes, sweep in zip(drawn, sweeps, strict=True):
        _line(axes, _points(summary, sweep, "gap"), "tab:red", "gap: validation less training")
        _line(axes, _points(summary, sweep, "train"), _TRAIN, "training, eval mode")
        axes.set_title(sweep.name, fontsize="small")
        axes.set_xlabel("rate")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    drawn[0].set_ylabel("bits per character")
    drawn[0].legend(fontsize="x-small")
    figure.suptitle("Generalisation gap and training loss at the end, against rate", fontsize="medium")
    figure.savefig(path, dpi=110)


def curves(summary: Summary, grid: Grid, path: Path) -> None:
    """Training and validation loss over the epochs, a panel for each named row; the row without dropout in grey."""
    ran = [row.name for row in grid.named if summary.has(row.name)]

    def over_seeds(row: str, split: str) -> list[float]:
        runs = [line[split] for line in summary.lines if line["row"] == row]
        return [mean(values) for values in zip(*runs, strict=True)]

    figure, drawn = panels(len(ran), sharey=True)
    for axes, row in zip(drawn, ran, strict=True):
        for split, color, style in (("valid", _VALID, "-"), ("train", _TRAIN, "--")):
            if summary.has(NONE):
                none = over_seeds(NONE, split)
                axes.plot(range(1, len(none) + 1), none, style, color=_BASE, linewidth=1, label=f"{split}, none")
            values = over_seeds(row, split)
            axes.plot(range(1, len(values) + 1), values, style, color=color, label=split)
        axes.set_title(row, fontsize="small")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    drawn[0].set_ylabel("bits per character")
    drawn[-1].legend(fontsize="x-small")
    figure.suptitle("Losses in eval mode over the epochs, mean over seeds", fontsize="medium")
    figure.savefig(path, dpi=110)


def bars(summary: Summary, grid: Grid, path: Path) -> None:
    """What each row gains over no dropout, seed by seed, with its 95 % interval where two seeds were run."""
    from matplotlib.figure import Figure

    names = dict.fromkeys([*(row.name for row in grid.named), *SECTIONS["awd"]])
    found = {name: summary.difference(name, NONE, "best") for name in names if name != NONE}
    rows = sorted(((name, e) for name, e in found.items() if e), key=lambda pair: -pair[1].mean)
    figure = Figure(figsize=(8, 0.32 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:green" if e.half is not None and e.mean + e.half < 0 else
              "tab:red" if e.half is not None and e.mean - e.half > 0 else "0.7" for _, e in rows]  # fmt: skip
    halves = [e.half or 0.0 for _, e in rows]
    axes.barh([f"{name} (n {e.count})" for name, e in rows], [e.mean for _, e in rows], xerr=halves, color=colors,
              error_kw={"linewidth": 1})  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("best validation loss less that of none, bits per character: left is better")
    title = "green, red: the 95 % interval leaves out 0; grey: it does not, or there is one seed"
    axes.set_title(title, fontsize="small")
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=110)


def draw(summary: Summary, grid: Grid, folder: Path) -> list[Path]:
    """Draws every picture for which there are results; returns their paths.

    Raises:
        ImportError: matplotlib is missing.
    """
    ready = {
        "rates": (rates, bool(_started(summary, grid))),
        "gaps": (gaps, bool(_started(summary, grid))),
        "curves": (curves, any(summary.has(row.name) for row in grid.named)),
        "rows": (bars, any(summary.difference(row.name, NONE, "best") for row in grid.named if row.name != NONE)),
    }
    paths = []
    for name, (make, possible) in ready.items():
        if possible:
            paths.append(folder / f"review-{name}.png")
            make(summary, grid, paths[-1])
    return paths
