"""Tables of the tasks besides the character model: what was run of each, and what each row gains over its base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from fused_rnn_dropout.bench.report import between
from fused_rnn_dropout.bench.tables import table

from . import task_claims
from .grid import Grid
from .records import CHARACTERS
from .results import Line, of_grid
from .runner import duration
from .summary import Estimate, Summary
from .task import Column, Section, Task

MARKERS = "<!-- review task claims: begin -->", "<!-- review task claims: end -->"


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
    head = ["row", f"best valid, {unit}", f"less `{of.base}`", "at epoch", *task.columns, "seeds", "published"]
    cells = [[*_figures(summary, task, of, row), of.rows[row]] for row in ran]
    told = [column for column in range(len(head)) if any(row[column] for row in cells)]
    rows = [[row[column] for column in told] for row in cells]
    head = [head[column] for column in told]
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
    rows = [row for name, task in tasks.items() if name != CHARACTERS for row in task.study().rows]
    answers = [
        (answer.claim, answer.verdict, answer.figure) for answer in task_claims.answers(of_grid(lines, rows).values())
    ]
    between(page, *MARKERS, table(("claim", "answer", "figure"), answers))
    for name, task in tasks.items():
        if name != CHARACTERS and name in grids:
            text = tables(lines, name, task, grids[name])
            between(page, f"<!-- review task {name}: begin -->", f"<!-- review task {name}: end -->", text)
