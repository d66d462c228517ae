"""The demonstration from end to end: the two trainings, the table, the verdict, the files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from .report import Display, legend, plot, table, verdict
from .train import Outcome, Settings, train_apart

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


def run(chosen: Settings, folder: Path, *, with_plot: bool = True) -> list[Outcome]:
    """Trains without and with sites, prints the table, writes ``demo.json`` and ``demo.png`` into ``folder``.

    Raises:
        CorpusError: the text cannot be had or is too short.
        OSError: ``folder`` cannot be written.
        RuntimeError: a training failed, or the two did not start from the same parameters.
    """
    corpus = chosen.corpus()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Text: {corpus.source}")
    print(
        f"  {len(corpus.train):,} tokens to train on, {len(corpus.valid):,} to validate on, by {corpus.level}; "
        f"vocabulary {len(corpus.vocabulary):,}; {corpus.unknown_share:.1%} of the validation tokens are outside it"
    )
    print(f"  sha256 {corpus.sha256}")
    print(
        f"Both trainings: {chosen.epochs} epochs, {chosen.batch} sequences in segments of {chosen.steps} steps, "
        f"Adam at {chosen.rate:g}, seed {chosen.seed}; the same initial parameters, batches and updates\n",
        flush=True,
    )
    name = chosen.cell.upper()
    outcomes = [
        train_apart(chosen, label, sites, Display(chosen))
        for label, sites in ((f"nn.{name}", {}), (f"frd.{name} with sites", SITES[chosen.level]))
    ]
    plain, ours = outcomes
    if plain.start != ours.start or plain.updates != ours.updates:
        raise RuntimeError("the two trainings did not start from the same parameters, or differ in their updates")
    print(f"\n{table(outcomes, chosen.level)}\n\n{legend(chosen.level)}\n\n{verdict(plain, ours, chosen.level)}\n")
    record = {
        "settings": dataclasses.asdict(chosen),
        "sites": SITES[chosen.level],
        "corpus": {"source": corpus.source, "sha256": corpus.sha256, "vocabulary": len(corpus.vocabulary)},
        "trainings": [outcome.record() for outcome in outcomes],
    }
    written = [folder / "demo.json"]
    written[0].write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    if with_plot:
        written.append(folder / "demo.png")
        plot(outcomes, chosen.level, corpus.source, written[-1])
    print("Wrote " + " and ".join(map(str, written)))
    return outcomes
