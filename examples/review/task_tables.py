"""Tables of the tasks besides the character model: what was run of each, and what each row gains over its base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from fused_rnn_dropout.bench.report import between
from fused_rnn_dropout.bench.tables import table

from .grid import Grid
from .records import CHARACTERS
from .results import Line, of_grid
from .runner import duration
from .summary import Estimate, Summary
from .task import Column, Section, Task


def _mean(summary: Summary, row: str, column: Column, spec: str) -> str:
    """Over the seeds; empty where the row has no such figure."""
    try:
        values = [column(figures) for figures in summary.rows[row].values()]
    except KeyError:
        return ""
    return format(Estimate.of(values).mean, spec)


def _figures(summary: Summary, task: Task, section: Section, row: str) -> list[str]:
    against = summary.difference(row, section.base, "best") if row != section.base else None
    return [
        row,
        summary.level(row, "best").text(),
        against.text("+") if against else "",
        f"{summary.level(row, 'epoch').mean:.0f}",
        *(_mean(summary, row, *column) for column in task.columns.values()),
        str(len(summary.rows[row])),
    ]


def section(summary: Summary, task: Task, of: Section, unit: str) -> str:
    """One table, or that nothing of it was run."""
    ran = [row for row in of.rows if summary.has(row)]
    if not ran:
        return f"**{of.name}**: not run yet."
    head = ["row", f"best valid, {unit}", f"less `{of.base}`", "at epoch", *task.columns, "seeds"]
    rows = [_figures(summary, task, of, row) for row in ran]
    if any(of.rows.values()):
        head.append("published")
        rows = [[*cells, of.rows[row]] for cells, row in zip(rows, ran, strict=True)]
    missing = [f"`{row}`" for row in of.rows if row not in ran]
    note = [f"Not run yet: {', '.join(missing)}."] if missing else []
    return "\n\n".join([f"**{of.name}**", table(head, rows), *note])


def tables(lines: Iterable[Line], name: str, task: Task, grid: Grid) -> str:
    """Everything of one task: how much of it was run, then its tables.

    Args:
        lines: of all results.
        name: of the task.
        task: what its tables show.
        grid: its rows.
    """
    done = of_grid(lines, grid.rows)
    cells = list(grid.cells())
    state = f"{len(done)} of {len(cells)} cells of {len(grid.rows)} rows of `--task {name}` were run."
    if not done:
        return f"Not run yet: the {len(cells)} cells of {len(grid.rows)} rows of `--task {name}`."
    seconds = [line["seconds"] for line in done.values()]
    state += (
        f" A cell took {duration(median(seconds))} on one thread (median; at most {duration(max(seconds))}), all of "
        f"them together {duration(sum(seconds))}."
    )
    summary, unit = Summary(done.values()), grid.rows[0].settings.unit
    return "\n\n".join([state, *(section(summary, task, of, unit) for of in task.sections)])


def into_page(lines: Iterable[Line], tasks: Mapping[str, Task], grids: Mapping[str, Grid], page: Path) -> None:
    """Puts the tables of each task between its markers. Raises ``ValueError`` where they are not there once."""
    lines = list(lines)
    for name, task in tasks.items():
        if name != CHARACTERS and name in grids:
            text = tables(lines, name, task, grids[name])
            between(page, f"<!-- review task {name}: begin -->", f"<!-- review task {name}: end -->", text)
