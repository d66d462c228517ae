"""Threads, splits of batch and time, layouts of memory and callers: nothing but the numbers may matter.

Masks are the same bits whatever the geometry; results are the same within rounding, and the same bits where only
repeated. What could hang runs in a process of its own, with a time limit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from grids import (
    CELLS,
    TOLERANCE,
    all_sites,
    assert_equal,
    assert_same,
    call,
    expect,
    fits,
    inner_sites,
    inputs_for,
    leaves_of,
    measure,
    module,
    pack,
    row_of,
    with_gradients,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fused_rnn_dropout as frd
from fused_rnn_dropout import ops
from fused_rnn_dropout.layer_call import REVERSE, Keep, LayerCall
from fused_rnn_dropout.sites import GROUPS

pytestmark = pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout")

ISAS = ops.cpu_isas()
EXACT = TOLERANCE[torch.float64]
TIME_LIMIT = 240  # seconds, for what takes about five of them on an idle machine


@pytest.fixture(autouse=True)
def one_thread_and_isa_restored() -> Iterator[None]:
    """One thread where a test does not say how many."""
    before = ops.cpu_isa()
    torch.set_num_threads(1)
    yield
    ops.cpu_isa(before)


def per_step_sites(cell: str) -> dict[str, Any]:
    sites = {
        "input_dropout": frd.LockedDropout(0.2, "step"),
        "inter_layer_dropout": frd.LockedDropout(0.3, "step"),
        "output_dropout": frd.LockedDropout(0.1, "step"),
        "update_dropout": 0.3,
        "cell_dropout": frd.CellDropout(0.2, "step"),
        "zoneout_c": 0.15,
        "zoneout_h": 0.25,
    }
    return {name: spec for name, spec in sites.items() if fits(cell, {name: spec})}


def per_sequence_sites(cell: str) -> dict[str, Any]:
    changed = {
        "update_dropout": frd.UpdateDropout(0.3, "sequence"),
        "zoneout_c": frd.Zoneout(0.15, "sequence"),
        "zoneout_h": frd.Zoneout(0.25, "sequence"),
    }
    return {name: changed.get(name, spec) for name, spec in all_sites(cell).items()}


SITES: dict[str, Callable[[str], dict[str, Any]]] = {
    "all": all_sites,
    "per_step": per_step_sites,
    "per_sequence": per_sequence_sites,
}


# --------------------------------------------------------------------------------------------------------------------
# Threads
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
def test_threads(cell: str, isa: str) -> None:
    """1 to 8 threads: the same masks, results within rounding; twice with as many: the same bits, gradients too."""
    ops.cpu_isa(isa)
    # Wide enough for a step to be shared, and for more than eight tiles of the narrowest registers.
    rnn = module(cell, inner_sites(cell), (9, 67, 35), layers=1)
    x, states = inputs_for(rnn, 4, 6)
    given = {"rng": frd.draw_rng("cpu")}
    torch.set_num_threads(1)
    masks = frd.export_masks(rnn, x, **given)
    want = expect(rnn, x, states, masks)
    for threads in range(1, 9):
        torch.set_num_threads(threads)
        rnn.recompute = threads % 2 == 0
        assert_equal(frd.export_masks(rnn, x, **given), masks)
        first = measure(rnn, x, states, **given)
        assert_same(first, want, EXACT)
        assert_equal(measure(rnn, x, states, **given), first)


@pytest.mark.parametrize("cell", CELLS)
def test_threads_and_packed_rows(cell: str) -> None:
    rnn = module(cell, all_sites(cell), (9, 67, 35))
    lengths = [2, 5, 1, 4, 5, 3]
    x, states = inputs_for(rnn, 5, 6)
    given = {"rng": frd.draw_rng("cpu")}
    want = expect(rnn, x, states, frd.export_masks(rnn, pack(x, lengths), **given), lengths)
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        first = measure(rnn, x, states, lengths, **given)
        assert_same(first, want, EXACT)
        assert_equal(measure(rnn, x, states, lengths, **given), first)


@pytest.mark.parametrize("cell", CELLS)
def test_wide_layers_on_many_threads(cell: str) -> None:
    """Units enough for the wide tiles of backward on every instruction set, in fp32."""
    rnn = module(cell, inner_sites(cell), (9, 300, 280), layers=1, bidirectional=False, dtype=torch.float32)
    x, states = inputs_for(rnn, 3, 5)
    given = {"rng": frd.draw_rng("cpu")}
    want = expect(rnn, x, states, frd.export_masks(rnn, x, **given))
    for isa in ISAS:
        ops.cpu_isa(isa)
        for threads in (1, 3, 5):
            torch.set_num_threads(threads)
            assert_same(measure(rnn, x, states, **given), want, TOLERANCE[torch.float32])


@pytest.mark.parametrize("cell", CELLS)
def test_another_number_of_threads_in_backward(cell: str) -> None:
    rnn = module(cell, all_sites(cell), (9, 67, 35))
    x, states = inputs_for(rnn, 4, 6)
    given = {"rng": frd.draw_rng("cpu")}
    torch.set_num_threads(3)
    want = measure(rnn, x, states, **given)
    for forward, backward in ((1, 4), (4, 1), (5, 3)):
        torch.set_num_threads(forward)
        results = call(rnn, x, states, **given)
        torch.set_num_threads(backward)
        assert_same(with_gradients(results, leaves_of(rnn, x, states), torch.float64), want, EXACT)


# --------------------------------------------------------------------------------------------------------------------
# Splits
# --------------------------------------------------------------------------------------------------------------------


def summed(parts: list[dict[str, Tensor]], rows: list[Any]) -> dict[str, Tensor]:
    """What the whole batch gives, from what its parts give: rows put together, gradients of weights added up."""
    whole: dict[str, Tensor] = {}
    for name in parts[0]:
        if name in ("out", "h_n", "c_n", "d x", "d h0", "d c0"):
            shape = list(parts[0][name].shape)
            shape[1] = sum(part[name].shape[1] for part in parts)
            whole[name] = parts[0][name].new_empty(shape)
            for part, where in zip(parts, rows, strict=True):
                whole[name][:, where] = part[name]
        else:
            whole[name] = torch.stack([part[name] for part in parts]).sum(0)
    return whole


def squares(rnn: nn.Module, x: Tensor, states: tuple[Tensor, ...], lengths: Any = None, **given: Any) -> dict[str, Any]:
    """Results and the gradient of the sum of their squares, which is the same for a whole and for its parts."""
    results = call(rnn, pack(x, lengths), states, **given)
    leaves = leaves_of(rnn, x, states)
    gradients = torch.autograd.grad(sum((value * value).sum() for value in results.values()), list(leaves.values()))
    named = {f"d {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {name: value.detach() for name, value in results.items()} | named


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("split", ["contiguous", "interleaved", "single_rows"])
@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_in_parts(cell: str, sites: str, split: str, packed: bool) -> None:
    rnn = module(cell, SITES[sites](cell))
    x, states = inputs_for(rnn, 4, 6)
    ids = torch.tensor([5, 0, 9, 2**32 - 2, 7, 1])
    lengths = torch.tensor([4, 2, 1, 4, 3, 4])
    given: dict[str, Any] = {"rng": frd.draw_rng("cpu"), "step_offset": 3}
    rows = {
        "contiguous": [slice(0, 2), slice(2, 6)],
        "interleaved": [slice(0, None, 2), slice(1, None, 2)],
        "single_rows": [slice(b, b + 1) for b in range(6)],
    }[split]
    whole_masks = frd.export_masks(rnn, x, example_ids=ids, **given)
    parts = []
    for where in rows:
        # max(lengths) of a part may be shorter than the whole: pad its output to be comparable.
        own = [value[:, where].detach().requires_grad_() for value in (x, *states)]
        own_lengths = lengths[where].tolist() if packed else None
        part = squares(rnn, own[0], tuple(own[1:]), own_lengths, example_ids=ids[where], **given)
        short = 4 - part["out"].shape[0]
        part["out"] = torch.cat([part["out"], part["out"].new_zeros(short, *part["out"].shape[1:])])
        parts.append(part)
        masks = frd.export_masks(rnn, own[0], example_ids=ids[where], **given)
        for name, mask in masks.items():
            of_rows = not name.startswith("weight") and mask.dim() > 1
            dim = 0 if name.startswith("cell_entry") else 1
            expected = whole_masks[name].movedim(dim, 0)[where].movedim(0, dim) if of_rows else whole_masks[name]
            assert torch.equal(mask, expected), name
    whole = squares(rnn, x, states, lengths.tolist() if packed else None, example_ids=ids, **given)
    assert_same(summed(parts, rows), whole, EXACT)


@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_in_another_order(cell: str) -> None:
    rnn = module(cell, all_sites(cell))
    x, states = inputs_for(rnn, 4, 5)
    given = {"rng": frd.draw_rng("cpu")}
    order = torch.tensor([3, 0, 4, 1, 2])
    whole = squares(rnn, x, states, **given)
    moved = [value[:, order].detach().requires_grad_() for value in (x, *states)]
    got = squares(rnn, moved[0], tuple(moved[1:]), example_ids=order, **given)
    assert_same(summed([got], [order]), whole, EXACT)
    plain = squares(rnn, moved[0], tuple(moved[1:]), **given)
    assert not torch.allclose(plain["out"], whole["out"][:, order])


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("cell", CELLS)
def test_time_in_parts(cell: str, sites: str, first: int) -> None:
    """A sequence in two calls that carry the state: step_offset goes on, rng stays; gradients flow through both."""
    rnn = module(cell, SITES[sites](cell), bidirectional=False)
    x, states = inputs_for(rnn, 4, 3)
    given = {"rng": frd.draw_rng("cpu")}
    whole = squares(rnn, x, states, step_offset=10, **given)

    head = call(rnn, x[:first], states, step_offset=10, **given)
    carried = (head["h_n"], head["c_n"]) if "c_n" in head else (head["h_n"],)
    tail = call(rnn, x[first:], carried, step_offset=10 + first, **given)
    results = {**tail, "out": torch.cat([head["out"], tail["out"]])}
    leaves = leaves_of(rnn, x, states)
    gradients = torch.autograd.grad(sum((value * value).sum() for value in results.values()), list(leaves.values()))
    named = {f"d {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    assert_same({name: value.detach() for name, value in results.items()} | named, whole, EXACT)

    masks = frd.export_masks(rnn, x, step_offset=10, **given)
    rest = frd.export_masks(rnn, x[first:], step_offset=10 + first, **given)
    for name, mask in rest.items():
        per_step = mask.dim() == 3 and masks[name].shape[0] == 4
        assert torch.equal(mask, masks[name][first:] if per_step else masks[name]), name


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("cell", CELLS)
def test_time_in_parts_backwards(cell: str, sites: str) -> None:
    """The reverse direction meets the second half first: the operator splits there just as well."""
    chosen = {name: spec for name, spec in SITES[sites](cell).items() if name in inner_sites(cell)}
    chosen = {name: spec for name, spec in chosen.items() if name not in ("input_dropout", "output_dropout")}
    rnn = module(cell, chosen, layers=1, bidirectional=False)
    x, states = inputs_for(rnn, 5, 3)
    rng = frd.draw_rng("cpu")
    pairs = rng.expand(len(GROUPS), 2)

    def run(x: Tensor, step_offset: int, *initial: Tensor) -> tuple[Tensor, ...]:
        call = LayerCall(
            row_of(cell).number, x, initial, rnn._flat_weights, None, None, pairs, rnn._thresholds, x.dtype,
            rnn._plan.train_flags, 0, REVERSE, step_offset, schedule=0, keep=Keep.ALL,
        )  # fmt: skip
        y, last = ops.layer(*call)
        return y, *last

    initial = [state[0] for state in states]
    whole = run(x, 7, *initial)
    second, *carried = run(x[2:], 9, *initial)
    head, *last = run(x[:2], 7, *carried)
    for got, want in zip((torch.cat([head, second]), *last), whole, strict=True):
        assert_same({"": got}, {"": want}, EXACT)


# --------------------------------------------------------------------------------------------------------------------
# Layouts and dtypes
# --------------------------------------------------------------------------------------------------------------------


def strided(value: Tensor) -> Tensor:
    """The same numbers, every second element of a larger tensor."""
    larger = value.new_full((*value.shape[:-1], 2 * value.shape[-1]), float("nan"))
    larger[..., ::2] = value
    return larger[..., ::2]


def offset(value: Tensor) -> Tensor:
    """The same numbers, not at the start of their storage and at no round address."""
    larger = value.new_full((value.numel() + 3,), float("nan"))
    larger[3:] = value.flatten()
    return larger[3:].view(value.shape)


def transposed(value: Tensor) -> Tensor:
    return value.transpose(0, -1).contiguous().transpose(0, -1)


def reversed_strides(value: Tensor) -> Tensor:
    return value.permute(*reversed(range(value.dim()))).contiguous().permute(*reversed(range(value.dim())))


LAYOUTS = {"strided": strided, "offset": offset, "transposed": transposed, "reversed": reversed_strides}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_layouts_of_every_argument(cell: str, layout: str, packed: bool) -> None:
    rnn = module(cell, all_sites(cell))
    x, states = inputs_for(rnn, 4, 3)
    ids = torch.tensor([4, 0, 2])
    given: dict[str, Any] = {"rng": frd.draw_rng("cpu"), "example_ids": ids}
    lengths = [2, 4, 3] if packed else None
    want = measure(rnn, x, states, lengths, **given)

    change = LAYOUTS[layout]
    for parameter in rnn.parameters():
        parameter.data = change(parameter.data)
    other = [change(value.detach()).requires_grad_() for value in (x, *states)]
    wide = torch.full((2, 3), -1)
    wide[:, 0] = given["rng"]
    spread = torch.full((6,), -1)
    spread[::2] = ids
    given = {"rng": wide[:, 0], "example_ids": spread[::2]}
    assert_same(measure(rnn, other[0], tuple(other[1:]), lengths, **given), want, EXACT)


@pytest.mark.parametrize("cell", CELLS)
def test_expanded_inputs(cell: str) -> None:
    """Strides of 0: one step for all steps, one row for all rows, one number for all features."""
    rnn = module(cell, all_sites(cell))
    for shape in ((4, 1, 6), (1, 3, 6), (4, 3, 1), (1, 1, 1)):
        small = torch.randn(shape, dtype=torch.float64)
        state_shape = (4, 1, rnn.proj_size or 19)
        state = torch.randn(state_shape, dtype=torch.float64).expand(-1, 3, -1)
        states = (state, torch.randn(4, 1, 19, dtype=torch.float64).expand(-1, 3, -1))[: row_of(cell).states]
        given = {"rng": frd.draw_rng("cpu")}
        got = call(rnn, small.expand(4, 3, 6), states, **given)
        want = call(rnn, small.expand(4, 3, 6).contiguous(), tuple(state.contiguous() for state in states), **given)
        assert_equal(got, want)


@pytest.mark.parametrize("cell", CELLS)
def test_expanded_gradients(cell: str) -> None:
    """The gradient of a sum arrives with strides of 0."""
    rnn = module(cell, all_sites(cell))
    x, states = inputs_for(rnn, 4, 3)
    given, leaves = {"rng": frd.draw_rng("cpu")}, list(leaves_of(rnn, x, states).values())
    results = call(rnn, x, states, **given)
    plain = torch.autograd.grad(sum(value.sum() for value in results.values()), leaves, retain_graph=True)
    ones = [torch.ones_like(value) for value in results.values()]
    dense = torch.autograd.grad(list(results.values()), leaves, ones)
    assert all(torch.equal(got, want) for got, want in zip(plain, dense, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_batch_first(cell: str) -> None:
    rnn = module(cell, all_sites(cell))
    first = module(cell, all_sites(cell), batch_first=True)
    first.load_state_dict(rnn.state_dict())
    x, states = inputs_for(rnn, 4, 3)
    given = {"rng": frd.draw_rng("cpu")}
    want = squares(rnn, x, states, **given)
    got = squares(first, x.detach().transpose(0, 1).contiguous().requires_grad_(), states, **given)
    got |= {name: got[name].transpose(0, 1) for name in ("out", "d x")}
    assert_same(got, want, EXACT)
    masks = frd.export_masks(first, x.transpose(0, 1), **given)
    assert_equal(masks, frd.export_masks(rnn, x, **given))


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("cell", CELLS)
def test_masks_do_not_know_the_dtype(cell: str, sites: str) -> None:
    rng = frd.draw_rng("cpu")
    found, results = [], []
    base = module(cell, SITES[sites](cell), (8, 40, 24))
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        rnn = module(cell, SITES[sites](cell), (8, 40, 24), dtype=dtype)
        rnn.load_state_dict(base.state_dict())
        found.append({name: mask != 0 for name, mask in frd.export_masks(rnn, x.to(dtype), rng=rng).items()})
        results.append(call(rnn, x.to(dtype), None, rng=rng))
    for bits, result in zip(found[1:], results[1:], strict=True):
        assert_equal(bits, found[0])
        # What the kernels make of them: zeros at the same places, and no difference that a flipped bit would make.
        # With few bits a sum may cancel to a zero besides, and a relu has zeros of its own, which rounding moves.
        if cell != "RNN_RELU":
            assert not result["out"][results[0]["out"] == 0].any()
        assert_same(result, results[0], 16 * torch.finfo(result["out"].dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dropout_operator_drops_the_same_elements_in_every_dtype(dtype: torch.dtype) -> None:
    rng, thresholds = torch.tensor([3, 4]), torch.full((10,), 2**31)
    args = (rng, thresholds, None, None, 1, 3, True, False, 5)
    kept = ops.dropout(torch.ones(7, 3, 37, dtype=dtype), *args)
    assert kept.dtype == dtype
    assert torch.equal(kept != 0, ops.dropout(torch.ones(7, 3, 37), *args) != 0)
    assert torch.equal(kept[kept != 0], torch.full_like(kept[kept != 0], 2))


# --------------------------------------------------------------------------------------------------------------------
# Callers
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_several_python_threads_at_once(cell: str) -> None:
    torch.set_num_threads(3)
    rnn = module(cell, all_sites(cell), (9, 67, 35))
    problems = []
    for _ in range(4):
        x, states = inputs_for(rnn, 4, 6)
        given = {"rng": frd.draw_rng("cpu")}
        problems.append((x, states, given, measure(rnn, x, states, **given)))
    failures: list[BaseException] = []
    start = threading.Barrier(len(problems))

    def work(x: Tensor, states: tuple[Tensor, ...], given: dict[str, Any], want: dict[str, Tensor]) -> None:
        try:
            start.wait()
            for _ in range(5):
                assert_same(measure(rnn, x, states, **given), want, EXACT)
        except BaseException as error:  # noqa: B036  handed to the thread that can fail the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=problem, daemon=True) for problem in problems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIME_LIMIT)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]


class InsideBackward(torch.autograd.Function):
    """Runs a layer forward and backward from within autograd's own thread of execution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[], dict[str, Tensor]], found: list[Any]) -> Tensor:
        ctx.run, ctx.found = run, found
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        with torch.enable_grad():
            ctx.found.append(ctx.run())
        return grad, None, None


