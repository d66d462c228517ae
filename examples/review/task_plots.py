"""The pictures of the tasks beside the character model, drawn from the results alone. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean

from . import intervals, translation_grid
from .grid import Grid
from .plots import panels, sweep_panel
from .results import Line, of_grid
from .summary import Summary

_COLORS = {intervals.NOISE: "0.55", intervals.MASKS: "tab:red", intervals.BOTH: "tab:blue"}


def calibration(lines: Iterable[Line], path: Path) -> None:
    """The share of test values inside each interval against the share that should be, a panel for each row."""
    by_row: dict[str, list[Mapping[str, list[float]]]] = {}
    for line in lines:
        by_row.setdefault(line["row"], []).append(line["coverage"])
    figure, axes = panels(len(by_row), sharey=True)
    for axis, (row, found) in zip(axes, by_row.items(), strict=True):
        axis.plot((0, 1), (0, 1), ":", color="black", linewidth=0.8)
        for kind, color in _COLORS.items():
            if kind in found[0]:
                shares = [mean(values) for values in zip(*(coverage[kind] for coverage in found), strict=True)]
                axis.plot(intervals.NOMINAL, shares, "o-", color=color, markersize=3, label=kind)
        axis.set_title(row.removeprefix("intervals: "), fontsize="small")
        axis.set_xlabel("nominal share")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share inside")
    axes[-1].legend(fontsize="x-small")
    figure.suptitle("Central intervals, mean over seeds: below the diagonal they are too narrow", fontsize="medium")
    figure.savefig(path, dpi=110)


def translation(summary: Summary, grid: Grid, path: Path) -> None:
    """The loss against the rate, a panel for each site of the encoder and of the decoder."""
    sweeps = [sweep for sweep in grid.sweeps if summary.has(sweep.base, *sweep.rows.values())]
    figure, axes = panels(len(sweeps), sharey=True)
    for axis, sweep in zip(axes, sweeps, strict=True):
        sweep_panel(axis, summary, sweep)
    axes[0].set_ylabel("bits per token")
    axes[0].legend(fontsize="x-small")
    figure.suptitle("Translation: validation loss against rate (lines: mean; points: seeds)", fontsize="medium")
    figure.savefig(path, dpi=110)


def draw(lines: Iterable[Line], grids: Mapping[str, Grid], folder: Path) -> list[Path]:
    """Draws every picture for which there are results; returns their paths.

    Args:
        lines: of all results.
        grids: by task.
        folder: to write into.

    Raises:
        ImportError: matplotlib is missing.
    """
    lines, paths = list(lines), []
    done = {name: list(of_grid(lines, grid.rows).values()) for name, grid in grids.items()}
    if of_intervals := done.get("intervals"):
        paths.append(folder / "review-calibration.png")
        calibration(of_intervals, paths[-1])
    summary = Summary(done.get("translation", []))
    grid = grids.get("translation")
    if grid and any(summary.has(translation_grid.NONE, *sweep.rows.values()) for sweep in grid.sweeps):
        paths.append(folder / "review-translation.png")
        translation(summary, grid, paths[-1])
    return paths
