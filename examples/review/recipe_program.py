"""The command ``train``: a published recipe over the user's own corpus."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from ..language_model.data import CorpusError
from .published import RECIPES, RecipeSettings, cost
from .results import append, provenance
from .runner import duration
from .training import train


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="of the corpus: ptb.train.txt, wiki.train.tokens or train.txt, ...")
    command.add_argument("--recipe", choices=tuple(RECIPES), required=True, help="whose settings")
    command.add_argument("--epochs", type=int, metavar="N", help="in the place of the published number")
    command.add_argument("--seed", type=int, default=1, metavar="N", help="(default: %(default)s)")
    command.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    command.add_argument("--cost", action="store_true", help="say what it would cost, and train nothing")
    command.add_argument("--out", type=Path, metavar="FILE", help="add the outcome to this file, as a line of JSON")


def _chosen(options: argparse.Namespace) -> RecipeSettings:
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise CorpusError(f"--device {options.device}: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CorpusError(f"--device {options.device}: this torch finds no CUDA device")
    if options.epochs is not None and options.epochs < 1:
        raise CorpusError(f"--epochs should be at least 1, got {options.epochs}")
    settings = replace(RECIPES[options.recipe], folder=os.fspath(options.folder), device=options.device)
    return settings if options.epochs is None else replace(settings, epochs=options.epochs)


def _in_unit(settings: RecipeSettings, loss: float) -> str:
    """Bits per token, or the perplexity of words."""
    return f"{loss:.3f} bits" if settings.level == "char" else f"perplexity {2**loss:.1f}"


def run(options: argparse.Namespace) -> int:
    """Says what it costs, then trains, a line for each epoch.

    Raises:
        CorpusError: the corpus, or an option.
        OSError: the outcome cannot be written.
    """
    settings = _chosen(options)
    print(f"{options.recipe}: published {settings.published}; the paper does otherwise: {settings.differs}")
    print(cost(settings), flush=True)
    if options.cost:
        return 0
    began = time.perf_counter()

    def show(epoch: int, seen: float, valid: float) -> None:
        left = (time.perf_counter() - began) * (settings.epochs / epoch - 1)
        losses = f"training {_in_unit(settings, seen)}, validation {_in_unit(settings, valid)}"
        print(f"epoch {epoch} of {settings.epochs}: {losses}; about {duration(left)} left", flush=True)

    found = train(settings, options.seed, lambda epoch: None, show)
    best = min(found["valid"])
    for name, loss in (("validation", best), ("test", found["figures"]["test"]), ("validation, MC", found["mc"])):
        print(f"{name}: {_in_unit(settings, loss) if math.isfinite(loss) else loss}")
    if options.out:
        head = {"row": options.recipe, "seed": options.seed, "settings": json.loads(json.dumps(settings.record()))}
        append(options.out, head | found | provenance())
    return 0
