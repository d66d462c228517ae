"""Monte Carlo against deterministic evaluation, each with the tuning of Melis et al. 2018."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fused_rnn_dropout import training

from ..language_model.train import segments

TEMPERATURES = (0.8, 0.9, 1.0, 1.1, 1.2, 1.35)
"""On the logarithms of the predicted probabilities, eval's and averaged ones alike."""
POWERS = (1.0, 0.5, 0.0)
"""Of the power mean: arithmetic, between, geometric."""
MULTIPLIERS = (0.5, 0.75, 1.0)
"""On every rate."""

_Predict = Callable[[Tensor], Tensor]


def _eval(model: nn.Module) -> _Predict:
    @torch.no_grad()
    def predict(ids: Tensor) -> Tensor:
        model.eval()
        return model(ids)[0].log_softmax(-1)

    return predict


def _averaged(model: nn.Module, samples: int, multiplier: float, power: float) -> _Predict:
    def predict(ids: Tensor) -> Tensor:
        return training.mc_predict(model, ids, samples=samples, multiplier=multiplier, power=power).log()

    return predict


def _bits(predict: _Predict, ids: Tensor, steps: int) -> dict[float, float]:
    """Bits per token by temperature, of segments that each begin with a state of zeros."""
    losses: dict[float, list[Tensor]] = {temperature: [] for temperature in TEMPERATURES}
    for inputs, targets in segments(ids, steps):
        found = predict(inputs)
        for temperature, collected in losses.items():
            logs = (found / temperature).log_softmax(-1)
            collected.append(-logs.gather(-1, targets.unsqueeze(-1)).flatten())
    return {temperature: round(torch.cat(each).double().mean().item() / math.log(2), 5)
            for temperature, each in losses.items()}  # fmt: skip


def eval_tuning(model: nn.Module, ids: Tensor, steps: int, samples: int) -> dict[str, Any]:
    """Chooses temperature, power and multiplier on the first half of the text; measures on the second.

    Args:
        model: returns logits (T, B, V) and a state; it has a site configured.
        ids: int64 (T, B).
        steps: length of a segment.
        samples: masks for each choice.

    Returns:
        ``figures``: bits per token of the second half, by eval mode and by MC, plain and tuned; ``tuned``: what was
        chosen for MC, and the temperature chosen for eval mode.
    """
    half = len(ids) // 2
    chosen_on, measured_on = ids[:half], ids[half:]
    by_temperature = _bits(_eval(model), chosen_on, steps)
    of_eval = min(TEMPERATURES, key=lambda t: by_temperature[t])
    found = {
        choice: _bits(_averaged(model, samples, *choice), chosen_on, steps) for choice in product(MULTIPLIERS, POWERS)
    }
    multiplier, power = min(found, key=lambda choice: min(found[choice].values()))
    temperature = min(TEMPERATURES, key=lambda t: found[multiplier, power][t])
    in_eval = _bits(_eval(model), measured_on, steps)
    figures = {
        "tuning: eval": in_eval[1.0],
        "tuning: eval tuned": in_eval[of_eval],
        "tuning: MC": _bits(_averaged(model, samples, 1.0, 1.0), measured_on, steps)[1.0],
        "tuning: MC tuned": _bits(_averaged(model, samples, multiplier, power), measured_on, steps)[temperature],
    }
    tuned = {"multiplier": multiplier, "power": power, "temperature": temperature, "temperature of eval": of_eval}
    return {"figures": figures, "tuned": tuned}
