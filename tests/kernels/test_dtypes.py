"""Other dtypes than float64, where kernels round; a layer whose weights have another one than its input."""

from __future__ import annotations

import pytest
import torch
from comparisons import against_reference
from grids import CELLS, TOLERANCE, all_sites, expect, inner_sites, inputs_for, measure, pack
from targets import CPU, CPU_EXACT, CUDA, LOW, TRITON, Target, on

weights_of = pytest.mark.parametrize("weights", [torch.float32, torch.float64], ids=str)


@on(CPU, CUDA)
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_everything_in_other_dtypes(target: Target, cell: str, packed: bool, dtype: torch.dtype) -> None:
    """Two layers, both directions."""
    steps, batch, lengths = target.shape
    against_reference(
        target, target.module(cell, all_sites(cell), dtype=dtype), steps, batch, lengths if packed else None
    )


@on(TRITON)
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_one_layer_in_other_dtypes(target: Target, cell: str, dtype: torch.dtype) -> None:
    """Weights, h, and gradients at the gates are rounded where a product reads them; the state is not, nor any sum."""
    rnn = target.module(cell, inner_sites(cell), (6, 17, 9), dtype=dtype)
    steps, batch, lengths = target.shape
    against_reference(target, rnn, steps, batch, lengths, (dtype == torch.bfloat16,))
    if dtype == torch.float32:
        against_reference(target, rnn, steps, batch, None, (True,))


@on(CPU_EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_cpu_rounds_once(target: Target, cell: str, packed: bool, dtype: torch.dtype) -> None:
    """One layer computes in fp32 whatever its dtype: a result is the fp64 one, rounded once."""
    sites = inner_sites(cell)
    # They are operators of their own, which round their results too.
    del sites["input_dropout"], sites["output_dropout"]
    rnn = target.module(cell, sites, (6, 33, 17), layers=1, bidirectional=False, dtype=dtype)
    steps, batch, lengths = target.shape
    lengths = lengths if packed else None
    x, states = inputs_for(rnn, steps, batch)
    given = target.drawn(batch)
    masks = target.masks(rnn, pack(x, lengths), **given)
    assert {mask.dtype for mask in masks.values()} == {torch.float32}
    want = expect(rnn, x, states, masks, lengths)
    for rnn.recompute in (False, True):
        got = measure(rnn, x, states, lengths, **given)
        for name, value in want.items():
            assert got[name].dtype == dtype
            accumulated = TOLERANCE[torch.float32] * value.abs().max()
            # Half a unit in the last place, and half the smallest number that fp16 has.
            rounding = torch.finfo(dtype).eps / 2 * value.abs() + torch.finfo(dtype).smallest_normal
            error = (got[name].double() - value).abs()
            assert (error <= accumulated + rounding).all(), f"{name}: {(error / (accumulated + rounding)).max()}"


@on(CPU, CUDA, TRITON)
@weights_of
@pytest.mark.parametrize("cell", CELLS)
def test_weights_of_another_dtype(target: Target, cell: str, weights: torch.dtype) -> None:
    """bf16 activations under autocast leave the master weights and their gradients in their own dtype."""
    rnn = target.module(cell, inner_sites(cell), layers=1, dtype=weights)
    x = torch.randn(2, 2, rnn.input_size, device=target.device, requires_grad=True)
    rng = target.rng()
    with torch.autocast(target.device, dtype=torch.bfloat16):
        out, _ = rnn(x, rng=rng)
    out.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == weights and p.grad.isfinite().all() for p in rnn.parameters())
    plain, _ = rnn(x.detach().to(weights), rng=rng)
    assert (out - plain).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * plain.abs().max()
