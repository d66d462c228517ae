"""Tasks of long memory: symbols or their order, to be known 100 to 300 steps later. Masks on the memory forbid it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.nn import functional

from fused_rnn_dropout import CellDropout, UpdateDropout

from .classifier import Batch, SequenceClassifier, fit
from .grid import Builder, Grid
from .records import CellSettings
from .task import Section, Task, figure

ORDER, COPY = "temporal order", "copy"


@dataclass(frozen=True)
class MemorySettings(CellSettings):
    """Those of a layer that is to remember. New sequences are drawn for each update.

    Attributes:
        sites: what the layer is given: a rate or an options object by site.
        problem: ``"temporal order"`` or ``"copy"``, see :func:`temporal_order` and :func:`copy_memory`.
        length: T, of what lies between what is to be remembered and the answer.
        cell, hidden: of the layer.
        epochs, updates: how many epochs of how many updates.
        batch: sequences in an update.
        tested: sequences that losses are taken on.
        rate: Adam's learning rate.
        clip: largest norm of the gradient.
    """

    sites: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ORDER
    length: int = 100
    cell: str = "LSTM"
    hidden: int = 64
    epochs: int = 40
    updates: int = 100
    batch: int = 32
    tested: int = 512
    rate: float = 4e-3
    clip: float = 1.0

    task: ClassVar[str] = "memory"
    unit: ClassVar[str] = "bits per answer"

    def train(self, seed: int, tell: Callable[[int], None]) -> dict[str, Any]:
        draw, symbols, classes, steps = PROBLEMS[self.problem]
        fixed = torch.Generator().manual_seed(0)  # the same sequences for all rows and seeds
        seen, valid = ([draw(self.length, self.tested, fixed)] for _ in range(2))
        torch.manual_seed(seed)
        model = SequenceClassifier(symbols, self.hidden, classes, steps, self.cell, self.sites)
        remember_long(model, self.length)
        source = torch.Generator().manual_seed(seed)

        def epoch() -> Iterator[Batch]:
            for _ in range(self.updates):
                yield draw(self.length, self.batch, source)

        optimizer = torch.optim.Adam(model.parameters(), lr=self.rate)
        return fit(self, model, optimizer, self.clip, epoch, seen, valid, tell)


@torch.no_grad()
def remember_long(model: SequenceClassifier, length: int) -> None:
    """Gates of an LSTM that begin with memories of 1 to ``length`` steps (Tallec & Ollivier 2018), torch's otherwise.

    Without it plain LSTMs need more updates than these cells have, and nothing would be seen of the masks.
    """
    units = model.rnn.hidden_size
    if model.rnn.mode != "LSTM":
        raise ValueError(f"cell should be 'LSTM', got {model.rnn.mode!r}")
    forget = (1 + (length - 1) * torch.rand(units)).log()
    model.rnn.bias_hh_l0[: 2 * units] = 0
    model.rnn.bias_ih_l0[:units] = -forget
    model.rnn.bias_ih_l0[units : 2 * units] = forget


def temporal_order(length: int, batch: int, source: torch.Generator) -> Batch:
    """Two of X and Y among four distractors, in the first and second tenth and in the sixth: which, in which order?

    The first lies in [T/10, 2 T/10), the second in [5 T/10, 6 T/10) (Hochreiter & Schmidhuber 1997); four classes.
    """
    ids = torch.randint(2, 6, (length, batch), generator=source)
    which = torch.randint(2, (2, batch), generator=source)
    for place, begin in enumerate((length // 10, length // 2)):
        at = begin + torch.randint(max(1, length // 10), (1, batch), generator=source)
        ids.scatter_(0, at, which[place : place + 1])
    return functional.one_hot(ids, 6).float(), 2 * which[:1] + which[1:]


def copy_memory(length: int, batch: int, source: torch.Generator, symbols: int = 5, kinds: int = 8) -> Batch:
    """``symbols`` of ``kinds`` kinds, T blanks, and a sign, behind which they are to be said again, one a step."""
    said = torch.randint(kinds, (symbols, batch), generator=source)
    blank, sign = kinds, kinds + 1
    ids = torch.full((symbols + length + 1 + symbols, batch), blank)
    ids[:symbols] = said
    ids[symbols + length] = sign
    # The answer to the sign is the first symbol, so that the last step of the input would have none.
    return functional.one_hot(ids[:-1], kinds + 2).float(), said


PROBLEMS: Mapping[str, tuple[Callable[[int, int, torch.Generator], Batch], int, int, int]] = {
    ORDER: (temporal_order, 6, 4, 1),
    COPY: (copy_memory, 10, 8, 5),
}
"""How a batch is drawn, and how many symbols, classes and answers there are."""

SITES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "update_dropout 0.5": {"update_dropout": 0.5},
    "update_dropout per sequence 0.5": {"update_dropout": UpdateDropout(0.5, per="sequence")},
    "zoneout c 0.5, h 0.05": {"zoneout_c": 0.5, "zoneout_h": 0.05},
    "cell_dropout 0.25": {"cell_dropout": 0.25},
    "cell_dropout per step 0.25": {"cell_dropout": CellDropout(0.25, per="step")},
    "cell_dropout per step, paper 0.25": {"cell_dropout": CellDropout(0.25, per="step", scale="paper")},
}
LENGTHS: Mapping[str, tuple[int, ...]] = {ORDER: (100, 200, 300), COPY: (100, 300)}


def called(problem: str, length: int, sites: str) -> str:
    return f"{problem}, T {length}: {sites}"


def study() -> Grid:
    made = Builder(MemorySettings())
    for problem, lengths in LENGTHS.items():
        for length in lengths:
            for name, sites in SITES.items():
                made.row(called(problem, length, name), sites, 3, problem=problem, length=length)
    return made.grid()


def tiny() -> Grid:
    made = Builder(MemorySettings(hidden=16, epochs=2, updates=4, batch=8, tested=16))
    for problem in PROBLEMS:
        made.row(called(problem, 20, "none"), {}, 2, problem=problem, length=20)
    return made.grid()


TASK = Task(
    study,
    tiny,
    {"lowest error, %": (figure("error"), ".1f")},
    tuple(
        Section(
            f"{problem.capitalize()}, T = {length}",
            called(problem, length, "none"),
            {called(problem, length, name): "" for name in SITES},
        )
        for problem, lengths in LENGTHS.items()
        for length in lengths
    ),
)
