"""``bench run``: a layer of the user's own beside others, forward and backward, in paired rounds."""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import library
from fused_rnn_dropout.arguments import choose_backend
from fused_rnn_dropout.cells import CELLS, MODULES
from fused_rnn_dropout.options import Spec, StepDropout, rate_of
from fused_rnn_dropout.site_text import spec_of
from fused_rnn_dropout.sites import SITE, SITES, make_spec, sites_of

from . import gpu
from .arguments import add_effort, effort, names
from .contenders import TASKS, Contender, layer
from .loops import LOOP_CELLS, LOOP_SITES, Loop, WeightDrop
from .machine import command_line
from .measure import Interval, median_of, ratio_of
from .report import machine, meaning_of, milliseconds, shapes_of, spread
from .run import DTYPES, Settings, run
from .shapes import Shape, cell_of
from .tables import table

Sites = Mapping[str, Spec]

OURS = "ours"
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
_BACKENDS = ("cpu", "cuda", "triton", "reference")


# --------------------------------------------------------------------------------------------------------------------
# Against whom
# --------------------------------------------------------------------------------------------------------------------


class Rival(NamedTuple):
    """Somebody beside whom the layer is measured; ``refusal``: why not with these cells, shapes and sites, or None."""

    name: str
    meaning: str
    build: Callable[[str, Shape, Sites], nn.Module]
    refusal: Callable[[str, Shape, Sites], str | None]
    tasks: tuple[str, ...] = TASKS
    ours: bool = False
    graph: bool = False


def _any(cell: str, shape: Shape, sites: Sites) -> None:
    return None


def _loop_refusal(cell: str, shape: Shape, sites: Sites) -> str | None:
    if cell not in LOOP_CELLS:
        return f"it is written for {', '.join(LOOP_CELLS)}, not for {cell}"
    if unknown := [name for name in sites if name not in LOOP_SITES]:
        return f"it has no {', '.join(unknown)}; its sites are {', '.join(LOOP_SITES)}"
    if chosen := [name for name, spec in sites.items() if spec != make_spec(name, rate_of(spec))]:
        return f"it has no options, and there are some of {', '.join(chosen)}"
    if shape.layers > 1 or shape.directions > 1 or shape.kind == "packed":
        return "it is one layer in one direction over a padded batch"
    return None


def _weight_drop_refusal(cell: str, shape: Shape, sites: Sites) -> str | None:
    if "weight_dropout" not in sites:
        return "it needs weight_dropout among --sites"
    return "it wraps one layer in one direction" if shape.layers > 1 or shape.directions > 1 else None


def _loop(careful: bool) -> Callable[[str, Shape, Sites], nn.Module]:
    def build(cell: str, shape: Shape, sites: Sites) -> nn.Module:
        return Loop(cell, shape.inputs, shape.units, _rates(sites), careful=careful)

    return build


def _rates(sites: Sites) -> dict[str, float]:
    return {name: rate_of(spec) for name, spec in sites.items()}


RIVALS = {
    rival.name: rival
    for rival in (
        Rival("nn", "torch.nn's layer, no dropout", lambda c, s, _: layer(nn, c, s), _any, graph=True),
        Rival("none", "ours, no site", lambda c, s, _: layer(frd, c, s), _any, ours=True, graph=True),
        Rival("loop", "a Python loop over x[t], the same sites", _loop(False), _loop_refusal),
        Rival("careful-loop", "that loop over x.unbind()", _loop(True), _loop_refusal, graph=True),
        Rival(
            "weight-drop",
            "a weight-drop wrapper around torch.nn's layer",
            lambda c, s, sites: WeightDrop(layer(nn, c, s), rate_of(sites["weight_dropout"])),
            _weight_drop_refusal,
            ("train",),
        ),
        Rival(
            "reference",
            'ours, the same sites, backend="reference"',
            lambda c, s, sites: layer(frd, c, s, backend="reference", **_arguments(sites)),
            _any,
        ),
    )
}


