"""The fused CPU kernels against the reference in fp64, fed with the masks that the kernels themselves export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from grids import (
    CELLS,
    RATES,
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
    name_of,
    options,
    pack,
    pairs,
    with_gradients,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn_dropout as frd
from fused_rnn_dropout import ops
from fused_rnn_dropout.sites import keep_scale, threshold

pytestmark = pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout")

T, B = 5, 4
LENGTHS = [3, 5, 1, 4]
IDS = torch.tensor([7, 0, 2**32 - 2, 31])
ISAS = ops.cpu_isas()


@pytest.fixture(autouse=True)
def one_thread_and_isa_restored() -> Iterator[None]:
    """One thread, because test_geometry.py is about threads, and the instruction set as it was."""
    before = ops.cpu_isa()
    torch.set_num_threads(1)
    yield
    ops.cpu_isa(before)


def drawn(**kwargs: Any) -> dict[str, Any]:
    """The randomness of a call, with counters that do not start at 0."""
    return {"rng": frd.draw_rng("cpu"), "example_ids": IDS, "step_offset": 1000, **kwargs}


def masks_of(rnn: nn.Module, x: Any, **given: Any) -> dict[str, Tensor]:
    return frd.export_masks(rnn, x, **given)


def cases(*groups: Any) -> list[Any]:
    return [
        pytest.param(cell, sites, id=f"{cell}-{name}")
        for group in groups
        for cell in CELLS
        for name, sites in group(cell).items()
    ]


def everything(cell: str) -> dict[str, dict[str, Any]]:
    found = {"everything": all_sites(cell), "nothing": {}}
    if cell != "GRU":
        zoneouts = {
            "zoneout_c": frd.Zoneout(0.2, "sequence"),
            "zoneout_h": frd.Zoneout(0.2, "sequence", False, "unzoned"),
        }
        found["everything_unzoned"] = all_sites(cell) | zoneouts
    return found


# --------------------------------------------------------------------------------------------------------------------
# Every site, every option
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "sites"), cases(alone, options, everything))
def test_training(cell: str, sites: dict[str, Any]) -> None:
    """Results, states and every gradient: two layers, both directions, padded and packed, each instruction set."""
    rnn = module(cell, sites)
    x, states = inputs_for(rnn, T, B)
    for lengths in (None, LENGTHS):
        given = drawn()
        want = expect(rnn, x, states, masks_of(rnn, pack(x, lengths), **given), lengths)
        for isa in ISAS:
            ops.cpu_isa(isa)
            rnn.recompute = False
            got = measure(rnn, x, states, lengths, **given)
            assert_same(got, want, TOLERANCE[torch.float64])
            rnn.recompute = True
            again = measure(rnn, x, states, lengths, **given)
            assert_equal({name: again[name] for name in ("out", "h_n")}, {name: got[name] for name in ("out", "h_n")})
            assert_same(again, got, TOLERANCE[torch.float64])


@pytest.mark.parametrize(("cell", "sites"), cases(alone, options, everything))
def test_eval_and_mc(cell: str, sites: dict[str, Any]) -> None:
    """Masks off, which is legal to differentiate; and masks on in eval."""
    rnn = module(cell, sites).eval()
    x, states = inputs_for(rnn, 3, B)
    want = expect(rnn, x, states, masks_of(rnn, x))
    for isa in ISAS:
        ops.cpu_isa(isa)
        rnn.recompute = not rnn.recompute
        assert_same(measure(rnn, x, states), want, TOLERANCE[torch.float64])

    given = drawn()
    in_training = measure(rnn.train(), x, states, **given)
    frd.mc_dropout(rnn.eval())
    assert_equal(measure(rnn, x, states, **given), in_training)
    if sites:
        assert not torch.equal(in_training["out"], want["out"])


@pytest.mark.parametrize(("cell", "sites"), cases(pairs))
def test_pairs_of_sites(cell: str, sites: dict[str, Any]) -> None:
    rnn = module(cell, sites)
    x, states = inputs_for(rnn, 3, 3)
    given = drawn(example_ids=IDS[:3])
    want = expect(rnn, x, states, masks_of(rnn, x, **given))
    assert_same(measure(rnn, x, states, **given), want, TOLERANCE[torch.float64])


@pytest.mark.parametrize("between", ["dropout", "inter_layer_dropout"])
@pytest.mark.parametrize("cell", CELLS)
def test_three_layers(cell: str, between: str) -> None:
    """Two places between layers, each with masks of its own."""
    rnn = module(cell, inner_sites(cell) | {between: RATES[between]}, (4, 9, 5), layers=3)
    x, states = inputs_for(rnn, 3, 3)
    given = drawn(example_ids=IDS[:3])
    masks = masks_of(rnn, x, **given)
    assert not torch.equal(masks["inter_layer_l1"], masks["inter_layer_l2"])
    assert_same(measure(rnn, x, states, **given), expect(rnn, x, states, masks), TOLERANCE[torch.float64])


# --------------------------------------------------------------------------------------------------------------------
# Sizes and dtypes
# --------------------------------------------------------------------------------------------------------------------

# H, B, T. Every H with every B and every T; 257 takes the wide tiles of backward with 16 lanes.
SIZES = [
    (1, 1, 1), (1, 3, 2), (1, 17, 7), (3, 1, 2), (3, 3, 7), (3, 17, 1), (31, 1, 7), (31, 3, 1), (31, 17, 2),
    (33, 1, 1), (33, 3, 7), (33, 17, 2), (127, 1, 2), (127, 3, 1), (127, 17, 7), (16, 6, 3), (257, 7, 3),
]  # fmt: skip


# A projection is narrower than the memory, so there is none of one unit.
@pytest.mark.parametrize(
    ("cell", "units", "batch", "steps"),
    [(cell, *sizes) for cell in CELLS for sizes in SIZES if (cell, sizes[0]) != ("LSTM_proj", 1)],
)
def test_sizes(cell: str, units: int, batch: int, steps: int) -> None:
    """Sizes that fill no register and no tile, in fp64 and fp32, on each instruction set."""
    sizes = (5, units, max(1, units - 4))
    rnn = module(cell, inner_sites(cell), sizes, layers=1)
    x, states = inputs_for(rnn, steps, batch)
    given = {"rng": frd.draw_rng("cpu")}
    want = expect(rnn, x, states, masks_of(rnn, x, **given))
    # The same numbers in fp32, so that the only difference is what the kernel computes in.
    rounded = module(cell, inner_sites(cell), sizes, layers=1, dtype=torch.float32)
    rounded.load_state_dict(rnn.state_dict())
    x32, *states32 = (value.detach().float().requires_grad_() for value in (x, *states))
    want32 = expect(rounded, x32, tuple(states32), masks_of(rnn, x, **given))
    for isa in ISAS:
        ops.cpu_isa(isa)
        assert_same(measure(rnn, x, states, **given), want, TOLERANCE[torch.float64])
        assert_same(measure(rounded, x32, tuple(states32), **given), want32, TOLERANCE[torch.float32])


@pytest.mark.parametrize("lengths", [[7, 7, 7], [1, 1, 1], [1, 7, 2], [2, 3, 7, 7, 1, 6, 4, 5, 3]], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_packed_lengths(cell: str, lengths: list[int]) -> None:
    rnn = module(cell, all_sites(cell), (5, 33, 18))
    x, states = inputs_for(rnn, max(lengths), len(lengths))
    given = {"rng": frd.draw_rng("cpu")}
    want = expect(rnn, x, states, masks_of(rnn, pack(x, lengths), **given), lengths)
    for isa in ISAS:
        ops.cpu_isa(isa)
        assert_same(measure(rnn, x, states, lengths, **given), want, TOLERANCE[torch.float64])


@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_batch(cell: str) -> None:
    rnn = module(cell, all_sites(cell))
    for recompute in (False, True):
        rnn.recompute = recompute
        got = measure(rnn, *inputs_for(rnn, T, 0))
        assert got["out"].shape == (T, 0, 2 * (rnn.proj_size or rnn.hidden_size))
        assert all(torch.count_nonzero(value) == 0 for value in got.values())
        assert got["d weight_hh_l0"].shape == rnn.weight_hh_l0.shape


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_low_precision_rounds_once(cell: str, lengths: list[int] | None, dtype: torch.dtype) -> None:
    """One layer computes in fp32 whatever its dtype: a result is the fp64 one, rounded once."""
    sites = inner_sites(cell)
    # They are operators of their own, which round their results too.
    del sites["input_dropout"], sites["output_dropout"]
    rnn = module(cell, sites, (6, 33, 17), layers=1, bidirectional=False, dtype=dtype)
    x, states = inputs_for(rnn, T, B)
    given = drawn()
    masks = masks_of(rnn, pack(x, lengths), **given)
    assert {mask.dtype for mask in masks.values()} == {torch.float32}
    want = expect(rnn, x, states, masks, lengths)
    for recompute in (False, True):
        rnn.recompute = recompute
        got = measure(rnn, x, states, lengths, **given)
        for name, value in want.items():
            assert got[name].dtype == dtype
            accumulated = TOLERANCE[torch.float32] * value.abs().max()
            # Half a unit in the last place, and half the smallest number that fp16 has.
            rounding = torch.finfo(dtype).eps / 2 * value.abs() + torch.finfo(dtype).smallest_normal
            error = (got[name].double() - value).abs()
            assert (error <= accumulated + rounding).all(), f"{name}: {(error / (accumulated + rounding)).max()}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_low_precision_with_everything_on(cell: str, dtype: torch.dtype) -> None:
    """Two layers, both directions and every site: the outputs of layers are rounded, and nothing else."""
    rnn = module(cell, all_sites(cell), dtype=dtype)
    x, states = inputs_for(rnn, T, B)
    given = drawn()
    want = expect(rnn, x, states, masks_of(rnn, x, **given), between=dtype)
    # A value next to a tie rounds either way between layers, and sums of two directions are rounded again.
    assert_same(measure(rnn, x, states, **given), want, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("rate", [0.3, 0.4, 0.9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dropout_operator_does_not_round_its_scale(dtype: torch.dtype, rate: float) -> None:
    """1/0.7 is 1.42857, but 1.42969 in bf16: for a whole sequence every element would be too large."""
    p = threshold(rate)
    x = torch.randn(5, 4, 37, dtype=dtype, requires_grad=True)
    thresholds = torch.zeros(10, dtype=torch.int64).index_fill(0, torch.tensor(1), p)
    dropped = ops.dropout(x, frd.draw_rng("cpu"), thresholds, None, None, 1, 3, True, False, 0)
    kept, scale = dropped.detach() != 0, torch.tensor(keep_scale(p), dtype=torch.float32)
    assert torch.equal(dropped.detach()[kept], (x.detach().float() * scale).to(dtype)[kept])
    (gradient,) = torch.autograd.grad(dropped, x, x.detach())
    assert torch.equal(gradient, dropped.detach())


@pytest.mark.parametrize("weights", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_weights_of_another_dtype(cell: str, weights: torch.dtype) -> None:
    """bf16 activations under autocast leave the master weights and their gradients in their own dtype."""
    rnn = module(cell, inner_sites(cell), layers=1, dtype=weights)
    x = torch.randn(T, B, 6, dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = rnn(x, rng=frd.draw_rng("cpu"))
    out.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == weights and p.grad.isfinite().all() for p in rnn.parameters())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell: str, training: bool) -> None:
    """Finite differences of the kernels themselves, with the reference out of play."""
    rnn = module(cell, all_sites(cell), (2, 3, 2)).train(training)
    x, states = inputs_for(rnn, 3, 2)
    given: dict[str, Any] = {"rng": frd.draw_rng("cpu")} if training else {}
    check_finite_differences(rnn, x, states, **given)


# --------------------------------------------------------------------------------------------------------------------
# Rates at the ends
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("cell", CELLS)
def test_python_zero_is_bitwise_no_site(cell: str, training: bool) -> None:
    plain = module(cell, {}).train(training)
    zero = module(cell, dict.fromkeys(alone(cell), 0.0)).train(training)
    zero.load_state_dict(plain.state_dict())
    x, states = inputs_for(plain, T, B)
    want = measure(plain, x, states)
    assert_equal(measure(zero, x, states), want)
    for name in alone(cell):
        if name == "dropout":
            continue
        setattr(zero, name, 0.5)
        setattr(zero, name, 0.0)
    assert_equal(measure(zero, x, states), want)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("cell", "sites"), cases(alone, options))
def test_a_scheduled_zero_is_no_site_within_tolerance(cell: str, sites: dict[str, Any], training: bool) -> None:
    plain = module(cell, {}).train(training)
    scheduled = module(cell, sites).train(training)
    scheduled.load_state_dict(plain.state_dict())
    for name in sites:
        scheduled.set_rate(name, 0.0)
    assert set(scheduled.sites) == set(sites)
    x, states = inputs_for(plain, 3, 2)
    assert_same(measure(scheduled, x, states), measure(plain, x, states), TOLERANCE[torch.float64])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("rate", [1.0, 1 - 2**-32], ids=["1", "next_to_1"])
@pytest.mark.parametrize(("cell", "sites"), cases(alone, options, everything))
def test_rates_of_one(cell: str, sites: dict[str, Any], rate: float, training: bool) -> None:
    """Finite, and what the reference says; a rate just below 1 has a scale of 2**32 instead of 0."""
    rnn = module(cell, sites, (3, 5, 4)).train(training)
    for name in sites:
        rnn.set_rate(name, rate)
    x, states = inputs_for(rnn, 3, 2)
    given = {"rng": frd.draw_rng("cpu")} if training else {}
    got = measure(rnn, x, states, **given)
    assert all(value.isfinite().all() for value in got.values())
    assert_same(got, expect(rnn, x, states, masks_of(rnn, x, **given)), TOLERANCE[torch.float64])


@pytest.mark.parametrize(("cell", "site"), [(cell, site) for cell in CELLS for site in inner_sites(cell)])
def test_everything_dropped(cell: str, site: str) -> None:
    """What a rate of 1 leaves, site by site, from the equations alone."""
    rnn = module(cell, {site: 1.0}, layers=1, bidirectional=False)
    plain = module(cell, {}, layers=1, bidirectional=False)
    plain.load_state_dict(rnn.state_dict())
    x, states = inputs_for(rnn, T, B)
    got = measure(rnn, x, states)
    if site == "input_dropout":
        assert torch.count_nonzero(got["d x"]) == 0 and torch.count_nonzero(got["d weight_ih_l0"]) == 0
        assert_equal(call(rnn, x, states), call(plain, torch.zeros_like(x), states))
    elif site == "output_dropout":
        assert torch.count_nonzero(got["out"]) == 0
        assert torch.equal(got["h_n"], call(plain, x, states)["h_n"])
    elif site in ("hidden_dropout", "weight_dropout"):
        assert torch.count_nonzero(got["d weight_hh_l0"]) == 0
        with torch.no_grad():
            plain.weight_hh_l0.zero_()
        without = call(plain, x, states)
        assert_same({name: got[name] for name in without}, without, TOLERANCE[torch.float64])
        if cell != "GRU":
            assert torch.count_nonzero(got["d h0"]) == 0
    elif site == "update_dropout":
        # No candidate ever: the memory only decays, and the candidate's weights do not matter.
        units, memory = rnn.hidden_size, got["c_n" if cell != "GRU" else "h_n"].abs()
        assert (memory <= states[-1].abs()).all()
        rows = slice(2 * units, 3 * units)
        assert torch.count_nonzero(got["d weight_ih_l0"][rows]) == 0
        assert torch.count_nonzero(got["d bias_hh_l0"][rows]) == 0
    elif site == "cell_dropout":
        assert all(torch.count_nonzero(got[name]) == 0 for name in ("out", "h_n", "c_n") if name in got)
        assert all(torch.count_nonzero(got[name]) == 0 for name in got if name.startswith("d "))
    elif site == "zoneout_c":
        assert torch.equal(got["c_n"], states[1])
    else:
        assert torch.equal(got["h_n"], states[0]) and torch.equal(got["out"], states[0].expand_as(got["out"]))
        # c goes on as ever, but what only h reads does not matter: all of a GRU, the output gate of an LSTM.
        unread = got["d weight_ih_l0"][0 if cell == "GRU" else 3 * rnn.hidden_size :]
        assert torch.count_nonzero(unread) == 0


# --------------------------------------------------------------------------------------------------------------------
# What is kept
# --------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tensors_kept() -> Iterator[dict[int, Tensor]]:
    """Collects what autograd keeps for backward, once for each storage."""
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def kept_bytes(rnn: nn.Module, x: Any, states: tuple[Tensor, ...], **given: Any) -> int:
    """Bytes that are kept besides the parameters, the caller's states and results, and a few integers."""
    with tensors_kept() as found:
        results = call(rnn, x, states, **given)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*rnn.parameters(), *states, *results.values())}
    kept = [value for key, value in found.items() if key not in known and value.is_floating_point()]
    integers = [value for key, value in found.items() if not value.is_floating_point()]
    assert all(value.numel() <= 10 for value in integers), "nothing but rng, rates, ids and batch sizes"
    return sum(value.untyped_storage().nbytes() for value in kept)


