"""The drop-in surface: parity with torch.nn where no site acts, and everything that nn.Module asks of a module."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from grids import has, of_torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout.cell_modules import SITES_OF_CELLS
from fused_rnn_dropout.cells import MODULES
from fused_rnn_dropout.sites import SITE_NAMES

BACKENDS = ("cpu", "reference")
T, B, I, H = 5, 3, 4, 6
STEPWISE: dict[str, Any] = {"weight_dropout": 0.5, "hidden_dropout": 0.25, "update_dropout": 0.2, "zoneout_h": 0.3}


def pair(cell: str, *args: Any, backend: str | None = None, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """torch's module and ours with the same weights."""
    theirs = getattr(nn, cell)(*args, **kwargs)
    ours = getattr(frd, cell)(*args, **kwargs, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def flat(result: Any) -> list[Tensor]:
    """Every tensor of what a module returned."""
    out, state = result
    out = out.data if isinstance(out, PackedSequence) else out
    return [out, *(state if isinstance(state, tuple) else (state,))]


def gradients(module: nn.Module, x: Tensor, hx: Any, given: Any, seed: int = 1) -> dict[str, Tensor]:
    """Gradient of a random linear function of all outputs by x, the states and every parameter."""
    generator = torch.Generator().manual_seed(seed)
    results = flat(module(given, hx))
    loss = sum((r * torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype)).sum() for r in results)
    leaves = {"x": x, **dict(module.named_parameters())}
    leaves |= {f"hx{i}": h for i, h in enumerate(hx if isinstance(hx, tuple) else (() if hx is None else (hx,)))}
    grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)  # packing is shared by both modules
    return dict(zip(leaves, grads, strict=True)) | {f"result{i}": r.detach() for i, r in enumerate(results)}


def assert_close(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name in theirs:
        # fp64 over five steps: a few hundred roundings, and torch sums in another order
        tolerance = 1e3 * torch.finfo(theirs[name].dtype).eps
        torch.testing.assert_close(
            mine[name], theirs[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def make_input(form: str, batch_first: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Any]:
    """A leaf, and the input made of it: a tensor or a PackedSequence."""
    if form == "unbatched":
        x = torch.randn(T, I, dtype=dtype, requires_grad=True)
        return x, x
    x = torch.randn((B, T, I) if batch_first else (T, B, I), dtype=dtype, requires_grad=True)
    if form == "padded":
        return x, x
    lengths = [5, 3, 2] if form == "packed" else [2, 5, 3]
    return x, pack_padded_sequence(x, torch.tensor(lengths), batch_first, enforce_sorted=form == "packed")


def make_state(cell: str, module: nn.Module, batch: int | None, dtype: torch.dtype = torch.float64) -> Any:
    count = module.num_layers * (2 if module.bidirectional else 1)
    rows = () if batch is None else (batch,)
    widths = [module.proj_size or module.hidden_size, module.hidden_size][: 2 if cell == "LSTM" else 1]
    states = tuple(torch.randn(count, *rows, width, dtype=dtype, requires_grad=True) for width in widths)
    return states if cell == "LSTM" else states[0]


# --------------------------------------------------------------------------------------------------------------------
# Parity
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["padded", "packed", "unsorted", "unbatched"])
@pytest.mark.parametrize("with_state", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "forward"])
@pytest.mark.parametrize(
    ("cell", "layers", "proj"),
    [("LSTM", 1, 0), ("LSTM", 3, 2), ("LSTM", 2, 0), ("GRU", 1, 0), ("GRU", 3, 0), ("RNN", 2, 0)],
)
def test_parity(
    cell: str, layers: int, proj: int, bidirectional: bool, bias: bool, with_state: bool, form: str, backend: str
) -> None:
    batch_first = layers == 3  # both layouts, without doubling the number of cases
    kwargs: dict[str, Any] = {"proj_size": proj} if cell == "LSTM" else {}
    kwargs |= {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "dtype": torch.float64}
    theirs, ours = pair(cell, I, H, layers, backend=backend, **kwargs)
    x, given = make_input(form, batch_first)
    hx = make_state(cell, theirs, None if form == "unbatched" else B) if with_state else None
    result, expected = ours(given, hx), theirs(given, hx)
    assert type(result[0]) is type(expected[0])
    if isinstance(expected[0], PackedSequence):
        for mine, their in zip(result[0][1:], expected[0][1:], strict=True):
            assert mine is their or torch.equal(mine, their)
    for mine, their in zip(flat(result), flat(expected), strict=True):
        assert mine.shape == their.shape and mine.dtype == their.dtype
    assert_close(gradients(ours, x, hx, given), gradients(theirs, x, hx, given))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 1, 3, 31), (7, 5, 33, 9), (40, 2, 3, 17)], ids=str)
