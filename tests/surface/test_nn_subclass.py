"""Classes that are torch.nn's too: NNLSTM and NNGRU, and what users derive from both."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_rnn_dropout as frd

I, H = 5, 6
PAIRS = [(frd.NNLSTM, frd.LSTM, nn.LSTM), (frd.NNGRU, frd.GRU, nn.GRU), (frd.NNRNN, frd.RNN, nn.RNN)]


@pytest.mark.parametrize(("both", "ours", "theirs"), PAIRS)
def test_is_both(both: Any, ours: Any, theirs: Any) -> None:
    x = torch.randn(3, 4, I)
    torch.manual_seed(0)
    mine = ours(I, H, 2, dropout=0.1, bidirectional=True, batch_first=True, weight_dropout=0.3)
    torch.manual_seed(0)
    rnn = both(I, H, 2, dropout=0.1, bidirectional=True, batch_first=True, weight_dropout=0.3)
    assert isinstance(rnn, theirs) and isinstance(rnn, ours) and rnn.mode == mine.mode
    assert repr(rnn) == "NN" + repr(mine)
    rng = frd.draw_rng("cpu")
    assert torch.equal(rnn(x, rng=rng)[0], mine(x, rng=rng)[0])
    for copied in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert type(copied) is both and torch.equal(copied(x, rng=rng)[0], rnn(x, rng=rng)[0])
    theirs(I, H, 2, batch_first=True, bidirectional=True).load_state_dict(rnn.state_dict())
    masks = frd.export_masks(rnn, x, rng=rng)
    assert masks.keys() == frd.export_masks(mine, x, rng=rng).keys()
    assert frd.explain(rnn, x).layers == frd.explain(mine, x).layers
    frd.mc_dropout(rnn)
    with frd.hold_masks(rnn.eval()):
        assert not torch.equal(rnn(x)[0], mine.eval()(x)[0])


def test_torchs_refusals() -> None:
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        frd.NNGRU(I, H, proj_size=2)
    with pytest.raises(TypeError, match="bias should be of type bool"):
        frd.NNLSTM(I, H, 1, "yes")


@pytest.mark.parametrize(("both", "ours", "theirs"), PAIRS)
def test_convert_and_revert(both: Any, ours: Any, theirs: Any) -> None:
    model = nn.Sequential(theirs(I, H, 2, dropout=0.2))
    parameters = list(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frd.convert(model, nn_subclass=True, hidden_dropout=0.5)
        assert type(model[0]) is both and model[0].hidden_dropout == 0.5 and model[0].dropout == 0.2
        frd.convert(model, weight_dropout=0.5)  # of this package already
        assert type(model[0]) is both and model[0].weight_dropout == 0.0
        frd.revert(model)
    assert type(model[0]) is theirs and model[0].dropout == 0.2
    assert all(mine is other for mine, other in zip(model.parameters(), parameters, strict=True))
    assert type(frd.convert(theirs(I, H), weight_dropout=0.5)) is ours
    with pytest.raises(TypeError, match="nn_subclass should be of type bool, got: int"):
        frd.convert(model, nn_subclass=1)


@pytest.mark.parametrize(("both", "ours", "theirs"), PAIRS)
def test_the_price_under_compile(both: Any, ours: Any, theirs: Any) -> None:
    x = torch.randn(3, 4, I)
    model = nn.Sequential(both(I, H, weight_dropout=0.5)).eval()
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="eager")(x)[0], model(x)[0])
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM|RNN, GRU and LSTM"):
        torch.compile(model, backend="eager", fullgraph=True)(x)


# ---------------------------------------------------------------------------------------------------------------------
# Classes of others
# ---------------------------------------------------------------------------------------------------------------------


def theirs_with_forward(base: type) -> type:
    class Theirs(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, factor: float = 2.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.factor = factor

        def forward(self, x: Tensor, hx: Any = None) -> Any:
            out, state = super().forward(x, hx)
            return self.factor * out, state

    return Theirs


def theirs_with_mixin(base: type) -> type:
    class Base(nn.RNNBase):
        def initial(self, x: Tensor) -> Any:
            h = torch.zeros(self.num_layers, x.size(1), self.hidden_size)
            return (h, h) if self.mode == "LSTM" else h

    class Theirs(Base, base):  # type: ignore[misc, valid-type]
        pass

    return Theirs


@pytest.mark.parametrize(("both", "ours", "theirs"), PAIRS)
@pytest.mark.parametrize("make", [theirs_with_forward, theirs_with_mixin])
@pytest.mark.parametrize("named", ["ours", "both"])
def test_a_subclass_of_both_has_both(make: Any, named: str, both: Any, ours: Any, theirs: Any) -> None:
    kind = make(theirs)
    mine = type("Mine", (kind, ours if named == "ours" else both), {})
    x, extra = torch.randn(3, 4, I), {"factor": 3.0} if make is theirs_with_forward else {}
    torch.manual_seed(0)
    rnn = mine(I, H, 2, weight_dropout=0.5, **extra)
    torch.manual_seed(0)
    reference = kind(I, H, 2, **extra)
    assert isinstance(rnn, kind) and isinstance(rnn, ours) and rnn.weight_dropout == 0.5
    assert not torch.equal(rnn(x)[0], rnn(x)[0])
    torch.testing.assert_close(rnn.eval()(x)[0], reference(x)[0])
    if make is theirs_with_mixin:
        torch.testing.assert_close(rnn(x, rnn.initial(x))[0], reference(x)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frd.convert(nn.Sequential(rnn))
    with pytest.warns(UserWarning, match="it is a subclass, Mine, whose own behaviour a swap would drop$"):
        frd.revert(nn.Sequential(rnn))


@pytest.mark.parametrize(("both", "ours", "theirs"), PAIRS)
def test_the_warning_names_the_way(both: Any, ours: Any, theirs: Any) -> None:
    kind = theirs_with_forward(theirs)
    with pytest.warns(UserWarning, match=rf"`class Mine\(Theirs, frd\.{ours.__name__}\)` has both"):
        frd.convert(nn.Sequential(kind(I, H)), weight_dropout=0.5)


@pytest.mark.parametrize(("both", "ours", "theirs"), PAIRS)
def test_a_class_between_must_derive_from_both(both: Any, ours: Any, theirs: Any) -> None:
    between = type("Between", (ours,), {})
    kind = theirs_with_forward(theirs)
    with pytest.raises(TypeError, match=f"derives from {ours.__name__} should derive from {both.__name__}"):
        type("Mine", (kind, between), {})
    x = torch.randn(3, 4, I)
    rnn = type("Mine", (kind, type("Between", (both,), {})), {})(I, H, weight_dropout=0.5)
    assert not torch.equal(rnn(x)[0], rnn(x)[0])