@pytest.mark.parametrize("cell", CELLS)
def test_nested_in_autograd(cell: str) -> None:
    torch.set_num_threads(3)
    rnn = module(cell, all_sites(cell), (9, 67, 35))
    x, states = inputs_for(rnn, 4, 6)
    given = {"rng": frd.draw_rng("cpu")}
    want = measure(rnn, x, states, **given)
    found: list[Any] = []
    y = InsideBackward.apply(x, lambda: measure(rnn, x, states, **given), found)
    call(rnn, y, states, **given)["out"].sum().backward()
    assert_same(found[0], want, EXACT)
    for reentrant in (True, False):
        out = checkpoint(lambda value: call(rnn, value, states, **given)["out"], x, use_reentrant=reentrant)
        (once,) = torch.autograd.grad(call(rnn, x, states, **given)["out"].sum(), x)
        x.grad = None
        out.sum().backward()
        assert_same({"d x": x.grad}, {"d x": once}, EXACT)


def run_alone(tmp_path: Path, code: str, **environment: str) -> None:
    """Runs ``code`` in a new process with a time limit; it has what the helper below defines."""
    helper = """
    import sys, threading, warnings
    import torch, torch.multiprocessing as mp
    warnings.filterwarnings("ignore", message="zoneout_c with cell_dropout")
    from grids import *
    torch.manual_seed(0)
    problems = []
    for cell in CELLS:
        rnn = module(cell, all_sites(cell), (9, 67, 35))
        x, states = inputs_for(rnn, 4, 6)
        given = {"rng": frd.draw_rng("cpu")}
        problems.append((rnn, x, states, given, expect(rnn, x, states, frd.export_masks(rnn, x, **given))))

    def check():
        for rnn, x, states, given, want in problems:
            assert_same(measure(rnn, x, states, **given), want, 1e-12)
    """
    script = tmp_path / "alone.py"
    script.write_text(textwrap.dedent(helper) + textwrap.dedent(code))
    # The folders of this process, tests/ among them, so that the very same library is loaded.
    path = os.pathsep.join(folder for folder in [str(Path(__file__).parents[1]), *sys.path] if folder)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything ran" in done.stdout