def test_parity_float32(cell: str, sizes: tuple[int, int, int, int], backend: str) -> None:
    steps, batch, inputs, hidden = sizes
    theirs, ours = pair(cell, inputs, hidden, 2, backend=backend)
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    mine, expected = gradients(ours, x, None, x), gradients(theirs, x, None, x)
    for name in expected:
        scale = expected[name].abs().max().clamp(min=1)
        torch.testing.assert_close(mine[name], expected[name], rtol=1e-4, atol=float(scale) * 2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_follows_the_float32_result(cell: str, dtype: torch.dtype, backend: str) -> None:
    ours = getattr(frd, cell)(I, H, backend=backend)
    x = torch.randn(T, B, I).to(dtype)
    low = copy.deepcopy(ours).to(dtype)
    ours.load_state_dict({name: value.float() for name, value in low.state_dict().items()})
    for mine, expected in zip(flat(low(x)), flat(ours(x.float())), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.float(), expected, rtol=0, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", MODULES)
def test_non_contiguous_and_expanded_inputs(cell: str, backend: str) -> None:
    theirs, ours = pair(cell, I, H, dtype=torch.float64, backend=backend)
    base = torch.randn(2 * T, B, 2 * I, dtype=torch.float64)
    for x in (base[::2, :, ::2], base[:T, :1, :I].expand(T, B, I), base[:T, :, :I].flip(0)):
        x = x.detach().requires_grad_()
        assert_close(gradients(ours, x, None, x), gradients(theirs, x, None, x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", MODULES)
def test_empty_batch(cell: str, backend: str) -> None:
    theirs, ours = pair(cell, I, H, 2, bidirectional=True, backend=backend)
    x = torch.randn(T, 0, I)
    for mine, expected in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        assert mine.shape == expected.shape
    flat(ours(x))[0].sum().backward()
    assert torch.count_nonzero(ours.weight_hh_l0.grad) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", MODULES)
def test_sites_at_rate_zero_and_eval_are_parity_too(cell: str, backend: str) -> None:
    theirs, ours = pair(cell, I, H, 2, dtype=torch.float64, backend=backend)
    x = torch.randn(T, B, I, dtype=torch.float64)
    expected = flat(theirs(x))
    for name in STEPWISE:
        ours.set_rate(name, 0.0)
    assert set(ours.sites) == set(STEPWISE)
    for mine, their in zip(flat(ours(x)), expected, strict=True):
        torch.testing.assert_close(mine, their)
    plain = flat(copy.deepcopy(ours).eval()(x))
    for name in ("weight_dropout", "hidden_dropout", "update_dropout", "input_dropout", "output_dropout"):
        setattr(ours, name, 0.6)
    for mine, their in zip(flat(ours.eval()(x)), plain, strict=True):
        assert torch.equal(mine, their)  # no mask is left on in eval


# --------------------------------------------------------------------------------------------------------------------
# Sites as attributes
# --------------------------------------------------------------------------------------------------------------------


def test_a_rate_is_an_attribute() -> None:
    rnn = frd.LSTM(I, H, 2, weight_dropout=frd.WeightDropout(0.5, mode="row"), zoneout_c=0.1)
    assert rnn.weight_dropout == 0.5 and rnn.zoneout_c == 0.1 and rnn.hidden_dropout == 0.0 and rnn.dropout == 0.0
    rnn.weight_dropout = 0.25
    assert rnn.sites["weight_dropout"] == frd.WeightDropout(0.25, mode="row")
    rnn.weight_dropout = 0.0
    assert rnn.weight_dropout == 0.0 and set(rnn.sites) == {"zoneout_c"}
    rnn.weight_dropout = 0.3
    assert rnn.sites["weight_dropout"] == frd.WeightDropout(0.3)
    rnn.zoneout_c = frd.Zoneout(0.2, per="sequence")
    assert rnn.sites["zoneout_c"] == frd.Zoneout(0.2, per="sequence") and rnn.zoneout_c == 0.2
    rnn.dropout = 0.4
    assert rnn.dropout == 0.4
    with pytest.raises(TypeError):
        rnn.sites["dropout"] = 0.1  # type: ignore[index]
    assert not hasattr(frd.GRU(I, H), "zoneout_c")


def test_a_rate_changes_the_thresholds_in_place_and_not_the_plan() -> None:
    rnn = frd.LSTM(I, H, weight_dropout=0.5, zoneout_h=0.0)
    plan, buffer = rnn._plan, rnn._thresholds
    rnn.set_rate("weight_dropout", 0.125)
    rnn.weight_dropout = 0.25
    assert rnn._plan is plan and rnn._thresholds is buffer
    assert buffer.tolist() == [2**30 if name == "weight_dropout" else 0 for name in SITE_NAMES]
    rnn.set_rate("weight_dropout", 0.0)
    assert rnn._plan is plan and rnn.weight_dropout == 0.0 and "weight_dropout" in rnn.sites
    rnn.set_rate("zoneout_h", 0.0)  # configures it, unlike the 0.0 of the constructor
    assert "zoneout_h" in rnn.sites and rnn._plan != plan


def test_a_refused_assignment_changes_nothing() -> None:
    rnn = frd.LSTM(I, H, 2, dropout=0.5, weight_dropout=0.25)
    before = (dict(rnn.sites), rnn._plan, rnn._thresholds.tolist())
    for name, value in (("inter_layer_dropout", 0.1), ("weight_dropout", 1.5), ("hidden_dropout", frd.Zoneout(0.1))):
        with pytest.raises((TypeError, ValueError)):
            setattr(rnn, name, value)
        assert (dict(rnn.sites), rnn._plan, rnn._thresholds.tolist()) == before


@pytest.mark.parametrize("module", [frd.LSTM, frd.GRU, frd.RNN, frd.LSTMCell, frd.GRUCell])
def test_a_constructor_takes_each_site_that_its_cell_has(module: Any) -> None:
    """Under its name, in the order of the table, and gives it to the module."""
    inside = SITES_OF_CELLS if issubclass(module, nn.RNNCellBase) else SITE_NAMES
    expected = [name for name in inside if has(module.__name__.removesuffix("Cell"), name)]
    assert [name for name in inspect.signature(module.__init__).parameters if name in SITE_NAMES] == expected
    layers = {} if issubclass(module, nn.RNNCellBase) else {"num_layers": 2}
    for name in expected:
        assert list(module(I, H, **layers, **{name: 0.3}).sites) == [name]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in SITE_NAMES if name != "zoneout_c"])
def test_every_site_acts_in_training_and_follows_rng(name: str, backend: str) -> None:
    for cell in (cell for cell in MODULES if has(cell, name)):
        rnn = getattr(frd, cell)(I, H, 2, backend=backend, **{name: 0.5})
        x = torch.randn(T, B, I)
        rng = frd.draw_rng("cpu")
        out, again, other = (flat(rnn(x, rng=r))[0] for r in (rng, rng, frd.draw_rng("cpu")))
        assert torch.equal(out, again) and not torch.equal(out, other)
        assert not torch.equal(out, flat(copy.deepcopy(rnn).eval()(x))[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_mc_keeps_masks_on_in_eval(backend: str) -> None:
    rnn = frd.LSTM(I, H, weight_dropout=0.5, zoneout_c=0.2, backend=backend)
    x, rng = torch.randn(T, B, I), frd.draw_rng("cpu")
    trained = rnn(x, rng=rng)[0]
    model = nn.Sequential(rnn).eval()
    assert not torch.equal(rnn(x, rng=rng)[0], trained)
    assert frd.mc_dropout(model) is model and rnn.mc and not rnn.training
    assert torch.equal(rnn(x, rng=rng)[0], trained)
    frd.mc_dropout(model, on=False)
    assert torch.equal(rnn(x, rng=rng)[0], rnn(x)[0])
    with pytest.raises(ValueError, match="found no"):
        frd.mc_dropout(nn.Linear(2, 2))


def test_the_generator_is_read_only_when_a_mask_is_drawn() -> None:
    x = torch.randn(T, B, I)

    def consumed(rnn: nn.Module, **kwargs: Any) -> Tensor | None:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        rnn(x, **kwargs)
        after = torch.get_rng_state()
        return None if torch.equal(before, after) else after

    assert consumed(frd.LSTM(I, H)) is None
    assert consumed(frd.LSTM(I, H, weight_dropout=0.5).eval()) is None
    assert consumed(frd.LSTM(I, H, weight_dropout=0.5), rng=frd.draw_rng("cpu")) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert consumed(frd.LSTM(I, H, dropout=0.5)) is None  # one layer: nothing between layers
    # The amount is the same whatever is configured, and a scheduled 0 draws like any rate.
    first = consumed(frd.LSTM(I, H, weight_dropout=0.5))
    rnn = frd.GRU(I, H, 3, dropout=0.2, zoneout_h=0.1, input_dropout=0.1)
    rnn.set_rate("zoneout_h", 0.0)
    second = consumed(rnn)
    assert first is not None and second is not None and torch.equal(first, second)


def test_one_group_of_sites_can_have_its_own_rng() -> None:
    rnn = frd.LSTM(I, H, weight_dropout=0.5, hidden_dropout=0.5)
    x, r1, r2 = torch.randn(T, B, I), frd.draw_rng("cpu"), frd.draw_rng("cpu")
    first = frd.export_masks(rnn, x, rng=r1)
    mixed = frd.export_masks(rnn, x, rng={"weight": r1, None: r2})
    assert torch.equal(mixed["weight_hh_l0"], first["weight_hh_l0"])
    assert not torch.equal(mixed["hidden_l0"], first["hidden_l0"])
    assert torch.equal(rnn(x, rng={"weight": r1, None: r1})[0], rnn(x, rng=r1)[0])
    assert not torch.equal(rnn(x, rng={"weight": r1, None: r2})[0], rnn(x, rng=r1)[0])


# --------------------------------------------------------------------------------------------------------------------
# nn.Module
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", MODULES)
def test_state_dict_both_ways(cell: str) -> None:
    kwargs: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
    theirs = getattr(nn, cell)(I, H, **kwargs)
    ours = getattr(frd, cell)(I, H, **kwargs, dropout=0.3, **STEPWISE)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.load_state_dict(theirs.state_dict(), strict=True).missing_keys == []
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert [list(group) for group in ours._all_weights] == [list(group) for group in theirs._all_weights]
    for mine, their in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert all(torch.equal(m, t) for m, t in zip(mine, their, strict=True))


def test_the_same_seed_initialises_the_same_weights() -> None:
    torch.manual_seed(7)
    theirs = nn.LSTM(I, H, 2)
    torch.manual_seed(7)
    ours = frd.LSTM(I, H, 2, weight_dropout=0.5)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())


def _saved(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), _saved], ids=["deepcopy", "pickle", "save"]
)
def test_copies_keep_everything(copied: Any, cell: str, backend: str) -> None:
    rnn = getattr(frd, cell)(I, H, 2, dropout=0.2, backend=backend, recompute=True, mc=True, **STEPWISE)
    x, rng = torch.randn(T, B, I), frd.draw_rng("cpu")
    expected = flat(rnn(x, rng=rng))
    twin = copied(rnn)
    assert repr(twin) == repr(rnn) and dict(twin.sites) == dict(rnn.sites)
    for mine, their in zip(flat(twin(x, rng=rng)), expected, strict=True):
        assert torch.equal(mine, their)
    twin.weight_dropout = 0.1
    twin.weight_hh_l0.data.zero_()
    assert rnn.weight_dropout == 0.5 and torch.equal(flat(rnn(x, rng=rng))[0], expected[0])


def test_moving_and_casting_leaves_the_rates_alone() -> None:
    rnn = frd.LSTM(I, H, weight_dropout=0.3)
    expected = rnn._thresholds.tolist()
    for move in (lambda: rnn.bfloat16(), lambda: rnn.to(torch.float64), lambda: rnn.half(), lambda: rnn.float()):
        move()
        assert rnn._thresholds.dtype == torch.int64 and rnn._thresholds.tolist() == expected
    rnn.to("meta")
    assert rnn._thresholds.device.type == "meta"
    rnn.to_empty(device="cpu")
    assert rnn._thresholds.tolist() == expected
    rnn.reset_parameters()
    assert rnn(torch.randn(T, B, I))[0].isfinite().all()


def test_made_on_meta_and_loaded_with_assign() -> None:
    with torch.device("meta"):
        rnn = frd.LSTM(I, H, weight_dropout=0.5)
    other = frd.LSTM(I, H, weight_dropout=0.5)
    rnn.load_state_dict(other.state_dict(), assign=True)
    x, rng = torch.randn(T, B, I), frd.draw_rng("cpu")
    assert torch.equal(rnn(x, rng=rng)[0], other(x, rng=rng)[0])
    skipped = torch.nn.utils.skip_init(frd.GRU, I, H, zoneout_h=0.25)
    assert skipped._thresholds.tolist() == frd.GRU(I, H, zoneout_h=0.25)._thresholds.tolist()


def test_a_module_made_in_inference_mode_takes_new_rates() -> None:
    with torch.inference_mode():
        rnn = frd.LSTM(I, H, weight_dropout=0.5)
    rnn.weight_dropout = 0.25
    assert rnn._thresholds[SITE_NAMES.index("weight_dropout")] == 2**30


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", MODULES)
def test_weights_are_read_where_they_are_now(cell: str, backend: str) -> None:
    theirs, ours = pair(cell, I, H, dtype=torch.float64, backend=backend)
    x = torch.randn(T, B, I, dtype=torch.float64)
    original = flat(ours(x))[0]
    doubled = {name: (2 * value).detach().requires_grad_() for name, value in ours.named_parameters()}
    expected = flat(functional_call(theirs, doubled, (x,)))[0]
    called = flat(functional_call(ours, doubled, (x,)))[0]
    torch.testing.assert_close(called, expected)
    (gradient,) = torch.autograd.grad(called.sum(), doubled["weight_hh_l0"])
    assert torch.count_nonzero(gradient) > 0
    assert torch.equal(flat(ours(x))[0], original)

    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrised = copy.deepcopy(ours)
    for name in dict(ours.named_parameters()):
        parametrize.register_parametrization(parametrised, name, Double())
    torch.testing.assert_close(flat(parametrised(x))[0], expected)
    ours.weight_ih_l0 = nn.Parameter(torch.zeros_like(ours.weight_ih_l0))
    theirs.weight_ih_l0 = nn.Parameter(torch.zeros_like(theirs.weight_ih_l0))
    torch.testing.assert_close(flat(ours(x))[0], flat(theirs(x))[0])
    ours.flatten_parameters()


@pytest.mark.parametrize("backend", BACKENDS)
def test_replica_for_data_parallel(backend: str) -> None:
    rnn = frd.LSTM(I, H, weight_dropout=0.5, backend=backend)
    x, rng = torch.randn(T, B, I), frd.draw_rng("cpu")
    replica = rnn._replicate_for_data_parallel()
    for name, parameter in rnn.named_parameters():  # what nn.parallel.replicate does on each device
        copied = parameter * 1.0
        setattr(replica, name, copied)
    for name, buffer in rnn.named_buffers():
        replica._buffers[name] = buffer.clone()
    result = replica(x, rng=rng)[0]
    assert torch.equal(result, rnn(x, rng=rng)[0])
    (gradient,) = torch.autograd.grad(result.sum(), rnn.weight_hh_l0)
    assert torch.count_nonzero(gradient) > 0


def test_forward_changes_no_parameter() -> None:
    rnn = frd.LSTM(I, H, 2, **STEPWISE)
    before = {name: value.detach().clone() for name, value in rnn.named_parameters()}
    rnn(torch.randn(T, B, I))[0].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in rnn.named_parameters())


