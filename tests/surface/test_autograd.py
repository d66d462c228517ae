"""Gradients as autograd sees them: against finite differences, under its modes, and where they stop."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from grids import has
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout.cells import CELLS, MODULES
from fused_rnn_dropout.sites import GROUPS

pytestmark = [
    pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]

T, B, I, H = 4, 3, 3, 5
LENGTHS = torch.tensor([2, 4, 1])
RNG = torch.tensor([77, -5])

SITES: dict[str, Any] = {
    "dropout": 0.4,
    "input_dropout": 0.3,
    "inter_layer_dropout": 0.3,
    "output_dropout": frd.LockedDropout(0.3, per="step"),
    "hidden_dropout": 0.3,
    "weight_dropout": frd.WeightDropout(0.4, inputs=True),
    "update_dropout": 0.3,
    "cell_dropout": 0.2,
    "zoneout_c": 0.3,
    "zoneout_h": 0.3,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "weight_rows": {"weight_dropout": frd.WeightDropout(0.4, mode="row")},
    "update_sequence": {"update_dropout": frd.UpdateDropout(0.4, per="sequence", scale="paper")},
    "cell_step": {"cell_dropout": frd.CellDropout(0.2, per="step")},
    "cell_paper": {"cell_dropout": frd.CellDropout(0.3, scale="paper")},
    "zoneout_sequence": {"zoneout_h": frd.Zoneout(0.3, per="sequence")},
    "unzoned": {"zoneout_h": frd.Zoneout(0.3, output="unzoned"), "hidden_dropout": 0.3},
    "batch_shared": {"hidden_dropout": frd.HiddenDropout(0.4, batch_shared=True)},
}
ALL: dict[str, Any] = {name: value for name, value in SITES.items() if name != "dropout"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sizes are tiny: on a busy machine a second thread is mostly waited for."""
    torch.set_num_threads(1)


def sites_of(cell: str, sites: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sites.items() if has(cell, name)}


def build(cell: str, sites: dict[str, Any] | None = None, *args: Any, **kwargs: Any) -> nn.Module:
    """A module in fp64 with weights of order one, so that no gradient is lost in rounding."""
    rnn = getattr(frd, cell)(I, H, *args, dtype=torch.float64, **sites_of(cell, sites or {}), **kwargs)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.copy_(torch.randn_like(weight) * 0.7)
    return rnn


def states_of(rnn: nn.Module, batch: int = B) -> tuple[Tensor, ...]:
    count = rnn.num_layers * (2 if rnn.bidirectional else 1)
    widths = [rnn.proj_size or H, H][: 2 if rnn.mode == "LSTM" else 1]
    return tuple(torch.randn(count, batch, width, dtype=torch.float64, requires_grad=True) for width in widths)


def flat(result: Any) -> tuple[Tensor, ...]:
    out, last = result
    return (out.data if isinstance(out, PackedSequence) else out, *(last if isinstance(last, tuple) else (last,)))


def inputs(steps: int = T, batch: int = B) -> Tensor:
    return torch.randn(steps, batch, I, dtype=torch.float64, requires_grad=True)


def given_state(rnn: nn.Module, states: tuple[Tensor, ...]) -> Any:
    return states if rnn.mode == "LSTM" else states[0]


def gradcheck(rnn: nn.Module, form: str = "padded", check: Any = torch.autograd.gradcheck, **options: Any) -> bool:
    """Finite differences of every result by the input, the states and every parameter, the masks held by ``rng``."""
    x, states = inputs(), states_of(rnn)
    names, weights = zip(*rnn.named_parameters(), strict=True)

    def forward(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given: Any = x if form == "padded" else pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
        parameters = dict(zip(names, rest[len(states) :], strict=True))
        return flat(functional_call(rnn, parameters, (given, given_state(rnn, rest[: len(states)])), {"rng": RNG}))

    return check(forward, (x, *states, *weights), **options)


# --------------------------------------------------------------------------------------------------------------------
# Finite differences
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [*SITES, *VARIANTS])
@pytest.mark.parametrize("cell", MODULES)
def test_gradcheck_of_each_site(cell: str, site: str) -> None:
    sites = {site: SITES[site]} if site in SITES else VARIANTS[site]
    if not all(has(cell, name) for name in sites):
        pytest.skip(f"no site of {cell}")
    layers = 2 if site in ("dropout", "inter_layer_dropout") else 1
    rnn = build(cell, sites, layers)
    assert gradcheck(rnn, fast_mode=True) and gradcheck(rnn, "packed", fast_mode=True)
    rnn.recompute = True
    assert gradcheck(rnn, "packed", fast_mode=True)


