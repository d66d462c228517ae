"""Permuted digits: the 8 x 8 images of scikit-learn pixel by pixel in a mixed order, for zoneout's Table 2."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fused_rnn_dropout import Zoneout

from .classifier import Batch, SequenceClassifier, fit
from .grid import Builder, Grid
from .records import CellSettings
from .shipped import read_shipped
from .task import Section, Task, figure

CLASSES, PIXELS, BRIGHTEST = 10, 64, 16.0


@dataclass(frozen=True)
class DigitSettings(CellSettings):
    """Those of a classifier of permuted digits, trained by RMSProp as in the paper.

    Attributes:
        sites: what the layer is given: a rate or an options object by site.
        cell, hidden: of the layer.
        images: to train on; the rest is validated on.
        epochs: passes over them.
        batch: images in an update.
        rate, smoothing: of RMSProp.
        clip: largest norm of the gradient.
    """

    sites: Mapping[str, Any] = field(default_factory=dict)
    cell: str = "LSTM"
    hidden: int = 100
    images: int = 1_297
    epochs: int = 150
    batch: int = 50
    rate: float = 1e-3
    smoothing: float = 0.5
    clip: float = 1.0

    task: ClassVar[str] = "digits"
    unit: ClassVar[str] = "bits per image"

    def train(self, seed: int, tell: Callable[[int], None]) -> dict[str, Any]:
        x, targets = load_digits()
        mixed = torch.randperm(PIXELS, generator=torch.Generator().manual_seed(0))  # of all seeds and rows
        x = x[mixed]
        torch.manual_seed(seed)
        model = SequenceClassifier(1, self.hidden, CLASSES, 1, self.cell, self.sites)
        optimizer = torch.optim.RMSprop(model.parameters(), lr=self.rate, alpha=self.smoothing)
        order = torch.Generator().manual_seed(seed)

        def epoch() -> Iterator[Batch]:
            for chosen in torch.randperm(self.images, generator=order).split(self.batch):
                yield x[:, chosen], targets[None, chosen]

        valid = torch.arange(self.images, x.size(1))
        seen = [(x[:, : len(valid)], targets[None, : len(valid)])]
        return fit(self, model, optimizer, self.clip, epoch, seen, [(x[:, valid], targets[None, valid])], tell)


def load_digits() -> tuple[Tensor, Tensor]:
    """x (64, images, 1) in [0, 1], and int64 digits (images,). Raises ``CorpusError`` without scikit-learn."""
    text = gzip.decompress(read_shipped("scikit-learn", "sklearn", "datasets/data/digits.csv.gz")).decode("ascii")
    rows = torch.tensor([[float(value) for value in line.split(",")] for line in text.splitlines()])
    return (rows[:, :PIXELS] / BRIGHTEST).t()[..., None].contiguous(), rows[:, PIXELS].long()


NONE = "digits: none"
_SHARED = {"zoneout_c": 0.15, "zoneout_h": Zoneout(0.15, shared=True)}
ROWS: Mapping[str, Mapping[str, Any]] = {
    NONE: {},
    "digits: zoneout shared 0.15": _SHARED,
    "digits: update_dropout 0.5": {"update_dropout": 0.5},
    "digits: zoneout c 0.15, h 0.15": {"zoneout_c": 0.15, "zoneout_h": 0.15},
    "digits: hidden_dropout 0.25": {"hidden_dropout": 0.25},
    "digits: weight_dropout 0.5": {"weight_dropout": 0.5},
    "digits: cell_dropout 0.25": {"cell_dropout": 0.25},
    "digits: output_dropout 0.5": {"output_dropout": 0.5},
}


def study() -> Grid:
    made = Builder(DigitSettings())
    for name, sites in ROWS.items():
        made.row(name, sites, 3)
    return made.grid()


def tiny() -> Grid:
    made = Builder(DigitSettings(hidden=12, images=1_700, epochs=2, batch=200))
    for name in list(ROWS)[:2]:
        made.row(name, ROWS[name], 2)
    return made.grid()


TASK = Task(
    study,
    tiny,
    {"lowest error, %": (figure("error"), ".2f")},
    (
        Section(
            "Permuted digits",
            NONE,
            dict.fromkeys(ROWS, "")
            | {NONE: "permuted MNIST, error 9.2 % / 10.2 %", "digits: zoneout shared 0.15": "6.3 % / 6.9 %",
               "digits: update_dropout 0.5": "8.3 % / 7.5 %"},
        ),
    ),
)  # fmt: skip
