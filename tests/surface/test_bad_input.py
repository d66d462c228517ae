"""Everything that is refused, and in which words: torch.nn's own where it has some."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fused_rnn_dropout as frd

BACKENDS = ("cpu", "reference")
CELLS = ("LSTM", "GRU", "RNN")
T, B, I, H = 5, 3, 4, 6


def error_of(function: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


def state(cell: str, *shape: int, **kwargs: Any) -> Any:
    h = torch.zeros(*shape, **kwargs)
    return (h, h) if cell == "LSTM" else h


# --------------------------------------------------------------------------------------------------------------------
# What torch.nn refuses, word for word
# --------------------------------------------------------------------------------------------------------------------

CONSTRUCTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "dropout above 1": ((I, H, 2), {"dropout": 1.5}),
    "dropout below 0": ((I, H, 2), {"dropout": -0.1}),
    "dropout nan": ((I, H, 2), {"dropout": float("nan")}),
    "dropout bool": ((I, H, 2), {"dropout": True}),
    "dropout text": ((I, H, 2), {"dropout": "half"}),
    "dropout none": ((I, H, 2), {"dropout": None}),
    "hidden_size 0": ((I, 0), {}),
    "hidden_size float": ((I, 6.0), {}),
    "num_layers 0": ((I, H, 0), {}),
    "proj_size of hidden_size": ((I, H), {"proj_size": H}),
    "proj_size negative": ((I, H), {"proj_size": -1}),
    "unknown": ((I, H), {"dropuot": 0.5}),
    "no sizes": ((), {}),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", CONSTRUCTIONS)
def test_constructors_refuse_what_torch_refuses(case: str, cell: str) -> None:
    args, kwargs = CONSTRUCTIONS[case]
    theirs = error_of(lambda: getattr(nn, cell)(*args, **kwargs))
    ours = error_of(lambda: getattr(frd, cell)(*args, **kwargs))
    assert type(ours) is type(theirs)
    if case not in ("unknown", "no sizes"):  # Python's own words name the function
        assert str(ours) == str(theirs)


@pytest.mark.parametrize("given", ["gelu", "TANH", None, 1])
def test_nonlinearities_that_torch_does_not_know(given: Any) -> None:
    for build in (lambda of: of.RNN(I, H, 1, given), lambda of: of.RNN(I, H, nonlinearity=given)):
        theirs, ours = (error_of(functools.partial(build, library)) for library in (nn, frd))
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))


@pytest.mark.parametrize("cell", CELLS)
def test_the_warning_about_one_layer(cell: str) -> None:
    texts = []
    for library in (nn, frd):
        with pytest.warns(UserWarning, match="dropout option") as caught:
            rnn = getattr(library, cell)(I, H, dropout=0.5)
        texts.append([str(warning.message) for warning in caught])
    assert texts[0] == texts[1] and rnn.dropout == 0.5
    with pytest.warns(UserWarning, match="dropout option") as caught:
        rnn.dropout = 0.25
    assert str(caught[0].message) == texts[0][0].replace("0.5", "0.25") and caught[0].filename == __file__


def inputs(cell: str) -> dict[str, tuple[Any, ...]]:
    x = torch.randn(T, B, I)
    return {
        "1-D": (torch.randn(I),),
        "4-D": (torch.randn(1, T, B, I),),
        "wrong width": (torch.randn(T, B, I + 1),),
        "integers": (torch.zeros(T, B, I, dtype=torch.int64),),
        "another dtype": (x.double(),),
        "no steps": (torch.randn(0, B, I),),
        "no steps, unbatched": (torch.randn(0, I),),
        "another device": (x.to("meta"),),
        "unbatched state": (x, state(cell, 1, H)),
        "batched state": (x[:, 0], state(cell, 1, B, H)),
        "state of another batch": (x, state(cell, 1, B + 1, H)),
        "state of another width": (x, state(cell, 1, B, H + 1)),
        "state of two layers": (x, state(cell, 2, B, H)),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", inputs("GRU"))
def test_forward_refuses_what_torch_refuses(case: str, cell: str, backend: str) -> None:
    args = inputs(cell)[case]
    theirs = error_of(lambda: getattr(nn, cell)(I, H)(*args))
    ours = error_of(lambda: getattr(frd, cell)(I, H, backend=backend, weight_dropout=0.5)(*args))
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_no_steps_in_a_batch_first_input(batch_first: bool, backend: str) -> None:
    x = torch.randn((B, 0, I) if batch_first else (0, B, I))
    theirs = error_of(lambda: nn.LSTM(I, H, batch_first=batch_first)(x))
    ours = error_of(lambda: frd.LSTM(I, H, batch_first=batch_first, backend=backend)(x))
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_packed_inputs(cell: str, backend: str) -> None:
    """nn.GRU checks packed inputs and nn.LSTM leaves it to the kernels: ours use nn.GRU's words for both."""
    rnn, gru = getattr(frd, cell)(I, H, backend=backend), nn.GRU(I, H)
    lengths = torch.tensor([5, 3, 2])
    for x in (torch.randn(T, B, I + 1), torch.randn(T, B, I, dtype=torch.float64)):
        packed = pack_padded_sequence(x, lengths)
        theirs, ours = error_of(lambda p=packed: gru(p)), error_of(lambda p=packed: rnn(p))
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
    packed = pack_padded_sequence(torch.randn(T, B, I), lengths)
    for shape in ((1, B + 1, H), (1, B, H + 1), (2, B, H), (B, H)):
        theirs = str(error_of(lambda s=shape: gru(packed, torch.zeros(s))))
        expected = theirs.replace("hidden size", "hidden[0] size") if cell == "LSTM" else theirs
        for enforce_sorted in (True, False):
            given = pack_padded_sequence(torch.randn(T, B, I), lengths, enforce_sorted=enforce_sorted)
            assert str(error_of(lambda s=shape, p=given: rnn(p, state(cell, *s)))) == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_states_are_named(cell: str, backend: str) -> None:
    rnn, x = getattr(frd, cell)(I, H, backend=backend), torch.randn(T, B, I)
    name = r"hx\[0\]" if cell == "LSTM" else "hx"
    for dtype in (torch.float64, torch.int64, torch.bfloat16):
        with pytest.raises(RuntimeError, match=f"not the same dtype.*float32.*{dtype}: convert {name}"):
            rnn(x, state(cell, 1, B, H, dtype=dtype))
    with pytest.raises(RuntimeError, match=f"Input and hidden tensors are not at the same device.*meta: move {name}"):
        rnn(x, state(cell, 1, B, H, device="meta"))
    h = torch.zeros(1, B, H)
    wrong: list[Any] = [h, (h,), (h, h, h), (h, None), "state"] if cell == "LSTM" else [(h, h), [h], 0.0]
    for hx in wrong:
        with pytest.raises(TypeError, match=f"hx of an? {cell} should be"):
            rnn(x, hx)
    if cell == "LSTM":
        with pytest.raises(
            RuntimeError, match=re.escape(f"Expected hidden[1] size (1, {B}, {H}), got [1, {B}, {H + 1}]")
        ):
            rnn(x, (h, torch.zeros(1, B, H + 1)))


