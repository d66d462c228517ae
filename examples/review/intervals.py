"""Calibration of MC dropout on a real series: El Nino's sea temperatures by month, which statsmodels ships."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import fused_rnn_dropout as frd

from .grid import Builder, Grid
from .records import CellSettings
from .shipped import read_shipped
from .task import Section, Task, figure
from .training import ran

NOMINAL = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
"""Shares of the values that central intervals should hold."""
MASKS, NOISE, BOTH = "masks alone", "noise alone", "masks and noise"
"""Where a width comes from: the spread of predictions over masks; residuals in eval mode; residuals of MC's mean, and
the spread over masks."""


@dataclass(frozen=True)
class IntervalSettings(CellSettings):
    """Those of a layer that predicts the next month.

    Attributes:
        sites: what the layer is given: a rate or an options object by site.
        cell, hidden: of the layer.
        train_share, tune_share: of the months, from the first on; the rest is tested on.
        epochs, updates: how many epochs of how many updates.
        batch, steps: windows of an update, and their months.
        rate: Adam's learning rate.
        passes: masks.
    """

    sites: Mapping[str, Any] = field(default_factory=dict)
    cell: str = "LSTM"
    hidden: int = 64
    train_share: float = 0.6
    tune_share: float = 0.2
    epochs: int = 40
    updates: int = 20
    batch: int = 16
    steps: int = 48
    rate: float = 2e-3
    passes: int = 100

    task: ClassVar[str] = "intervals"
    unit: ClassVar[str] = "squared error"

    def train(self, seed: int, tell: Callable[[int], None]) -> dict[str, Any]:
        return train(self, seed, tell)


def load_months() -> Tensor:
    """Degrees by month from 1950 on, (months,). Raises ``CorpusError`` without statsmodels."""
    text = read_shipped("statsmodels", "statsmodels", "datasets/elnino/elnino.csv").decode("ascii")
    return torch.tensor([float(value) for row in list(csv.reader(text.splitlines()))[1:] for value in row[1:]])


class Forecaster(nn.Module):
    """Adds to each value what a layer of this package says of the next one's difference from it."""

    def __init__(self, settings: IntervalSettings) -> None:
        super().__init__()
        self.rnn = {"LSTM": frd.LSTM, "GRU": frd.GRU}[settings.cell](1, settings.hidden, **settings.sites)
        self.head = nn.Linear(settings.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From x (T, B, 1) to what is predicted for the step behind each, (T, B, 1)."""
        return x + self.head(self.rnn(x)[0])


@torch.no_grad()
def predicted(model: Forecaster, series: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over masks of the forecast of each value but the first; 0 passes: in eval mode."""
    model.eval()
    inputs = series[:-1, None, None]
    if not passes:
        return model(inputs).flatten(), torch.zeros(len(series) - 1)
    frd.mc_dropout(model)
    found = torch.cat([model(inputs) for _ in range(passes)], dim=1)[
        ..., 0
    ]  # one call for all would share weight masks
    frd.mc_dropout(model, on=False)
    return found.mean(1), found.std(1)


def coverage(errors: Tensor, deviations: Tensor) -> list[float]:
    """The share of ``errors`` within each normal interval of :data:`NOMINAL`, whose deviations are given."""
    factors = [NormalDist().inv_cdf(0.5 + share / 2) for share in NOMINAL]
    return [round(float((errors.abs() <= factor * deviations).float().mean()), 4) for factor in factors]


def _figures(kind: str, errors: Tensor, deviations: Tensor) -> dict[str, float]:
    """How far coverage is from what it should be on average, and the negative log likelihood of a value."""
    off = sum(abs(found - share) for found, share in zip(coverage(errors, deviations), NOMINAL, strict=True))
    likelihood = functional.gaussian_nll_loss(errors, torch.zeros_like(errors), deviations.square(), full=True)
    return {f"{kind}: off": round(off / len(NOMINAL), 5), f"{kind}: NLL": round(likelihood.item(), 5)}


def train(settings: IntervalSettings, seed: int, tell: Callable[[int], None]) -> dict[str, Any]:
    """As ``CellSettings.train``; ``coverage`` has the shares of test values inside, by where widths are from."""
    began = time.perf_counter()
    months = load_months()
    first = round(len(months) * settings.train_share)
    second = first + round(len(months) * settings.tune_share)
    months = (months - months[:first].mean()) / months[:first].std()
    torch.manual_seed(seed)
    model = Forecaster(settings)
    optimizer = torch.optim.Adam(model.parameters(), settings.rate)
    source = torch.Generator().manual_seed(seed)
    curves: dict[str, list[float]] = {"train": [], "valid": []}

    def errors(passes: int) -> tuple[Tensor, Tensor]:
        mean, spread = predicted(model, months, passes)
        return months[1:] - mean, spread

    for epoch in range(1, settings.epochs + 1):
        model.train()
        for _ in range(settings.updates):
            begins = torch.randint(first - settings.steps, (settings.batch,), generator=source)
            windows = torch.stack([months[begin : begin + settings.steps + 1] for begin in begins], dim=1)[..., None]
            optimizer.zero_grad()
            functional.mse_loss(model(windows[:-1]), windows[1:]).backward()
            optimizer.step()
        found, _ = errors(0)
        curves["train"].append(round(found[: first - 1].square().mean().item(), 5))
        curves["valid"].append(round(found[first - 1 : second - 1].square().mean().item(), 5))
        tell(epoch)
    tune, test = slice(first - 1, second - 1), slice(second - 1, None)
    found, _ = errors(0)
    of_mean, spread = errors(settings.passes)
    # What the masks do not explain of the residuals is noise; on months that are neither trained nor tested on.
    residual = (of_mean[tune].square().mean() - spread[tune].square().mean()).clamp(min=0)
    noise = found[tune].square().mean().sqrt().expand_as(found[test])
    widths = {NOISE: (found[test], noise), BOTH: (of_mean[test], (spread[test].square() + residual).sqrt())}
    if settings.sites:
        widths[MASKS] = of_mean[test], spread[test].clamp(min=1e-6)
    figures = {"test": round(found[test].square().mean().item(), 5)}
    for kind, pair in widths.items():
        figures |= _figures(kind, *pair)
    return curves | {
        "figures": figures,
        "coverage": {kind: coverage(*pair) for kind, pair in widths.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "ran": ran(model, settings.steps, settings.batch),
        "seconds": round(time.perf_counter() - began, 1),
    }


NONE = "intervals: none"
ROWS: Mapping[str, Mapping[str, Any]] = {
    NONE: {},
    "intervals: hidden_dropout 0.1": {"hidden_dropout": 0.1},
    "intervals: hidden_dropout 0.25": {"hidden_dropout": 0.25},
    "intervals: in, out, hidden 0.1": dict.fromkeys(("input_dropout", "output_dropout", "hidden_dropout"), 0.1),
    "intervals: output_dropout 0.25": {"output_dropout": 0.25},
    "intervals: weight_dropout 0.5": {"weight_dropout": 0.5},
    "intervals: update_dropout 0.25": {"update_dropout": 0.25},
    "intervals: zoneout c 0.15, h 0.15": {"zoneout_c": 0.15, "zoneout_h": 0.15},
}


def study() -> Grid:
    made = Builder(IntervalSettings())
    for name, sites in ROWS.items():
        made.row(name, sites, 3)
    return made.grid()


def tiny() -> Grid:
    made = Builder(IntervalSettings(hidden=8, epochs=2, updates=3, batch=4, passes=5))
    for name in list(ROWS)[:2]:
        made.row(name, ROWS[name], 2)
    return made.grid()


TASK = Task(
    study,
    tiny,
    {"test error": (figure("test"), ".4f")}
    | {f"{kind}, off by": (figure(f"{kind}: off"), ".3f") for kind in (NOISE, MASKS, BOTH)}
    | {f"{kind}, NLL": (figure(f"{kind}: NLL"), ".3f") for kind in (NOISE, MASKS, BOTH)},
    (Section("Intervals for El Nino", NONE, dict.fromkeys(ROWS, "")),),
)
