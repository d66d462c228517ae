"""The Triton kernels against the reference in fp64, fed with the masks that the kernels themselves export.

On a machine without a CUDA device they run in Triton's interpreter, on CPU tensors; with one, the same tests run there
and carry the ``gpu`` marker. ``test_triton_backend.py`` is about what surrounds the kernels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grids import (
    CELLS,
    TOLERANCE,
    all_sites,
    alone,
    assert_equal,
    assert_same,
    call,
    check_finite_differences,
    expect,
    inner_sites,
    inputs_for,
    leaves_of,
    loss_of,
    measure,
    module,
    options,
    pack,
    with_gradients,
)
from torch import Tensor, nn

import fused_rnn_dropout as frd

pytest.importorskip("triton", reason="the package triton is not installed")

ON_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if ON_DEVICE else "cpu"
pytestmark = [pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout"), *([pytest.mark.gpu] * ON_DEVICE)]

T, B = 3, 4
LENGTHS = [2, 3, 1, 3]
IDS = torch.tensor([7, 0, 2**32 - 2, 31], device=DEVICE)
SIZES = (5, 6, 4)
SCHEDULES = ("alternating", "sequence")
LAYERS = [("LSTM", "alternating"), ("LSTM", "sequence"), ("LSTM_proj", "alternating"), ("GRU", "alternating"),
          ("GRU", "sequence")]  # fmt: skip
"""Every cell with every schedule that it has."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def use(monkeypatch: pytest.MonkeyPatch, schedule: str, cell: str, dtype: torch.dtype = torch.float64) -> str:
    """Asks for a schedule where it can run; returns the one that will."""
    if cell == "LSTM_proj" or (ON_DEVICE and dtype == torch.float64):
        schedule = "alternating"
    monkeypatch.setenv("FRD_TRITON_SCHEDULE", schedule)
    return schedule


def on_device(rnn: nn.Module, x: Tensor, states: tuple[Tensor, ...]) -> tuple[nn.Module, Tensor, tuple[Tensor, ...]]:
    x, *moved = (value.detach().to(DEVICE).requires_grad_() for value in (x, *states))
    return rnn.to(DEVICE), x, tuple(moved)


def made(
    cell: str,
    sites: dict[str, Any],
    sizes: tuple[int, int, int] = SIZES,
    *,
    steps: int = T,
    batch: int = B,
    **kwargs: Any,
) -> tuple[nn.Module, Tensor, tuple[Tensor, ...]]:
    """A module on the Triton backend, with as few layers as its sites need, an input and states."""
    between = {"dropout", "inter_layer_dropout"} & sites.keys()
    rnn = module(cell, sites, sizes, **{"layers": 2 if between else 1, "backend": "triton", **kwargs})
    return on_device(rnn, *inputs_for(rnn, steps, batch))


def drawn(batch: int = B) -> dict[str, Any]:
    """The randomness of a call, with counters that do not start at 0."""
    return {"rng": frd.draw_rng(DEVICE), "example_ids": IDS[:batch], "step_offset": 1000}


def masks_of(rnn: nn.Module, x: Any, **given: Any) -> dict[str, Tensor]:
    """As the kernels make them; the bits that PyTorch makes, which the CPU's kernels are held to as well."""
    masks = frd.export_masks(rnn, x, **given)
    rnn.backend = "reference"
    assert_equal(masks, frd.export_masks(rnn, x, **given))
    rnn.backend = "triton"
    return masks


def cases(*groups: Any, cells: tuple[str, ...] = CELLS) -> list[Any]:
    return [
        pytest.param(cell, sites, id=f"{cell}-{name}")
        for group in groups
        for cell in cells
        for name, sites in group(cell).items()
    ]


def everything(cell: str) -> dict[str, dict[str, Any]]:
    unzoned = {"zoneout_h": frd.Zoneout(0.2, "sequence", False, "unzoned")}
    return {"everything": inner_sites(cell), "everything_unzoned": inner_sites(cell) | unzoned, "nothing": {}}