def _arguments(sites: Sites) -> dict[str, Any]:
    """As a layer takes them: ``dropout`` is a rate, as in torch.nn."""
    return {name: spec.p if isinstance(spec, StepDropout) else spec for name, spec in sites.items()}


# --------------------------------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------------------------------


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if len(parts) != 4 or len(numbers) != 4 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} should be T,B,I,H: steps, batch, input size and hidden size, four numbers of at least 1, as in "
            "70,20,400,1150"
        )
    return tuple(numbers)


_CELLS = tuple(dict.fromkeys((*MODULES, *CELLS)))
"""A cell by the name of its class, or of its row."""


def _cell(text: str) -> str:
    name = text.upper().replace("-", "_")
    if name not in _CELLS:
        raise argparse.ArgumentTypeError(f"there is no cell {text!r}; allowed are {', '.join(_CELLS)}")
    return cell_of(name).name


def _dtype(text: str) -> str:
    name = _SHORT.get(text, text)
    if name not in DTYPES:
        allowed = ", ".join(f"{short} or {long}" for short, long in _SHORT.items())
        raise argparse.ArgumentTypeError(f"there is no dtype {text!r}; allowed are {allowed}")
    return name


_CALLED = {site.name.removesuffix("_dropout"): site.name for site in SITES} | {site.name: site.name for site in SITES}
"""A site by its name, or without ``_dropout``."""


def _sites(text: str) -> dict[str, Spec]:
    found: dict[str, Spec] = {}
    for part in text.split(","):
        called, equals, value = part.partition("=")
        name = _CALLED.get(called.strip().replace("-", "_"))
        if name is None:
            allowed = ", ".join(name.removesuffix("_dropout") for name in SITE)
            raise argparse.ArgumentTypeError(f"there is no site {called!r}; allowed are {allowed}")
        if not equals:
            raise argparse.ArgumentTypeError(f"{part!r} should be a site and its rate, as in {called}=0.5")
        if name in found:
            raise argparse.ArgumentTypeError(f"{name} stands twice in {text!r}")
        try:
            found[name] = spec_of(name, value, ":")
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{part!r}: {error}") from error
    return found


