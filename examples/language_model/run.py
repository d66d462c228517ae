"""The demonstration from end to end: the two trainings, the table, the verdict, the files."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fused_rnn_dropout.program import Interrupted

from .data import Corpus, columns
from .report import Display, legend, plot, table, verdict
from .train import Epoch, Outcome, Progress, Settings, train_apart

SETTINGS: dict[str, dict[str, Any]] = {
    "word": {"tokens": 60_000, "width": 200, "layers": 2, "epochs": 14, "batch": 20, "steps": 35, "rate": 6e-3},
    "char": {"tokens": 60_000, "width": 200, "layers": 2, "epochs": 16, "batch": 16, "steps": 64, "rate": 4e-3},
}
"""By level: chosen so that the model without sites overfits within the epochs, on two cores in a few minutes.

The word level's rate is the one of 2e-3, 3e-3, 4e-3, 6e-3 and 1e-2 with the lowest validation loss WITHOUT sites.
"""

QUICK: dict[str, Any] = {"tokens": 3_000, "width": 32, "epochs": 2, "batch": 4, "steps": 20}
"""What ``--quick`` changes: it shows that everything runs, and says nothing about quality or speed."""

SITES: dict[str, dict[str, Any]] = {
    "word": {"input_dropout": 0.4, "inter_layer_dropout": 0.3, "output_dropout": 0.5, "weight_dropout": 0.5},
    "char": {"input_dropout": 0.1, "inter_layer_dropout": 0.2, "output_dropout": 0.3, "weight_dropout": 0.4},
}
"""As AWD-LSTM has them (Merity et al. 2018): locked masks before, between and after the layers, and weight drop."""


def settings(level: str = "word", quick: bool = False, **given: Any) -> Settings:
    """The settings of a level, with what the user gave instead (None: not given)."""
    chosen = SETTINGS[level] | (QUICK if quick else {})
    return Settings(level=level, **chosen | {name: value for name, value in given.items() if value is not None})


class OutputError(Exception):
    """The results cannot be written where they shall go."""


def _prepare(folder: Path, names: list[str]) -> list[Path]:
    """Makes the folder and sees whether the files can be written into it, before minutes are spent on them."""
    paths = [folder / name for name in names]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in paths:
            if path.exists():
                path.open("r+b").close()
    except OSError as error:
        raise OutputError(f"--out {folder}: {error.strerror or error}") from error
    return paths


def _write(path: Path, record: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise OutputError(f"--out: {path}: {error.strerror or error}") from error


def _record(chosen: Settings, corpus: Corpus, outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "settings": dataclasses.asdict(chosen),
        "sites": SITES[chosen.level],
        "corpus": {"source": corpus.source, "sha256": corpus.sha256, "vocabulary": len(corpus.vocabulary)},
        "trainings": [outcome.record() for outcome in outcomes],
    }


def _kept(outcomes: list[Outcome], show: Callable[[Progress | Epoch | Outcome], None]) -> Callable[[Any], None]:
    """Shows what a training tells, and keeps it in ``outcomes``, for the case that it does not come to its end."""

    def tell(news: Progress | Epoch | Outcome) -> None:
        if isinstance(news, Epoch):
            outcomes[-1].epochs.append(news)
        elif isinstance(news, Outcome):
            outcomes[:] = [*outcomes[:-1], news] if news.epochs else [*outcomes, news]
        show(news)

    return tell


def run(chosen: Settings, folder: Path, *, with_plot: bool = True) -> list[Outcome]:
    """Trains without and with sites, prints the table, writes ``demo.json`` and ``demo.png`` into ``folder``.

    Raises:
        CorpusError: the text cannot be had or is too short.
        OutputError: ``folder`` cannot be written.
        RuntimeError: a training failed, or the two did not start from the same parameters.
        Interrupted: by Ctrl-C; ``demo.json`` holds the epochs that were done, if there are any.
    """
    corpus = chosen.corpus()
    columns(corpus.train, chosen.batch, "train")
    columns(corpus.valid, chosen.batch, "validate")
    written = _prepare(folder, ["demo.json", "demo.png"] if with_plot else ["demo.json"])
    print(f"Text: {corpus.source}")
    print(
        f"  {len(corpus.train):,} tokens to train on, {len(corpus.valid):,} to validate on, by {corpus.level}; "
        f"vocabulary {len(corpus.vocabulary):,}; {corpus.unknown_share:.1%} of the validation tokens are outside it"
    )
    print(f"  sha256 {corpus.sha256}")
    name, kept = chosen.cell.upper(), list[Outcome]()
    try:
        print(
            f"Both trainings: {chosen.epochs} epochs, {chosen.batch} sequences in segments of {chosen.steps} steps, "
            f"Adam at {chosen.rate:g}, seed {chosen.seed}; the same initial parameters, batches and updates\n",
            flush=True,
        )
        outcomes = [
            train_apart(chosen, label, sites, _kept(kept, Display(chosen)))
            for label, sites in ((f"nn.{name}", {}), (f"frd.{name} with sites", SITES[chosen.level]))
        ]
    except KeyboardInterrupt:
        done = [outcome for outcome in kept if outcome.epochs]
        if not done:
            raise Interrupted("no epoch was done yet") from None
        _write(written[0], _record(chosen, corpus, done) | {"interrupted": True})
        raise Interrupted(f"the epochs that were done are in {written[0]}") from None
    plain, ours = outcomes
    if plain.start != ours.start or plain.updates != ours.updates:
        raise RuntimeError("the two trainings did not start from the same parameters, or differ in their updates")
    print(f"\n{table(outcomes, chosen.level)}\n\n{legend(chosen.level)}\n\n{verdict(plain, ours, chosen.level)}\n")
    _write(written[0], _record(chosen, corpus, outcomes))
    if with_plot:
        plot(outcomes, chosen.level, corpus.source, written[-1])
    print("Wrote " + " and ".join(map(str, written)))
    return outcomes