def test_inputs_that_are_no_tensors() -> None:
    for given in (None, [1.0, 2.0], "x", torch.randn(3, 3).numpy()):
        with pytest.raises(TypeError, match="input of an LSTM should be a Tensor or a PackedSequence"):
            frd.LSTM(I, H)(given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_under_autocast(backend: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="floating dtype, got torch.int64"):
        frd.LSTM(I, H, backend=backend)(torch.zeros(T, B, I, dtype=torch.int64))


# --------------------------------------------------------------------------------------------------------------------
# Packed sequences that were made by hand, tensors that are not dense
# --------------------------------------------------------------------------------------------------------------------


def every_way_in(rnn: Any, x: Any, *hx: Any) -> list[Callable[[], Any]]:
    """The calls that look at an input."""
    looks = [lambda: frd.explain(rnn, x), lambda: frd.export_masks(rnn, x)]
    return [lambda: rnn(x, *hx), *([] if hx else looks)]


def packed_by_hand(sizes: Any, order: Any = None, rows: int = 5, **kwargs: Any) -> PackedSequence:
    sizes = sizes if isinstance(sizes, torch.Tensor) else torch.tensor(sizes, **kwargs)
    # With unsorted_indices given, torch does not look at the order.
    return PackedSequence(torch.randn(rows, I), sizes, order, None if order is None else torch.arange(B))


_SIZES = r"batch_sizes of a PackedSequence should be an int64 tensor of shape \(T,\) on the CPU, got "
_COUNTS = "batch_sizes of a PackedSequence should be positive, not grow and sum to the rows of its data, got "
_ORDER = r"sorted_indices of a PackedSequence should be an int64 tensor of shape \(B,\) on cpu, as its data, got "


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("packed", "error", "message"),
    [
        (packed_by_hand([], rows=0, dtype=torch.int64), RuntimeError, "Expected sequence length to be larger than 0"),
        (packed_by_hand([3, 2], dtype=torch.int32), ValueError, _SIZES + "torch.int32"),
        (packed_by_hand([3.0, 2.0]), ValueError, _SIZES + "torch.float32"),
        (packed_by_hand([[3, 2]]), ValueError, _SIZES + r"torch.int64 of shape \(1, 2\)"),
        (packed_by_hand([2, 3]), ValueError, _COUNTS + r"\[2, 3\] for 5 rows"),
        (packed_by_hand([3, 2, 0]), ValueError, _COUNTS),
        (packed_by_hand([6, -1]), ValueError, _COUNTS),
        (packed_by_hand([3, 2], rows=6), ValueError, _COUNTS + r"\[3, 2\] for 6 rows"),
        (packed_by_hand([1] * 20, rows=6), ValueError, _COUNTS + r"\[1(, 1){11}, \.\.\.\] for 6"),
        (packed_by_hand([0], rows=0), ValueError, _COUNTS),
        (packed_by_hand([3, 2], torch.tensor([0, 1])), ValueError, "sorted_indices .* should have 3 entries, got 2"),
        (packed_by_hand([3, 2], torch.tensor([0, 1, 1])), ValueError, r"name each of 3 rows once, got \[0, 1, 1\]"),
        (packed_by_hand([3, 2], torch.tensor([0, 1, 7])), ValueError, "name each of 3 rows once"),
        (packed_by_hand([3, 2], torch.tensor([0, 1, -1])), ValueError, "name each of 3 rows once"),
        (packed_by_hand([3, 2], torch.arange(3).int()), ValueError, _ORDER + "torch.int32"),
        (packed_by_hand([3, 2], torch.arange(3).float()), ValueError, _ORDER + "torch.float32"),
        (packed_by_hand([3, 2], torch.arange(3, device="meta")), ValueError, _ORDER + ".* on meta"),
    ],
)
def test_packed_sequences_made_by_hand(
    packed: PackedSequence, error: type[Exception], message: str, cell: str, backend: str
) -> None:
    rnn = getattr(frd, cell)(I, H, backend=backend, weight_dropout=0.5)
    for call in every_way_in(rnn, packed):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("cell", CELLS)
