"""What the demonstration shows: progress while it trains, then a table, what it means in words, and a plot."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TextIO

from .train import Epoch, Outcome, Progress, Settings

_COLORS = ("tab:red", "tab:blue")


def _unit(level: str) -> str:
    return "perplexity" if level == "word" else "bits per character"


def _in_unit(loss: float, level: str) -> float:
    """A loss in nats per token as perplexity (words) or bits per character."""
    if level == "char":
        return loss / math.log(2)
    return math.exp(loss) if loss < 700 else math.inf


class Display:
    """Shows a training as it goes: one line that changes on a terminal, a line per epoch elsewhere."""

    def __init__(self, settings: Settings, stream: TextIO | None = None) -> None:
        self.settings = settings
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.began = self.shown = time.perf_counter()
        self.epoch = 0

    def _put(self, text: str, stay: bool) -> None:
        clear = "\r\033[K" if self.live else ""
        print(f"{clear}{text}", end="\n" if stay else "", file=self.stream, flush=True)

    def __call__(self, news: Progress | Epoch | Outcome) -> None:
        now = time.perf_counter()
        if isinstance(news, Outcome):
            if not news.epochs:
                self._put(f"{news.name}: {news.module}", stay=True)
                self._put(f"  {news.parameters:,} parameters, {news.threads} threads, {news.ran}", stay=True)
                self.began = now
        elif isinstance(news, Epoch):
            self.epoch += 1
            train, valid = (_in_unit(loss, self.settings.level) for loss in (news.train_loss, news.valid_loss))
            self._put(
                f"  epoch {self.epoch:>2}/{self.settings.epochs}   loss: train {news.train_loss:.3f}, valid "
                f"{news.valid_loss:.3f}   {_unit(self.settings.level)}: train {train:.4g}, valid {valid:.4g}   "
                f"{now - self.began:.0f} s",
                stay=True,
            )
        elif self.live and now - self.shown > 0.2:
            self.shown = now
            done = (news.epoch - 1 + news.done / news.of) / self.settings.epochs
            bar = "#" * round(30 * done)
            left = (now - self.began) * (1 / done - 1)
            self._put(f"  [{bar:<30}] {done:4.0%}   epoch {news.epoch}, about {left:.0f} s left", stay=False)


def _megabytes(amount: int | None) -> str:
    return "unknown" if amount is None else f"{amount / 2**20:.0f} MiB"


def table(outcomes: list[Outcome], level: str) -> str:
    """The figures of each training side by side."""

    def epoch_row(outcome: Outcome, index: int, split: str) -> str:
        loss = getattr(outcome.epochs[index], f"{split}_loss")
        return f"{loss:.3f} ({_in_unit(loss, level):.4g})"

    rows = [("", [outcome.name for outcome in outcomes])]
    for label, cells in (
        ("best validation loss", [epoch_row(one, one.best, "valid") for one in outcomes]),
        ("  reached in epoch", [f"{one.best + 1} of {len(one.epochs)}" for one in outcomes]),
        ("  training loss there", [epoch_row(one, one.best, "train") for one in outcomes]),
        ("validation loss at the end", [epoch_row(one, -1, "valid") for one in outcomes]),
        ("training loss at the end", [epoch_row(one, -1, "train") for one in outcomes]),
        ("parameters", [f"{one.parameters:,}" for one in outcomes]),
        ("updates", [f"{one.updates:,}" for one in outcomes]),
        ("tokens per second", [f"{one.tokens_per_second:,.0f}" for one in outcomes]),
        ("seconds, evaluation included", [f"{one.seconds:.0f}" for one in outcomes]),
        ("peak memory", [_megabytes(one.memory) for one in outcomes]),
        ("  before the first step", [_megabytes(one.memory_before) for one in outcomes]),
    ):
        rows.append((label, cells))
    first = max(len(label) for label, _ in rows)
    widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(outcomes))]
    lines = []
    for label, cells in rows:
        padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([f"{label:<{first}}", *padded]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def legend(level: str) -> str:
    """What the table's figures are."""
    return (
        f"Losses: nats per {'word or mark' if level == 'word' else 'character'} ({_unit(level)}), all in eval mode; "
        "training loss on as much of the training text\nas there is validation text. Tokens per second: forward, "
        "backward, clipping and optimizer step; evaluation left out.\nPeak memory: resident, of a process that runs "
        "this training alone, Python and torch included."
    )


def verdict(plain: Outcome, ours: Outcome, level: str) -> str:
    """What came out, in words, good or bad."""
    before, after = (_in_unit(one.epochs[one.best].valid_loss, level) for one in (plain, ours))
    change = after / before - 1
    if not math.isfinite(change):
        quality = f"{_unit(level)} {before:.4g} without sites, {after:.4g} with"
    else:
        quality = (
            f"best {_unit(level)} {after:.4g} with sites, {before:.4g} without: {abs(change):.1%} "
            f"{'lower, which is better' if change < 0 else 'higher, which is worse' if change > 0 else 'different'}"
        )
    climbs = [one.epochs[-1].valid_loss - one.epochs[one.best].valid_loss for one in (plain, ours)]
    speed = ours.tokens_per_second / plain.tokens_per_second
    lines = [
        f"Validation:  {quality}.",
        f"Overfitting: from its best epoch to the last the validation loss climbs by {climbs[0]:.3f} without sites, "
        f"by {climbs[1]:.3f} with.",
        f"Speed:       {speed:.2f} times the tokens per second of {plain.name}{'' if speed >= 1 else ': slower'}.",
    ]
    if plain.memory is not None and ours.memory is not None:
        lines.append(f"Memory:      {(ours.memory - plain.memory) / 2**20:+.0f} MiB at the peak.")
    return "\n".join(lines)


def plot(outcomes: list[Outcome], level: str, title: str, path: Path) -> None:
    """Draws the losses over the epochs into a PNG at ``path``. Needs matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for outcome, color in zip(outcomes, _COLORS, strict=True):
        epochs = range(1, len(outcome.epochs) + 1)
        valid = [epoch.valid_loss for epoch in outcome.epochs]
        axes.plot(epochs, valid, color=color, label=f"{outcome.name}: validation")
        train = [epoch.train_loss for epoch in outcome.epochs]
        axes.plot(epochs, train, color=color, linestyle="--", alpha=0.6, label=f"{outcome.name}: training")
        axes.plot(outcome.best + 1, valid[outcome.best], "o", color=color)
        axes.annotate(
            f"{_in_unit(valid[outcome.best], level):.4g}", (outcome.best + 1, valid[outcome.best]),
            textcoords="offset points", xytext=(0, -14), ha="center", color=color,
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss in eval mode, nats per token")
    axes.set_title(f"{title}\n(points: best {_unit(level)})", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
