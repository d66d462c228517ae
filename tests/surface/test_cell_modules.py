"""LSTMCell, GRUCell, RNNCell: torch.nn's where nothing is said, one step of this package's layers where sites are."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import prune

import fused_rnn_dropout as frd

CELLS = ("LSTM", "GRU", "RNN", "RNN relu")
"""The class without "Cell", and the nonlinearity where it is not the default."""
T, B, I, H = 6, 3, 5, 7
RNG = torch.tensor([9, -2])

EVERY_SITE: dict[str, Any] = {
    "input_dropout": 0.3,
    "hidden_dropout": 0.4,
    "weight_dropout": frd.WeightDropout(0.5, inputs=True),
    "update_dropout": 0.2,
    "cell_dropout": 0.3,
    "zoneout_h": 0.3,
}
OTHERS: dict[str, Any] = {
    "input_dropout": frd.LockedDropout(0.3, per="step"),
    "hidden_dropout": frd.HiddenDropout(0.4, batch_shared=True),
    "weight_dropout": frd.WeightDropout(0.5, mode="row"),
    "update_dropout": frd.UpdateDropout(0.2, per="sequence"),
    "cell_dropout": frd.CellDropout(0.3, per="step"),
    "zoneout_h": frd.Zoneout(0.3, per="sequence"),
}
REFERENCE: dict[str, Any] = {
    "backend": "reference",
    "input_dropout": frd.LockedDropout(0.3, tied=False),
    "hidden_dropout": frd.HiddenDropout(0.4, tied=False),
    "weight_dropout": frd.WeightDropout(0.5, per_example=True),
}


def sites_for(cell: str, sites: dict[str, Any]) -> dict[str, Any]:
    if cell == "LSTM" and "zoneout_h" in sites:
        return {**sites, "zoneout_c": 0.25}
    return {name: site for name, site in sites.items() if name != "cell_dropout" or has_memory(cell)}


def has_memory(cell: str) -> bool:
    return not cell.startswith("RNN")


def made(module: Any, cell: str, *arguments: Any, of: str = "Cell", **options: Any) -> Any:
    """``cell`` of torch.nn or this package, or with ``of=""`` the layer."""
    name, *nonlinearity = cell.split()
    options |= {"nonlinearity": nonlinearity[0]} if nonlinearity else {}
    return getattr(module, name + of)(*arguments, **options)


def called(cell: str) -> str:
    return f"{cell.split()[0]}Cell"


def build(cell: str, bias: bool = True, dtype: torch.dtype = torch.float64, **sites: Any) -> Any:
    torch.manual_seed(1)
    return made(frd, cell, I, H, bias, dtype=dtype, **sites)


def layer_of(cell: str, mine: Any, **sites: Any) -> Any:
    """The layer with the weights of a cell."""
    layer = made(frd, cell, I, H, of="", bias=mine.bias, dtype=mine.weight_hh.dtype, **sites)
    layer.load_state_dict({f"{name}_l0": value for name, value in mine.state_dict().items()})
    return layer


def states(cell: str, *shape: int, dtype: torch.dtype = torch.float64) -> Any:
    drawn = [torch.randn(*shape, dtype=dtype) for _ in range(2 if cell == "LSTM" else 1)]
    return tuple(drawn) if cell == "LSTM" else drawn[0]


def flat(state: Any) -> list[Tensor]:
    return list(state) if isinstance(state, tuple) else [state]


# ---------------------------------------------------------------------------------------------------------------------
# Without a site
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(B,), ()], ids=["batched", "unbatched"])
@pytest.mark.parametrize("with_state", [True, False])
def test_it_is_torchs(cell: str, bias: bool, batch: tuple[int, ...], with_state: bool) -> None:
    mine = build(cell, bias)
    torch.manual_seed(1)
    theirs = made(nn, cell, I, H, bias, dtype=torch.float64)
    for name, value in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value)
    assert list(mine.state_dict()) == list(theirs.state_dict()) and isinstance(mine, nn.RNNCellBase)
    x = torch.randn(*batch, I, dtype=torch.float64, requires_grad=True)
    hx = states(cell, *batch, H) if with_state else None
    results = []
    for module in (mine, theirs):
        out = flat(module(x, hx))
        gradients = torch.autograd.grad(sum(part.square().sum() for part in out), [x, *module.parameters()])
        results.append([*out, *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_bad_input_in_torchs_words(cell: str) -> None:
    mine, theirs = build(cell), made(nn, cell, I, H, dtype=torch.float64)
    pair = cell == "LSTM"

    def hx(*shape: int) -> Any:
        return states(cell, *shape)

    x = torch.randn(B, I, dtype=torch.float64)
    for given in ((x[None],), (x, hx(1, B, H)), (x[:, :4],), (x, hx(B + 1, H)), (x, hx(B, H + 1)), (x[0], hx(H - 1))):
        with pytest.raises((ValueError, RuntimeError)) as right:
            theirs(*given)
        with pytest.raises(type(right.value)) as found:
            mine(*given)
        assert str(found.value) == str(right.value)
    for given, error, message in (
        ((x.tolist(),), TypeError, "input of an? .*Cell should be a Tensor, got list"),
        ((x.to_sparse(),), TypeError, "should be a dense tensor"),
        ((x, [1, 2, 3]), TypeError, "hx of an? .*Cell should be"),
        ((x, ([1.0], hx(B, H)[0]) if pair else [1.0]), TypeError, "hx.* of an? .*Cell should be .*, got list"),
        ((x, hx(H)), RuntimeError, "For batched 2-D input, hx.* should also be 2-D but got 1-D tensor"),
        ((x[0], hx(1, H)), RuntimeError, "For unbatched 1-D input, hx.* should also be 1-D but got 2-D tensor"),
        ((x, tuple(s.float() for s in hx(B, H)) if pair else hx(B, H).float()), RuntimeError, "not the same dtype"),
        ((x.long(),), TypeError, "should have a floating dtype"),
    ):
        with pytest.raises(error, match=message):
            mine(*given)


# ---------------------------------------------------------------------------------------------------------------------
# With sites: step by step what a layer does
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sites", [EVERY_SITE, OTHERS, REFERENCE], ids=["every", "others", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_loop_is_a_layer(cell: str, sites: dict[str, Any], dtype: torch.dtype) -> None:
    sites = sites_for(cell, sites)
    mine = build(cell, dtype=dtype, **sites)
    layer = layer_of(cell, mine, **sites)
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    start, ids = states(cell, B, H, dtype=dtype), torch.tensor([4, 0, 9])
    whole, last = layer(x, tuple(s[None] for s in start) if cell == "LSTM" else start[None], rng=RNG, example_ids=ids)
    state, outs = start, []
    for step in range(T):
        state = mine(x[step], state, rng=RNG, example_ids=ids, step_offset=step)
        outs.append(flat(state)[0])
    torch.testing.assert_close(torch.stack(outs), whole)
    for a, b in zip(flat(state), flat(last), strict=True):
        torch.testing.assert_close(a, b[0])
    weight = torch.randn_like(whole)
    mine_grads = torch.autograd.grad((torch.stack(outs) * weight).sum(), [x, *mine.parameters()])
    right = torch.autograd.grad((whole * weight).sum(), [x, *layer.parameters()])
    for a, b in zip(mine_grads, right, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sites", [EVERY_SITE, OTHERS, REFERENCE], ids=["every", "others", "reference"])
def test_masks_of_a_step_are_the_layers_bit_for_bit(cell: str, sites: dict[str, Any]) -> None:
    sites = sites_for(cell, sites)
    mine = build(cell, **sites)
    layer, x = layer_of(cell, mine, **sites), torch.randn(T, B, I, dtype=torch.float64)
    whole = frd.export_masks(layer, x, RNG)
    for step in range(T):
        found = frd.export_masks(mine, x[step], RNG, step_offset=step)
        assert {name if name == "input" else f"{name}_l0" for name in found} == set(whole)
        for name, mask in found.items():
            right = whole[name if name == "input" else f"{name}_l0"]
            per_step = right.dim() == 3 and right.size(0) == T and not name.startswith("weight")
            assert torch.equal(mask, right[step : step + 1] if per_step else right), name


@pytest.mark.parametrize("cell", CELLS)
def test_held(cell: str) -> None:
    sites = sites_for(cell, EVERY_SITE)
    model = nn.ModuleDict({"decoder": build(cell, **sites)})
    x, state = torch.randn(T, B, I, dtype=torch.float64), None
    with frd.hold_masks(model) as held:
        for step in range(T):
            assert held.step_offset["decoder"] == step
            state = model["decoder"](x[step], state)
    assert state is not None
    whole, _ = layer_of(cell, model["decoder"], **sites)(x, rng=held.rng["decoder"])
    torch.testing.assert_close(flat(state)[0], whole[-1])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("name", "option"), [*EVERY_SITE.items(), *OTHERS.items()], ids=lambda given: str(given)[:30])
def test_a_mask_of_a_sequence_needs_to_know_which(cell: str, name: str, option: Any) -> None:
    if name not in sites_for(cell, {name: option}):
        pytest.skip(f"{name} is not a site of it")
    mine, x = build(cell, **{name: option}), torch.randn(B, I, dtype=torch.float64)
    lasting = name in ("hidden_dropout", "weight_dropout") or next(iter(mine.sites.values())).per == "sequence"
    for training, mc in ((True, False), (False, True)):
        mine.train(training).mc = mc
        if lasting:
            with pytest.raises(RuntimeError, match=rf"{name} of an? {called(cell)} lasts.*hold_masks.*rng="):
                mine(x)
        else:
            assert not torch.equal(flat(mine(x))[0], flat(mine(x))[0])  # each call draws
        mine(x, rng=RNG)
        with frd.hold_masks(mine):
            mine(x)
    mine.eval().mc = False
    assert torch.equal(flat(mine(x))[0], flat(mine(x))[0])


def test_a_site_that_comes_later_counts_too() -> None:
    mine, x = build("GRU", zoneout_h=0.1), torch.zeros(B, I, dtype=torch.float64)
    mine(x)
    mine.weight_dropout = 0.5
    with pytest.raises(RuntimeError, match="weight_dropout of a GRUCell lasts"):
        mine(x)
    mine.weight_dropout = 0.0
    mine(x)


def test_several_are_named_together() -> None:
    with pytest.raises(RuntimeError, match="hidden_dropout and weight_dropout of an LSTMCell last for a sequence"):
        build("LSTM", hidden_dropout=0.1, weight_dropout=0.1, zoneout_h=0.1)(torch.zeros(B, I, dtype=torch.float64))


@pytest.mark.parametrize("cell", CELLS)
def test_sites_that_a_step_has_not(cell: str) -> None:
    for name in ("dropout", "inter_layer_dropout", "output_dropout"):
        mine = build(cell)
        with pytest.raises(TypeError, match=name):
            build(cell, **{name: 0.1})
        for configure in (lambda: mine.set_rate(name, 0.1), lambda: setattr(mine, name, 0.1)):  # noqa: B023
            with pytest.raises(
                ValueError, match=rf"{name} is not a site of an? {called(cell)}.*allowed sites are input_drop"
            ) as refused:
                configure()
            assert ("zoneout_c" in str(refused.value)) == (cell == "LSTM")
        assert not mine.sites
    with pytest.raises(ValueError, match="zoneout_h of an? .*Cell has no output='unzoned'"):
        build(cell, zoneout_h=frd.Zoneout(0.1, output="unzoned"))
    with pytest.raises(ValueError, match="zoneout_c of an LSTMCell has no gate_shared=True"):
        build("LSTM", zoneout_c=frd.Zoneout(0.1, gate_shared=True), backend="reference")
    if not has_memory(cell):
        with pytest.raises(TypeError, match="cell_dropout"):
            build(cell, cell_dropout=0.1)
        with pytest.raises(ValueError, match=r"'cell_dropout' is not a site of an RNN; allowed"):
            build(cell).set_rate("cell_dropout", 0.1)
        with pytest.raises(ValueError, match=r"allowed sites are input_dropout, .*, update_dropout, zoneout_h$"):
            build(cell).dropout = 0.1
    with pytest.raises(TypeError, match="hidden_size should be of type int, got: float"):
        frd.LSTMCell(3, 4.0)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# As a module
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda module: pickle.loads(pickle.dumps(module))],
                         ids=["deepcopy", "copy", "pickle"])  # fmt: skip
def test_copies(cell: str, copied: Any) -> None:
    mine = build(cell, **sites_for(cell, EVERY_SITE))
    twin, x = copied(mine), torch.randn(B, I, dtype=torch.float64)
    assert repr(twin) == repr(mine) and torch.equal(flat(twin(x, rng=RNG))[0], flat(mine(x, rng=RNG))[0])
    twin.set_rate("zoneout_h", 1.0)
    assert mine.zoneout_h == 0.3 and not torch.equal(flat(twin(x, rng=RNG))[0], flat(mine(x, rng=RNG))[0])
    with pytest.raises(RuntimeError, match="hold_masks"):
        twin(x)


@pytest.mark.parametrize("cell", CELLS)
def test_compiled(cell: str) -> None:
    mine, x = build(cell, **sites_for(cell, EVERY_SITE)), torch.randn(B, I, dtype=torch.float64)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mine, fullgraph=True, backend=counter)
    for rate in (0.5, 0.0, 0.9):
        mine.set_rate("weight_dropout", rate)
        for a, b in zip(flat(compiled(x, rng=RNG)), flat(mine(x, rng=RNG)), strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count == 1


@pytest.mark.parametrize("cell", CELLS)
def test_explained_under_its_own_name(cell: str) -> None:
    module = frd.explain(build(cell), torch.randn(B, I, dtype=torch.float64)).module
    assert module.startswith(f"{called(cell)}({I}, {H}")


def test_mc_dropout_reaches_cells() -> None:
    mine, x = build("GRU", zoneout_h=0.5).eval(), torch.randn(B, I, dtype=torch.float64)
    frd.mc_dropout(nn.Sequential(mine))
    assert not torch.equal(mine(x), mine(x))


# ---------------------------------------------------------------------------------------------------------------------
# convert and revert
# ---------------------------------------------------------------------------------------------------------------------


def model_of(*cells: str) -> nn.ModuleDict:
    return nn.ModuleDict({name: getattr(nn, name)(I, H) for name in cells})


@pytest.mark.parametrize("cell", CELLS)
def test_there_and_back(cell: str) -> None:
    model = nn.ModuleDict({"LSTM": nn.LSTM(I, H), "cell": made(nn, cell, I, H)})
    old = model["cell"]
    old.note, old.weight_ih.requires_grad = "kept", False  # type: ignore[assignment]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x = torch.randn(B, I)
    before = flat(old(x))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frd.convert(model, cells=True, weight_dropout=0.5) is model
        frd.convert(model, cells=True, weight_dropout=0.1)  # those of this package stay as they are
    new: Any = model["cell"]
    assert type(new) is getattr(frd, called(cell)) and new.weight_dropout == 0.5 and new.note == "kept"
    assert type(model["LSTM"]) is frd.LSTM and model["LSTM"].weight_dropout == 0.5
    assert new.weight_hh is old.weight_hh and not new.weight_ih.requires_grad
    assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}
    torch.testing.assert_close(flat(new.eval()(x))[0], before)
    new.train()
    with pytest.raises(RuntimeError, match="hold_masks"):
        new(x)
    frd.revert(model)
    again: Any = model["cell"]
    assert type(again) is type(old) and again.weight_hh is old.weight_hh and again.note == "kept"
    assert set(again.__dict__) == set(old.__dict__)
    torch.testing.assert_close(flat(again(x))[0], before)


def test_a_cell_alone_and_revert_that_changes_eval() -> None:
    cell = frd.convert(nn.GRUCell(I, H), cells=True, zoneout_h=0.3)
    assert type(cell) is frd.GRUCell
    with pytest.warns(UserWarning, match=r"the module \(zoneout_h=0.3\)"):
        assert type(frd.revert(cell)) is nn.GRUCell


def test_what_is_left() -> None:
    class Mine(nn.LSTMCell):
        pass

    class Own(nn.RNNCellBase):
        pass

    model = nn.ModuleDict({"own": Own(I, H, True, 1), "mine": Mine(I, H), "cell": nn.LSTMCell(I, H),
                           "pruned": nn.GRUCell(I, H)})  # fmt: skip
    prune.identity(model["pruned"], "weight_hh")
    torch.nn.utils.parametrizations.weight_norm(model["cell"], "weight_hh")
    with pytest.warns(UserWarning, match="left ") as caught:
        frd.convert(model, cells=True, weight_dropout=0.5)
    said = sorted(str(warning.message) for warning in caught)
    assert len(said) == 4 and "left pruned" in said[3] and "a hook computes weight_hh" in said[3]
    assert "left cell" in said[0] and "parametrised" in said[0]
    assert "left mine" in said[1] and "it is a subclass" in said[1] and "left own (Own)" in said[2]
    assert "cells=True" not in said[2]


def test_without_cells_the_warning_says_how() -> None:
    model = model_of("LSTMCell", "RNNCell")
    with pytest.warns(UserWarning, match="left ") as caught:
        frd.convert(model, weight_dropout=0.5)
    assert type(model["LSTMCell"]) is nn.LSTMCell
    assert [("cells=True" in str(warning.message)) for warning in caught] == [True, True]


def test_sites_that_cells_have_not_change_nothing() -> None:
    model = model_of("LSTM", "GRUCell")
    with pytest.raises(ValueError, match=r"output_dropout is not a site of a cell, and the model has GRUCell; allowed"):
        frd.convert(model, cells=True, output_dropout=0.5)
    with pytest.raises(ValueError, match="GRUCell: zoneout_c is not a site of a GRU"):
        frd.convert(model, cells=True, zoneout_c=0.5)
    with pytest.raises(ValueError, match="the module: cell_dropout is not a site of an RNN"):
        frd.convert(nn.RNNCell(I, H), cells=True, cell_dropout=0.5)
    with pytest.raises(TypeError, match="cells should be of type bool, got: int"):
        frd.convert(model, cells=1)  # type: ignore[arg-type]
    assert type(model["LSTM"]) is nn.LSTM and type(model["GRUCell"]) is nn.GRUCell


def test_the_nonlinearity_is_torchs() -> None:
    mine, theirs = frd.RNNCell(I, H, True, "relu"), nn.RNNCell(I, H)
    assert mine.nonlinearity == "relu" and "nonlinearity='relu'" in repr(mine) and "nonlinearity" not in repr(theirs)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(B, I)
    for nonlinearity in ("relu", "tanh"):  # nn.RNNCell reads it at each call
        mine.nonlinearity = theirs.nonlinearity = nonlinearity
        torch.testing.assert_close(mine(x), theirs(x))
    theirs.nonlinearity = "sigmoid"
    for bad in (lambda: frd.RNNCell(I, H, nonlinearity="sigmoid"), lambda: frd.convert(theirs, cells=True)):
        with pytest.raises(ValueError, match="Unknown nonlinearity 'sigmoid'. Select from 'tanh' or 'relu'"):
            bad()