def test_no_steps_when_looking(cell: str) -> None:
    for batch_first, x in ((False, torch.randn(0, B, I)), (True, torch.randn(B, 0, I)), (False, torch.randn(0, I))):
        rnn = getattr(frd, cell)(I, H, batch_first=batch_first)
        for call in every_way_in(rnn, x):
            with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
                call()


NOT_DENSE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "sparse": (lambda x: x.to_sparse(), r"one with layout torch.sparse_coo: convert it with .to_dense\(\)"),
    "hybrid": (lambda x: x.to_sparse(1), r"one with layout torch.sparse_coo: convert it with .to_dense\(\)"),
    "csr": (lambda x: x.to_sparse_csr(), r"one with layout torch.sparse_csr: convert it with .to_dense\(\)"),
    "mkldnn": (lambda x: x.to_mkldnn(), r"one with layout torch._mkldnn: convert it with .to_dense\(\)"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "a nested one: .*pack_sequence"),
    "jagged": (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "a nested one: .*pack_sequence"),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        r"a quantised one \(torch.qint8\): convert it with .dequantize\(\)",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_what_is_not_dense(kind: str, cell: str, backend: str) -> None:
    make, message = NOT_DENSE[kind]
    rnn = getattr(frd, cell)(I, H, backend=backend, weight_dropout=0.5)
    x, h = torch.randn(T, B, I), make(torch.randn(1, B, H))
    for training in (True, False):
        rnn.train(training)
        for call in every_way_in(rnn, make(x)):
            with pytest.raises(TypeError, match=f"(input of an? {cell}|x) should be a dense tensor, got {message}"):
                call()
        if kind not in ("nested", "jagged"):  # torch cannot pack these
            with pytest.raises(TypeError, match=f"data of a PackedSequence should be a dense tensor, got {message}"):
                rnn(PackedSequence(make(torch.randn(5, I)), torch.tensor([3, 2])))
        for hx in [(h, torch.zeros(1, B, H)), (torch.zeros(1, B, H), h)] if cell == "LSTM" else [h]:
            with pytest.raises(TypeError, match=rf"hx(\[[01]\])? should be a dense tensor, got {message}"):
                rnn(x, hx)
    if kind == "quantised":
        return  # no parameter can be that
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_hh_l0"):
        if "bias" in name and kind in ("csr", "nested", "jagged"):
            continue  # torch has none of one dimension
        rnn = getattr(frd, cell)(I, H, backend=backend)
        setattr(rnn, name, nn.Parameter(make(getattr(rnn, name).detach()), requires_grad=False))
        with pytest.raises(TypeError, match=f"a weight of an? {cell} should be a dense tensor, got {message}"):
            rnn(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_weights_that_do_not_fit_the_others(cell: str, backend: str) -> None:
    x = torch.randn(T, B, I)
    for name in ("weight_hh_l0", "bias_ih_l0", "weight_ih_l1"):
        rnn = getattr(frd, cell)(I, H, 2, backend=backend)
        weight = getattr(rnn, name).detach()
        setattr(rnn, name, nn.Parameter(weight.to("meta")))
        with pytest.raises(RuntimeError, match="not at the same device, found input tensor at cpu and .* at meta"):
            rnn(x)
        setattr(rnn, name, nn.Parameter(weight.to(torch.complex64)))
        with pytest.raises(
            TypeError, match=f"a weight of an? {cell} should have a floating dtype, got torch.complex64"
        ):
            rnn(x)
    for wrong in (x.to(torch.complex64), x.to("meta")):
        theirs, ours = (
            error_of(lambda m=m, x=wrong: m(x)) for m in (getattr(nn, cell)(I, H), getattr(frd, cell)(I, H))
        )
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))