def add(commands: Any) -> None:
    """Adds ``run`` to the bench's commands."""
    parser = commands.add_parser(
        "run",
        help="measure one layer of your own beside others",
        description="Measures a layer of this library with sites of your own beside others, in one process and in "
        "paired rounds; prints a table, and writes every round as JSON and the table as CSV.",
    )
    more = parser.add_argument
    more(
        "--shape", type=_shape, action="append", required=True, metavar="T,B,I,H",
        help="steps, batch, input size, hidden size; may be given several times",
    )  # fmt: skip
    more("--cell", type=_cell, default="LSTM", metavar="CELL", help=f"{', '.join(_CELLS)} (default: LSTM)")
    more(
        "--sites", type=_sites, default={}, metavar="SITE=RATE,...",
        help=f"rates of {', '.join(name.removesuffix('_dropout') for name in SITE)}; options after colons, as in "
        "weight=0.5:mode=row (default: none)",
    )  # fmt: skip
    more("--layers", type=int, default=1, metavar="N", help="(default: 1)")
    more("--bidirectional", action="store_true", help="both directions")
    more("--packed", action="store_true", help="a packed batch, its lengths spread over 1 .. T")
    more("--recompute", action="store_true", help="keep less for backward")
    more("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    more("--backend", choices=_BACKENDS, help="of this library (default: the best there is)")
    more(
        "--dtype", type=_dtype, default="float32", metavar="DTYPE", help=f"{', '.join(_SHORT)} (default: fp32)"
    )  # fmt: skip
    more(
        "--against", type=names("rival", tuple(RIVALS)), default=("nn",), metavar="NAME,...",
        help="; ".join(f"{rival.name}: {rival.meaning}" for rival in RIVALS.values()) + " (default: nn)",
    )  # fmt: skip
    more("--tasks", type=names("task", TASKS), default=TASKS, help=f"(default: {','.join(TASKS)})")
    more("--graphs", action="store_true", help="on cuda, forward and backward also as the replay of a CUDA graph")
    more("--tf32", action="store_true", help="on cuda, let everyone round float32 products to TF32")
    add_effort(parser, "a shape and task", threads=torch.get_num_threads())
    more(
        "--output", type=Path, default=Path("bench-run.json"), metavar="FILE",
        help="where the rounds go; the table goes into FILE with .csv in place of .json (default: %(default)s)",
    )  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """Refuses what cannot be measured, before anything is.

    Raises:
        ValueError: sites that the cell has not, a rival that cannot do what is asked, or a number out of range.
    """
    cell = CELLS[options.cell]
    if options.layers < 1:
        raise ValueError(f"--layers should be at least 1, got {options.layers}")
    effort(options).check()
    if options.output.suffix != ".json":
        raise ValueError(f"--output should end in .json, got {options.output}")
    if options.graphs and options.device != "cuda":
        raise ValueError("--graphs is about --device cuda")
    if options.tf32 and (options.device, options.dtype) != ("cuda", "float32"):
        raise ValueError("--tf32 is about float32 products on cuda")
    if absent := [name for name in options.sites if not SITE[name].fits(cell.name)]:
        allowed = ", ".join(name.removesuffix("_dropout") for name in sites_of(cell.name))
        raise ValueError(f"--sites {', '.join(absent)}: no site of {cell.called}; allowed are {allowed}")
    gpu.check(options.device)
    fused = options.backend not in (None, "reference")
    if fused and (why := library.obstacle(options.backend, options.device)) is not None:
        raise ValueError(f"--backend {options.backend} on --device {options.device}: {why}")
    shapes = _shapes(options)
    for shape in shapes:
        for name in options.against:
            if why := RIVALS[name].refusal(cell.name, shape, options.sites):
                raise ValueError(f"--against {name}: {why}")
    with warnings.catch_warnings():  # what a layer warns of, it says once more when it is measured
        warnings.simplefilter("ignore")
        ours = _ours(options)(cell.name, shapes[0]._replace(inputs=1, units=1))  # refuses what does not go together
    choose_backend(options.backend, ours._plan, options.device)


def _shapes(options: argparse.Namespace) -> tuple[Shape, ...]:
    kind, directions = "packed" if options.packed else "other", 2 if options.bidirectional else 1
    return tuple(
        Shape("x".join(map(str, (t, b, i, h))), t, b, i, h, kind, "", options.layers, directions)
        for t, b, i, h in dict.fromkeys(options.shape)
    )


def _ours(options: argparse.Namespace) -> Callable[[str, Shape], Any]:
    def build(cell: str, shape: Shape) -> Any:
        more = {"backend": options.backend, "recompute": options.recompute}
        return layer(frd, cell, shape, **more, **_arguments(options.sites))

    return build


def _contenders(options: argparse.Namespace) -> tuple[Contender, ...]:
    text = ", ".join(f"{name}={rate_of(spec):g}" for name, spec in options.sites.items()) or "no site"
    kinds = ("other", "packed")

    def against(rival: Rival) -> Contender:
        def build(cell: str, shape: Shape) -> nn.Module:
            return rival.build(cell, shape, options.sites)

        return Contender(rival.name, rival.meaning, build, rival.tasks, kinds=kinds, ours=rival.ours, graph=rival.graph)

    ours = Contender(OURS, f"ours, {text}", _ours(options), kinds=kinds, ours=True, graph=True)
    return (ours, *(against(RIVALS[name]) for name in options.against))


# --------------------------------------------------------------------------------------------------------------------
# Results
# --------------------------------------------------------------------------------------------------------------------


def _over(rounds: Mapping[str, Sequence[float]], name: str) -> Interval | None:
    """Ours over it, in time; None where ours failed."""
    return ratio_of(rounds[OURS], rounds[name]) if OURS in rounds else None


def rows_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each contender of each group: what the CSV holds."""
    shapes = {shape.name: shape for shape in shapes_of(results)}
    environment = results["environment"]
    same = {
        "dtype": results["dtype"],
        "device": environment["gpu"]["name"] if "gpu" in environment else environment["processor"],
        "threads": environment["threads"],
        **{name: environment[name] for name in ("torch", "fused_rnn_dropout", "date")},
    }
    found = []
    for entry in results["timings"]:
        shape, rounds = shapes[entry["shape"]], entry["rounds"]
        for name, seconds in rounds.items():
            median, over = median_of(seconds), _over(rounds, name)
            found.append(
                {
                    "cell": entry["cell"],
                    **dict(zip("TBIH", (shape.steps, shape.batch, shape.inputs, shape.units), strict=True)),
                    "layers": shape.layers,
                    "directions": shape.directions,
                    "packed": shape.kind == "packed",
                    "sites": results["sites"],
                    "task": entry["task"],
                    "contender": name,
                    **{f"ms{part}": 1e3 * value for part, value in zip(_PARTS, median, strict=True)},
                    **{f"ours_over_it{part}": value for part, value in zip(_PARTS, over or ("",) * 3, strict=True)},
                    "gflop_per_s": 1e-9 * shape.flops(entry["cell"], entry["task"]) / median.value,
                    "first_call_ms": 1e3 * entry["first"][name],
                    "rounds": len(seconds),
                    **same,
                }
            )
    return found


_PARTS = ("", "_low", "_high")


def _write_csv(results: dict[str, Any], path: Path) -> None:
    rows = rows_of(results)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0] if rows else ["cell"])
        writer.writeheader()
        writer.writerows(rows)


def text_of(results: dict[str, Any]) -> str:
    """The table, and above it what it was measured on."""
    rows = []
    for entry in results["timings"]:
        shape = next(shape for shape in shapes_of(results) if shape.name == entry["shape"])
        for name, seconds in entry["rounds"].items():
            ms = [milliseconds(value) for value in median_of(seconds)]
            ratio = "" if name == OURS else spread(_over(entry["rounds"], name))
            rows.append(
                (entry["cell"], shape.sizes, entry["task"], name, f"{ms[0]} ({ms[1]}-{ms[2]})", ratio,
                 milliseconds(entry["first"][name]), str(len(seconds)))
            )  # fmt: skip
        rows += [
            (entry["cell"], shape.sizes, entry["task"], name, f"FAILED: {why}", "", "", "")
            for name, why in entry.get("failed", {}).items()
        ]
    head = ("", "T, B, I, H", "task", "", "ms", "ours / it", "first call, ms", "rounds")
    names = [OURS, *(name for name in results["contenders"] if name != OURS)]
    meanings = "; ".join(f"*{name}*: {meaning_of(results, name)}" for name in names)
    how = "Medians over paired rounds, with a 95 % bootstrap interval; below 1 in *ours / it*, ours is faster."
    return f"{machine(results)}\n\n{meanings}. {how}\n\n{table(head, rows)}"


def failed(results: dict[str, Any]) -> bool:
    """Whether somebody was not measured to the end."""
    return any(entry.get("failed") for entry in results["timings"])


def measure(options: argparse.Namespace, program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What ``run`` is asked for: measured, and written.

    Raises:
        ValueError: as :func:`check`.
        OSError: the output cannot be written.
    """
    check(options)
    results = run(
        Settings(
            shapes=_shapes(options),
            cells=(options.cell,),
            tasks=options.tasks,
            contenders=_contenders(options),
            threads=options.threads,
            rounds=options.rounds,
            budget=options.budget,
            memory=False,
            scaling=False,
            compiled=False,
            output=options.output,
            device=options.device,
            dtype=options.dtype,
            tf32=options.tf32,
            graphs=options.graphs,
            command=command_line(program, arguments),
            sites=", ".join(f"{name}={spec!r}" for name, spec in options.sites.items()),
        )
    )
    _write_csv(results, options.output.with_suffix(".csv"))
    return results
