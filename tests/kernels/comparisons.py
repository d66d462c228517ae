"""What several tests of the kernels check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from grids import assert_equal, assert_same, expect, inputs_for, measure, pack, row_of
from targets import LOW, Target
from torch import Tensor, nn

import fused_rnn_dropout as frd


def against_reference(
    target: Target,
    rnn: nn.Module,
    steps: int,
    batch: int,
    lengths: list[int] | None = None,
    recompute: tuple[bool, ...] = (False, True),
    **given: Any,
) -> None:
    """Results and gradients are the reference's, fed with the masks of the kernels, for each value of ``recompute``.

    ``given`` is the randomness of the call, drawn where there is none.
    """
    x, states = inputs_for(rnn, steps, batch)
    given = given or target.drawn(batch)
    want = expect(rnn, x, states, target.masks(rnn, pack(x, lengths), **given), lengths, between=x.dtype)
    if rnn.hidden_size == 1 and x.dtype != torch.float64:
        # A gradient of one number may be a sum that cancels, with no larger neighbour to measure its error by.
        alone = 1 if x.dtype == torch.float32 else torch.inf
        want = {name: value for name, value in want.items() if not name.startswith("d ") or value.numel() > alone}
    if rnn.mode == "RNN_RELU" and x.dtype in LOW:
        # The gradient of relu jumps at 0, and a sum that is rounded may lie on the other side of it.
        want = {name: value for name, value in want.items() if not name.startswith("d ")}
    within = target.tolerance(x.dtype, steps * rnn.num_layers)
    if rnn.mode == "RNN_TANH" and x.dtype in LOW:
        within *= 2  # its gradient is that of 1 - h², of an h that is kept as it was rounded
    outputs = []
    for rnn.recompute in recompute:
        got = measure(rnn, x, states, lengths, **given)
        assert all(value.dtype == x.dtype for value in got.values())
        assert_same({name: got[name] for name in want}, want, within)
        outputs.append({name: got[name] for name in ("out", "h_n")})
    assert_equal(outputs[-1], outputs[0])


def everything(target: Target, cell: str) -> dict[str, dict[str, Any]]:
    """All sites at once, with the options that go together with none other, and no site."""
    zoneout_h = frd.Zoneout(0.2, "sequence", False, "unzoned")
    unzoned = target.all_sites(cell) | {"zoneout_h": zoneout_h}
    if row_of(cell).has_c:
        unzoned |= {"zoneout_c": frd.Zoneout(0.2, "sequence")}
    return {"everything": target.all_sites(cell), "everything_unzoned": unzoned, "nothing": {}}


def replayed(target: Target, run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], list[Tensor]]:
    """What replays a run with what is in the same memory by then: a CUDA graph, or on the host the same launches."""
    if target.device != "cuda":
        return lambda: list(run())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> list[Tensor]:
        graph.replay()
        return [result.clone() for result in results]

    return replay