# --------------------------------------------------------------------------------------------------------------------
# Sites
# --------------------------------------------------------------------------------------------------------------------

_MEANT = r"should be a number in range \[0, 1\]"
REFUSED_SITES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("LSTM", {"weight_dropout": 1.5}, ValueError, f"weight_dropout {_MEANT}.*got 1.5"),
    ("LSTM", {"weight_dropout": float("nan")}, ValueError, f"weight_dropout {_MEANT}.*got nan"),
    ("LSTM", {"weight_dropout": True}, ValueError, f"weight_dropout {_MEANT}.*got True"),
    ("LSTM", {"weight_dropout": torch.tensor(0.5)}, ValueError, f"weight_dropout {_MEANT}"),
    ("LSTM", {"zoneout_c": -0.1}, ValueError, f"zoneout_c {_MEANT}.*old value"),
    ("LSTM", {"hidden_dropout": frd.LockedDropout(0.5)}, TypeError, "should be a number or a HiddenDropout"),
    ("LSTM", {"output_dropout": frd.LockedDropout(0.5, tied=False)}, ValueError, "output_dropout has no tied=False"),
    ("LSTM", {"zoneout_c": frd.Zoneout(0.5, shared=True)}, ValueError, "zoneout_c has no shared=True"),
    ("LSTM", {"zoneout_h": frd.Zoneout(0.5, gate_shared=True)}, ValueError, "zoneout_h has no gate_shared=True"),
    ("LSTM", {"num_layers": 2, "dropout": 0.1, "inter_layer_dropout": 0.1}, ValueError, "are the same site"),
    ("LSTM", {"weight_dropout": frd.WeightDropout(0.1, projection=True)}, ValueError, "proj_size is 0"),
    ("LSTM", {"zoneout_c": frd.Zoneout(0.1, gate_shared=True), "zoneout_h": 0.1}, ValueError, "cannot be combined"),
    ("GRU", {"zoneout_c": 0.1}, ValueError, "zoneout_c is not a site of a GRU"),
    ("GRU", {"proj_size": 3}, ValueError, "proj_size argument is only supported for LSTM, not RNN or GRU"),
    ("GRU", {"reset_after": 1}, TypeError, "reset_after should be of type bool"),
    ("RNN", {"zoneout_c": 0.1}, ValueError, "zoneout_c is not a site of an RNN: it has no cell state; .* zoneout_h$"),
    ("RNN", {"cell_dropout": 0.1}, ValueError, "cell_dropout is not a site of an RNN: it has no cell state"),
    ("RNN", {"proj_size": 3}, ValueError, "proj_size argument is only supported for LSTM, not RNN or GRU"),
    ("RNN", {"reset_after": True}, TypeError, "RNN got an unexpected keyword argument 'reset_after'"),
    ("LSTM", {"mc": "yes"}, TypeError, "mc should be of type bool"),
    ("LSTM", {"recompute": 1}, TypeError, "recompute should be of type bool"),
    ("LSTM", {"backend": "cudnn"}, ValueError, "one of 'cpu', 'cuda', 'triton', 'reference', got 'cudnn'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "kwargs", "error", "message"), REFUSED_SITES, ids=lambda v: str(v) if isinstance(v, dict) else ""
)
def test_refused_sites(cell: str, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(frd, cell)(I, H, **kwargs)


def test_refused_assignments() -> None:
    gru, lstm = frd.GRU(I, H), frd.LSTM(I, H)
    with pytest.raises(ValueError, match="zoneout_c is not a site of a GRU"):
        gru.zoneout_c = 0.5
    with pytest.raises(ValueError, match="'zoneout_c' is not a site of a GRU"):
        gru.set_rate("zoneout_c", 0.5)
    rnn = frd.RNN(I, H)
    for name in ("cell_dropout", "zoneout_c"):
        with pytest.raises(ValueError, match=f"{name} is not a site of an RNN"):
            setattr(rnn, name, 0.5)
        with pytest.raises(AttributeError, match=f"has no.* .?{name}"):
            getattr(rnn, name)
    with pytest.raises(ValueError, match="'weight_drop' is not a site of an LSTM"):
        lstm.set_rate("weight_drop", 0.5)
    with pytest.raises(ValueError, match=_MEANT):
        lstm.set_rate("weight_dropout", 2)
    with pytest.raises(TypeError, match="rate of weight_dropout should be a number"):
        lstm.set_rate("weight_dropout", frd.WeightDropout(0.5))
    assert not lstm.sites and not gru.sites


def test_warnings_name_the_line_that_asked() -> None:
    with pytest.warns(UserWarning, match="inter_layer_dropout sits between layers") as caught:
        rnn = frd.LSTM(I, H, inter_layer_dropout=0.5)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="inter_layer_dropout sits between layers") as caught:
        rnn.weight_dropout = 0.5
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnn.set_rate("weight_dropout", 0.25)