KEPT = {
    "nothing": lambda cell: {},
    "cell": lambda cell: {"cell_dropout": 0.2},
    "unzoned": lambda cell: {"zoneout_h": frd.Zoneout(0.2, output="unzoned")},
    "output": lambda cell: {"output_dropout": 0.2},
    "everything": all_sites,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("sites", KEPT)
@pytest.mark.parametrize("cell", CELLS)
def test_bytes_kept_are_those_that_explain_names(
    cell: str, sites: str, bidirectional: bool, recompute: bool, dtype: torch.dtype
) -> None:
    rnn = module(cell, KEPT[sites](cell), (16, 32, 8), bidirectional=bidirectional, dtype=dtype, recompute=recompute)
    x, states = inputs_for(rnn, 10, 4)
    assert kept_bytes(rnn, x, states) == frd.explain(rnn, x).bytes_for_backward


@pytest.mark.parametrize("cell", CELLS)
def test_no_mask_is_kept_and_recompute_keeps_less(cell: str) -> None:
    sizes = (16, 32, 8)
    layout: dict[str, Any] = {"layers": 1, "bidirectional": False, "dtype": torch.float32}
    plain = module(cell, {}, sizes, **layout)
    dropped = module(cell, inner_sites(cell), sizes, **layout)
    x, states = inputs_for(plain, 10, 4)
    # The dropped input is kept instead of x. Where h is not the output any more, it is kept beside it.
    extra = 10 * 4 * (plain.proj_size or plain.hidden_size) * 4
    assert kept_bytes(dropped, x, states) - kept_bytes(plain, x, states) in (0, extra)
    full = kept_bytes(plain, x, states)
    plain.recompute = True
    gates = 10 * 4 * plain.hidden_size * 4 * 4  # four of (N, H) in both cells, four bytes each
    assert full - kept_bytes(plain, x, states) == gates


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_kept_without_gradients(cell: str) -> None:
    rnn = module(cell, all_sites(cell))
    x, states = inputs_for(rnn, T, B)
    given = drawn()
    want = {name: value.detach() for name, value in call(rnn, x, states, **given).items()}
    for mode in (torch.no_grad, torch.inference_mode):
        with tensors_kept() as found, mode():
            got = call(rnn, x, states, **given)
        assert not found and all(value.grad_fn is None and not value.requires_grad for value in got.values())
        assert_equal(got, want)
    rnn.requires_grad_(False)
    frozen = tuple(state.detach() for state in states)
    with tensors_kept() as found:
        got = call(rnn, x.detach(), frozen, **given)
    assert not found and not any(value.requires_grad for value in got.values())
    assert frd.explain(rnn, x.detach()).bytes_for_backward == 0


class OperatorNames(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cell", CELLS)
def test_activations_are_written_only_where_backward_needs_them(cell: str) -> None:
    rnn = module(cell, all_sites(cell))
    x, states = inputs_for(rnn, T, B)
    plain = f"fused_rnn_dropout::{name_of(cell).lower()}"
    for grad in (True, False):
        with torch.set_grad_enabled(grad), OperatorNames() as seen:
            call(rnn, x, states)
        assert (f"{plain}_forward" in seen.names, plain in seen.names) == (grad, not grad)


@pytest.mark.parametrize("cell", CELLS)
def test_memory_is_given_back_without_gradients(cell: str) -> None:
    """What stays allocated after a forward pass under no_grad is its results."""
    rnn = module(cell, all_sites(cell), (16, 32, 8), dtype=torch.float32)
    x, states = inputs_for(rnn, 20, 8)
    given = {"rng": frd.draw_rng("cpu")}
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        results = call(rnn, x, states, **given)
    alive = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    own = sum(value.untyped_storage().nbytes() for value in results.values())
    assert own <= alive <= own + 4096


# --------------------------------------------------------------------------------------------------------------------
# Backward
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice_gives_the_same_bits(cell: str, recompute: bool) -> None:
    rnn = module(cell, all_sites(cell), recompute=recompute)
    x, states = inputs_for(rnn, T, B)
    results, leaves = call(rnn, pack(x, LENGTHS), states), leaves_of(rnn, x, states)
    first = with_gradients(results, leaves, torch.float64, retain_graph=True)
    # Another forward pass and its backward lie in between, and a rate changes.
    measure(rnn, x, states)
    rnn.set_rate("weight_dropout", 0.9)
    rnn.set_rate("zoneout_h", 0.9)
    rnn.set_rate("output_dropout", 0.9)
    assert_equal(with_gradients(results, leaves, torch.float64, retain_graph=True), first)
    rnn.eval()
    assert_equal(with_gradients(results, leaves, torch.float64), first)


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_weight_changed_before_backward_raises(cell: str, recompute: bool) -> None:
    rnn = module(cell, inner_sites(cell), layers=1, recompute=recompute)
    x, states = inputs_for(rnn, T, B)
    loss = loss_of(call(rnn, x, states), torch.float64)
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("cell", CELLS)
def test_some_gradients_only(cell: str, training: bool, recompute: bool) -> None:
    """Any one leaf alone, any one left out: its gradient is the one it has among all."""
    rnn = module(cell, inner_sites(cell), layers=1, bidirectional=False, recompute=recompute).train(training)
    x, states = inputs_for(rnn, T, B)
    given = drawn()
    want = measure(rnn, x, states, **given)
    leaves = leaves_of(rnn, x, states)
    for name in leaves:
        for only in (True, False):
            for other, leaf in leaves.items():
                leaf.requires_grad_((other == name) == only)
            got = measure(rnn, x, states, **given)
            chosen = {key for key in leaves if (key == name) == only}
            assert {key for key in got if key.startswith("d ")} == {f"d {key}" for key in chosen}
            assert_same(got, {key: want[key] for key in got}, TOLERANCE[torch.float64])


@pytest.mark.parametrize(
    ("cell", "part"),
    [(cell, part) for cell in CELLS for part in ("out", "h_n", "c_n") if (cell, part) != ("GRU", "c_n")],
)
def test_gradients_of_one_result_alone(cell: str, part: str) -> None:
    """A result that the loss does not use has no gradient, not a tensor of zeros."""
    rnn = module(cell, inner_sites(cell), layers=1)
    x, states = inputs_for(rnn, T, B)
    given = drawn()
    leaves = leaves_of(rnn, x, states)
    results = call(rnn, x, states, **given)
    probes = {name: torch.randn_like(value) * (name == part) for name, value in results.items()}
    one = torch.autograd.grad((results[part] * probes[part]).sum(), list(leaves.values()), retain_graph=True)
    all_of = torch.autograd.grad(sum((results[name] * probes[name]).sum() for name in results), list(leaves.values()))
    assert_same(dict(zip(leaves, one, strict=True)), dict(zip(leaves, all_of, strict=True)), TOLERANCE[torch.float64])


# --------------------------------------------------------------------------------------------------------------------
# Dropped is zero
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("mode", ["element", "row"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_zero_exactly_where_a_mask_is(cell: str, mode: str, recompute: bool) -> None:
    weight = frd.WeightDropout(0.4, mode, inputs=True, projection=cell == "LSTM_proj")
    sites = {"input_dropout": frd.LockedDropout(0.3, "step"), "weight_dropout": weight, "hidden_dropout": 0.3}
    rnn = module(cell, sites, layers=1, recompute=recompute)
    x, states = inputs_for(rnn, T, B)
    given = drawn()
    masks = masks_of(rnn, x, **given)
    got = measure(rnn, x, states, **given)
    for name in [name for name in masks if name.startswith("weight")]:
        gradient = got[f"d {name}"]
        kept = (masks[name] != 0).expand_as(gradient)
        if name.startswith("weight_hh"):  # hidden dropout may leave a column without an example
            kept = kept & (masks[name.replace("weight_hh", "hidden")] != 0).any(1)
        assert torch.equal(gradient != 0, kept), name
    if mode == "element":  # a row mask may leave an input without a reader
        assert torch.equal(got["d x"] != 0, masks["input"] != 0)
    else:
        assert torch.count_nonzero(got["d x"][masks["input"] == 0]) == 0
    if cell != "GRU":  # a GRU's h_0 leaks past the recurrent product
        for direction, suffix in enumerate(("", "_reverse")):
            assert torch.equal(got["d h0"][direction] != 0, masks[f"hidden_l0{suffix}"][0] != 0)


@pytest.mark.parametrize("cell", CELLS)
def test_dead_memory_gets_no_gradient(cell: str) -> None:
    rnn = module(cell, {"cell_dropout": 0.4}, layers=1)
    x, states = inputs_for(rnn, T, B)
    given = drawn()
    masks, got = masks_of(rnn, x, **given), measure(rnn, x, states, **given)
    for direction, suffix in enumerate(("", "_reverse")):
        alive = masks[f"cell_l0{suffix}"][0] != 0
        memory, gradient = ("h_n", "d h0") if cell == "GRU" else ("c_n", "d c0")
        assert torch.equal(got[memory][direction] != 0, alive)
        assert torch.equal(got[gradient][direction] != 0, alive)


def poisoned(value: Tensor, where: Tensor, poison: float) -> Tensor:
    return value.detach().masked_fill(where, poison).requires_grad_()


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("poison", [float("inf"), float("nan")], ids=["inf", "nan"])
@pytest.mark.parametrize("cell", CELLS)
def test_dropped_infinities_are_zero(cell: str, poison: float, recompute: bool) -> None:
    """An inf or NaN that is dropped is 0, forward and backward: the results are those of a finite number there."""
    weight = frd.WeightDropout(0.4, inputs=True, projection=cell == "LSTM_proj")
    sites: dict[str, Any] = {"input_dropout": 0.3, "weight_dropout": weight, "hidden_dropout": 0.3, "cell_dropout": 0.3}
    rnn = module(cell, sites, layers=1, recompute=recompute)
    x, states = inputs_for(rnn, T, B)
    given = drawn()
    masks = masks_of(rnn, x, **given)
    want = measure(rnn, x, states, **given)
    x = poisoned(x, (masks["input"] == 0).expand_as(x), poison)
    both = ("", "_reverse")
    dead = torch.stack([masks[f"cell_l0{suffix}"][0] == 0 for suffix in both])
    unread = torch.stack([masks[f"hidden_l0{suffix}"][0] == 0 for suffix in both])
    # In a GRU h is the memory.
    states = (poisoned(states[0], dead if cell == "GRU" else unread, poison), *states[1:])
    if cell != "GRU":
        states = (states[0], poisoned(states[1], dead, poison))
    with torch.no_grad():
        for name in [name for name in masks if name.startswith("weight")]:
            rnn.get_parameter(name).masked_fill_(masks[name] == 0, poison)
    assert_equal(measure(rnn, x, states, **given), want)


@pytest.mark.parametrize("poison", [float("inf"), float("nan")], ids=["inf", "nan"])
@pytest.mark.parametrize("cell", CELLS)
def test_dropped_states_are_zero(cell: str, poison: float) -> None:
    """Inside a step too: a dropped candidate or memory is 0, whatever it was."""
    rnn = module(cell, {"update_dropout": 1.0}, layers=1)
    x, states = inputs_for(rnn, T, B)
    want = call(rnn, x, states)
    candidate = slice(2 * rnn.hidden_size, 3 * rnn.hidden_size)
    with torch.no_grad():
        for bias in (rnn.bias_ih_l0, rnn.bias_ih_l0_reverse):
            bias[candidate] = poison
    assert_equal(call(rnn, x, states), want)
    if cell == "GRU":
        return  # its memory is read by its gates before it is dropped
    rnn = module(cell, {"cell_dropout": frd.CellDropout(0.5, "step")}, layers=1)
    given = drawn()
    masks, want = masks_of(rnn, x, **given), call(rnn, x, states, **given)
    dropped = torch.stack([masks["cell_l0"][0] == 0, masks["cell_l0_reverse"][-1] == 0])
    assert dropped.any()
    assert_equal(call(rnn, x, (states[0], poisoned(states[1], dropped, poison)), **given), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("poison", [float("inf"), float("nan")], ids=["inf", "nan"])
@pytest.mark.parametrize("cell", CELLS)
def test_one_row_does_not_spoil_the_others(cell: str, poison: float, isa: str) -> None:
    ops.cpu_isa(isa)
    rnn = module(cell, all_sites(cell), dtype=torch.float32)
    x, states = inputs_for(rnn, T, 7)
    given = {"rng": frd.draw_rng("cpu")}
    bad = torch.zeros(7, dtype=torch.bool)
    bad[2] = True
    want = measure(rnn, x, states, **given)
    got = measure(rnn, poisoned(x, bad[:, None], poison), states, **given)
    assert got["out"][:, bad].isnan().any()
    for name in ("out", "h_n", "c_n", "d x", "d h0", "d c0"):
        if name in want:
            assert torch.equal(got[name][:, ~bad], want[name][:, ~bad]), name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_saturated_gates(cell: str, dtype: torch.dtype, isa: str) -> None:
    """Pre-activations so large that exp overflows: gates are 0 or 1, nothing becomes NaN."""
    ops.cpu_isa(isa)
    rnn = module(cell, inner_sites(cell), layers=1, dtype=dtype)
    x, states = inputs_for(rnn, T, B)
    scale = torch.finfo(dtype).max / 1e6
    x = (x * scale).detach().requires_grad_()
    results = call(rnn, x, states, rng=frd.draw_rng("cpu"))
    leaves = leaves_of(rnn, x, states)
    gradients = torch.autograd.grad(results["out"].sum(), [leaf for name, leaf in leaves.items() if "ih" not in name])
    assert all(value.isfinite().all() for value in (*results.values(), *gradients))


# --------------------------------------------------------------------------------------------------------------------
# Instruction sets
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_instruction_sets_export_the_same_masks(cell: str) -> None:
    rnn = module(cell, all_sites(cell), (7, 37, 21))
    x, _ = inputs_for(rnn, 3, 5)
    given = {"rng": frd.draw_rng("cpu")}
    found = []
    for isa in ISAS:
        ops.cpu_isa(isa)
        found.append(masks_of(rnn, x, **given))
    for masks in found[1:]:
        assert_equal(masks, found[0])


def test_unknown_instruction_sets_are_refused() -> None:
    before = ops.cpu_isa()
    with pytest.raises(ValueError, match="choice should be one of"):
        ops.cpu_isa("sse9")
    assert ops.cpu_isa() == before and before in ISAS and ISAS[0] == "baseline"


@pytest.mark.parametrize("cell", CELLS)
def test_backward_may_run_on_another_instruction_set(cell: str) -> None:
    """Masks are the same bits on all of them, so that even this is no mistake."""
    rnn = module(cell, all_sites(cell))
    x, states = inputs_for(rnn, T, B)
    given = drawn()
    ops.cpu_isa(ISAS[-1])
    want = measure(rnn, x, states, **given)
    results = call(rnn, x, states, **given)
    ops.cpu_isa(ISAS[0])
    got = with_gradients(results, leaves_of(rnn, x, states), torch.float64)
    assert_same(got, want, TOLERANCE[torch.float64])
