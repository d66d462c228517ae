"""convert and revert: the same parameters, hooks and flags in another class, or a refusal that changes nothing."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from grids import has
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import fused_rnn_dropout as frd
from fused_rnn_dropout.sites import acting_in_eval

I, H, T, B = 4, 6, 5, 3


class Model(nn.Module):
    """An LSTM and a GRU, the LSTM in two places, and an RNN."""

    def __init__(self, gru: bool = True) -> None:
        super().__init__()
        self.encoder = nn.LSTM(I, H, 2, dropout=0.3, batch_first=True)
        self.tied = self.encoder
        self.blocks = nn.ModuleList([nn.GRU(H, H, bidirectional=True) if gru else nn.LSTM(H, H, bidirectional=True)])
        self.plain = nn.RNN(2 * H, H, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.blocks[0](self.tied(x)[0])[0])[0]


def test_converts_everything_in_place_and_back() -> None:
    model = Model()
    x = torch.randn(B, T, I)
    model.eval()
    expected, keys = model(x), list(model.state_dict())
    parameters = list(model.parameters())
    assert frd.convert(model, weight_dropout=0.5) is model
    assert type(model.encoder) is frd.LSTM and type(model.blocks[0]) is frd.GRU and type(model.plain) is frd.RNN
    assert model.plain.nonlinearity == "relu" and model.plain.weight_dropout == 0.5
    assert model.tied is model.encoder  # shared stays shared
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert model.encoder.weight_dropout == 0.5 and model.encoder.dropout == 0.3 and model.encoder.batch_first
    torch.testing.assert_close(model(x), expected)
    model.train()
    assert not torch.equal(model(x), model(x))

    assert frd.revert(model) is model
    assert type(model.encoder) is nn.LSTM and type(model.blocks[0]) is nn.GRU and model.tied is model.encoder
    assert type(model.plain) is nn.RNN
    assert model.encoder.dropout == 0.3 and list(model.state_dict()) == keys
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model.eval()(x), expected)
    assert repr(model) == repr(Model().eval())
    copy.deepcopy(model)


def test_an_optimizer_built_before_stays_valid() -> None:
    model = nn.Sequential(nn.LSTM(I, H))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    frd.convert(model, hidden_dropout=0.5)
    before = model[0].weight_hh_l0.detach().clone()
    model(torch.randn(T, B, I))[0].sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight_hh_l0, before)
    assert model[0]._flat_weights[1] is model[0].weight_hh_l0


def test_keeps_hooks_flags_and_attributes() -> None:
    rnn = nn.LSTM(I, H)
    calls: list[str] = []
    handle = rnn.register_forward_hook(lambda *_: calls.append("forward"))
    rnn.register_forward_pre_hook(lambda *_: calls.append("pre"))
    rnn.register_full_backward_hook(lambda *_: calls.append("backward"))
    rnn.weight_ih_l0.requires_grad_(False)
    rnn.note = "mine"
    rnn.register_buffer("extra", torch.ones(1))
    model = nn.ModuleDict({"rnn": rnn}).eval()
    frd.convert(model, weight_dropout=0.5)
    x = torch.randn(T, B, I, requires_grad=True)
    model["rnn"](x)[0].sum().backward()
    assert calls == ["pre", "forward", "backward"]
    assert (
        not model["rnn"].training
        and not model["rnn"].weight_ih_l0.requires_grad
        and model["rnn"].weight_ih_l0.grad is None
    )
    assert model["rnn"].note == "mine" and "extra" in model["rnn"].state_dict()
    handle.remove()
    model["rnn"](x)
    assert calls == ["pre", "forward", "backward", "pre"]
    frd.revert(model)
    assert model["rnn"].note == "mine" and "extra" in model["rnn"].state_dict() and not model["rnn"].training
    assert [name for name, _ in model["rnn"].named_buffers()] == ["extra"]
    assert not [name for name in vars(model["rnn"]) if name in ("_sites", "_plan", "mc", "backend", "recompute")]


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_root_is_returned_and_the_old_one_is_left_whole(cls: type) -> None:
    old = cls(I, H, 2, dropout=0.25)
    new = frd.convert(old, zoneout_h=0.1, mc=True, backend="reference", recompute=True)
    assert type(new) is getattr(frd, cls.__name__) and type(old) is cls
    assert new.mc and new.recompute and new.backend == "reference" and new.zoneout_h == 0.1 and new.dropout == 0.25
    x = torch.randn(T, B, I)
    torch.testing.assert_close(new.eval()(x)[0].shape, old.eval()(x)[0].shape)
    assert old.dropout == 0.25 and "_thresholds" not in dict(old.named_buffers())
    back = frd.revert(new)
    assert type(back) is cls and torch.equal(back(x)[0], old(x)[0])


def test_dropout_can_be_given_too() -> None:
    model = frd.convert(nn.Sequential(nn.LSTM(I, H, 2, dropout=0.5)), dropout=0.0, inter_layer_dropout=0.2)
    assert set(model[0].sites) == {"inter_layer_dropout"}
    with pytest.warns(UserWarning, match="num_layers greater than 1") as caught:
        frd.convert(nn.Sequential(nn.LSTM(I, H)), dropout=0.5)
    assert caught[0].filename == __file__


def test_left_alone_with_a_warning() -> None:
    class Custom(nn.LSTM):
        pass

    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrised, pruned, normed = nn.LSTM(I, H), nn.LSTM(I, H), nn.GRU(I, H)
    parametrize.register_parametrization(parametrised, "weight_hh_l0", Double())
    prune.l1_unstructured(pruned, "weight_hh_l0", 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(normed, "weight_hh_l0")
    patched = nn.LSTM(I, H)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    compiled = nn.LSTM(I, H)
    compiled.compile(backend="eager")
    modules = {"subclass": Custom(I, H), "parametrised": parametrised, "hook computes weight_hh_l0": pruned,
               "a hook": normed, "forward was replaced": patched, "was compiled": compiled}  # fmt: skip
    model = nn.ModuleList([*modules.values(), nn.LSTM(I, H)])
    with pytest.warns(UserWarning, match="as it is") as caught:
        frd.convert(model, weight_dropout=0.5)
    for index, (reason, module, warning) in enumerate(zip(modules, modules.values(), caught, strict=True)):
        assert model[index] is module
        assert (
            f"left {index} " in str(warning.message) and reason in str(warning.message) and warning.filename == __file__
        )
    assert type(model[-1]) is frd.LSTM
    with pytest.warns(UserWarning, match="left the module"):
        assert type(frd.convert(Custom(I, H), weight_dropout=0.5)) is Custom


def test_modules_of_this_package_are_left_as_they_are() -> None:
    inner = frd.LSTM(I, H, weight_dropout=0.25)
    model = nn.ModuleList([inner, nn.LSTM(I, H)])
    frd.convert(model, weight_dropout=0.5)
    assert model[0] is inner and inner.weight_dropout == 0.25 and model[1].weight_dropout == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frd.convert(nn.Sequential(inner), weight_dropout=0.5)

    class Mine(frd.LSTM):
        pass

    with pytest.warns(UserWarning, match="subclass"):
        assert type(frd.revert(Mine(I, H))) is Mine


def snapshot(model: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]


@pytest.mark.parametrize(
    ("sites", "error", "message"),
    [
        (
            {"zoneout_c": 0.1},
            ValueError,
            r"zoneout_c is not a site of an RNN or a GRU, and the model has plain, blocks\.0",
        ),
        (
            {"cell_dropout": 0.1},
            ValueError,
            "cell_dropout is not a site of an RNN, and the model has plain; .* zoneout_h$",
        ),
        ({"weight_dropout": 1.5}, ValueError, r"range \[0, 1\]"),
        ({"weight_dropout": frd.Zoneout(0.1)}, TypeError, "weight_dropout should be a number or a WeightDropout"),
        ({"weight_drop": 0.5}, TypeError, "unexpected site 'weight_drop'"),
        ({"inter_layer_dropout": 0.1}, ValueError, "encoder: dropout and inter_layer_dropout"),
        ({"weight_dropout": frd.WeightDropout(0.1, projection=True)}, ValueError, "encoder: .*no projection"),
        ({"backend": "gpu"}, ValueError, "backend should be None or one of"),
        ({"mc": 1}, TypeError, "mc should be of type bool"),
    ],
)
def test_a_refusal_changes_nothing(sites: dict[str, Any], error: type[Exception], message: str) -> None:
    model = Model()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        frd.convert(model, **sites)
    assert snapshot(model) == before


def test_lstm_only_sites_without_a_gru() -> None:
    model = Model(gru=False)
    del model.plain
    frd.convert(model, zoneout_c=0.1)
    assert model.encoder.zoneout_c == 0.1


def test_revert_refuses_what_torch_cannot_compute() -> None:
    model = nn.ModuleList([frd.LSTM(I, H), frd.GRU(I, H, reset_after=False)])
    before = snapshot(model)
    with pytest.raises(ValueError, match="1 has reset_after=False"):
        frd.revert(model)
    assert snapshot(model) == before


def test_nothing_found_and_no_module() -> None:
    with pytest.warns(UserWarning, match="convert found no"):
        frd.convert(nn.Linear(2, 2), weight_dropout=0.5)
    with pytest.warns(UserWarning, match="revert found no"):
        frd.revert(nn.Linear(2, 2))
    for function in (frd.convert, frd.revert):
        with pytest.raises(TypeError, match="should be an nn.Module, got str"):
            function("model")  # type: ignore[operator]


# ---------------------------------------------------------------------------------------------------------------------
# Eval before and after revert
# ---------------------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, list[Any]] = {
    "dropout": [0.5],
    "input_dropout": [frd.LockedDropout(0.5, tied=False), frd.LockedDropout(0.5, per="step", batch_shared=True)],
    "inter_layer_dropout": [frd.LockedDropout(0.5), frd.LockedDropout(0.5, per="step")],
    "output_dropout": [frd.LockedDropout(0.5), frd.LockedDropout(0.5, per="step")],
    "hidden_dropout": [frd.HiddenDropout(0.5), frd.HiddenDropout(0.5, tied=False)],
    "weight_dropout": [frd.WeightDropout(0.5, inputs=True), frd.WeightDropout(0.5, mode="row"),
                       frd.WeightDropout(0.5, per_example=True)],
    "update_dropout": [frd.UpdateDropout(p, per, scale) for p in (0.0, 0.5) for per in ("step", "sequence")
                       for scale in ("inverted", "paper")],
    "cell_dropout": [frd.CellDropout(p, per, scale) for p in (0.0, 0.5) for per in ("step", "sequence")
                     for scale in ("output", "paper")],
    "zoneout_c": [frd.Zoneout(z, per) for z in (0.0, 0.5) for per in ("step", "sequence")]
    + [frd.Zoneout(0.5, gate_shared=True)],
    "zoneout_h": [frd.Zoneout(z, per, output=output) for z in (0.0, 0.5) for per in ("step", "sequence")
                  for output in ("zoned", "unzoned")],
}  # fmt: skip


@pytest.mark.parametrize("mc", [False, True])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("name", OPTIONS)
def test_revert_says_where_eval_changes(name: str, cell: str, mc: bool) -> None:
    if not has(cell, name):
        pytest.skip(f"no site of {cell}")
    x = torch.randn(T, B, I)
    for option in OPTIONS[name]:
        rnn = getattr(frd, cell)(I, H, 2, mc=mc, backend="reference", **{name: option})
        model = nn.ModuleDict({"rnn": rnn}).eval()
        before = rnn(x)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            frd.revert(model)
        after = model["rnn"](x)
        changed = not torch.allclose(before[0], after[0], atol=1e-6)
        assert len(caught) == changed, option
        if changed:
            message = str(caught[0].message)
            assert f"rnn ({name}=0.5{', mc=True' if mc else ''})" in message and caught[0].filename == __file__
        plan = rnn._plan
        assert mc or changed == (name in acting_in_eval(plan) and getattr(rnn, name) > 0)


def test_revert_warns_once_and_can_be_silent() -> None:
    def build() -> nn.Module:
        return nn.ModuleDict({"a": frd.LSTM(I, H, zoneout_c=0.1, zoneout_h=0.2), "b": frd.GRU(I, H, weight_dropout=0.5),
                              "c": frd.GRU(I, H, cell_dropout=frd.CellDropout(0.25, scale="paper"))})  # fmt: skip

    with pytest.warns(UserWarning, match=r"a \(zoneout_c=0.1, zoneout_h=0.2\); c \(cell_dropout=0.25\)") as caught:
        frd.revert(build())
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(frd.revert(build(), allow_change=True)["a"]) is nn.LSTM
        model = build()
        with pytest.raises(UserWarning, match="revert changes what eval computes"):
            frd.revert(model)
        assert type(model["a"]) is frd.LSTM  # a warning made an error leaves the model as it was
    with pytest.raises(TypeError, match="allow_change should be of type bool, got: int"):
        frd.revert(build(), allow_change=1)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# Passed over
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_other_recurrent_modules_are_named(cell: type) -> None:
    model = nn.ModuleDict({"decoder": nn.Sequential(cell(I, H)), "rnn": nn.LSTM(I, H)})
    with pytest.warns(UserWarning, match=rf"left decoder\.0 \({cell.__name__}\) as it is: ") as caught:
        frd.convert(model, weight_dropout=0.5)
    assert len(caught) == 1 and type(model["decoder"][0]) is cell and type(model["rnn"]) is frd.LSTM


def test_a_cell_that_this_package_has_not_is_named() -> None:
    class Own(nn.RNNBase):
        def __init__(self) -> None:
            super().__init__("RNN_TANH", I, H)

    model = nn.ModuleList([Own(), nn.LSTM(I, H)])
    with pytest.warns(UserWarning, match=r"left 0 \(Own\) as it is: this package has no such cell"):
        frd.convert(model, weight_dropout=0.5)
    assert type(model[0]) is Own and type(model[1]) is frd.LSTM


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_traced_scripted_and_quantised_rnns_are_named(cell: type) -> None:
    def inner() -> nn.Module:
        return nn.Sequential(cell(I, H)).eval()

    x, called = torch.randn(T, B, I), cell(I, H).mode.lower()
    made = {
        "it is TorchScript": [torch.jit.script(inner()), torch.jit.trace(inner(), x)],
        f"its TorchScript calls {called}": [torch.jit.freeze(torch.jit.script(inner()))],
        f"its graph calls {called}": [torch.export.export(inner(), (x,)).module()],
    }
    if cell is not nn.RNN:  # which torch does not quantise
        made["it is quantised"] = [torch.ao.quantization.quantize_dynamic(inner(), {cell})]
    for reason, modules in made.items():
        for module in modules:
            model = nn.ModuleDict({"inner": module, "rnn": cell(I, H)})
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                frd.convert(model, weight_dropout=0.5)
            messages = [str(warning.message) for warning in caught if warning.category is UserWarning]
            assert len(messages) == 1 and messages[0].startswith("left inner") and reason in messages[0]
            assert model["inner"] is module and isinstance(model["rnn"], getattr(frd, cell.__name__))
    traced = frd.convert(torch.fx.symbolic_trace(inner()), weight_dropout=0.5)  # which keeps the module
    assert isinstance(getattr(traced, "0"), getattr(frd, cell.__name__))
