"""``python -m examples.language_model``: see ``--help``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fused_rnn_dropout.program import run_program

from . import run
from .data import LEVELS, CorpusError
from .model import CELLS
from .run import OutputError

_PROGRAM = "python -m examples.language_model"
_REQUIREMENTS = "examples/language_model/requirements.txt"


def _whole(least: int, name: str) -> Callable[[str], int]:
    """A parser of whole numbers from ``least`` on, below 2**63. argparse calls a bad value by ``name``."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value < 2**63:
            raise argparse.ArgumentTypeError(f"should be at least {least} and below 2**63, got {value}")
        return value

    parse.__name__ = name
    return parse


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Trains a language model on real text with torch.nn's RNN, then the same model, converted, with an "
        "AWD-style set of sites: the same initial parameters, batches, updates and optimizer. Shows both "
        "side by side and writes demo.png and demo.json.",
    )
    count = _whole(1, "positive integer")
    made.add_argument("--cell", choices=tuple(CELLS), default="lstm", help="(default: %(default)s)")
    made.add_argument("--text", type=Path, metavar="FILE", help="your own text, UTF-8; its end is for validation")
    made.add_argument("--level", choices=LEVELS, default="word", help="what a token is (default: %(default)s)")
    made.add_argument("--tokens", type=count, metavar="N", help="train on the first N tokens at most")
    made.add_argument("--epochs", type=count, metavar="N", help="passes over the training text")
    made.add_argument(
        "--seed", type=_whole(0, "seed"), default=1, metavar="N", help="of parameters and masks (default: %(default)s)"
    )
    made.add_argument("--threads", type=count, metavar="N", help="CPU threads (default: torch's choice)")
    made.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="(default: %(default)s)")
    made.add_argument("--no-plot", action="store_true", help="write no PNG, so that matplotlib is not needed")
    made.add_argument("--quick", action="store_true", help="a few seconds: shows that it runs, not what it is good for")
    return made


def _run(arguments: Sequence[str] | None) -> int:
    options = parser().parse_args(arguments)
    try:
        if not options.no_plot and importlib.util.find_spec("matplotlib") is None:
            raise OutputError(f"the plot needs matplotlib: pip install -r {_REQUIREMENTS} (or give --no-plot)")
        chosen = run.settings(
            options.level,
            options.quick,
            cell=options.cell,
            epochs=options.epochs,
            seed=options.seed,
            tokens=options.tokens,
            threads=options.threads,
            text=None if options.text is None else str(options.text),
        )
        run.run(chosen, options.out, with_plot=not options.no_plot)
    except (CorpusError, OutputError) as error:
        print(f"{_PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"{_PROGRAM}: failed: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demonstration.

    Args:
        arguments: its options; ``sys.argv`` if None.

    Returns:
        The exit status: 0, 1 where a training failed, 2 for bad options or input, 130 when interrupted, 141 where
        nobody reads the output any more.
    """
    return run_program(_PROGRAM, lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
