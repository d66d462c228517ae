"""Time series of unequal lengths, packed, with intervals from Monte Carlo dropout.

    python -m examples.time_series

A GRU with variational dropout predicts the next value of noisy oscillations, and how noisy it is. At test time masks
stay on (``frd.mc_dropout``): the spread of the predictions is what the model does not know, the predicted noise what
nobody can know (Kendall & Gal 2017). That noise is learnt with masks on and counts part of their spread again, so that
the intervals are rather wide. On oscillations faster than any it was trained on, the first of the two grows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_rnn_dropout as frd

NOISE = 0.1


def oscillations(count: int, slowest: float, fastest: float) -> PackedSequence:
    """``count`` series of 20 to 60 steps, one value a step, each with a period and a phase of its own."""
    series = []
    for _ in range(count):
        steps = torch.arange(float(torch.randint(20, 61, ())))
        period = fastest + (slowest - fastest) * torch.rand(())
        clean = torch.sin(2 * torch.pi * (steps / period + torch.rand(())))
        series.append((clean + NOISE * torch.randn(len(steps)))[:, None])
    return pack_sequence(series, enforce_sorted=False)


def pairs(series: PackedSequence) -> tuple[PackedSequence, Tensor]:
    """Every series but its last value, and, in the order of that packed batch, the values to be predicted."""
    unpacked = nn.utils.rnn.unpack_sequence(series)
    before = pack_sequence([one[:-1] for one in unpacked], enforce_sorted=False)
    after = pack_sequence([one[1:] for one in unpacked], enforce_sorted=False)
    return before, after.data[:, 0]


class Forecaster(nn.Module):
    """From a packed batch of values to mean and log variance of the next one, both (rows,)."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.rnn = frd.GRU(1, units, hidden_dropout=0.1, update_dropout=0.1, output_dropout=0.1)
        self.head = nn.Linear(units, 2)

    def forward(self, series: PackedSequence) -> tuple[Tensor, Tensor]:
        out, _ = self.rnn(series)
        mean, log_variance = self.head(out.data).unbind(-1)
        return mean, log_variance


class Forecast(NamedTuple):
    """Of each value: mean, the spread of the means of several masks, and the predicted noise, (rows,) each."""

    mean: Tensor
    unknown: Tensor
    noise: Tensor

    def covered(self, target: Tensor, deviations: float = 1.645) -> float:
        """The share of targets inside an interval that should hold 90 %."""
        width = deviations * (self.unknown**2 + self.noise**2).sqrt()
        return float(((target - self.mean).abs() < width).float().mean())


@torch.no_grad()
def forecast(model: Forecaster, series: PackedSequence, samples: int) -> Forecast:
    """With ``samples`` draws of the masks, each of which lasts for a whole series."""
    frd.mc_dropout(model.eval())
    means, log_variances = map(torch.stack, zip(*(model(series) for _ in range(samples)), strict=True))
    frd.mc_dropout(model, False)
    return Forecast(means.mean(0), means.std(0), log_variances.exp().mean(0).sqrt())


def main(arguments: Sequence[str] | None = None) -> tuple[float, float, float]:
    """Returns the share of the test values inside the 90 % intervals, and the spread at home and elsewhere."""
    parser = argparse.ArgumentParser(prog="python -m examples.time_series", description="Forecasts with intervals.")
    for name, default in (("updates", 600), ("batch", 64), ("units", 64), ("samples", 50)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = Forecaster(options.units)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for update in range(options.updates):
        before, after = pairs(oscillations(options.batch, slowest=25, fastest=12))
        mean, log_variance = model(before)
        loss = nn.functional.gaussian_nll_loss(mean, after, log_variance.exp())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (update + 1) % max(1, options.updates // 5) == 0:
            print(f"update {update + 1}: negative log likelihood {float(loss.detach()):.3f}", flush=True)

    before, after = pairs(oscillations(200, slowest=25, fastest=12))
    at_home = forecast(model, before, options.samples)
    elsewhere = forecast(model, pairs(oscillations(200, slowest=5, fastest=3))[0], options.samples)
    covered = at_home.covered(after)
    home, away = float(at_home.unknown.mean()), float(elsewhere.unknown.mean())
    print(f"noise: {NOISE}, predicted on average {float(at_home.noise.mean()):.3f}")
    print(f"values inside the intervals of 90 %: {100 * covered:.1f} %")
    print(f"spread over masks: {home:.3f}, and {away:.3f} on oscillations that are faster than any in training")
    return covered, home, away


if __name__ == "__main__":
    main()