def test_forked_worker(tmp_path: Path) -> None:
    """A forked child has none of its parent's threads: with one thread of its own it must not wait for them."""
    code = """
    torch.set_num_threads(4)
    check()  # the parent's team of threads exists from here on

    def child(queue):
        torch.set_num_threads(1)
        check()
        queue.put("fine")

    context = mp.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=child, args=(queue,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert [queue.get() for _ in workers] == ["fine", "fine"]
    check()  # and the parent goes on
    print("everything ran")
    """
    run_alone(tmp_path, code)


def test_data_loader_worker(tmp_path: Path) -> None:
    code = """
    class Outputs(torch.utils.data.Dataset):
        def __len__(self):
            return 4
        def __getitem__(self, index):
            rnn, x, states, given, want = problems[index % len(problems)]
            got = measure(rnn, x, states, **given)
            assert_same(got, want, 1e-12)
            return got["out"].sum()

    torch.set_num_threads(4)
    check()
    loader = torch.utils.data.DataLoader(Outputs(), num_workers=2, multiprocessing_context="fork")
    got = torch.cat(list(loader))
    want = torch.stack([problems[index % len(problems)][4]["out"].sum() for index in range(4)])
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)
    print("everything ran")
    """
    run_alone(tmp_path, code)


@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_THREAD_LIMIT": "1"},
        {"OMP_THREAD_LIMIT": "3"},
        {"OMP_DYNAMIC": "true", "OMP_WAIT_POLICY": "passive"},
        {"OMP_NUM_THREADS": "8"},
    ],
    ids=lambda environment: ",".join(f"{name}={value}" for name, value in environment.items()),
)
def test_fewer_threads_than_asked_for(environment: dict[str, str], tmp_path: Path) -> None:
    """OpenMP may give a team of any size: no thread may wait for one that never comes."""
    code = """
    check()
    for threads in (4, 8, 1):
        torch.set_num_threads(threads)
        check()
    caller = threading.Thread(target=check)
    caller.start()
    caller.join()
    print("everything ran")
    """
    run_alone(tmp_path, code, **environment)
