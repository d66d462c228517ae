"""What the GPU's kernels have in common with the CPU's to the bit, and what only they promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import host_run
import pytest
import torch
from comparisons import replayed
from grids import (
    CELLS,
    all_sites,
    assert_equal,
    assert_same,
    call,
    expect,
    inner_sites,
    inputs_for,
    leaves_of,
    measure,
)
from targets import CPU, CUDA, CUDA_HOST, IDS, Target, on
from torch import Tensor

import fused_rnn_dropout as frd
from fused_rnn_dropout import ops
from fused_rnn_dropout.cells import CELLS as TABLE
from fused_rnn_dropout.layer_call import BOTH, FORWARD, Keep, LayerCall
from fused_rnn_dropout.sites import FLAG, GROUPS, KINDS, keep_scale, stream, threshold

OPS = torch.ops.fused_rnn_dropout
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


# --------------------------------------------------------------------------------------------------------------------
# Masks
# --------------------------------------------------------------------------------------------------------------------


def everywhere(device: str, tensors: list[Any]) -> list[Any]:
    return [value.to(device) if isinstance(value, Tensor) else value for value in tensors]


def on_the_cpu(op: Callable[..., Tensor], *args: Any) -> Tensor:
    """The CPU kernels' answer, also while the shim stands in for them."""
    installed = bool(host_run.installed)
    if installed:
        host_run.uninstall()
    try:
        return op(*everywhere("cpu", list(args)))
    finally:
        if installed:
            host_run.install()


@on(CUDA)
@pytest.mark.parametrize("n", [1, 7, 8, 33, 200])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_words_are_those_of_the_cpu(target: Target, kind: int, n: int) -> None:
    row, step = torch.tensor([0, 5, 2**32 - 1]), torch.tensor([7, 2**32 - 1])
    args = (torch.tensor([-3, 2**62 + 11]), row, step, n, stream(kind, 3, 1, 2))
    assert torch.equal(OPS.words(*everywhere(target.device, list(args))).cpu(), on_the_cpu(OPS.words, *args))


