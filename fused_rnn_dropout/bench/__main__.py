"""``fused-rnn-dropout bench``, and ``python -m bench`` in a checkout: see ``--help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fused_rnn_dropout import __version__
from fused_rnn_dropout.cells import MODULES
from fused_rnn_dropout.program import run_program

from . import arguments, call, compare, dtypes, floor, gpu, memory, plots, rounding, schedules, single, sites
from .contenders import BY_NAME, TASKS, contenders_of
from .machine import command_line
from .profile import profile
from .report import between, criteria_table, into_pages, report
from .run import DTYPES, Settings, load, run
from .shapes import QUICK, SHAPES

PROGRAM = "python -m bench"
_COMMANDS = "[run | compare | report | pages | profile | sites | dtypes | call | rounding | schedules | floor]"


def parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=program, description="Measures the library side by side with others.")
    made.add_argument("--version", action="version", version=f"fused_rnn_dropout {__version__}")
    commands = made.add_subparsers(dest="command", metavar=_COMMANDS)
    single.add(commands)
    compare.add(commands)
    shapes, contenders = [shape.name for shape in SHAPES], list(BY_NAME)
    made.add_argument("--shapes", type=arguments.names("shape", shapes), help=", ".join(shapes))
    made.add_argument("--cells", type=arguments.names("cell", MODULES), default=MODULES)
    made.add_argument("--tasks", type=arguments.names("task", TASKS), default=TASKS, help=", ".join(TASKS))
    made.add_argument(
        "--contenders",
        type=arguments.names("contender", contenders),
        help="; ".join(f"{contender.name}: {contender.meaning}" for contender in BY_NAME.values()),
    )
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    made.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of everything (default: float32)")
    made.add_argument("--tf32", action="store_true", help="on cuda, let everyone round float32 products to TF32")
    made.add_argument("--no-graphs", action="store_true", help="on cuda, leave replays of CUDA graphs out")
    made.add_argument("--no-kernels", action="store_true", help="on cuda, do not count the kernels that are launched")
    made.add_argument("--quick", action="store_true", help="two tiny shapes and few rounds, to try it out")
    made.add_argument("--compiled", action="store_true", help="also the loop under torch.compile: minutes more")
    arguments.add_effort(made, "a shape and task")
    made.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    made.add_argument("--no-scaling", action="store_true", help="leave one thread against all of them out")
    made.add_argument("--resume", action="store_true", help="go on with what --output holds already")
    made.add_argument("--output", type=Path, default=Path("bench-results.json"), help="where the results go")
    shown = commands.add_parser("report", help="print a result's tables, and draw its plots")
    shown.add_argument("results", type=Path)
    shown.add_argument("--plots", type=Path, metavar="FOLDER", help="where the plots go (default: none are drawn)")
    pages = commands.add_parser("pages", help="put a result's tables into README.md and docs/benchmarks.md")
    pages.add_argument("results", type=Path)
    pages.add_argument("root", type=Path, nargs="?", default=Path("."), help="the checkout (default: here)")
    taken_apart = commands.add_parser("profile", help="where the time of our own calls goes")
    _add_shapes(taken_apart)
    taken_apart.add_argument("--task", choices=TASKS, default="train")
    taken_apart.add_argument("--threads", type=int, default=2)
    _add_tables(commands)
    _add_schedules(commands)
    return made


def _add_shapes(
    parser: argparse.ArgumentParser, shapes: tuple[str, ...] | None = None, cells: tuple[str, ...] = MODULES
) -> None:
    known = tuple(shape.name for shape in SHAPES)
    parser.add_argument("--shapes", type=arguments.names("shape", known), default=known if shapes is None else shapes)
    parser.add_argument("--cells", type=arguments.names("cell", MODULES), default=cells)


def _add_tables(commands: Any) -> None:
    """The commands of :data:`_TABLES`."""
    cost = commands.add_parser("sites", help="what sites cost over none, in a forward and backward of our own layers")
    arguments.add_page(cost)
    _add_shapes(cost)
    cost.add_argument(
        "--one", type=arguments.names("site", sites.ALONE), default=sites.ONE, help=", ".join(sites.ALONE)
    )
    arguments.add_effort(cost, "a shape")
    of_types = commands.add_parser("dtypes", help="bfloat16 on the CPU beside float32 and torch.nn's, and its peak")
    arguments.add_page(of_types)
    _add_shapes(of_types, dtypes.SHAPES, ("LSTM", "GRU"))
    of_types.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    arguments.add_effort(of_types, "a shape")
    alone = commands.add_parser("call", help="what a call costs beside its arithmetic, and one step beside torch.nn's")
    arguments.add_page(alone)
    alone.add_argument("--cells", type=arguments.names("cell", MODULES), default=("LSTM", "GRU"))
    arguments.add_counts(alone, "units", "H", call.UNITS)
    arguments.add_counts(alone, "batches", "B", call.BATCHES)
    arguments.add_effort(alone, "a step", threads=1, budget=1.0)
    rounded = commands.add_parser("rounding", help="how far bfloat16 is off on the CPU, beside torch.nn's")
    arguments.add_page(rounded)
    rounded.add_argument("--cells", type=arguments.names("cell", MODULES), default=MODULES)
    least = commands.add_parser("floor", help="what a GPU cannot do without, by arithmetic alone; needs no GPU")
    arguments.add_page(least)
    _add_shapes(least)
    least.add_argument("--dtypes", type=arguments.names("dtype", tuple(floor.BYTES)), default=tuple(floor.BYTES))


def _add_schedules(commands: Any) -> None:
    side_by_side = commands.add_parser(
        "schedules", help="a GPU's schedules side by side, right first; writes the file that FRD_SCHEDULE_TABLE names"
    )
    grid = schedules.Grid()
    side_by_side.add_argument("--cells", type=arguments.names("cell", MODULES), default=grid.cells)
    side_by_side.add_argument("--dtypes", type=arguments.names("dtype", tuple(DTYPES)), default=grid.dtypes)
    for name, meaning in (("hidden", "H, which is I too"), ("batch", "B"), ("steps", "T")):
        arguments.add_counts(side_by_side, name, meaning, getattr(grid, name))
    side_by_side.add_argument("--rounds", type=int, help="paired rounds (default: what --budget allows, at least 5)")
    side_by_side.add_argument("--budget", type=float, default=grid.budget, help="seconds for a size (default: 0.5)")
    side_by_side.add_argument("--output", type=Path, default=Path("schedules.json"), help="the table; a page beside it")


def settings(options: argparse.Namespace, command: str = "") -> Settings:
    arguments.effort(options).check()
    if options.tf32 and (options.device, options.dtype) != ("cuda", "float32"):
        raise ValueError("--tf32 is about float32 products on cuda")
    gpu.check(options.device)
    on_cpu = options.device == "cpu"
    shapes = QUICK if options.quick else tuple(s for s in SHAPES if options.shapes is None or s.name in options.shapes)
    contenders = contenders_of(options.device)
    asked = options.contenders or [contender.name for contender in contenders]
    elsewhere = [name for name in asked if name not in [contender.name for contender in contenders]]
    if elsewhere:
        raise ValueError(f"--contenders {','.join(elsewhere)}: not on --device {options.device}")
    return Settings(
        shapes=shapes,
        cells=options.cells,
        tasks=options.tasks,
        contenders=tuple(contender for contender in contenders if contender.name in asked),
        threads=options.threads,
        rounds=5 if options.quick and options.rounds is None else options.rounds,
        budget=options.budget,
        memory=not options.no_memory and (not on_cpu or memory.available()),
        scaling=not options.no_scaling and options.threads > 1 and on_cpu,
        compiled=options.compiled,
        output=options.output,
        resume=options.resume,
        device=options.device,
        dtype=options.dtype,
        tf32=options.tf32,
        graphs=not on_cpu and not options.no_graphs,
        kernels=not on_cpu and not options.no_kernels,
        command=command,
    )


_TABLES: dict[str, Any] = {"call": call, "dtypes": dtypes, "floor": floor, "rounding": rounding, "sites": sites}
"""The commands whose tables are printed, or put between the markers of a page."""


def _tables(options: argparse.Namespace, command: str) -> str:
    """What one of them measures, in markdown.

    Raises:
        ValueError: an option is out of range.
    """
    if options.command == "rounding":
        return rounding.rounding(options.cells, command)
    if options.command == "call":
        return call.call(options.cells, options.units, options.batches, arguments.effort(options), command)
    shapes = [shape for shape in SHAPES if shape.name in options.shapes]
    if options.command == "floor":
        return floor.page(options.cells, shapes, options.dtypes)
    if options.command == "sites":
        return sites.sites(options.cells, shapes, options.one, arguments.effort(options), command)
    with_memory = not options.no_memory and memory.available()
    return dtypes.dtypes(options.cells, shapes, with_memory, arguments.effort(options), command)


def _run(given: Sequence[str], program: str) -> int:
    options = parser(program).parse_args(given)
    try:
        if options.command == "run":
            results = single.measure(options, program, given)
            print(single.text_of(results))
            print(f"\nwrote {options.output} and {options.output.with_suffix('.csv')}", file=sys.stderr)
            return int(single.failed(results))
        if options.command == "compare":
            return compare.compare(options)
        if options.command == "report":
            results = load(options.results)
            print(report(results))
            for path in plots.draw(results, options.plots) if options.plots else ():
                print(f"wrote {path}", file=sys.stderr)
        elif options.command == "pages":
            into_pages(load(options.results), options.root)
        elif options.command in _TABLES:
            text, marks = _tables(options, command_line(program, given)), _TABLES[options.command]
            between(options.page, marks.BEGIN, marks.END, text) if options.page else print(text)
        elif options.command == "schedules":
            if (options.rounds is not None and options.rounds < 2) or options.budget <= 0:
                raise ValueError("--rounds should be at least 2 and --budget above 0")
            of_grid = {name: getattr(options, name) for name in schedules.Grid._fields}
            text, failed = schedules.schedules(schedules.Grid(**of_grid), options.output, command_line(program, given))
            print(f"{text}\n\nwrote {options.output}: FRD_SCHEDULE_TABLE={options.output} has it chosen by")
            return int(failed)
        elif options.command == "profile":
            chosen_shapes = [shape for shape in SHAPES if shape.name in options.shapes]
            print(profile(options.cells, chosen_shapes, options.task, options.threads))
        else:
            chosen = settings(options, command_line(program, given))
            print(criteria_table(run(chosen)))
            print(f"\nwrote {chosen.output}; {program} report {chosen.output} prints all of it", file=sys.stderr)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Runs a command.

    Args:
        arguments: the command and its options; ``sys.argv`` if None.
        program: what the user calls it.

    Returns:
        The exit status: 0, 1 for what it says on stderr, 2 for bad options, 3 where ``compare`` finds a regression, 130
        when interrupted, 141 where nobody reads on.
    """
    given = sys.argv[1:] if arguments is None else arguments
    return run_program(program, lambda: _run(given, program))


if __name__ == "__main__":
    sys.exit(main(program="python -m fused_rnn_dropout.bench"))