# --------------------------------------------------------------------------------------------------------------------
# Backends
# --------------------------------------------------------------------------------------------------------------------

REFERENCE_ONLY = {
    "input_dropout=LockedDropout(tied=False)": ("LSTM", {"input_dropout": frd.LockedDropout(0.5, tied=False)}),
    "hidden_dropout=HiddenDropout(tied=False)": ("GRU", {"hidden_dropout": frd.HiddenDropout(0.5, tied=False)}),
    "weight_dropout=WeightDropout(per_example=True)": (
        "LSTM",
        {"weight_dropout": frd.WeightDropout(0.5, per_example=True)},
    ),
    "zoneout_c=Zoneout(gate_shared=True)": ("LSTM", {"zoneout_c": frd.Zoneout(0.5, gate_shared=True)}),
    "reset_after=False": ("GRU", {"reset_after": False}),
}


@pytest.mark.parametrize("option", REFERENCE_ONLY)
def test_only_the_reference_computes_it(option: str) -> None:
    cell, kwargs = REFERENCE_ONLY[option]
    x = torch.randn(T, B, I)
    rnn = getattr(frd, cell)(I, H, **kwargs)
    for backend in (None, "cpu"):
        rnn.backend = backend
        for training in (True, False):
            rnn.train(training)
            error = error_of(lambda: rnn(x))
            assert isinstance(error, ValueError) and option in str(error) and 'backend="reference"' in str(error)
    rnn.backend = "reference"
    rng = frd.draw_rng("cpu")
    out = rnn.train()(x, rng=rng)[0]
    assert out.shape == (T, B, H) and torch.equal(rnn(x, rng=rng)[0], out)
    if option != "reset_after=False":
        assert not torch.equal(rnn.eval()(x)[0], out)


