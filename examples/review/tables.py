"""The tables of ``docs/review.md``, made of the results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from fused_rnn_dropout.bench.report import between
from fused_rnn_dropout.bench.tables import table

from .claims import answers, of_sweep
from .grid import NONE, Grid
from .runner import duration
from .sections import SECTIONS
from .summary import Estimate, Summary
from .techniques import TECHNIQUES, Technique

_HEAD = ("row", "best valid", "less `none`", "at epoch", "train at the end", "gap", "MC less eval", "seeds")


def _figures(summary: Summary, row: str) -> list[str]:
    against_none = summary.difference(row, NONE, "best") if row != NONE else None
    seeds = summary.rows[row].values()
    mc = sum(figures["mc"] - figures["best"] for figures in seeds) / len(seeds)
    return [
        row,
        summary.level(row, "best").text(),
        against_none.text("+") if against_none else "",
        f"{summary.level(row, 'epoch').mean:.0f}",
        f"{summary.level(row, 'train').mean:.3f}",
        f"{summary.level(row, 'gap').mean:.3f}",
        f"{mc:+.3f}",
        str(len(seeds)),
    ]


def section(summary: Summary, rows: Mapping[str, str]) -> str:
    """The rows that were run, with published figures where some row has one; then the names of the others."""
    ran = [row for row in rows if summary.has(row)]
    published = any(rows.values())
    head = [*_HEAD, "published"] if published else [*_HEAD]
    parts = []
    if ran:
        parts.append(table(head, [_figures(summary, row) + ([rows[row]] if published else []) for row in ran]))
    if missing := [f"`{row}`" + (f" (published: {rows[row]})" if rows[row] else "") for row in rows if row not in ran]:
        parts.append(f"Not run yet: {'; '.join(missing)}.")
    return "\n\n".join(parts)


def named(summary: Summary, grid: Grid) -> str:
    """All named rows, the lowest loss first."""
    ran = [row.name for row in grid.named if summary.has(row.name)]
    ran.sort(key=lambda row: summary.level(row, "best").mean)
    return table(_HEAD, [_figures(summary, row) for row in ran]) if ran else "No named row was run yet."


def sweeps(summary: Summary, grid: Grid) -> str:
    """The best rate of each sweep that was run whole, and whether it shows what a sweep should."""
    found = {sweep.name: of_sweep(summary, sweep) for sweep in grid.sweeps}
    rows = [[name, *cells.values()] for name, cells in found.items() if cells]
    head = ("sweep", "best rate", "less its base", "train rises", "gap falls", "U below the base", "best epoch later")
    missing = [f"`{name}`" for name, cells in found.items() if not cells]
    parts = [table(head, rows)] if rows else []
    return "\n\n".join(parts + ([f"Not run whole yet: {', '.join(missing)}."] if missing else []))


def claims(summary: Summary, grid: Grid) -> str:
    rows = [[answer.claim, answer.verdict, answer.figure] for answer in answers(summary, grid)]
    return table(("claim", "answer", "figure"), rows)


def _effect(summary: Summary, technique: Technique) -> str:
    """What the rows of a technique gained, and which of them were not run."""
    found: dict[str, Estimate | None] = {}
    for row in technique.rows:
        if technique.averaged:
            seeds = list(summary.rows.get(row, {}).values())
            found[row] = Estimate.of([figures["mc"] - figures["best"] for figures in seeds]) if seeds else None
        else:
            found[row] = summary.difference(row, technique.base, "best")
    against = "eval" if technique.averaged else "" if technique.base == NONE else f"`{technique.base}`"
    ran = [f"`{row}` {estimate.text('+')}" for row, estimate in found.items() if estimate]
    missing = [f"`{row}`" for row, estimate in found.items() if not estimate]
    parts = [", ".join(ran) + (f" (less {against})" if against else "")] if ran else []
    parts += [f"not run yet: {', '.join(missing)}"] if missing else []
    return "; ".join(parts) or "not run yet, not in the grid"


def techniques(summary: Summary) -> str:
    """Every technique: its source, where it is, which test holds it, and the effect measured."""
    rows = []
    for each in TECHNIQUES:
        tests = ", ".join(f"`tests/{path}`" for path in each.tests)
        rows.append([each.name, each.source, each.where, tests, _effect(summary, each)])
    return table(("technique", "source", "where it is", "test", "effect measured"), rows)


def state(summary: Summary, grid: Grid) -> str:
    """How much of the grid was run, where, and what it cost."""
    seconds = [line["seconds"] for line in summary.lines]
    cells = list(grid.cells())
    parts = [f"{len(seconds)} of {len(cells)} cells of {len(grid.rows)} rows were run."]
    if seconds:
        commits = Counter(line["commit"][:10] + (", changed" if line["changed"] else "") for line in summary.lines)
        machines = Counter(f"{line['machine']}, torch {line['torch']}" for line in summary.lines)
        spread = summary.spread("best")
        parts += [
            f"A cell took {duration(median(seconds))} on one thread (median; at most {duration(max(seconds))}), all of "
            f"them together {duration(sum(seconds))}.",
            f"Machine: {'; '.join(f'{name} ({count})' for name, count in machines.items())}. "
            f"Commits: {', '.join(f'{name} ({count})' for name, count in commits.items())}.",
        ]
        if spread is not None:
            parts.append(f"Seeds of one row differ by {spread:.3f} bits (pooled standard deviation of the best loss).")
    return "\n".join(parts)


def into_page(summary: Summary, grid: Grid, page: Path) -> None:
    """Puts every table between its markers.

    Raises:
        ValueError: a marker is not there, or not once.
    """
    found = {name: section(summary, rows) for name, rows in SECTIONS.items()}
    found |= {"state": state(summary, grid), "named": named(summary, grid), "sweeps": sweeps(summary, grid)}
    found |= {"claims": claims(summary, grid), "techniques": techniques(summary)}
    for name, text in found.items():
        between(page, f"<!-- review {name}: begin -->", f"<!-- review {name}: end -->", text)
