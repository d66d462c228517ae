"""What the study would have cost with a Python loop in the place of the fused layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fused_rnn_dropout.bench.loops import LOOP_SITES, Loop
from fused_rnn_dropout.bench.machine import processor
from fused_rnn_dropout.bench.measure import median_of, paired, ratio_of
from fused_rnn_dropout.bench.report import between, milliseconds, spread
from fused_rnn_dropout.bench.tables import table

from .grid import Grid, Row
from .runner import duration
from .training import CharacterModel, Settings, Text, load_text

OURS, CAREFUL, USUAL, PLAIN = "ours", "loop over unbind", "loop over x[t]", "nn, no dropout"
MARKERS = "<!-- review speed: begin -->", "<!-- review speed: end -->"


class _Plain(nn.Module):
    """The model with a layer that carries no state, which is all that the loop can do."""

    def __init__(self, settings: Settings, characters: int, rnn: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, settings.embedding)
        self.rnn = rnn
        self.decoder = nn.Linear(settings.hidden, characters)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.embedding(ids))[0])


def _update(model: nn.Module, settings: Settings, text: Text) -> Callable[[], None]:
    """One update of the study: a segment forward and backward, clipping and Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    ids, targets = text.train[: settings.steps], text.train[1 : settings.steps + 1]

    def run() -> None:
        found = model(ids)
        logits = found[0] if isinstance(found, tuple) else found
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()

    return run


def comparable(row: Row) -> bool:
    """Whether the loop has the row's sites: rates without options, one layer, nothing around it."""
    settings = row.settings
    known = all(name in LOOP_SITES and isinstance(rate, float) for name, rate in settings.sites.items())
    return known and not settings.extras and settings.layers == 1 and settings.backend is None


def _models(settings: Settings, characters: int) -> dict[str, nn.Module]:
    sizes = settings.embedding, settings.hidden
    rnns = {
        USUAL: Loop(settings.cell, *sizes, dict(settings.sites)),
        CAREFUL: Loop(settings.cell, *sizes, dict(settings.sites), careful=True),
        PLAIN: getattr(nn, settings.cell)(*sizes),
    }
    plain = {name: _Plain(settings, characters, rnn) for name, rnn in rnns.items()}
    return {OURS: CharacterModel(characters, settings), **plain}


def measure(grid: Grid, budget: float, tell: Callable[[str], None]) -> Iterator[tuple[Row, dict[str, list[float]]]]:
    """Seconds of an update by contender, in paired rounds, of every named row that the loop can compute.

    Args:
        grid: whose named rows.
        budget: seconds to spend on a row, roughly.
        tell: called with the row that begins.

    Raises:
        CorpusError: the text is missing.
    """
    for row in grid.named:
        if comparable(row):
            tell(row.name)
            text = load_text(row.settings)
            models = _models(row.settings, text.vocabulary)
            runs = {name: _update(model, row.settings, text) for name, model in models.items()}
            yield row, paired(runs, slow=(USUAL, CAREFUL), budget=budget).rounds


def page(grid: Grid, budget: float, tell: Callable[[str], None]) -> str:
    """The table, and what all cells of the grid would take at these speeds."""
    rows: list[list[str]] = []
    seconds: dict[str, list[float]] = {OURS: [], CAREFUL: [], USUAL: []}
    updates = 0
    for row, rounds in measure(grid, budget, tell):
        settings = row.settings
        updates = settings.epochs * ((settings.characters // settings.batch - 1) // settings.steps + 1)
        ratios = [spread(ratio_of(rounds[name], rounds[OURS])) for name in (USUAL, CAREFUL, PLAIN)]
        rows.append([row.name, milliseconds(median_of(rounds[OURS]).value), *ratios])
        for name, collected in seconds.items():
            collected.append(median_of(rounds[name]).value)
    if not rows:
        return "The loop can compute none of these rows."
    head = ("row", "ours, ms an update", f"{USUAL} / ours", f"{CAREFUL} / ours", f"{PLAIN} / ours")
    cells = len(list(grid.cells()))
    took = {name: duration(cells * updates * sum(of) / len(of)) for name, of in seconds.items()}
    return (
        f"{table(head, rows)}\n\nRatios of medians with 95 % intervals; above 1 we are faster. {processor()}, "
        f"{torch.get_num_threads()} thread, torch {torch.__version__}. The updates of all {cells} cells at the mean of "
        f"these rows: {took[OURS]} with ours, {took[CAREFUL]} with the loop over unbind, {took[USUAL]} with the loop "
        "over x[t]."
    )


def into_page(text: str, path: Path) -> None:
    """Puts it between its markers. Raises ``ValueError`` where they are not there once."""
    between(path, *MARKERS, text)
