"""Plots, made of a result's JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fused_rnn_dropout.cells import MODULES

from .contenders import BY_NAME as CONTENDERS
from .criteria import ratio
from .report import shapes_of

_SERIES = (("all", "every site"), ("weights", "weight, input, output sites"), ("none", "no site"))
_TODAYS = (
    ("loop", "Python loop over x[t]"),
    ("careful-loop", "over x.unbind()"),
    ("compiled", "compiled step"),
    ("weight-drop", "weight-drop wrapper"),
    ("fastai", "fastai's WeightDropout"),
    ("torch", "torch.nn without dropout"),
)


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the plots into ``folder``; returns their paths.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    return [_ratios(results, folder / "ratios.png"), _memory(results, folder / "memory.png")]


def _cells(results: dict[str, Any], of: str) -> list[str]:
    """Those that were measured, one at least: a column of plots for each."""
    return [cell for cell in MODULES if any(entry["cell"] == cell for entry in results[of])] or [MODULES[0]]


def _bars(axes: Any, labels: list[str], series: list[tuple[str, list[Any]]]) -> None:
    """Groups of bars from intervals, or None where nothing was measured."""
    width = 0.8 / max(1, len(series))
    for index, (name, values) in enumerate(series):
        found = [(position, value) for position, value in enumerate(values) if value is not None]
        axes.bar(
            [position + (index - (len(series) - 1) / 2) * width for position, _ in found],
            [v.value for _, v in found],
            width,
            label=name,
            yerr=[[max(0.0, v.value - v.low) for _, v in found], [max(0.0, v.high - v.value) for _, v in found]],
            error_kw={"linewidth": 0.8},
        )
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")


def _ratios(results: dict[str, Any], path: Path) -> Path:
    """Time of a forward and backward over torch's, and what today's ways cost."""
    import matplotlib.pyplot as plt

    shapes = [shape for shape in shapes_of(results) if shape.kind != "packed"]
    labels = [shape.name for shape in shapes]
    cells = _cells(results, "timings")
    over_ours = {key: ratio("train", key, "all") for key, _ in _TODAYS}
    todays = [(k, n) for k, n in _TODAYS if any(over_ours[k](results, c, s) for c in cells for s in shapes)]
    size = (7.5 * len(cells), 8)
    figure, grid = plt.subplots(2, len(cells), figsize=size, constrained_layout=True, squeeze=False)
    for column, cell in enumerate(cells):
        above, below = grid[0][column], grid[1][column]
        _bars(above, labels, [(f"ours, {n}", [ratio("train", k, "torch")(results, cell, s) for s in shapes])
                              for k, n in _SERIES])  # fmt: skip
        above.axhline(1, color="black", linewidth=0.8)
        above.set_ylabel(f"time / nn.{cell} without dropout")
        above.set_title(f"{cell}, forward and backward: below 1 is faster")
        _bars(below, labels, [(n, [over_ours[k](results, cell, s) for s in shapes]) for k, n in todays])
        below.set_yscale("log")
        below.axhline(1, color="black", linewidth=0.8)
        below.set_ylabel("time / ours, every site")
    for row in grid:
        _legend(row[-1])  # both columns have the same series, in the same colours
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _legend(axes: Any) -> None:
    """Beside the last plot of a row, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))


def _memory(results: dict[str, Any], path: Path) -> Path:
    """Peak memory of a forward and backward."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(entry["contender"] for entry in results["memory"]))
    cells = _cells(results, "memory")
    size = (7.5 * len(cells), 4.5)
    figure, [grid] = plt.subplots(1, len(cells), figsize=size, constrained_layout=True, squeeze=False)
    for axes, cell in zip(grid, cells, strict=True):
        mib = {(e["shape"], e["contender"]): e["mib"] for e in results["memory"] if e["cell"] == cell}
        labels = [shape.name for shape in shapes_of(results)]
        width = 0.8 / max(1, len(names))
        for index, name in enumerate(names):
            found = [(i, mib[label, name]) for i, label in enumerate(labels) if (label, name) in mib]
            positions = [i + index * width - 0.4 for i, _ in found]
            axes.bar(positions, [value for _, value in found], width, label=CONTENDERS[name].meaning)
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        axes.set_yscale("log")
        axes.set_ylabel("MiB at the peak")
        axes.set_title(f"{cell}, one forward and backward")
    _legend(grid[-1])
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
