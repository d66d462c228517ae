"""The rows of the cells, against what the operators and modules of each cell are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fused_rnn_dropout as frd
from fused_rnn_dropout.cells import CELLS, Cell
from fused_rnn_dropout.layer_call import FORWARD, Keep, Kept, LayerCall
from fused_rnn_dropout.sites import FLAG, GROUPS, SITE, SITES, output_differs

rows = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


TABLE = Path(__file__).resolve().parents[2] / "csrc" / "core" / "cells.h"


def test_numbers_are_places_in_the_table() -> None:
    assert [cell.number for cell in CELLS.values()] == list(range(len(CELLS)))
    assert [cell.name for cell in CELLS.values()] == list(CELLS)


def test_the_table_of_the_kernels_says_the_same() -> None:
    """In the same order, field by field, of the fields that both have."""
    shown = [re.findall(r"\.(\w+) = ([^,}]+)", row) for row in re.findall(r"\{(\.name = .*?)\}", TABLE.read_text())]
    names = ["name", "gates", "has_c", "projects", "apart"]
    ours = [[(name, json.dumps(getattr(cell, name))) for name in names] for cell in CELLS.values()]
    assert shown == ours


@rows
def test_a_row_is_what_torch_has(cell: Cell) -> None:
    theirs: Any = getattr(nn, cell.module)(3, 5, **cell.settings)
    assert theirs.weight_hh_l0.shape == (cell.gates * 5, 5)
    last = theirs(torch.zeros(2, 1, 3))[1]
    assert (len(last) if isinstance(last, tuple) else 1) == cell.states
    if cell.projects:
        assert getattr(nn, cell.module)(3, 5, proj_size=2).weight_hr_l0.shape == (2, 5)
    else:
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
            getattr(nn, cell.module)(3, 5, proj_size=2)


@rows
@pytest.mark.parametrize("prefix", ["", "triton_"], ids=["compiled", "triton"])
def test_no_operator_is_of_one_cell(cell: Cell, prefix: str) -> None:
    names = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "fused_rnn_dropout::" in name}
    assert f"{prefix}layer" in names
    assert not [name for name in names if name.startswith(prefix + cell.name.lower())]


@rows
def test_sites_of_a_memory_that_is_not_there(cell: Cell) -> None:
    absent = [site.name for site in SITES if not site.fits(cell.name)]
    assert absent == ["cell_dropout"] * (not cell.carries) + ["zoneout_c"] * (not cell.has_c)


@rows
@pytest.mark.parametrize("site", ["none", "cell", "unzoned"])
def test_whether_the_output_is_the_h_that_backward_reads(cell: Cell, site: str) -> None:
    """What the compiled kernels keep in training: an h of its own, or none."""
    sites: dict[str, Any] = {
        "none": {},
        "cell": {"cell_dropout": frd.CellDropout(0.5, scale="output")},
        "unzoned": {"zoneout_h": frd.Zoneout(0.5, output="unzoned")},
    }[site]
    if not all(SITE[name].fits(cell.name) for name in sites):
        pytest.skip(f"no site of {cell.called}")
    flags = {"none": 0, "cell": FLAG["CELL"] | FLAG["CELL_SEQUENCE"], "unzoned": FLAG["UNZONED"]}[site]
    rnn = getattr(frd, cell.module)(3, 64, **cell.settings, **sites)
    assert rnn._plan.eval_flags & ~FLAG["ZONEOUT_H"] == flags
    weights = [w.detach() for w in rnn._flat_weights]
    rates = rnn._thresholds_on(torch.device("cpu"))
    rng = frd.draw_rng().expand(len(GROUPS), 2)
    flags = flags and rnn._plan.train_flags
    call = LayerCall(
        cell.number, torch.randn(4, 2, 3), [torch.zeros(2, 64)] * cell.states, weights, None, None, rng, rates,
        torch.float32, flags, 0, FORWARD, 0, 0, Keep.ALL,
    )  # fmt: skip
    (kept,) = Kept.of_each(torch.ops.fused_rnn_dropout.layer_forward(*call)[2])
    assert (kept.states.numel() > 0) == output_differs(cell, flags)