@pytest.mark.cpu_kernels
def test_backends_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.randn(T, B, I)
    for backend in ("cuda", "triton"):
        with pytest.raises(ValueError, match=f'backend="{backend}" cannot run this.*backend="reference"'):
            frd.LSTM(I, H, backend=backend)(x)
    rnn = frd.LSTM(I, H)
    rnn.backend = "gpu"
    with pytest.raises(ValueError, match="backend should be None or one of"):
        rnn(x)


@pytest.mark.parametrize("cell", CELLS)
def test_transforms_name_the_reference(cell: str) -> None:
    rnn, x = getattr(frd, cell)(I, H, weight_dropout=0.5), torch.randn(2, T, B, I)
    rng = frd.draw_rng("cpu")

    def total(value: torch.Tensor) -> torch.Tensor:
        return rnn(value, rng=rng)[0].sum()

    transformed: list[Callable[[], Any]] = [
        lambda: torch.vmap(total)(x),
        lambda: torch.func.grad(total)(x[0]),
        lambda: torch.func.jvp(total, (x[0],), (x[0],)),
        lambda: torch.func.hessian(total)(x[0, :1, :1]),
    ]
    for function in transformed:
        with pytest.raises(NotImplementedError, match='backend="reference"'):
            function()
    rnn.backend = "reference"
    expected = torch.stack([total(value) for value in x])
    torch.testing.assert_close(transformed[0](), expected)
    leaf = x[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(transformed[1](), gradient)
    torch.testing.assert_close(transformed[2]()[1], (gradient * x[0]).sum())
    assert transformed[3]().isfinite().all()


# --------------------------------------------------------------------------------------------------------------------
# rng, example_ids, step_offset
# --------------------------------------------------------------------------------------------------------------------

_PAIR = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"rng": 7}, TypeError, "rng should be an int64 tensor of shape"),
        ({"rng": torch.Generator()}, TypeError, "rng should be an int64 tensor of shape"),
        ({"rng": _PAIR.int()}, ValueError, "rng should be an int64 tensor of shape.*int32"),
        ({"rng": torch.zeros(3, dtype=torch.int64)}, ValueError, "rng should be an int64 tensor of shape"),
        ({"rng": _PAIR.to("meta")}, ValueError, "rng should be on cpu.*got meta"),
        ({"rng": {"weights": _PAIR, None: _PAIR}}, ValueError, "rng has a key 'weights'; allowed are 'input'"),
        ({"rng": {"weight": _PAIR}}, ValueError, "rng lacks 'hidden'"),
        ({"rng": {"weight": 3, None: _PAIR}}, TypeError, r"rng\['weight'\] should be an int64 tensor"),
        ({"example_ids": [0, 1, 2]}, TypeError, "example_ids should be an int64 tensor"),
        ({"example_ids": torch.arange(B).int()}, ValueError, "example_ids should be an int64 tensor.*int32"),
        ({"example_ids": torch.arange(B + 1)}, ValueError, r"example_ids should be an int64 tensor of shape \(3,\)"),
        ({"example_ids": torch.tensor([0, 1, -1])}, ValueError, r"example_ids should be in \[0, 4294967295\)"),
        ({"example_ids": torch.tensor([0, 1, 2**32 - 1])}, ValueError, r"example_ids should be in \[0, 4294967295\)"),
        ({"example_ids": torch.arange(B, device="meta")}, ValueError, "example_ids should be on cpu"),
        ({"step_offset": -1}, ValueError, "step_offset should be at least 0"),
        ({"step_offset": 2**32 - 3}, ValueError, "step_offset [+] T at most 4294967295"),
        ({"step_offset": 1.0}, TypeError, "step_offset should be an int"),
        ({"step_offset": True}, TypeError, "step_offset should be an int"),
    ],
)
def test_refused_counters(kwargs: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    rnn = frd.LSTM(I, H, weight_dropout=0.5, hidden_dropout=0.5, backend=backend)
    for training in (True, False):
        with pytest.raises(error, match=message):
            rnn.train(training)(torch.randn(T, B, I), **kwargs)


def test_draw_rng() -> None:
    torch.manual_seed(5)
    pair = frd.draw_rng("cpu")
    assert pair.dtype == torch.int64 and pair.shape == (2,)
    assert torch.equal(frd.draw_rng("cpu", torch.Generator().manual_seed(5)), pair)
    torch.manual_seed(5)
    assert torch.equal(frd.draw_rng(), pair)
    drawn = torch.stack([frd.draw_rng("cpu") for _ in range(64)])
    assert (drawn < 0).any() and (drawn.abs() > 2**62).any() and len(drawn.unique()) == drawn.numel()
    with pytest.raises(ValueError, match="generator should be on meta, got one on cpu"):
        frd.draw_rng("meta", torch.Generator())


def test_a_private_generator_inside_a_recompute_names_rng() -> None:
    rnn, x = frd.LSTM(I, H, weight_dropout=0.5), torch.randn(T, B, I, requires_grad=True)
    generator = torch.Generator().manual_seed(1)

    def forward(value: torch.Tensor) -> torch.Tensor:
        return rnn(value, rng=frd.draw_rng("cpu", generator))[0]

    out = checkpoint(forward, x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="rng="):
        out.sum().backward()
    rng = frd.draw_rng("cpu", generator)
    checkpoint(lambda value: rnn(value, rng=rng)[0], x, use_reentrant=False).sum().backward()
    (expected,) = torch.autograd.grad(rnn(x, rng=rng)[0].sum(), x)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("function", ["explain", "export_masks"])
def test_introspection_takes_our_modules_alone(function: str) -> None:
    with pytest.raises(TypeError, match=rf"{function} takes a fused_rnn_dropout.LSTM, GRU or RNN, got LSTM"):
        getattr(frd, function)(nn.LSTM(I, H), torch.randn(T, B, I))
    with pytest.raises(TypeError, match="x should be a Tensor or a PackedSequence, got list"):
        getattr(frd, function)(frd.LSTM(I, H), [1.0])
    with pytest.raises(ValueError, match="Expected input to be 2D or 3D, got 1D instead"):
        getattr(frd, function)(frd.LSTM(I, H), torch.randn(I))
