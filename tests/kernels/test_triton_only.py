"""What only Triton's layers do: W x in chunks of steps."""

from __future__ import annotations

import pytest
from comparisons import against_reference
from grids import CELLS
from targets import TRITON, Target, on


@on(TRITON)
@pytest.mark.parametrize("cell", CELLS)
def test_products_in_chunks(target: Target, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """W x is computed for some steps at a time; the state goes on from one chunk to the next."""
    from fused_rnn_dropout.triton import layer

    monkeypatch.setattr(layer, "rows_of_chunk", lambda width, itemsize: 2 * 4)
    for lengths in (None, [5, 3, 1, 4]):
        rnn = target.module(cell, {"hidden_dropout": 0.3, "zoneout_h": 0.2})
        against_reference(target, rnn, 5, 4, lengths, recompute=(lengths is None,))