# --------------------------------------------------------------------------------------------------------------------
# Every site, every option
# --------------------------------------------------------------------------------------------------------------------


def of_projections(cell: str) -> dict[str, dict[str, Any]]:
    """With a projection the gates are an LSTM's: only what acts on h and on W_hr is another kernel's."""
    chosen = {**alone(cell), **options(cell)}
    names = ("hidden", "projection", "zoneout_h")
    return {name: sites for name, sites in chosen.items() if any(part in name for part in names)}


@pytest.mark.parametrize(
    ("cell", "sites"),
    [*cases(alone, options, cells=("LSTM", "GRU")), *cases(of_projections, cells=("LSTM_proj",))],
)
def test_training(cell: str, sites: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, states and every gradient, both directions: padded with all gates kept, packed with none."""
    rnn, x, states = made(cell, sites, steps=2, batch=3)
    for schedule, lengths, recompute in (("alternating", None, False), ("sequence", [1, 2, 1], True)):
        use(monkeypatch, schedule, cell)
        rnn.recompute, given = recompute, drawn(3)
        want = expect(rnn, x, states, masks_of(rnn, pack(x, lengths), **given), lengths)
        assert_same(measure(rnn, x, states, lengths, **given), want, TOLERANCE[torch.float64])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize(("cell", "schedule"), LAYERS)
@pytest.mark.parametrize("name", ["everything", "everything_unzoned", "nothing"])
def test_everything(
    cell: str, name: str, schedule: str, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, schedule, cell)
    rnn, x, states = made(cell, everything(cell)[name])
    given = drawn()
    want = expect(rnn, x, states, masks_of(rnn, pack(x, lengths), **given), lengths)
    for rnn.recompute in (False, True):
        assert_same(measure(rnn, x, states, lengths, **given), want, TOLERANCE[torch.float64])


def left_in_eval(cell: str) -> dict[str, dict[str, Any]]:
    """What differs from no site at all once masks are off: expectations."""
    return {name: sites for name, sites in options(cell).items() if "paper" in name or "zoneout" in name}


@pytest.mark.parametrize(("cell", "sites"), cases(left_in_eval, everything))
def test_eval(cell: str, sites: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks off, which is legal to differentiate."""
    rnn, x, states = made(cell, sites, steps=2, batch=2)
    want = expect(rnn, x, states, frd.export_masks(rnn.eval(), x))
    for schedule in SCHEDULES:
        if use(monkeypatch, schedule, cell) == schedule:
            assert_same(measure(rnn, x, states), want, TOLERANCE[torch.float64])


@pytest.mark.parametrize("cell", CELLS)
def test_mc(cell: str) -> None:
    """Masks on in eval: what training computes."""
    rnn, x, states = made(cell, inner_sites(cell), steps=2, batch=2)
    given = drawn(2)
    in_training = measure(rnn, x, states, **given)
    frd.mc_dropout(rnn.eval())
    assert_equal(measure(rnn, x, states, **given), in_training)
    rnn.mc = False
    assert not torch.equal(measure(rnn, x, states)["out"], in_training["out"])


@pytest.mark.parametrize("rate", [1.0, 1 - 2**-32], ids=["1", "next_to_1"])
@pytest.mark.parametrize(("cell", "sites"), cases(everything, cells=("LSTM", "GRU"))[1::3])
def test_rates_of_one(cell: str, sites: dict[str, Any], rate: float) -> None:
    """Finite, and what the reference says; a threshold of 2**32 does not fit a word."""
    rnn, x, states = made(cell, sites, steps=2, batch=2)
    for name in sites:
        rnn.set_rate(name, rate)
    given = drawn(2)
    got = measure(rnn, x, states, **given)
    assert all(value.isfinite().all() for value in got.values())
    assert_same(got, expect(rnn, x, states, masks_of(rnn, x, **given)), TOLERANCE[torch.float64])


# --------------------------------------------------------------------------------------------------------------------
# Sizes
# --------------------------------------------------------------------------------------------------------------------

# H, B, T. Every H with some B and some T: no block is full, several are needed, the last holds one unit or one row.
SHAPES = [(1, 1, 1), (3, 17, 2), (31, 3, 7), (33, 17, 1), (33, 1, 7), (127, 3, 2)]


@pytest.mark.parametrize(("units", "batch", "steps"), SHAPES)
@pytest.mark.parametrize(("cell", "schedule"), LAYERS)
def test_sizes(cell: str, units: int, batch: int, steps: int, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, schedule, cell)
    units += (cell, units) == ("LSTM_proj", 1)  # a projection is narrower than the memory
    # Masks of a weight do not depend on the schedule, and a large one takes the interpreter seconds.
    sites = {name: rate for name, rate in inner_sites(cell).items() if name != "weight_dropout" or units < 100}
    rnn, x, states = made(cell, sites, (5, units, max(1, units - 4)), bidirectional=False, steps=steps, batch=batch)
    given = {"rng": frd.draw_rng(DEVICE)}
    want = expect(rnn, x, states, masks_of(rnn, x, **given))
    assert_same(measure(rnn, x, states, **given), want, TOLERANCE[torch.float64])


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 4, 2], [2, 3, 4, 4, 1, 3]], ids=str)
@pytest.mark.parametrize(("cell", "schedule"), LAYERS)
def test_packed_lengths(cell: str, schedule: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that end, begin, or do neither; steps with as many rows as the one before and with fewer."""
    use(monkeypatch, schedule, cell)
    sites = {
        "input_dropout": frd.LockedDropout(0.3, "step"),
        "hidden_dropout": 0.3,
        "cell_dropout": 0.2,
        "zoneout_h": 0.2,
    }
    rnn, x, states = made(cell, sites, steps=max(lengths), batch=len(lengths))
    given = {"rng": frd.draw_rng(DEVICE)}
    want = expect(rnn, x, states, masks_of(rnn, pack(x, lengths), **given), lengths)
    assert_same(measure(rnn, x, states, lengths, **given), want, TOLERANCE[torch.float64])


@pytest.mark.parametrize(("cell", "schedule"), LAYERS)
def test_products_in_chunks(cell: str, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """W x is computed for some steps at a time; the state goes on from one chunk to the next."""
    from fused_rnn_dropout.triton import layer

    monkeypatch.setattr(layer, "rows_of_chunk", lambda width, itemsize: 2 * B)
    use(monkeypatch, schedule, cell)
    for lengths in (None, [5, 3, 1, 4]):
        rnn, x, states = made(cell, {"hidden_dropout": 0.3, "zoneout_h": 0.2}, steps=5, recompute=lengths is None)
        given = drawn()
        want = expect(rnn, x, states, masks_of(rnn, pack(x, lengths), **given), lengths)
        assert_same(measure(rnn, x, states, lengths, **given), want, TOLERANCE[torch.float64])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_batch(cell: str, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, schedule, cell)
    for recompute in (False, True):
        rnn, x, states = made(cell, all_sites(cell), batch=0, recompute=recompute)
        got = measure(rnn, x, states)
        assert got["out"].shape == (T, 0, 2 * (rnn.proj_size or rnn.hidden_size))
        assert all(torch.count_nonzero(value) == 0 for value in got.values())
        assert got["d weight_hh_l0"].shape == rnn.weight_hh_l0.shape


# --------------------------------------------------------------------------------------------------------------------
# Dtypes
# --------------------------------------------------------------------------------------------------------------------


def rounded(rnn: nn.Module, x: Tensor, states: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The same numbers as ``dtype`` has them, so that the only difference is what the kernels compute in."""
    rnn.to(dtype)
    x, *others = (value.detach().to(dtype).requires_grad_() for value in (x, *states))
    return rnn, x, tuple(others)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize(("cell", "schedule"), LAYERS)
def test_float32(cell: str, schedule: str, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, schedule, cell, torch.float32)
    monkeypatch.setenv("FRD_TRITON_PRECISION", "ieee")
    rnn, x, states = rounded(*made(cell, inner_sites(cell), (6, 17, 9)), torch.float32)
    given = drawn()
    want = expect(rnn, x, states, masks_of(rnn, pack(x, lengths), **given), lengths)
    rnn.recompute = lengths is None
    got = measure(rnn, x, states, lengths, **given)
    assert {value.dtype for value in got.values()} == {torch.float32}
    assert_same(got, want, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("cell", "schedule"), LAYERS)
def test_low_precision(cell: str, schedule: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, h, and gradients at the gates are rounded where a product reads them; the state is not, nor any sum.

    A result is off by a few roundings, of which the interpreter's, to bfloat16, are truncations, twice as far: they go
    the same way each time, so that those of T steps add up.
    """
    use(monkeypatch, schedule, cell, dtype)
    rnn, x, states = rounded(*made(cell, inner_sites(cell), (6, 17, 9)), dtype)
    given = drawn()
    want = expect(rnn, x, states, masks_of(rnn, pack(x, LENGTHS), **given), LENGTHS)
    rnn.recompute = dtype == torch.bfloat16
    got = measure(rnn, x, states, LENGTHS, **given)
    assert {value.dtype for value in got.values()} == {dtype}
    assert_same(got, want, 2 * T * torch.finfo(dtype).eps)


@pytest.mark.parametrize("weights", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_weights_of_another_dtype(cell: str, weights: torch.dtype) -> None:
    """bf16 activations under autocast leave the master weights and their gradients in their own dtype, in fp32 sums."""
    rnn, _, _ = made(cell, inner_sites(cell), dtype=weights)
    x = torch.randn(2, 2, SIZES[0], dtype=torch.float32, device=DEVICE, requires_grad=True)
    rng = frd.draw_rng(DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out, _ = rnn(x, rng=rng)
    out.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == weights and p.grad.isfinite().all() for p in rnn.parameters())
    plain, _ = rnn(x.detach().to(weights), rng=rng)
    assert (out - plain).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * plain.abs().max()


@pytest.mark.parametrize(
    ("cell", "schedule"), [("LSTM", "sequence"), ("LSTM_proj", "alternating"), ("GRU", "sequence")]
)
def test_gradcheck(cell: str, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences of the kernels themselves, with the reference out of play."""
    use(monkeypatch, schedule, cell)
    sites = {"hidden_dropout": 0.3, "cell_dropout": 0.2, "zoneout_h": 0.2, "weight_dropout": 0.3}
    rnn, x, states = made(cell, sites, (2, 3, 2), steps=2, batch=2, bidirectional=False)
    given: dict[str, Any] = {"rng": frd.draw_rng(DEVICE)}
    check_finite_differences(rnn, x, states, **given)


# --------------------------------------------------------------------------------------------------------------------
# Backward
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice_gives_the_same_bits(
    cell: str, schedule: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, schedule, cell)
    rnn, x, states = made(cell, inner_sites(cell), recompute=recompute, bidirectional=False)
    results, leaves = call(rnn, pack(x, LENGTHS), states), leaves_of(rnn, x, states)
    first = with_gradients(results, leaves, torch.float64, retain_graph=True)
    rnn.set_rate("weight_dropout", 0.9)
    rnn.set_rate("zoneout_h", 0.9)
    assert_equal(with_gradients(results, leaves, torch.float64), first)


@pytest.mark.parametrize(("cell", "recompute"), [("LSTM", False), ("LSTM_proj", True), ("GRU", True)])
def test_some_gradients_only(cell: str, recompute: bool) -> None:
    """Any one leaf alone: its gradient is the one it has among all."""
    rnn, x, states = made(cell, inner_sites(cell), (3, 4, 2), bidirectional=False, recompute=recompute, steps=2)
    given = drawn()
    want = measure(rnn, x, states, **given)
    leaves = leaves_of(rnn, x, states)
    for name in leaves:
        for other, leaf in leaves.items():
            leaf.requires_grad_(other == name)
        got = measure(rnn, x, states, **given)
        assert {key for key in got if key.startswith("d ")} == {f"d {name}"}
        assert_same(got, {key: want[key] for key in got}, TOLERANCE[torch.float64])


@pytest.mark.parametrize("cell", CELLS)
def test_a_weight_changed_before_backward_raises(cell: str) -> None:
    rnn, x, states = made(cell, inner_sites(cell), steps=1)
    loss = loss_of(call(rnn, x, states), torch.float64)
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("poison", [float("inf"), float("nan")], ids=["inf", "nan"])
@pytest.mark.parametrize("cell", CELLS)
def test_dropped_infinities_are_zero(cell: str, poison: float) -> None:
    """An inf or NaN that is dropped is 0, forward and backward: the results are those of a finite number there."""
    weight = frd.WeightDropout(0.4, inputs=True, projection=cell == "LSTM_proj")
    sites: dict[str, Any] = {"input_dropout": 0.3, "weight_dropout": weight, "hidden_dropout": 0.3, "cell_dropout": 0.3}
    rnn, x, states = made(cell, sites, bidirectional=False)
    given = drawn()
    masks = masks_of(rnn, x, **given)
    want = measure(rnn, x, states, **given)
    dropped = {"x": (masks["input"] == 0).expand_as(x)}
    dropped["memory"] = masks["cell_l0"] == 0
    dropped["read"] = masks["hidden_l0"] == 0

    def spoiled(value: Tensor, name: str) -> Tensor:
        return value.detach().masked_fill(dropped[name], poison).requires_grad_()

    x = spoiled(x, "x")
    # In a GRU h is the memory.
    first = spoiled(states[0], "memory" if cell == "GRU" else "read")
    states = (first, *(spoiled(state, "memory") for state in states[1:]))
    with torch.no_grad():
        for name in [name for name in masks if name.startswith("weight")]:
            rnn.get_parameter(name).masked_fill_(masks[name] == 0, poison)
    assert_equal(measure(rnn, x, states, **given), want)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_one_row_does_not_spoil_the_others(cell: str, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of the sequence schedule holds many rows, and products of blocks mix nothing between them."""
    use(monkeypatch, schedule, cell)
    rnn, x, states = made(cell, inner_sites(cell), dtype=torch.float32)
    given = drawn()
    bad = torch.tensor([False, False, True, False], device=DEVICE)
    want = measure(rnn, x, states, **given)
    got = measure(rnn, x.detach().masked_fill(bad[:, None], float("nan")).requires_grad_(), states, **given)
    assert got["out"][:, bad].isnan().any()
    for name in ("out", "h_n", "c_n", "d x", "d h0", "d c0"):
        if name in want:
            assert torch.equal(got[name][:, ~bad], want[name][:, ~bad]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_saturated_gates(cell: str, dtype: torch.dtype) -> None:
    """Pre-activations so large that exp overflows: gates are 0 or 1, nothing becomes NaN."""
    rnn, x, states = made(cell, inner_sites(cell), dtype=dtype, bidirectional=False)
    x = (x * (torch.finfo(dtype).max / 1e6)).detach().requires_grad_()
    results = call(rnn, x, states, **drawn())
    leaves = leaves_of(rnn, x, states)
    gradients = torch.autograd.grad(results["out"].sum(), [leaf for name, leaf in leaves.items() if "ih" not in name])
    assert all(value.isfinite().all() for value in (*results.values(), *gradients))