@on(CUDA)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 4, 8, 33, 72])
@pytest.mark.parametrize("shared", [False, True], ids=["of_each", "shared"])
@pytest.mark.parametrize("per_step", [False, True], ids=["locked", "per_step"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_dropout_has_the_bits_of_the_cpu(
    target: Target, packed: bool, per_step: bool, shared: bool, width: int, dtype: torch.dtype
) -> None:
    """The values too: each is rounded once, everywhere."""
    sizes = torch.tensor([4, 4, 3, *[2] * 20, 1]) if packed else None
    shape = (int(sizes.sum()), width) if sizes is not None else (21, 4, width)
    thresholds = torch.zeros(10, dtype=torch.int64).index_fill(0, torch.tensor(1), threshold(0.3))
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    args = [x, torch.tensor([5, -6]), thresholds, sizes, IDS, 1, stream(3, 0), per_step, shared, 17]
    want = on_the_cpu(OPS.dropout, *args)
    given = everywhere(target.device, args)
    given[3] = sizes
    assert torch.equal(OPS.dropout(*given).cpu(), want)
    apart = torch.cat([x.flatten()[:1], x.flatten()]).to(target.device)[1:].view(shape)  # for no wide load
    assert torch.equal(OPS.dropout(apart, *given[1:]).cpu(), want)


@on(CPU, CUDA)
@pytest.mark.parametrize("rate", [0.3, 0.4, 0.9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dropout_does_not_round_its_scale(target: Target, dtype: torch.dtype, rate: float) -> None:
    """1/0.7 is 1.42857, but 1.42969 in bf16: for a whole sequence every element would be too large."""
    p = threshold(rate)
    x = torch.randn(5, 4, 37, dtype=dtype, device=target.device, requires_grad=True)
    thresholds = torch.zeros(10, dtype=torch.int64).index_fill(0, torch.tensor(1), p).to(target.device)
    dropped = ops.dropout(x, target.rng(), thresholds, None, None, 1, 3, True, False, 0)
    kept, scale = dropped.detach() != 0, torch.tensor(keep_scale(p), dtype=torch.float32)
    assert torch.equal(dropped.detach()[kept], (x.detach().float() * scale).to(dtype)[kept])
    (gradient,) = torch.autograd.grad(dropped, x, x.detach())
    assert torch.equal(gradient, dropped.detach())


@on(CUDA)
@pytest.mark.parametrize("cell", CELLS)
def test_exported_masks_are_those_of_pytorch(target: Target, cell: str) -> None:
    rnn = target.module(cell, all_sites(cell), (7, 37, 21), dtype=torch.float32)
    plain = target.module(cell, all_sites(cell), (7, 37, 21), dtype=torch.float32, backend="reference", device="cpu")
    x, _ = inputs_for(rnn, 3, 4)
    given = target.drawn(4)
    got = target.masks(rnn, x, **given)
    want = frd.export_masks(plain, x.cpu(), **dict(zip(given, everywhere("cpu", list(given.values())), strict=True)))
    assert_equal({name: mask.cpu() for name, mask in got.items()}, want)


# --------------------------------------------------------------------------------------------------------------------
# Graphs, order, shapes
# --------------------------------------------------------------------------------------------------------------------


@on(CUDA)
@pytest.mark.parametrize("cell", CELLS)
def test_a_replay_sees_new_randomness_and_new_rates(target: Target, cell: str) -> None:
    rnn = target.module(cell, all_sites(cell), dtype=torch.float32)
    x, states = inputs_for(rnn, *target.shape[:2])
    rng = target.rng()
    leaves = leaves_of(rnn, x, states)

    def run() -> tuple[Tensor, ...]:
        results = call(rnn, x, states, rng=rng)
        return (*results.values(), *torch.autograd.grad(sum(map(torch.sum, results.values())), list(leaves.values())))

    replay = replayed(target, run)
    seen = [replay()]
    for change in (lambda: rng.copy_(frd.draw_rng("cpu")), lambda: rnn.set_rate("zoneout_h", 0.9)):
        change()
        seen.append(replay())
        assert_equal(dict(enumerate(seen[-1])), dict(enumerate(run())))
        assert not torch.equal(seen[-1][0], seen[-2][0])


@on(CUDA_HOST)
@pytest.mark.parametrize("cell", CELLS)
def test_the_order_of_threads_does_not_matter(target: Target, cell: str) -> None:
    """The same bits for several orders of threads and blocks. More rows than one block of column_sums takes."""
    rnn = target.module(cell, inner_sites(cell), (3, 37, 9), layers=1, dtype=torch.float32)
    x, states = inputs_for(rnn, 33, 17)
    given = target.draw()
    found = []
    for seed in (0, 1, 2, 3):
        host_run.host_module().set_seed(seed)
        found.append(measure(rnn, x, states, **given))
    host_run.host_module().set_seed(0)
    for other in found[1:]:
        assert_equal(other, found[0])
    want = expect(rnn, x, states, target.masks(rnn, x, **given))
    assert_same(found[0], want, target.tolerance(torch.float32, 33))


@on(CUDA)
@pytest.mark.parametrize("keep", Keep)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unzoned", [False, True])
@pytest.mark.parametrize("directions", [FORWARD, BOTH], ids=["forward", "both"])
@pytest.mark.parametrize("cell", TABLE)
def test_what_a_forward_returns_is_what_its_fake_says(
    target: Target, cell: str, directions: int, unzoned: bool, dtype: torch.dtype, keep: int
) -> None:
    row, units, count = TABLE[cell], 6, 2 if directions == BOTH else 1
    flags = FLAG["ZONEOUT_H"] | FLAG["MASKS_ON"] | (FLAG["UNZONED"] if unzoned else 0)

    def arguments() -> LayerCall:
        def some(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=target.device)

        states = [some(3, units) for _ in range(count * row.states)]
        weights = [some(row.gates * units, 5), some(row.gates * units, units)] * count
        pair = torch.zeros(2, dtype=torch.int64, device=target.device).expand(len(GROUPS), 2)
        rates = torch.zeros(10, dtype=torch.int64, device=target.device)
        return LayerCall(
            row.number, some(4, 3, 5), states, weights, None, None, pair, rates, dtype, flags, 0, directions, 0, 0,
            int(keep),
        )  # fmt: skip

    got = OPS.layer_forward(*arguments())
    with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        want = OPS.layer_forward(*arguments())
    for real, fake in zip((got[0], *got[1], *got[2]), (want[0], *want[1], *want[2]), strict=True):
        assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())