def test_repr() -> None:
    some = (4, 6, 2, False, True, 0.5, True)
    for cell, args in (("LSTM", (*some, 3)), ("GRU", some), ("RNN", (*some[:3], "tanh", *some[3:]))):
        assert repr(getattr(frd, cell)(*args)) == repr(getattr(nn, cell)(*args))
    assert repr(frd.RNN(4, 6, nonlinearity="relu")) == "RNN(4, 6, nonlinearity='relu')"
    zoneout = frd.Zoneout(0.1, per="sequence")
    rnn = frd.LSTM(4, 6, weight_dropout=0.5, zoneout_c=zoneout, backend="reference", mc=True)
    assert repr(rnn) == f"LSTM(4, 6, weight_dropout=0.5, zoneout_c={zoneout!r}, mc=True, backend='reference')"
    rnn.weight_dropout, rnn.zoneout_c = 0.25, 0.0
    assert repr(rnn) == "LSTM(4, 6, weight_dropout=0.25, mc=True, backend='reference')"
    assert repr(frd.GRU(4, 6, recompute=True, reset_after=False)) == "GRU(4, 6, recompute=True, reset_after=False)"
    assert not isinstance(rnn, nn.LSTM) and isinstance(rnn, nn.RNNBase)


def test_positions_are_those_of_torch() -> None:
    rnn = frd.LSTM(4, 6, 2, False, True, 0.5, True, 3, "cpu", torch.float64)
    got = (
        rnn.num_layers,
        rnn.bias,
        rnn.batch_first,
        rnn.dropout,
        rnn.bidirectional,
        rnn.proj_size,
        rnn.weight_ih_l0.dtype,
    )
    assert got == (2, False, True, 0.5, True, 3, torch.float64)
    gru = frd.GRU(4, 6, 2, False, True, 0.5, True, "cpu", torch.float64)
    assert gru.bidirectional and gru.weight_ih_l0.dtype == torch.float64
    given = (4, 6, 2, "relu", False, True, 0.5, True)
    for plain in (nn.RNN(*given, dtype=torch.float64), frd.RNN(*given, "cpu", torch.float64)):
        assert (plain.mode, plain.nonlinearity, plain.num_layers, plain.bias) == ("RNN_RELU", "relu", 2, False)
        assert (plain.batch_first, plain.dropout, plain.bidirectional) == (True, 0.5, True)
        assert plain.weight_ih_l0.dtype == torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("cell", "proj"), [("LSTM", 3), *((cell, 0) for cell in MODULES)])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_gives_the_dtypes_of_torch(
    cell: str, packed: bool, proj: int, dtype: torch.dtype, backend: str
) -> None:
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    kwargs: dict[str, Any] = {"proj_size": proj} if cell == "LSTM" else {}
    theirs, ours = pair(cell, I, H, 2, dtype=weights, backend=backend, **kwargs)
    ours.weight_dropout = 0.0
    x = torch.randn(T, B, I, dtype=dtype)
    given = pack_padded_sequence(x, torch.tensor([5, 3, 2])) if packed else x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results, expected = flat(ours(given)), flat(of_torch(theirs, given))
    assert [r.dtype for r in results] == [r.dtype for r in expected]
    for mine, their in zip(results, expected, strict=True):
        tolerance = 1e-9 if dtype == torch.float64 else 8 * torch.finfo(torch.bfloat16).eps
        torch.testing.assert_close(mine.double(), their.double(), rtol=0, atol=tolerance)
    flat(ours(x.to(weights)))[0].sum().backward()
    assert ours.weight_hh_l0.grad.dtype == weights


