"""Calls that are alike share what was checked for the first of them: whatever changes in between, the next call sees.

Each test calls a module, so that there is something to remember, changes one thing, and calls it again.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.rnn import pack_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn_dropout as frd
from fused_rnn_dropout import ops

T, B, I, H = 2, 3, 4, 6


def inputs(dtype: torch.dtype = torch.float32, batch: int = B) -> Tensor:
    return torch.randn(T, batch, I, dtype=dtype, generator=torch.Generator().manual_seed(batch))


def called(train: bool = True, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A GRU after two calls that are alike, of which the second went by what was found for the first."""
    torch.manual_seed(0)
    rnn = frd.GRU(I, H, dtype=dtype, **options).train(train)
    rng = torch.tensor([5, 6])
    first, second = (rnn(inputs(dtype), rng=rng)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert rnn._plan.last_call[0] is not None
    return rnn


def torchs(rnn: Any, x: Tensor) -> Tensor:
    """What torch computes with the weights that are the module's attributes now."""
    weights = [getattr(rnn, name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
    hx = torch.zeros(1, x.size(1), H, dtype=x.dtype)
    return torch._VF.gru(x, hx, weights, True, 1, 0.0, False, False, False)[0]


# --------------------------------------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------------------------------------


def other(weight: Tensor) -> Tensor:
    return torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(9)) / 3


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def replaced(rnn: Any) -> None:
    rnn.weight_hh_l0 = nn.Parameter(other(rnn.weight_hh_l0))


def replaced_in_its_dict(rnn: Any) -> None:
    rnn._parameters["weight_hh_l0"] = nn.Parameter(other(rnn.weight_hh_l0))


def written(rnn: Any) -> None:
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(other(rnn.weight_hh_l0))


def given_other_data(rnn: Any) -> None:
    rnn.weight_hh_l0.data = other(rnn.weight_hh_l0)


def tied(rnn: Any) -> None:
    torch.manual_seed(3)
    rnn.weight_hh_l0 = nn.GRU(I, H).weight_hh_l0


def pruned(rnn: Any) -> None:
    prune.l1_unstructured(rnn, "weight_hh_l0", 0.5)


def hidden_by_an_attribute(rnn: Any) -> None:
    # As FSDP does: past nn.Module, which has a parameter of the name.
    object.__setattr__(rnn, "weight_hh_l0", other(rnn.weight_hh_l0))


def parametrised(rnn: Any) -> None:
    parametrize.register_parametrization(rnn, "weight_hh_l0", Doubled())


def loaded(rnn: Any) -> None:
    rnn.load_state_dict({name: other(value) for name, value in rnn.state_dict().items()}, assign=True)


def stored_in_one_row(rnn: Any) -> None:
    """The same numbers, not dense any more."""
    rnn.weight_hh_l0.data = other(rnn.weight_hh_l0).t().contiguous().t()


@pytest.mark.parametrize(
    "change",
    [
        replaced,
        replaced_in_its_dict,
        written,
        given_other_data,
        tied,
        pruned,
        hidden_by_an_attribute,
        parametrised,
        loaded,
        stored_in_one_row,
    ],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("grad", [False, True])
def test_other_weights(change: Callable[[Any], None], grad: bool) -> None:
    rnn = called(train=False)
    before = rnn(inputs())[0]
    change(rnn)
    with torch.set_grad_enabled(grad):
        got, want = rnn(inputs())[0], torchs(rnn, inputs())
    assert not torch.allclose(got, before, atol=1e-3)
    torch.testing.assert_close(got, want)


def test_weights_that_functional_call_lends() -> None:
    rnn = called(train=False)
    lent = {name: other(value) for name, value in rnn.named_parameters()}
    before = rnn(inputs())[0]
    got = torch.func.functional_call(rnn, lent, (inputs(),))[0]
    again = copy.deepcopy(rnn)
    with torch.no_grad():
        for name, value in lent.items():
            getattr(again, name).copy_(value)
    torch.testing.assert_close(got, torchs(again, inputs()))
    assert torch.equal(rnn(inputs())[0], before)


def test_a_weight_that_another_module_changes() -> None:
    rnn, shares = called(train=False), called(train=False)
    shares.weight_hh_l0 = rnn.weight_hh_l0
    shares(inputs())
    written(rnn)
    torch.testing.assert_close(shares(inputs())[0], torchs(shares, inputs()))


def test_another_dtype() -> None:
    rnn = called(train=False).double()
    x = inputs(torch.float64)
    rnn(x)
    assert rnn(x)[0].dtype == torch.float64
    torch.testing.assert_close(rnn(x)[0], torchs(rnn, x))
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.float32\) does not match weight dtype"):
        rnn(inputs())


Broken = tuple[Callable[[Any], Any], type[Exception], str]
BROKEN: dict[str, Broken] = {
    "one weight on another device": (
        lambda rnn: setattr(rnn, "weight_hh_l0", nn.Parameter(rnn.weight_hh_l0.detach().to("meta"))),
        RuntimeError,
        "not at the same device, found input tensor at cpu and parameter tensor at meta",
    ),
    "a sparse weight": (
        lambda rnn: setattr(rnn, "weight_hh_l0", nn.Parameter(rnn.weight_hh_l0.detach().to_sparse())),
        TypeError,
        "a weight of a GRU should be a dense tensor, got one with layout torch.sparse_coo",
    ),
    "a weight of integers": (
        lambda rnn: setattr(rnn, "weight_hh_l0", nn.Parameter(rnn.weight_hh_l0.detach().long(), requires_grad=False)),
        TypeError,
        "a weight of a GRU should have a floating dtype, got torch.int64",
    ),
    "a weight of another shape": (
        lambda rnn: setattr(rnn, "weight_hh_l0", nn.Parameter(torch.zeros(3 * H, H - 1))),
        RuntimeError,
        "has a shape that does not fit|must have",
    ),
    "a bias less": (lambda rnn: setattr(rnn, "bias", False), ValueError, "weights should hold 2 tensors"),
    "an unknown backend": (lambda rnn: setattr(rnn, "backend", "gpu"), ValueError, "backend should be None or one of"),
    "an option of the reference's": (
        lambda rnn: setattr(rnn, "weight_dropout", frd.WeightDropout(0.5, per_example=True)),
        ValueError,
        "no fused backend computes weight_dropout=WeightDropout",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_computed_any_more_is_refused(name: str) -> None:
    change, kind, words = BROKEN[name]
    rnn = called(train=False)
    change(rnn)
    with pytest.raises(kind, match=words):
        rnn(inputs())


BAD_CALLS: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "states of another batch": (inputs(), torch.zeros(1, B + 1, H), RuntimeError, r"Expected hidden size \(1, 3, 6\)"),
    "states of another dtype": (inputs(), torch.zeros(1, B, H, dtype=torch.float64), RuntimeError, "same dtype"),
    "states on another device": (inputs(), torch.zeros(1, B, H, device="meta"), RuntimeError, "not at the same device"),
    "another width": (torch.zeros(T, B, I + 1), None, RuntimeError, "must be equal to input_size"),
    "no step": (torch.zeros(0, B, I), None, RuntimeError, "Expected sequence length to be larger than 0"),
    "an input on another device": (inputs().to("meta"), None, RuntimeError, "not at the same device"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_after_good_ones_is_refused(name: str) -> None:
    x, hx, kind, words = BAD_CALLS[name]
    rnn = called(train=False)
    rnn(inputs(), torch.zeros(1, B, H))
    with pytest.raises(kind, match=words):
        rnn(x, hx)
    torch.testing.assert_close(rnn(inputs())[0], torchs(rnn, inputs()))


def test_other_sizes_and_states() -> None:
    rnn = called(train=False)
    for x in (inputs(batch=5), inputs()[:1], inputs(), inputs().transpose(0, 1).contiguous().transpose(0, 1)):
        torch.testing.assert_close(rnn(x)[0], torchs(rnn, x))
    state = torch.ones(1, B, H)
    assert not torch.allclose(rnn(inputs(), state)[0], rnn(inputs())[0])
    torch.testing.assert_close(rnn(inputs(), torch.zeros(1, B, H))[0], rnn(inputs())[0])
    torch.testing.assert_close(rnn(inputs()[:, 0])[0], rnn(inputs()[:, :1])[0][:, 0])


def test_packed_batches_with_as_many_rows() -> None:
    rnn = called(train=False)
    rows = torch.randn(4, I)
    for lengths in ([3, 1], [2, 1, 1], [2, 2], [3, 1]):
        packed = pack_sequence(list(rows.split(lengths)))
        alone = [torchs(rnn, part.unsqueeze(1))[:, 0] for part in rows.split(lengths)]
        got, h_n = rnn(packed)
        torch.testing.assert_close(got.data, pack_sequence(alone).data)
        assert h_n.shape == (1, len(lengths), H)


# --------------------------------------------------------------------------------------------------------------------
# Settings
# --------------------------------------------------------------------------------------------------------------------

RNG = torch.tensor([5, 6])
SITES: dict[str, Any] = {"weight_dropout": 0.5, "update_dropout": 0.25, "zoneout_h": 0.25}


def assign(**values: Any) -> Callable[[Any], None]:
    def change(rnn: Any) -> None:
        for name, value in values.items():
            setattr(rnn, name, value)

    return change


CHANGES: dict[str, Callable[[Any], None]] = {
    "eval": lambda rnn: rnn.eval(),
    "a rate": lambda rnn: rnn.set_rate("weight_dropout", 0.25),
    "a site less": assign(weight_dropout=0.0),
    "a site more": assign(hidden_dropout=0.5),
    "an option": assign(weight_dropout=frd.WeightDropout(0.5, mode="row")),
    "an option of an output": assign(zoneout_h=frd.Zoneout(0.25, output="unzoned")),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("grad", [False, True])
def test_other_settings(name: str, grad: bool) -> None:
    rnn = called(**SITES)
    with torch.set_grad_enabled(grad):
        before = rnn(inputs(), rng=RNG)[0]
        CHANGES[name](rnn)
        got = rnn(inputs(), rng=RNG)[0]
        reference = copy.deepcopy(rnn)
        reference.backend = "reference"
        want = reference(inputs(), rng=RNG)[0]
    assert not torch.allclose(got, before, atol=1e-3)
    torch.testing.assert_close(got, want)


def test_masks_in_eval_and_back() -> None:
    rnn = called(**SITES)
    trained = rnn(inputs(), rng=RNG)[0]
    rnn.eval()
    off = rnn(inputs(), rng=RNG)[0]
    rnn.mc = True
    assert torch.equal(rnn(inputs(), rng=RNG)[0], trained)
    rnn.mc = False
    assert torch.equal(rnn(inputs(), rng=RNG)[0], off)
    rnn.train()
    assert torch.equal(rnn(inputs(), rng=RNG)[0], trained)
    assert not torch.equal(off, trained)


def test_another_backend() -> None:
    rnn = called(**SITES)
    fused = rnn(inputs(), rng=RNG)[0]
    rnn.backend = "reference"
    got = rnn(inputs(), rng=RNG)[0]
    assert type(got.grad_fn).__name__ != type(fused.grad_fn).__name__
    torch.testing.assert_close(got, fused)


def test_recomputation_is_asked_for() -> None:
    rnn = called(**SITES)

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            rnn(inputs(), rng=RNG)
        return sum(sizes)

    before = kept()
    rnn.recompute = True
    assert kept() < before


def test_a_hold_is_entered_and_left() -> None:
    rnn = called(**SITES)
    with frd.hold_masks(rnn, rng=RNG) as held:
        parts = [rnn(inputs()), rnn(inputs())]
        assert dict(held.step_offset) == {"": 2 * T}
    assert torch.equal(parts[0][0], rnn(inputs(), rng=RNG)[0])
    assert torch.equal(parts[1][0], rnn(inputs(), rng=RNG, step_offset=T)[0])
    assert not torch.equal(rnn(inputs())[0], rnn(inputs())[0])


def test_autocast_is_entered_and_left() -> None:
    rnn = called(train=False, dtype=torch.bfloat16)

    def dtype() -> torch.dtype:
        return rnn(inputs(torch.bfloat16))[0].dtype

    assert dtype() == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert dtype() == torch.float32  # what a state in bfloat16 and products in float16 promote to, as torch's do
        assert dtype() == torch.float32
    assert dtype() == torch.bfloat16


def test_grad_mode() -> None:
    rnn = called(train=False)
    with torch.no_grad():
        assert not rnn(inputs())[0].requires_grad
    with torch.inference_mode():
        got = rnn(inputs())[0]
        assert got.is_inference()
    assert torch.equal(got, rnn(inputs())[0])
    assert rnn(inputs())[0].requires_grad
    rnn.requires_grad_(False)
    assert not rnn(inputs())[0].requires_grad
    assert rnn(inputs().requires_grad_())[0].requires_grad


# --------------------------------------------------------------------------------------------------------------------
# Who looks at operators
# --------------------------------------------------------------------------------------------------------------------


def overloads(names: list[str]) -> set[str]:
    return {name.split("::")[1].split(".")[0] for name in names if name.startswith("fused_rnn_dropout::")}


@pytest.mark.parametrize("grad", [False, True])
def test_a_dispatch_mode_sees_the_operators(grad: bool) -> None:
    class See(TorchDispatchMode):
        names: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(func.name()))
            return func(*args, **(kwargs or {}))

    rnn = called(**SITES)
    with torch.set_grad_enabled(grad), See() as seen:
        rnn(inputs())
    expected = {"draw", "layer_forward", "snapshot"} if grad else {"draw", "layer"}
    assert overloads(seen.names) == expected


@pytest.mark.parametrize("grad", [False, True])
def test_a_function_mode_sees_the_operator(grad: bool) -> None:
    class See(TorchFunctionMode):
        found: list[Any] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.found.append(func)
            return func(*args, **(kwargs or {}))

    rnn = called(**SITES)
    with torch.set_grad_enabled(grad), See() as seen:
        rnn(inputs())
    assert ops.layer in seen.found


def test_a_subclass_sees_the_operator() -> None:
    seen: list[Any] = []

    class Watched(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    rnn = called()
    got = rnn(inputs().as_subclass(Watched))[0]
    assert type(got) is Watched
    assert ops.layer in seen


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*is deprecated:DeprecationWarning")
def test_tracers_see_the_operator() -> None:
    rnn = called(train=False)
    traced = torch.jit.trace(rnn, (inputs(),), check_trace=False)
    assert "fused_rnn_dropout::layer" in str(traced.inlined_graph)
    for pre_dispatch in (False, True):
        made = torch.fx.experimental.proxy_tensor.make_fx(lambda x: rnn(x)[0], pre_dispatch=pre_dispatch)(inputs())
        targets = {node.target for node in made.graph.nodes}
        expected = ops.layer if pre_dispatch else torch.ops.fused_rnn_dropout.layer_forward.default
        assert expected in targets
        torch.testing.assert_close(made(inputs()), rnn(inputs())[0])


def test_transforms_are_refused() -> None:
    rnn = called(train=False)
    with pytest.raises(NotImplementedError, match="reference"):
        torch.func.vmap(lambda x: rnn(x)[0])(inputs().unsqueeze(0))
    with pytest.raises(NotImplementedError, match="reference"):
        torch.func.grad(lambda x: rnn(x)[0].sum())(inputs())


def test_no_graph_inside_another_operators_kernel() -> None:
    rnn = called(**SITES)
    required: list[bool] = []

    @torch.library.custom_op("frd_tests::between_calls", mutates_args=())
    def kernel(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = rnn(x, rng=RNG)[0]
        required.append(y.requires_grad)
        return y.detach().clone()

    rnn(inputs(), rng=RNG)
    got = kernel(inputs())
    assert required == [False]
    assert torch.equal(got, rnn(inputs(), rng=RNG)[0])


# --------------------------------------------------------------------------------------------------------------------
# Copies
# --------------------------------------------------------------------------------------------------------------------


def test_copies_and_pickles_remember_nothing() -> None:
    rnn = called(**SITES)
    file = io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    for again in (copy.deepcopy(rnn), torch.load(file, weights_only=False)):
        assert again._plan.last_call[0] is None
        assert torch.equal(again(inputs(), rng=RNG)[0], rnn(inputs(), rng=RNG)[0])


@pytest.mark.parametrize("grad", [False, True])
def test_a_torch_that_cannot_be_asked_has_every_operator_dispatched(monkeypatch, grad: bool) -> None:
    rnn = called(train=grad, weight_dropout=0.5)
    with torch.set_grad_enabled(grad):
        torch.manual_seed(3)
        expected = rnn(inputs())[0]
        monkeypatch.setattr(ops, "_CAN_ASK", False)
        with torch.profiler.profile() as profile:
            torch.manual_seed(3)
            assert torch.equal(rnn(inputs())[0], expected)
    names = {event.name for event in profile.events()}
    assert {"fused_rnn_dropout::layer"} | ({"fused_rnn_dropout::draw"} if grad else set()) <= names
