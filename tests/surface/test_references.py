"""convert and revert where a model reaches its RNN past ``nn.Module``: exchanged there too, or named in a warning."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import references
from fused_rnn_dropout.cells import MODULES

I, H = 5, 6
Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass(frozen=True)
class Frozen:
    rnn: Any
    __slots__ = ("rnn",)


class Helper:
    def __init__(self, rnn: Any) -> None:
        self.rnn = rnn

    def run(self, x: Tensor) -> Any:
        return self.rnn(x)


class MyList(list):
    pass


class MyTuple(tuple):
    pass


def with_default(rnn: Any) -> Any:
    return lambda x, rnn=rnn: rnn(x)


def with_keyword_default(rnn: Any) -> Any:
    def run(x: Tensor, *, rnn: Any = rnn) -> Any:
        return rnn(x)

    return run


def with_attribute(rnn: Any) -> Any:
    def run(x: Tensor) -> Any:
        return run.rnn(x)  # type: ignore[attr-defined]

    run.rnn = rnn  # type: ignore[attr-defined]
    return run


def nested_closure(rnn: Any) -> Any:
    def inner(x: Tensor) -> Any:
        return rnn(x)

    return lambda x: inner(x)


def call(held: Any, x: Tensor) -> Any:
    return held(x)


def first(held: Any, x: Tensor) -> Any:
    return next(iter(held))(x)


HOLDERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Tensor], Any]]] = {
    "attribute": (lambda rnn: rnn, call),
    "list": (lambda rnn: [rnn], first),
    "list subclass": (lambda rnn: MyList([rnn]), first),
    "deque": (lambda rnn: collections.deque([rnn]), first),
    "tuple": (lambda rnn: (1, (rnn,)), lambda held, x: held[1][0](x)),
    "namedtuple": (lambda rnn: Pair(1, rnn), lambda held, x: held.second(x)),
    "set": (lambda rnn: {rnn}, first),
    "frozenset": (lambda rnn: frozenset([rnn]), first),
    "dict": (lambda rnn: {"a": [{"b": rnn}]}, lambda held, x: held["a"][0]["b"](x)),
    "ordered dict": (lambda rnn: collections.OrderedDict(a=rnn), lambda held, x: held["a"](x)),
    "user dict": (lambda rnn: collections.UserDict(a=rnn), lambda held, x: held["a"](x)),
    "read-only dict": (lambda rnn: types.MappingProxyType({"a": rnn}), lambda held, x: held["a"](x)),
    "key": (lambda rnn: {"z": 1, rnn: 2, "y": 3}, lambda held, x: list(held)[1](x)),
    "key and value": (lambda rnn: {rnn: [rnn]}, lambda held, x: held[next(iter(held))][0](x)),
    "namespace": (lambda rnn: types.SimpleNamespace(rnn=rnn), lambda held, x: held.rnn(x)),
    "helper": (Helper, lambda held, x: held.run(x)),
    "slots": (Frozen, lambda held, x: held.rnn(x)),
    "bound method": (lambda rnn: rnn.forward, call),
    "bound call": (lambda rnn: rnn.__call__, call),
    "bound methods in a list": (lambda rnn: [rnn.forward], first),
    "own function, bound": (lambda rnn: types.MethodType(lambda self, x: self(x), rnn), call),
    "method of a helper": (lambda rnn: Helper(rnn).run, call),
    "partial": (functools.partial, call),
    "partial of a method": (lambda rnn: functools.partial(rnn.forward), call),
    "argument of a partial": (lambda rnn: functools.partial(call, rnn), call),
    "keyword of a partial": (lambda rnn: functools.partial(lambda x, run: run(x), run=rnn), call),
    "closure": (lambda rnn: lambda x: rnn(x), call),
    "closure of a closure": (nested_closure, call),
    "default": (with_default, call),
    "keyword default": (with_keyword_default, call),
    "function attribute": (with_attribute, call),
    "wrapper": (lambda rnn: functools.wraps(rnn.forward)(lambda x: rnn(x)), call),
    "weak reference": (weakref.ref, lambda held, x: held()(x)),
    "weak proxy": (weakref.proxy, call),
    "weak method": (lambda rnn: weakref.WeakMethod(rnn.forward), lambda held, x: held()(x)),
    "weak set": (lambda rnn: weakref.WeakSet([rnn]), first),
    "weak keys": (lambda rnn: weakref.WeakKeyDictionary({rnn: 1}), first),
    "weak values": (lambda rnn: weakref.WeakValueDictionary({"a": rnn}), lambda held, x: held["a"](x)),
    "module outside the tree": (lambda rnn: nn.ModuleList([rnn]), first),
    "cycle": (lambda rnn: itertools.cycle([rnn]), lambda held, x: next(held)(x)),
}


class Model(nn.Module):
    """Its RNN is registered, and held once more past ``nn.Module``."""

    def __init__(self, cell: type, hold: Callable[[Any], Any]) -> None:
        super().__init__()
        self.rnn = cell(I, H)
        self.__dict__["held"] = hold(self.rnn)


def acts(run: Callable[[], Any]) -> bool:
    return not torch.equal(run()[0], run()[0])


@pytest.mark.parametrize("cell", [getattr(nn, name) for name in MODULES])
@pytest.mark.parametrize("where", HOLDERS)
def test_exchanged_everywhere(where: str, cell: type) -> None:
    hold, use = HOLDERS[where]
    model, x = Model(cell, hold), torch.randn(4, 3, I)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frd.convert(model, weight_dropout=0.5)
        assert acts(lambda: use(model.held, x))
        frd.revert(model)
    assert not acts(lambda: use(model.held, x)) and type(model.rnn) is cell


@pytest.mark.parametrize("cell", [getattr(nn, name) for name in MODULES])
@pytest.mark.parametrize(
    ("hold", "place"),
    [
        (lambda rnn: MyTuple([rnn]), "held"),
        (lambda rnn: [map(rnn, [])], r"held\[0\], inside a map"),
        (lambda rnn: itertools.repeat(rnn), "held, inside a repeat"),
    ],
)
def test_named_where_it_cannot_be_exchanged(cell: type, hold: Any, place: str) -> None:
    model = Model(cell, hold)
    with pytest.warns(UserWarning, match=f"convert could not exchange the module that is held by {place}: ") as caught:
        frd.convert(model, weight_dropout=0.5)
    assert caught[0].filename == __file__
    model = Model(getattr(frd, cell.__name__), hold)
    with pytest.warns(UserWarning, match=f"revert could not exchange the module that is held by {place}: "):
        frd.revert(model)


def test_a_callback_stays_that_of_its_weak_reference() -> None:
    for kind in (weakref.ref, lambda rnn, callback: weakref.WeakMethod(rnn.forward, callback)):
        gone: list[Any] = []
        model = Model(nn.LSTM, lambda rnn, kind=kind, gone=gone: kind(rnn, gone.append))
        frd.convert(model, weight_dropout=0.5)
        held = model.held
        del model.rnn
        assert gone == [held]


class OnClass(nn.Module):
    rnns: list[nn.Module] = []
    run: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(I, H)
        OnClass.rnns[:] = [self.rnn]
        OnClass.run = self.rnn.forward


def test_attributes_of_the_class_and_closures_of_its_methods() -> None:
    x = torch.randn(4, 3, I)
    model = frd.convert(OnClass(), weight_dropout=0.5)
    assert acts(lambda: model.rnns[0](x)) and acts(lambda: OnClass.run(x))

    def build() -> nn.Module:
        rnn = nn.GRU(I, H)

        class Local(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.rnn = rnn

            def forward(self, x: Tensor) -> Any:
                return rnn(x)

        return Local()

    local = frd.convert(build(), weight_dropout=0.5)
    assert acts(lambda: local(x))


shared = nn.LSTM(I, H)
registry = {"shared": shared}


def reads_a_global(x: Tensor) -> Any:
    return shared(x)


class ByGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = shared


class ReadsIt(ByGlobal):
    def forward(self, x: Tensor) -> Any:
        return reads_a_global(x)


class ReadsAContainer(ByGlobal):
    def forward(self, x: Tensor) -> Any:
        return registry["shared"](x)


class ReadsAnAttribute(ByGlobal):
    def forward(self, x: Tensor) -> Any:
        return self.shared(x)


def test_a_global_is_named_where_the_model_reads_it() -> None:
    place = "ReadsIt.forward, global reads_a_global, global shared"
    with pytest.warns(UserWarning, match=f"held by {place}: "):
        frd.convert(ReadsIt(), weight_dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cls in (ReadsAContainer, ReadsAnAttribute):  # the second one's global is somebody else's variable
            registry["shared"] = shared
            model = frd.convert(cls(), weight_dropout=0.5)
            assert acts(lambda model=model: model(torch.randn(4, 3, I)))
    assert type(shared) is nn.LSTM


def test_hooks() -> None:
    seen: list[type] = []

    def build() -> nn.Module:
        model = nn.ModuleDict({"rnn": nn.GRU(I, H), "linear": nn.Linear(I, I)})
        rnn = model["rnn"]
        model["linear"].register_forward_hook(lambda *_: seen.append(type(rnn)))
        model["linear"].weight.register_hook(lambda _: seen.append(type(rnn)))
        return model

    model = frd.convert(build(), weight_dropout=0.5)
    model["linear"](torch.randn(2, I)).sum().backward()
    assert seen == [frd.GRU, frd.GRU]


def test_a_root_that_holds_itself() -> None:
    old: Any = nn.LSTM(I, H)
    old.me, old.run = [old], old.forward
    old.me.append(old.me)
    new: Any = frd.convert(old, weight_dropout=0.5)
    assert new.me[0] is new and new.run.__self__ is new and old.run.__self__ is old


def test_compiled_models() -> None:
    x = torch.randn(4, 3, I)
    for inner in (nn.LSTM(I, H), nn.Sequential(nn.LSTM(I, H))):
        model = frd.convert(torch.compile(inner, backend="eager"), weight_dropout=0.5)
        assert acts(lambda model=model: model(x))


class Unregistered(nn.Module):
    """RNNs in a list alone; their parameters are registered, or not."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.rnns = [nn.LSTM(I, H), nn.GRU(H, H)]
        if registered:
            self.weights = nn.ParameterList(weight for rnn in self.rnns for weight in rnn.parameters())