_STATE_SITES = ("hidden_dropout", "weight_dropout", "update_dropout", "cell_dropout", "zoneout_c", "zoneout_h")


@pytest.mark.parametrize("pair", list(itertools.combinations(_STATE_SITES, 2)), ids="+".join)
@pytest.mark.parametrize("cell", MODULES)
def test_gradcheck_of_pairs(cell: str, pair: tuple[str, str]) -> None:
    if not all(has(cell, name) for name in pair):
        pytest.skip(f"no sites of {cell}")
    assert gradcheck(build(cell, {name: SITES[name] for name in pair}), fast_mode=True)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recompute"])
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize(("cell", "proj"), [("LSTM", 2), *((cell, 0) for cell in MODULES)])
def test_gradcheck_of_everything(cell: str, proj: int, form: str, recompute: bool) -> None:
    kwargs: dict[str, Any] = {"proj_size": proj} if proj else {}
    sites = ALL | ({"weight_dropout": frd.WeightDropout(0.4, inputs=True, projection=True)} if proj else {})
    rnn = build(cell, sites, 2, bidirectional=True, recompute=recompute, **kwargs)
    assert gradcheck(rnn, form, fast_mode=True)


@pytest.mark.parametrize("sites", [{}, ALL], ids=["none", "all"])
@pytest.mark.parametrize("cell", MODULES)
def test_gradcheck_of_every_element(cell: str, sites: dict[str, Any]) -> None:
    assert gradcheck(build(cell, {k: v for k, v in sites.items() if k != "inter_layer_dropout"}), "packed")


@pytest.mark.parametrize("scale", ["output", "paper"])
@pytest.mark.parametrize("cell", MODULES)
def test_gradcheck_in_eval(cell: str, scale: str) -> None:
    sites = {
        "zoneout_c": 0.3,
        "zoneout_h": 0.2,
        "cell_dropout": frd.CellDropout(0.2, scale=scale),
        "hidden_dropout": 0.5,
    }
    rnn = build(cell, sites | {"update_dropout": frd.UpdateDropout(0.3, scale="paper")}, 2, bidirectional=True).eval()
    assert gradcheck(rnn, fast_mode=True) and gradcheck(rnn, "packed", fast_mode=True)
    rnn.recompute = True
    assert gradcheck(rnn, fast_mode=True)


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("cell", MODULES)
def test_gradcheck_where_nothing_or_everything_is_dropped(cell: str, rate: float) -> None:
    rnn = build(cell, ALL, 2)
    for name in rnn.sites:
        rnn.set_rate(name, rate)
        assert gradcheck(rnn, fast_mode=True)
        rnn.set_rate(name, 0.2)