# --------------------------------------------------------------------------------------------------------------------
# torch.compile
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", MODULES)
def test_a_new_rate_compiles_nothing_again(cell: str) -> None:
    torch.compiler.reset()
    rnn = getattr(frd, cell)(I, H, 2, dropout=0.1, **STEPWISE)
    counter = CompileCounter()
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    x, rng = torch.randn(T, B, I), frd.draw_rng("cpu")
    outputs = [flat(compiled(x, rng=rng))[0]]
    for change in (
        lambda: rnn.set_rate("weight_dropout", 0.0),
        lambda: setattr(rnn, "zoneout_h", 0.9),
        lambda: setattr(rnn, "dropout", 0.2),
    ):
        change()
        outputs.append(flat(compiled(x, rng=rng))[0])
        assert torch.equal(outputs[-1], flat(rnn(x, rng=rng))[0]) and not torch.equal(outputs[-1], outputs[-2])
    assert counter.frame_count == 1
    rnn.input_dropout = 0.5  # another site is another graph
    assert torch.equal(flat(compiled(x, rng=rng))[0], flat(rnn(x, rng=rng))[0])
    assert counter.frame_count == 2


@pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("with_state", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("cell", MODULES)
def test_packed_input_compiles_to_one_graph(cell: str, with_state: bool, enforce_sorted: bool) -> None:
    torch.compiler.reset()
    rnn = getattr(frd, cell)(I, H, 2, bidirectional=True, **STEPWISE)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    hx = make_state(cell, rnn, B, torch.float32) if with_state else None
    rng = frd.draw_rng("cpu")
    given = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([5, 3, 1]), enforce_sorted=enforce_sorted)
    for mine, their in zip(flat(compiled(given, hx, rng=rng)), flat(rnn(given, hx, rng=rng)), strict=True):
        assert torch.equal(mine, their)


