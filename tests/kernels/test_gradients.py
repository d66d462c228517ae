"""Backward: finite differences, some gradients without the others, backward again, and what is refused."""

from __future__ import annotations

import pytest
import torch
from grids import (
    CELLS,
    TOLERANCE,
    all_sites,
    assert_equal,
    assert_same,
    call,
    check_finite_differences,
    fitting,
    inner_sites,
    inputs_for,
    leaves_of,
    loss_of,
    measure,
    pack,
    row_of,
    with_gradients,
)
from targets import CPU, CUDA, TRITON, Target, on

FP64 = TOLERANCE[torch.float64]
keep_and_recompute = pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
train_and_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@on(CPU, CUDA)
@train_and_eval
@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(target: Target, cell: str, training: bool) -> None:
    """Finite differences of the kernels themselves, with the reference out of play."""
    rnn = target.module(cell, all_sites(cell), (2, 3, 2)).train(training)
    x, states = inputs_for(rnn, 3, 2)
    check_finite_differences(rnn, x, states, **(target.draw() if training else {}))


@on(TRITON)
@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck_of_one_layer(target: Target, cell: str) -> None:
    sites = {"hidden_dropout": 0.3, "cell_dropout": 0.2, "zoneout_h": 0.2, "weight_dropout": 0.3}
    rnn = target.module(cell, fitting(cell, sites), (2, 3, 2), bidirectional=False)
    check_finite_differences(rnn, *inputs_for(rnn, 2, 2), **target.draw())


def check_backward_twice(target: Target, cell: str, dtype: torch.dtype, recompute: bool) -> None:
    both = not target.slow
    rnn = target.module(cell, target.all_sites(cell), bidirectional=both, dtype=dtype, recompute=recompute)
    steps, batch, lengths = target.shape
    x, states = inputs_for(rnn, steps, batch)
    results, leaves = call(rnn, pack(x, lengths), states), leaves_of(rnn, x, states)
    first = with_gradients(results, leaves, dtype, retain_graph=True)
    # Another forward pass and its backward lie in between, and a rate changes.
    measure(rnn, x, states)
    rnn.set_rate("weight_dropout", 0.9)
    rnn.set_rate("zoneout_h", 0.9)
    rnn.set_rate("output_dropout", 0.9)
    assert_equal(with_gradients(results, leaves, dtype, retain_graph=True), first)
    rnn.eval()
    assert_equal(with_gradients(results, leaves, dtype), first)


@on(CPU, CUDA, TRITON)
@keep_and_recompute
@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice_gives_the_same_bits(target: Target, cell: str, recompute: bool) -> None:
    check_backward_twice(target, cell, torch.float64, recompute)


@on(CPU, CUDA)
@keep_and_recompute
@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice_in_fewer_bits(target: Target, cell: str, recompute: bool) -> None:
    check_backward_twice(target, cell, torch.bfloat16, recompute)


@on(CPU, CUDA, TRITON)
@keep_and_recompute
@pytest.mark.parametrize("cell", CELLS)
def test_a_weight_changed_before_backward_raises(target: Target, cell: str, recompute: bool) -> None:
    rnn = target.module(cell, inner_sites(cell), layers=1, recompute=recompute)
    x, states = inputs_for(rnn, *target.brief[:2])
    loss = loss_of(call(rnn, x, states), torch.float64)
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def check_some(target: Target, rnn: torch.nn.Module, steps: int, batch: int, ways: tuple[bool, ...]) -> None:
    x, states = inputs_for(rnn, steps, batch)
    given = target.drawn(batch)
    want = measure(rnn, x, states, **given)
    leaves = leaves_of(rnn, x, states)
    for name in leaves:
        for only in ways:
            for other, leaf in leaves.items():
                leaf.requires_grad_((other == name) == only)
            got = measure(rnn, x, states, **given)
            chosen = {key for key in leaves if (key == name) == only}
            assert {key for key in got if key.startswith("d ")} == {f"d {key}" for key in chosen}
            assert_same(got, {key: want[key] for key in got}, FP64)


@on(CPU, CUDA)
@keep_and_recompute
@train_and_eval
@pytest.mark.parametrize("cell", CELLS)
def test_some_gradients_only(target: Target, cell: str, training: bool, recompute: bool) -> None:
    """Any one leaf alone, any one left out: its gradient is the one it has among all."""
    rnn = target.module(cell, inner_sites(cell), layers=1, bidirectional=False, recompute=recompute)
    check_some(target, rnn.train(training), *target.shape[:2], ways=(True, False))


@on(TRITON)
@pytest.mark.parametrize("cell", CELLS)
def test_one_gradient_only(target: Target, cell: str) -> None:
    rnn = target.module(cell, inner_sites(cell), (3, 4, 2), bidirectional=False, recompute=cell != "LSTM")
    check_some(target, rnn, 2, 4, ways=(True,))


@on(CPU, CUDA)
@pytest.mark.parametrize(
    ("cell", "part"),
    [(cell, part) for cell in CELLS for part in ("out", "h_n", "c_n")[: 1 + row_of(cell).states]],
)
def test_gradients_of_one_result_alone(target: Target, cell: str, part: str) -> None:
    """A result that the loss does not use has no gradient, not a tensor of zeros."""
    rnn = target.module(cell, inner_sites(cell), layers=1)
    x, states = inputs_for(rnn, *target.shape[:2])
    leaves = leaves_of(rnn, x, states)
    results = call(rnn, x, states, **target.drawn(target.shape.batch))
    probes = {name: torch.randn_like(value) * (name == part) for name, value in results.items()}
    one = torch.autograd.grad((results[part] * probes[part]).sum(), list(leaves.values()), retain_graph=True)
    all_of = torch.autograd.grad(sum((results[name] * probes[name]).sum() for name in results), list(leaves.values()))
    assert_same(dict(zip(leaves, one, strict=True)), dict(zip(leaves, all_of, strict=True)), FP64)


@on(CUDA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_addresses_for_no_wide_load(target: Target, cell: str, dtype: torch.dtype) -> None:
    """A gradient that begins anywhere gives the same bits as one that begins where 16 bytes do."""
    rnn = target.module(cell, inner_sites(cell), (4, 16, 8), layers=1, bidirectional=False, dtype=dtype)
    x, states = inputs_for(rnn, *target.shape[:2])
    leaves = list(leaves_of(rnn, x, states).values())
    out = call(rnn, x, states, **target.drawn(target.shape.batch))["out"]
    probe = torch.randn(out.numel() + 1, dtype=torch.float64).to(dtype).to(target.device)
    aligned = torch.autograd.grad(out, leaves, probe[1:].clone().view_as(out), retain_graph=True)
    anywhere = torch.autograd.grad(out, leaves, probe[1:].view_as(out))
    assert_equal(dict(enumerate(anywhere)), dict(enumerate(aligned)))


@on(CUDA)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_double_backward_is_refused(target: Target, cell: str) -> None:
    rnn = target.module(cell, {"zoneout_h": 0.22})
    x, states = inputs_for(rnn, *target.shape[:2])
    (gradient,) = torch.autograd.grad(call(rnn, x, states)["out"].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not implemented.*backend='reference'"):
        gradient.sum().backward()