def test_a_wrong_mask_in_backward_fails_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above see a backward that draws other masks than its forward."""
    from fused_rnn_dropout import ops

    right = ops.functions["layer"].backward

    def wrong(ctx: Any, *grads: Any) -> Any:
        ctx.call = ctx.call._replace(layer=ctx.call.layer + 1)
        return right(ctx, *grads)

    for name in ("hidden_dropout", "weight_dropout", "update_dropout", "zoneout_c", "zoneout_h"):
        rnn = build("LSTM", {name: SITES[name]})
        assert gradcheck(rnn, fast_mode=True)
        with monkeypatch.context() as patch:
            patch.setattr(ops.functions["layer"], "backward", staticmethod(wrong))
            assert not gradcheck(rnn, fast_mode=True, raise_exception=False), name


# --------------------------------------------------------------------------------------------------------------------
# What only the reference does: an error that names it
# --------------------------------------------------------------------------------------------------------------------

NAMED = "backend=.reference."


@pytest.mark.parametrize("site", [None, "input_dropout", "hidden_dropout"])
@pytest.mark.parametrize("cell", MODULES)
def test_double_backward(cell: str, site: str | None) -> None:
    sites = {} if site is None else {site: 0.3}
    fused, reference = build(cell, sites), build(cell, sites, backend="reference")
    x = inputs()
    (gradient,) = torch.autograd.grad(fused(x, rng=RNG)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=NAMED):
        gradient.square().sum().backward()
    assert gradcheck(reference, check=torch.autograd.gradgradcheck, fast_mode=True)


def test_create_graph_alone_is_allowed() -> None:
    """A penalty on gradients of later layers, or an optimizer that asks for a graph it never uses."""
    rnn, x = build("LSTM", {"zoneout_h": 0.3}), inputs()
    loss = rnn(x, rng=RNG)[0].square().sum()
    with_graph = torch.autograd.grad(loss, [x, *rnn.parameters()], create_graph=True)
    without = torch.autograd.grad(loss, [x, *rnn.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(with_graph, without, strict=True))


def _transforms(total: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Callable[[], Any]]:
    return {
        "grad": lambda: torch.func.grad(total)(x),
        "vjp": lambda: torch.func.vjp(total, x)[1](torch.ones((), dtype=x.dtype))[0],
        "jvp": lambda: torch.func.jvp(total, (x,), (torch.ones_like(x),))[1],
        "vmap": lambda: torch.vmap(total)(torch.stack([x, x.neg()])),
        "jacrev": lambda: torch.func.jacrev(total)(x),
        "jacfwd": lambda: torch.func.jacfwd(total)(x),
        "hessian": lambda: torch.func.hessian(total)(x[:, :1]),
    }


@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp", "vmap", "jacrev", "jacfwd", "hessian"])
@pytest.mark.parametrize("cell", MODULES)
def test_function_transforms(cell: str, transform: str) -> None:
    fused = build(cell, {"hidden_dropout": 0.3, "zoneout_h": 0.2}, 2)
    x = inputs().detach()

    def function(rnn: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda value: rnn(value, rng=RNG)[0].square().sum()

    with pytest.raises(NotImplementedError, match=NAMED):
        _transforms(function(fused), x)[transform]()
    reference = build(cell, {"hidden_dropout": 0.3, "zoneout_h": 0.2}, 2, backend="reference")
    reference.load_state_dict(fused.state_dict())
    result = _transforms(function(reference), x)[transform]()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(fused)(leaf), leaf)  # the fused kernels agree where they can be asked
    if transform == "jvp":
        torch.testing.assert_close(result, gradient.sum())
    elif transform == "vmap":
        torch.testing.assert_close(result, torch.stack([function(fused)(x), function(fused)(x.neg())]))
    elif transform == "hessian":
        width = x[:, :1].numel()
        matrix = result.reshape(width, width)
        torch.testing.assert_close(matrix, matrix.t())
        assert matrix.abs().max() > 1e-3
    else:
        torch.testing.assert_close(result, gradient)


@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp", "jacrev", "jacfwd"])
@pytest.mark.parametrize("cell", MODULES)
def test_compiled_transforms_are_right_or_refused(cell: str, transform: str) -> None:
    """Inside torch.compile nothing looks at the transforms that are on: the operators themselves must refuse."""
    torch.compiler.reset()
    rnn, x = build(cell, {"hidden_dropout": 0.3}), inputs().detach()
    run = _transforms(lambda value: rnn(value, rng=RNG)[0].square().sum(), x)[transform]
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rnn(leaf, rng=RNG)[0].square().sum(), leaf)
    refusal = ""
    try:
        result = torch.compile(run, backend="aot_eager")()
    except Exception as error:
        refusal = str(error)
    if not refusal:
        torch.testing.assert_close(result, gradient.sum() if transform == "jvp" else gradient)
    else:
        assert re.search(NAMED, refusal)


@pytest.mark.parametrize("mode", ["parameters", "no_parameters", "no_grad", "state_only", "dropout_only"])
@pytest.mark.parametrize("cell", MODULES)
def test_forward_mode(cell: str, mode: str) -> None:
    """A tangent is carried or refused, whether or not anything requires a gradient."""
    sites = {"input_dropout": 0.3} if mode == "dropout_only" else {"hidden_dropout": 0.3}
    x, states = inputs().detach(), tuple(state.detach() for state in states_of(build(cell)))

    def tangent(rnn: nn.Module) -> Tensor | None:
        rnn.requires_grad_(mode in ("parameters", "no_grad"))
        with forward_ad.dual_level(), torch.set_grad_enabled(mode != "no_grad"):
            dual = forward_ad.make_dual(states[0], torch.ones_like(states[0])) if mode == "state_only" else None
            value = x if dual is not None else forward_ad.make_dual(x, torch.ones_like(x))
            hx = given_state(rnn, states if dual is None else (dual, *states[1:]))
            return forward_ad.unpack_dual(rnn(value, hx, rng=RNG)[0].sum()).tangent

    fused = build(cell, sites)
    with pytest.raises(NotImplementedError, match=NAMED):
        tangent(fused)
    reference = build(cell, sites, backend="reference")
    reference.load_state_dict(fused.state_dict())
    leaves = [x.clone().requires_grad_(), *(state.clone().requires_grad_() for state in states)]
    gradients = torch.autograd.grad(fused(leaves[0], given_state(fused, tuple(leaves[1:])), rng=RNG)[0].sum(), leaves)
    torch.testing.assert_close(tangent(reference), gradients[mode == "state_only"].sum())


@pytest.mark.parametrize("grad", [False, True], ids=["frozen", "trained"])
def test_forward_mode_of_the_operators_themselves(grad: bool) -> None:
    x, rng, thresholds = torch.randn(T, B, I), RNG, torch.full((10,), 2**31)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.requires_grad_(grad), torch.ones_like(x))
        with pytest.raises(NotImplementedError, match=NAMED):
            torch.ops.fused_rnn_dropout.dropout(dual, rng, thresholds, None, None, 1, 3, True, False, 0)
        for cell in CELLS.values():
            weights = [torch.randn(cell.gates * H, I), torch.randn(cell.gates * H, H)]
            states = [torch.zeros(B, H)] * cell.states
            rest = (None, None, None, None, torch.float32, 0, 0, 1, 0, 0, 1)
            with pytest.raises(NotImplementedError, match=NAMED):
                torch.ops.fused_rnn_dropout.layer(cell.number, dual, states, weights, *rest)


@pytest.mark.parametrize("cell", MODULES)
def test_gradients_of_each_example_on_the_reference(cell: str) -> None:
    """vmap over grad, one mask per example: what differentially private training asks for."""
    rnn = build(cell, {"hidden_dropout": 0.3, "weight_dropout": 0.4, "zoneout_h": 0.2}, 2, backend="reference")
    x, ids = inputs().detach(), torch.tensor([4, 0, 9])
    parameters = {name: value.detach() for name, value in rnn.named_parameters()}

    def loss(parameters: dict[str, Tensor], value: Tensor, example: Tensor) -> Tensor:
        kwargs = {"rng": RNG, "example_ids": example.unsqueeze(0)}
        return functional_call(rnn, parameters, (value.unsqueeze(1),), kwargs)[0].square().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 1, 0))(parameters, x, ids)
    fused = build(cell, {"hidden_dropout": 0.3, "weight_dropout": 0.4, "zoneout_h": 0.2}, 2)
    fused.load_state_dict(rnn.state_dict())
    for example in range(B):
        fused.zero_grad()
        one = slice(example, example + 1)
        fused(x[:, one], rng=RNG, example_ids=ids[one])[0].square().sum().backward()
        for name, weight in fused.named_parameters():
            torch.testing.assert_close(each[name][example], weight.grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("cell", MODULES)
def test_batched_gradients(cell: str) -> None:
    """``is_grads_batched`` and vectorised Jacobians run backward under vmap: slow there, but right."""
    rnn, x = build(cell, {"hidden_dropout": 0.3, "input_dropout": 0.3}), inputs()
    out = rnn(x, rng=RNG)[0]
    grads = torch.randn(3, *out.shape, dtype=torch.float64)
    leaves = [x, *rnn.parameters()]
    together = torch.autograd.grad(out, leaves, grads, is_grads_batched=True, retain_graph=True)
    for index, grad in enumerate(grads):
        alone = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        for mine, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[index], expected)


# --------------------------------------------------------------------------------------------------------------------
# The graph and its engine
# --------------------------------------------------------------------------------------------------------------------


def gradients(rnn: nn.Module, x: Tensor, states: tuple[Tensor, ...], chosen: tuple[int, ...]) -> list[Tensor]:
    """Gradients of the chosen results; zero where there is none."""
    results = flat(rnn(x, given_state(rnn, states), rng=RNG))
    loss = sum(results[index].square().sum() for index in chosen)
    leaves = [x, *states, *rnn.parameters()]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("cell", MODULES)
def test_only_some_results_are_used(cell: str, chosen: tuple[int, ...]) -> None:
    if cell != "LSTM" and 2 in chosen:
        pytest.skip("c_n is an LSTM's")
    fused = build(cell, ALL, 2, bidirectional=True)
    reference = build(cell, ALL, 2, bidirectional=True, backend="reference")
    reference.load_state_dict(fused.state_dict())
    x, states = inputs(), states_of(fused)
    mine, expected = gradients(fused, x, states, chosen), gradients(reference, x, states, chosen)
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "wanted", ["x", "h0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0"]
)
@pytest.mark.parametrize("cell", MODULES)
def test_only_some_gradients_are_wanted(cell: str, wanted: str) -> None:
    if wanted == "weight_hr_l0" and cell != "LSTM":
        pytest.skip("a projection is an LSTM's")
    kwargs: dict[str, Any] = {"proj_size": 2} if cell == "LSTM" else {}
    rnn = build(cell, {"hidden_dropout": 0.3, "weight_dropout": 0.3}, **kwargs)
    x, states = inputs(), states_of(rnn)
    leaves = {"x": x, "h0": states[0], **dict(rnn.named_parameters())}
    every = torch.autograd.grad(flat(rnn(x, given_state(rnn, states), rng=RNG))[0].sum(), list(leaves.values()))
    expected = dict(zip(leaves, every, strict=True))[wanted]
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == wanted)
    states = tuple(state.detach() if index else state for index, state in enumerate(states))
    flat(rnn(x, given_state(rnn, states), rng=RNG))[0].sum().backward()
    torch.testing.assert_close(leaves[wanted].grad, expected)
    assert all(leaf.grad is None for name, leaf in leaves.items() if name != wanted)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recompute"])
@pytest.mark.parametrize("cell", MODULES)
def test_a_graph_can_be_kept_and_is_freed_otherwise(cell: str, recompute: bool) -> None:
    rnn, x = build(cell, ALL, 2, recompute=recompute), inputs()
    loss = rnn(x)[0].square().sum()
    leaves = [x, *rnn.parameters()]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves, retain_graph=True)
    third = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, third, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("what", ["x", "h0", "weight_ih_l0", "weight_hh_l0", "out", "rng"])
@pytest.mark.parametrize("cell", MODULES)
def test_a_saved_tensor_that_changes_is_noticed(cell: str, what: str) -> None:
    rnn, x = build(cell, {"weight_dropout": 0.4}), inputs()
    states, rng = states_of(rnn), RNG.clone()
    out = rnn(x, given_state(rnn, states), rng=rng)[0]
    loss = out.sum()  # keeps nothing of out itself
    leaves = {"x": x, "h0": states[0], "out": out, "rng": rng, **dict(rnn.named_parameters())}
    with torch.no_grad():
        leaves[what].add_(1)
    with pytest.raises(RuntimeError, match="modified (by an )?inplace"):
        loss.backward()


@pytest.mark.parametrize("cell", MODULES)
def test_an_output_that_is_not_saved_may_change(cell: str) -> None:
    """With states kept apart, backward reads nothing that a caller can hold."""
    rnn, x = build(cell, {"zoneout_h": frd.Zoneout(0.3, output="unzoned")}), inputs()
    expected = torch.autograd.grad(rnn(x, rng=RNG)[0].mul(2).sum(), x)[0]
    out = rnn(x, rng=RNG)[0]
    (found,) = torch.autograd.grad(out.mul_(2).sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("how", ["set_rate", "attribute", "site_removed"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recompute"])
@pytest.mark.parametrize("cell", MODULES)
def test_rates_are_saved_by_value(cell: str, recompute: bool, how: str) -> None:
    """A schedule may move between a forward and its backward."""
    rnn, x = build(cell, ALL, 2, recompute=recompute), inputs()
    rates = {name: getattr(rnn, name) for name in rnn.sites}

    def run(move: bool) -> list[Tensor]:
        loss = rnn(x, rng=RNG)[0].square().sum()
        for name in rates if move else ():
            if how == "set_rate":
                rnn.set_rate(name, 0.9)
            else:
                setattr(rnn, name, 0.9 if how == "attribute" else 0.0)
        return list(torch.autograd.grad(loss, [x, *rnn.parameters()]))

    expected = run(False)
    assert all(torch.equal(a, b) for a, b in zip(run(True), expected, strict=True))
    assert all(getattr(rnn, name) != rate for name, rate in rates.items())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode(cell: str, backend: str) -> None:
    """Nothing that backward returns is NaN, even where nothing was computed; a NaN in the data is found."""
    rnn, x = build(cell, ALL, 2, bidirectional=True, backend=backend), inputs()
    with torch.autograd.detect_anomaly():
        pack = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
        flat(rnn(pack, rng=RNG))[1].sum().backward()
        rnn.requires_grad_(False)
        rnn(x, rng=RNG)[0].sum().backward()
        with pytest.raises(RuntimeError, match="returned nan values"):
            (rnn(x, rng=RNG)[0] * torch.tensor(float("nan"))).sum().backward()


@pytest.mark.parametrize("cell", MODULES)
def test_threads_that_train_at_once(cell: str) -> None:
    """Each thread has its own graph over shared weights; the sum of their gradients is what one thread gives."""
    rnn = build(cell, ALL, 2, bidirectional=True)
    xs = [inputs(3 + i) for i in range(4)]
    pairs = [RNG + i for i in range(4)]
    for x, pair in zip(xs, pairs, strict=True):
        rnn(x, rng=pair)[0].square().sum().backward()
    expected = [x.grad for x in xs] + [weight.grad for weight in rnn.parameters()]
    rnn.zero_grad()
    for x in xs:
        x.grad = None
    errors: list[BaseException] = []

    def work(x: Tensor, pair: Tensor) -> None:
        try:
            rnn(x, rng=pair)[0].square().sum().backward()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=given) for given in zip(xs, pairs, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not errors
    for mine, their in zip([x.grad for x in xs] + [w.grad for w in rnn.parameters()], expected, strict=True):
        torch.testing.assert_close(mine, their)  # summed in another order


@pytest.mark.parametrize("cell", MODULES)
def test_backward_in_another_thread_than_forward(cell: str) -> None:
    rnn, x = build(cell, ALL), inputs()
    expected = torch.autograd.grad(rnn(x, rng=RNG)[0].sum(), x)[0]
    loss = rnn(x, rng=RNG)[0].sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join(60)
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("cell", MODULES)
def test_hooks(cell: str) -> None:
    rnn, x = build(cell, {"zoneout_h": 0.3}), inputs()
    (expected,) = torch.autograd.grad(rnn(x, rng=RNG)[0].sum(), x)
    seen: list[str] = []
    x.register_hook(lambda grad: seen.append("tensor") or grad * 3)
    rnn.weight_hh_l0.register_post_accumulate_grad_hook(
        lambda weight: seen.append(f"weight {tuple(weight.grad.shape)}")
    )
    rnn.register_full_backward_hook(lambda module, given, found: seen.append(f"module {tuple(found[0].shape)}"))
    out = rnn(x, rng=RNG)[0]
    out.register_hook(lambda grad: seen.append("output"))
    out.sum().backward()
    assert sorted(seen) == sorted(
        ["output", "tensor", f"weight {tuple(rnn.weight_hh_l0.shape)}", f"module {(T, B, H)}"]
    )
    torch.testing.assert_close(x.grad, 3 * expected)


@pytest.mark.parametrize("cell", MODULES)
def test_gradients_accumulate_over_uses_of_one_module(cell: str) -> None:
    rnn, x, y = build(cell, ALL), inputs(), inputs()
    alone = [torch.autograd.grad(rnn(value, rng=RNG)[0].sum(), list(rnn.parameters())) for value in (x, y)]
    (rnn(x, rng=RNG)[0].sum() + rnn(y, rng=RNG)[0].sum()).backward()
    for weight, one, two in zip(rnn.parameters(), *alone, strict=True):
        torch.testing.assert_close(weight.grad, one + two)
    rnn(x, rng=RNG)[0].sum().backward()
    for weight, one, two in zip(rnn.parameters(), *alone, strict=True):
        torch.testing.assert_close(weight.grad, 2 * one + two)


@pytest.mark.parametrize("run", ["eager", "aot_eager"])
@pytest.mark.parametrize("create_graph", [False, True], ids=["plain", "create_graph"])
@pytest.mark.parametrize("cell", MODULES)
def test_no_two_parameters_share_a_gradient(cell: str, create_graph: bool, run: str) -> None:
    """Both biases of an LSTM have one gradient; clipping or adding noise to one must not change the other."""
    torch.compiler.reset()
    if run != "eager" and create_graph:
        pytest.skip("compiled code has no graph of its gradients")
    rnn, x = build(cell, {"hidden_dropout": 0.3}, 2, bidirectional=True), inputs()
    forward = rnn if run == "eager" else torch.compile(rnn, backend=run)
    for _ in range(2):  # fresh gradients, then accumulated ones
        forward(x, rng=RNG)[0].square().sum().backward(create_graph=create_graph)
        for changed in rnn.parameters():
            before = {name: weight.grad.clone() for name, weight in rnn.named_parameters()}
            with torch.no_grad():
                changed.grad.add_(1.0)
            for name, weight in rnn.named_parameters():
                assert torch.equal(weight.grad, before[name] + (1.0 if weight is changed else 0.0)), name
            with torch.no_grad():
                changed.grad.sub_(1.0)
    for weight in rnn.parameters():
        weight.grad = None  # with create_graph, a cycle through the graph


@pytest.mark.parametrize("cell", MODULES)
def test_weights_that_are_one_tensor(cell: str) -> None:
    """Tied weights, as between directions, get the sum of both gradients."""
    apart = build(cell, {"weight_dropout": 0.4}, bidirectional=True)
    tied = build(cell, {"weight_dropout": 0.4}, bidirectional=True)
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(apart, f"{name}_reverse").copy_(getattr(apart, name))
    tied.load_state_dict(apart.state_dict())
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        setattr(tied, f"{name}_reverse", getattr(tied, name))
    tied.bias_hh_l0 = tied.bias_ih_l0  # both biases of the first direction too
    with torch.no_grad():
        apart.bias_hh_l0.copy_(apart.bias_ih_l0)
    x = inputs()
    for rnn in (apart, tied):
        rnn(x, rng=RNG)[0].square().sum().backward()
    for name in ("weight_ih_l0", "weight_hh_l0"):
        total = getattr(apart, name).grad + getattr(apart, f"{name}_reverse").grad
        torch.testing.assert_close(getattr(tied, name).grad, total)
    total = apart.bias_ih_l0.grad + apart.bias_hh_l0.grad + apart.bias_ih_l0_reverse.grad
    torch.testing.assert_close(tied.bias_ih_l0.grad, total)


def test_nothing_is_kept_where_no_gradient_is_asked_for() -> None:
    rnn, x = build("LSTM", ALL), inputs()
    with torch.no_grad():
        assert rnn(x)[0].grad_fn is None
    with torch.inference_mode():
        assert rnn(x)[0].is_inference()
    rnn.requires_grad_(False)
    out = rnn(x.detach())[0]
    assert not out.requires_grad and out.grad_fn is None
    assert rnn(x)[0].requires_grad


@pytest.mark.parametrize("cell", MODULES)
def test_saved_tensor_hooks_see_no_mask(cell: str) -> None:
    """What is offered to offloading is activations, weights, the pair and the rates: nothing grows with the sites."""

    def kept(sites: dict[str, Any]) -> int:
        sizes: list[int] = []
        rnn, x = build(cell, sites, 2), inputs()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            out = rnn(x, rng=RNG)[0]
        out.sum().backward()
        return sum(sizes)

    plain = kept({})
    sites = {
        k: v
        for k, v in ALL.items()
        if k not in ("cell_dropout", "output_dropout", "input_dropout", "inter_layer_dropout")
    }
    # For each of two layers a pair of each group, which are one in memory, and ten thresholds.
    assert kept(sites) == plain + 2 * (len(GROUPS) * 16 + 10 * 8)


@pytest.mark.parametrize("cell", MODULES)
def test_saved_tensors_can_be_offloaded(cell: str) -> None:
    rnn, x = build(cell, ALL, 2), inputs()
    (expected,) = torch.autograd.grad(rnn(x, rng=RNG)[0].square().sum(), x)
    with torch.autograd.graph.save_on_cpu():
        loss = rnn(x, rng=RNG)[0].square().sum()
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)
