"""A classifier of sequences, and the loop that trains it: what digits and the tasks of memory share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .records import CellSettings
from .training import CELLS, ran

Batch = tuple[Tensor, Tensor]
"""x (T, B, I), and int64 targets (steps, B) of the last ``steps`` steps."""


class SequenceClassifier(nn.Module):
    """One layer of this package, and classes from its output at the last steps.

    Args:
        inputs, units, classes: widths.
        steps: how many of the last outputs are read.
        cell: ``"LSTM"`` or ``"GRU"``.
        sites: of the layer.
    """

    def __init__(self, inputs: int, units: int, classes: int, steps: int, cell: str, sites: Mapping[str, Any]) -> None:
        super().__init__()
        self.steps = steps
        self.rnn = CELLS[cell](inputs, units, **sites)
        self.head = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        """From x (T, B, inputs) to logits (steps, B, classes)."""
        return self.head(self.rnn(x)[0][-self.steps :])


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, batches: list[Batch]) -> tuple[float, float]:
    """Mean loss in bits, and the share of targets that are wrong, in eval mode."""
    model.eval()
    loss, wrong, count = 0.0, 0, 0
    for x, targets in batches:
        logits = model(x)
        loss += functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        wrong += int((logits.argmax(-1) != targets).sum())
        count += targets.numel()
    return round(loss / count / math.log(2), 5), wrong / count


def fit(
    settings: CellSettings,
    model: SequenceClassifier,
    optimizer: torch.optim.Optimizer,
    clip: float,
    epoch_of: Callable[[], Iterator[Batch]],
    seen: list[Batch],
    valid: list[Batch],
    tell: Callable[[int], None],
) -> dict[str, Any]:
    """Trains a model and returns what ``CellSettings.train`` does, but for what the task itself measures.

    Args:
        settings: say how many epochs.
        model: to train.
        optimizer: of its parameters.
        clip: largest norm of the gradient.
        epoch_of: gives the batches of one epoch.
        seen, valid: what the losses after each epoch are taken on.
        tell: called with the number of epochs that are done.

    Returns:
        Beside the losses in bits, ``wrong``, the share of wrong answers on ``valid`` after each epoch; ``figures``
        has the lowest of them in percent, ``error``.
    """
    began = time.perf_counter()
    curves: dict[str, list[float]] = {"train": [], "valid": [], "wrong": []}
    for epoch in range(1, settings.epochs + 1):
        model.train()
        for batch in epoch_of():
            optimizer.zero_grad()
            _loss(model, batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        curves["train"].append(evaluate(model, seen)[0])
        loss, wrong = evaluate(model, valid)
        curves["valid"].append(loss)
        curves["wrong"].append(round(wrong, 5))
        tell(epoch)
    x = valid[0][0]
    return curves | {
        "figures": {"error": 100 * min(curves["wrong"])},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "ran": ran(model, x.size(0), x.size(1)),
        "seconds": round(time.perf_counter() - began, 1),
    }