# --------------------------------------------------------------------------------------------------------------------
# explain
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.cpu_kernels
def test_explain() -> None:
    rnn = frd.LSTM(I, H, 2, bidirectional=True, weight_dropout=0.5, input_dropout=0.25, dropout=0.125)
    x = torch.randn(T, B, I)
    report = frd.explain(rnn, x)
    text = str(report)
    assert report.backend == "cpu" and "fused CPU" in text and "on: training" in text
    assert "weight_dropout=0.5" in report.layers["layer 1 reverse"] and report.layers["input"] == "input_dropout=0.25"
    assert report.layers["between layers 0 and 1"] == "dropout=0.125"
    # Four gates and c for each of 4 layer-directions, inputs of width I and 2 H. The h of the first layer is the input
    # of the next, which masks what it reads; that of the last one is the output.
    assert report.bytes_for_backward == 4 * T * B * (4 * 5 * H + I + 2 * H)
    rnn.recompute = True
    assert frd.explain(rnn, x).bytes_for_backward == 4 * T * B * (4 * H + I + 2 * H)
    with torch.no_grad():
        assert frd.explain(rnn, x).bytes_for_backward == 0
    assert frd.explain(rnn.eval(), x).masks_on == "off: eval"
    rnn.backend = "reference"
    report = frd.explain(rnn, pack_padded_sequence(x, torch.tensor([5, 3, 1])))
    assert report.backend == "reference" and report.bytes_for_backward is None and "packed" in report.input
    assert report.others["cuda"]
    with pytest.raises(ValueError, match='backend="reference"'):
        frd.explain(frd.LSTM(I, H, hidden_dropout=frd.HiddenDropout(0.5, tied=False)), x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", MODULES)
def test_exported_masks_have_their_names_and_shapes(cell: str, backend: str) -> None:
    sites: dict[str, Any] = {**STEPWISE, "input_dropout": 0.5, "inter_layer_dropout": 0.5, "output_dropout": 0.5}
    sites |= {"cell_dropout": 0.25} if has(cell, "cell_dropout") else {}
    rnn = getattr(frd, cell)(I, H, 2, bidirectional=True, backend=backend, **sites)
    x, rng = torch.randn(T, B, I), frd.draw_rng("cpu")
    masks = frd.export_masks(rnn, x, rng=rng)
    shapes = {"hidden": (1, B, H), "weight_hh": tuple(rnn.weight_hh_l0.shape), "update": (T, B, H),
              "zoneout_h": (T, B, H)}  # fmt: skip
    if "cell_dropout" in sites:
        shapes |= {"cell": (1, B, H), "cell_scale": (), "cell_entry": (B, H)}
    expected = {
        f"{name}_l{layer}{side}": shape
        for name, shape in shapes.items()
        for layer in (0, 1)
        for side in ("", "_reverse")
    }
    expected |= {"input": (1, B, I), "inter_layer_l1": (1, B, 2 * H), "output": (1, B, 2 * H)}
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == expected
    assert set(masks["input"].unique().tolist()) <= {0.0, 2.0}
    # The input mask is the one that the forward pass used: a dropped column of x cannot matter.
    dropped = masks["input"].expand(T, B, I) == 0
    assert dropped.any()
    changed = torch.where(dropped, torch.full_like(x, float("nan")), x)
    assert torch.equal(rnn(changed, rng=rng)[0], rnn(x, rng=rng)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "between",
    [{"dropout": 0.4}, {"inter_layer_dropout": frd.LockedDropout(0.4, batch_shared=True)}],
    ids=lambda v: [*v][0],
)
@pytest.mark.parametrize(("cell", "proj"), [("LSTM", 3), *((cell, 0) for cell in MODULES)])
def test_a_stack_is_the_reference_fed_with_its_exported_masks(
    cell: str, proj: int, between: dict[str, Any], backend: str
) -> None:
    kwargs: dict[str, Any] = {"proj_size": proj} if proj else {}
    sites: dict[str, Any] = {**STEPWISE, **between, "input_dropout": 0.3, "cell_dropout": 0.25}
    sites["output_dropout"] = frd.LockedDropout(0.3, per="step")
    sites = {name: value for name, value in sites.items() if has(cell, name)}
    rnn = getattr(frd, cell)(I, H, 3, bidirectional=True, dtype=torch.float64, backend=backend, **sites, **kwargs)
    x, rng = torch.randn(T, B, I, dtype=torch.float64), frd.draw_rng("cpu")
    hx = make_state(cell, rnn, B)
    masks = frd.export_masks(rnn, x, rng=rng, step_offset=5)
    value, finals = x * masks.pop("input"), []
    for layer in range(3):
        if layer:
            value = value * masks.pop(f"inter_layer_l{layer}")
        outs = []
        for direction, suffix in enumerate((f"_l{layer}", f"_l{layer}_reverse")):
            names = [name for name in masks if name.endswith(suffix)]
            own = {name.removesuffix(suffix): masks.pop(name) for name in names}
            names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *(["weight_hr"] if proj else [])]
            weights = [getattr(rnn, name + suffix) for name in names]
            index = 2 * layer + direction
            state = tuple(part[index] for part in hx) if isinstance(hx, tuple) else hx[index]
            equations = getattr(frd.reference, rnn.mode.lower())
            out, last = equations(value, state, weights, own, reverse=direction == 1)
            outs.append(out)
            finals.append(last if isinstance(last, tuple) else (last,))
        value = torch.cat(outs, -1)
    value = value * masks.pop("output")
    assert not masks  # every exported mask was used
    expected = [value, *(torch.stack(states) for states in zip(*finals, strict=True))]
    for mine, their in zip(flat(rnn(x, hx, rng=rng, step_offset=5)), expected, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-10, atol=1e-11)
