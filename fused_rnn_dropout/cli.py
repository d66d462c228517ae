"""The command line: ``python -m fused_rnn_dropout`` with ``doctor`` and ``explain``."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .cells import CELLS, MODULES
from .options import Spec
from .program import run_program
from .sites import SITES, make_spec, sites_of

_PROGRAM = "python -m fused_rnn_dropout"
_DEMONSTRATION = "the demonstration is examples/language_model of a checkout, where bash scripts/demo.sh runs it"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UsageError(Exception):
    """Something the user can set right; the message says how."""


def _positive(text: str) -> int:
    value = int(text)
    if not 1 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"should be at least 1 and below 2**63, got {value}")
    return value


_positive.__name__ = "positive integer"  # argparse names the type of a bad value by it


# --------------------------------------------------------------------------------------------------------------------
# explain
# --------------------------------------------------------------------------------------------------------------------


def _spec(name: str) -> Callable[[str], Spec]:
    """A parser of ``0.5`` or ``0.5,mode=row,inputs=true`` for site ``name``."""

    def parse(text: str) -> Spec:
        rate, *options = text.split(",")
        try:
            spec = make_spec(name, float(rate))
            fields = {field.name: field.default for field in dataclasses.fields(spec)[1:]}
            values: dict[str, Any] = {}
            for option in options:
                key, _, value = option.partition("=")
                if key not in fields:
                    allowed = f"its options are {', '.join(fields)}" if fields else "it has no options"
                    raise ValueError(f"{key!r} is no option of {name}: {allowed}")
                values[key] = {"true": True, "false": False}.get(value.lower(), value)
            return make_spec(name, dataclasses.replace(spec, **values))
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _explain(options: argparse.Namespace) -> int:
    import fused_rnn_dropout as frd

    cell = CELLS[options.cell.upper()]
    sites: dict[str, Any] = {site.name: spec for site in SITES if (spec := getattr(options, site.name)) is not None}
    for name in sites:
        allowed = sites_of(cell.name)
        if name not in allowed:
            raise UsageError(f"--{name.replace('_', '-')} is not a site of {cell.called}: {', '.join(allowed)} are")
    if "dropout" in sites:
        sites["dropout"] = sites["dropout"].p  # the one site that is a rate only
    more = {"proj_size": options.proj_size} if options.proj_size else {}
    if more and not cell.projects:
        raise UsageError(f"--proj-size is an LSTM's, {cell.called} has none")
    try:
        rnn = getattr(frd, cell.module)(
            options.input_size,
            options.hidden_size,
            options.num_layers,
            bidirectional=options.bidirectional,
            dtype=_DTYPES[options.dtype],
            backend=options.backend,
            recompute=options.recompute,
            **more,
            **cell.settings,
            **sites,
        )
        x = torch.zeros(options.steps, options.batch, options.input_size, dtype=_DTYPES[options.dtype])
        explanation = frd.explain(rnn.train(not options.eval), x)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    except (MemoryError, OverflowError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"an RNN and input of these sizes cannot be made here: {first}") from error
    print(explanation)
    return 0


def _add_explain(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        usage="%(prog)s [options] [--SITE RATE[,OPTION=VALUE...] ...]",
        help="say which path an RNN would take, and why",
        description="Builds an RNN from the options and says what would run: backend, schedule, sites, bytes kept for "
        "the backward pass. A site takes its rate, or its rate and options: --weight-dropout 0.5,mode=row.",
    )
    parser.add_argument(
        "--cell", choices=tuple(name.lower() for name in CELLS), default="lstm", help="(default: %(default)s)"
    )
    for name, default in (("input-size", 400), ("hidden-size", 400), ("num-layers", 1), ("steps", 70), ("batch", 20)):
        parser.add_argument(f"--{name}", type=_positive, default=default, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--proj-size", type=_positive, metavar="N", help="size of an LSTM's projection")
    parser.add_argument("--bidirectional", action="store_true", help="both directions")
    parser.add_argument("--dtype", choices=tuple(_DTYPES), default="float32", help="(default: %(default)s)")
    parser.add_argument(
        "--backend", choices=("cpu", "cuda", "triton", "reference"), help="(default: the best there is)"
    )
    parser.add_argument("--recompute", action="store_true", help="keep less for the backward pass")
    parser.add_argument("--eval", action="store_true", help="in eval mode, masks off")
    sites = parser.add_argument_group("sites", "the probability to drop; for zoneout to keep the old value")
    for site in SITES:
        modules = dict.fromkeys(cell.module for cell in CELLS.values() if site.fits(cell.name))
        text = site.place + ("" if len(modules) == len(MODULES) else f" ({' and '.join(modules)} only)")
        sites.add_argument(f"--{site.name.replace('_', '-')}", type=_spec(site.name), metavar="RATE", help=text)
    parser.set_defaults(run=_explain)


# --------------------------------------------------------------------------------------------------------------------
# doctor
# --------------------------------------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import report

    return report()


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what can run here and what is missing",
        description="Says which versions and kernels are in use, what is missing and how to get it, and compares the "
        "CPU kernels with the reference on small layers. Exit status 1 where that fails.",
    )
    parser.set_defaults(run=_doctor)


# --------------------------------------------------------------------------------------------------------------------


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from . import __version__

        print(f"fused_rnn_dropout {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    result = argparse.ArgumentParser(prog=_PROGRAM, description="LSTM and GRU with every RNN dropout in fused kernels.")
    result.add_argument("--version", action=_Version, nargs=0, help="say which versions are in use, and exit")
    commands = result.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_add_doctor, _add_explain):
        add(commands)
    return result


def _run(arguments: Sequence[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] == "demo":  # a command of 0.1
        print(f"{_PROGRAM}: error: there is no command demo any more: {_DEMONSTRATION}", file=sys.stderr)
        return 2
    options = parser().parse_args(given)
    try:
        return options.run(options)
    except UsageError as error:
        print(f"{_PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"{_PROGRAM}: failed: {error}", file=sys.stderr)
        return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the command and its options; ``sys.argv`` if None.

    Returns:
        The exit status: 0, 1 where the work failed, 2 for bad options or input, 130 when interrupted, 141 where nobody
        reads the output any more.
    """
    return run_program(_PROGRAM, lambda: _run(arguments))
