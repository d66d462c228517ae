"""Rates at which an element's field is the upper half of the threshold, so that the second call decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparisons import against_reference
from grids import fits, inputs_for
from targets import CPUS, CUDA, TRITON, Target, on
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import CellDropout, HiddenDropout, LockedDropout, UpdateDropout, WeightDropout, Zoneout, masks
from fused_rnn_dropout.sites import threshold

STEPS, BATCH = 3, 3
SITES = {
    "input": {"input_dropout": LockedDropout(0.5)},
    "input_step": {"input_dropout": LockedDropout(0.5, "step")},
    "output": {"output_dropout": LockedDropout(0.5)},
    "hidden": {"hidden_dropout": HiddenDropout(0.5)},
    "weight": {"weight_dropout": WeightDropout(0.5)},
    "weight_row": {"weight_dropout": WeightDropout(0.5, "row")},
    "update": {"update_dropout": UpdateDropout(0.5)},
    "update_sequence": {"update_dropout": UpdateDropout(0.5, "sequence")},
    "cell": {"cell_dropout": CellDropout(0.5)},
    "cell_step": {"cell_dropout": CellDropout(0.5, "step")},
    "zoneout_c": {"zoneout_c": Zoneout(0.5)},
    "zoneout_h": {"zoneout_h": Zoneout(0.5)},
    "zoneout_h_sequence": {"zoneout_h": Zoneout(0.5, "sequence")},
}


def numbers_read(rnn: nn.Module, x: Tensor, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The numbers that the masks of a call are made of, all in a row."""
    found, words, backend = [], masks.words, rnn.backend

    def reading(*args: Any) -> Tensor:
        found.append(words(*args))
        return found[-1]

    with monkeypatch.context() as patched:
        patched.setattr(masks, "words", reading)
        rnn.backend = "reference"
        frd.export_masks(rnn, x, **given)
        rnn.backend = backend
    return torch.cat([numbers.flatten() for numbers in found])


@on(CPUS, CUDA, TRITON)
@pytest.mark.parametrize(
    ("cell", "site"),
    [(cell, site) for cell in ("LSTM", "GRU", "RNN_TANH") for site, given in SITES.items() if fits(cell, given)],
)
def test_ties(target: Target, cell: str, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With P the number of an element it is kept, with P + 1 dropped, and no other element changes."""
    [name] = SITES[site]
    rnn = target.module(cell, SITES[site], (5, 19, 7), layers=1, bidirectional=False)
    x, _ = inputs_for(rnn, STEPS, BATCH)
    given = target.drawn(BATCH)
    numbers = numbers_read(rnn, x, given, monkeypatch)
    possible = numbers[(numbers & 0xFFFF > 0) & (numbers > 2**30) & (numbers < 3 * 2**30)]
    met = int(possible[len(possible) // 2])
    dropped = []
    for p_threshold in (met, met + 1):
        setattr(rnn, name, p_threshold / 2**32)
        assert threshold(getattr(rnn, name)) == p_threshold
        [mask] = [
            m for key, m in target.masks(rnn, x, **given).items() if not key.startswith(("cell_scale", "cell_entry"))
        ]
        dropped.append((mask == 0) ^ name.startswith("zoneout"))
        against_reference(target, rnn, STEPS, BATCH, recompute=(False,), **given)
    assert int(dropped[0].sum()) == int((numbers < met).sum()) and int((dropped[0] ^ dropped[1]).sum()) == 1
