"""``python -m examples.review``: see ``--help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fused_rnn_dropout.program import run_program

from ..language_model.data import CorpusError
from . import check, recipe_program, results, runner, speed, tables, task_tables
from .grid import Grid
from .records import CHARACTERS
from .summary import Summary
from .tasks import TASKS

_PROGRAM = "python -m examples.review"
_DOCS = results.ROOT / "docs"


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"should be at least 1, got {value}")
    return value


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=_PROGRAM, description="Measures dropout rates against loss, for every site.")
    made.add_argument("--results", type=Path, default=results.PATH, metavar="FILE", help="JSON lines (%(default)s)")
    made.add_argument("--tiny", action="store_true", help="a grid of a few small rows: shows that everything runs")
    made.add_argument("--task", choices=tuple(TASKS), help=f"one alone (all of them; {CHARACTERS} with --tiny)")
    commands = made.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run what has no result yet; start it twice to use two cores")
    run.add_argument("--only", metavar="TEXT", help="only rows whose names have TEXT in them")
    again = commands.add_parser("check", help="run some finished cells again and compare")
    again.add_argument("--cells", type=_count, default=3, metavar="N", help="how many (default: %(default)s)")
    again.add_argument("--seed", type=int, default=0, metavar="N", help="chooses them (default: %(default)s)")
    plot = commands.add_parser("plot", help="draw the pictures")
    plot.add_argument("--out", type=Path, default=_DOCS, metavar="DIR", help="(default: %(default)s)")
    table = commands.add_parser("table", help="print the tables; with a page, put them between its markers")
    table.add_argument("page", type=Path, nargs="?", help="docs/review.md, or one with the same markers")
    quick = commands.add_parser("speed", help="time an update with the fused layers and with a Python loop")
    quick.add_argument("page", type=Path, nargs="?", help="put the table between the markers of this page")
    quick.add_argument("--budget", type=float, default=20, metavar="S", help="seconds for a row (default: %(default)s)")
    recipe_program.add_options(commands.add_parser("train", help="train a published recipe on a corpus of your own"))
    return made


def _chosen(options: argparse.Namespace) -> dict[str, Grid]:
    """The grids of the tasks that were asked for, in the order in which they are run."""
    names = (options.task,) if options.task else (CHARACTERS,) if options.tiny else tuple(TASKS)
    return {name: TASKS[name].tiny() if options.tiny else TASKS[name].study() for name in names}


def _characters(options: argparse.Namespace, chosen: dict[str, Grid]) -> tuple[Grid, Summary]:
    """The grid of the character model and its results; an empty grid where another task was asked for."""
    grid = chosen.get(CHARACTERS, Grid((), (), ()))
    return grid, Summary(results.of_grid(results.load(options.results), grid.rows).values())


def _of_run(options: argparse.Namespace, chosen: dict[str, Grid]) -> int:
    grids = [grid.only(options.only) for grid in chosen.values()] if options.only else list(chosen.values())
    cells = [cell for grid in grids for cell in grid.cells()]
    ran = runner.run(cells, options.results, runner.Display(len(cells)))
    done = len(results.of_grid(results.load(options.results), [row for row, _ in cells]))
    print(f"Ran {ran} cells; {done} of {len(cells)} are finished.")
    return 0


def _of_check(options: argparse.Namespace, chosen: dict[str, Grid]) -> int:
    rows = [row for grid in chosen.values() for row in grid.rows]
    done = results.of_grid(results.load(options.results), rows)
    compared = check.check(
        rows, done, options.cells, options.seed, lambda row, seed: runner.one_line(row, seed, lambda epoch: None)
    )
    off = 0
    for comparison in compared:
        print(comparison, flush=True)
        off += not comparison.holds
    print("All figures hold." if not off else f"{off} figures are off.")
    return 1 if off else 0


def _of_plot(options: argparse.Namespace, chosen: dict[str, Grid]) -> int:
    from . import plots, task_plots

    grid, summary = _characters(options, chosen)
    options.out.mkdir(parents=True, exist_ok=True)
    paths = plots.draw(summary, grid, options.out)
    paths += task_plots.draw(results.load(options.results), chosen, options.out)
    print("\n".join(f"Wrote {path}" for path in paths) or "There is no result to draw yet.")
    return 0


def _put(put: Callable[[Path], None], page: Path) -> None:
    try:
        put(page)
    except ValueError as error:  # its markers
        raise results.ResultsError(str(error)) from error


def _of_table(options: argparse.Namespace, chosen: dict[str, Grid]) -> int:
    grid, summary = _characters(options, chosen)
    lines = results.load(options.results)
    if options.page:
        if CHARACTERS in chosen:
            _put(lambda page: tables.into_page(summary, grid, page), options.page)
        _put(lambda page: task_tables.into_page(lines, TASKS, chosen, page), options.page)
        return 0
    parts = [] if CHARACTERS not in chosen else [
        tables.state(summary, grid), tables.named(summary, grid), tables.sweeps(summary, grid),
        tables.claims(summary, grid), tables.techniques(summary),
    ]  # fmt: skip
    parts += [task_tables.tables(lines, name, TASKS[name], of) for name, of in chosen.items() if name != CHARACTERS]
    print("\n\n".join(parts))
    return 0


def _of_speed(options: argparse.Namespace, chosen: dict[str, Grid]) -> int:
    grid, _ = _characters(options, chosen)
    found = speed.page(grid, options.budget, lambda row: print(f"  {row} ...", file=sys.stderr, flush=True))
    if options.page:
        _put(lambda page: speed.into_page(found, page), options.page)
    else:
        print(found)
    return 0


def _run(arguments: Sequence[str] | None) -> int:
    options = parser().parse_args(arguments)
    commands = {"run": _of_run, "check": _of_check, "plot": _of_plot, "table": _of_table, "speed": _of_speed}
    try:
        if options.command == "train":
            return recipe_program.run(options)
        torch.set_num_threads(1)  # so that two runners go side by side, and a sum never depends on the number of cores
        return commands[options.command](options, _chosen(options))
    except (CorpusError, results.ResultsError, ImportError, OSError) as error:
        print(f"{_PROGRAM}: error: {error}", file=sys.stderr)
        return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command of the study.

    Args:
        arguments: its options; ``sys.argv`` if None.

    Returns:
        The exit status: 0, 1 where ``check`` finds a figure off, 2 for what cannot be read, written or run, 130 when
        interrupted, 141 where nobody reads the output any more.
    """
    return run_program(_PROGRAM, lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