def test_an_rnn_is_the_models_where_its_parameters_are() -> None:
    model = Unregistered(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frd.convert(model, weight_dropout=0.5)
        assert [type(rnn) for rnn in model.rnns] == [frd.LSTM, frd.GRU]
        frd.revert(model)
    assert [type(rnn) for rnn in model.rnns] == [nn.LSTM, nn.GRU]


def test_an_rnn_of_somebody_else_is_left_and_named() -> None:
    model = Unregistered(False)
    with pytest.warns(UserWarning, match="neither it nor its parameters are registered") as caught:
        frd.convert(model, weight_dropout=0.5)
    assert [str(warning.message).split()[1] for warning in caught] == ["rnns[0]", "rnns[1]"]
    assert [type(rnn) for rnn in model.rnns] == [nn.LSTM, nn.GRU]


def test_a_parent_is_not_part_of_its_child() -> None:
    parent = nn.ModuleDict({"other": nn.GRU(I, H), "child": nn.Sequential(nn.LSTM(I, H))})
    parent["child"].parent = [parent]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frd.convert(parent["child"], weight_dropout=0.5)
    assert type(parent["child"][0]) is frd.LSTM and type(parent["other"]) is nn.GRU


@pytest.mark.filterwarnings("ignore:inter_layer_dropout sits between layers")
def test_an_error_leaves_every_reference() -> None:
    model = nn.ModuleList([nn.LSTM(I, H), nn.LSTM(I, H, 2, dropout=0.5)])
    model.held = [*model, functools.partial(model[0])]
    with pytest.raises(ValueError, match="1: dropout and inter_layer_dropout"):
        frd.convert(model, inter_layer_dropout=0.5)
    assert {type(rnn) for rnn in [*model, *model.held[:2], model.held[2].func]} == {nn.LSTM}
    adopted = nn.ModuleList([nn.LSTM(I, H)])
    adopted.held = [nn.GRU(I, H)]
    adopted.weights = nn.ParameterList(adopted.held[0].parameters())
    with pytest.raises(ValueError, match=r"held\[0\]: zoneout_c is not a site of a GRU"):
        frd.convert(adopted, zoneout_c=0.5)
    assert type(adopted[0]) is nn.LSTM and type(adopted.held[0]) is nn.GRU


def test_big_data_and_deep_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = nn.ModuleList([nn.LSTM(I, H)])
    model.data = {"numbers": list(range(10**6)), "words": {str(i): i for i in range(10**5)},
                  "rows": [[1, 2, 3]] * 10**5, "tensors": [torch.zeros(1)] * 10**5}  # fmt: skip
    model.chain = link = Helper(None)
    for _ in range(5000):
        link.rnn = Helper(None)
        link = link.rnn
    link.rnn = model[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frd.convert(model, weight_dropout=0.5)
        assert type(link.rnn) is frd.LSTM
    model.nest = (model[0],)
    for _ in range(1000):
        model.nest = (model.nest, model.nest)  # 2**1000 paths
    with pytest.warns(UserWarning, match="could not exchange the module that is held by nest"):
        frd.revert(model)
    del model.nest, model.data
    monkeypatch.setattr(references, "LIMIT", 1000)
    with pytest.warns(UserWarning, match="up to chain"):
        frd.convert(model, weight_dropout=0.5)
    assert type(model[0]) is frd.LSTM and type(link.rnn) is nn.LSTM
