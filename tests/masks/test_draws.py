"""Every call in a compiled or exported program draws masks of its own, and its backward uses those of its forward."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._functorch.compile_utils import fx_graph_cse
from torch.export import export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fused_rnn_dropout as frd
from fused_rnn_dropout.cells import MODULES
from fused_rnn_dropout.ops import draw

T, B, H = 4, 3, 6
SITES: dict[str, Any] = {"input_dropout": 0.3, "hidden_dropout": 0.2, "weight_dropout": 0.3, "zoneout_h": 0.2}
Calls = Callable[[Any], list[Any]]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Nothing compiled before, not in another run either."""
    torch.compiler.reset()
    torch.set_num_threads(1)
    caches = torch._inductor.config.patch(fx_graph_cache=False)
    with caches, torch._functorch.config.patch(enable_autograd_cache=False):
        yield


def build(cell: str, **kwargs: Any) -> nn.Module:
    return getattr(frd, cell)(H, H, **{**SITES, **kwargs})


def make_input(packed: bool = False) -> Any:
    x = torch.randn(T, B, H)
    return pack_padded_sequence(x, torch.tensor([4, 3, 1])) if packed else x


def outputs(calls: Calls, given: Any) -> list[Tensor]:
    return [out.data if isinstance(out, PackedSequence) else out for out in calls(given)]


def run(calls: Calls, model: nn.Module, given: Any, seed: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of each call and the gradients of the weights, with another state of the generator for the backward."""
    model.zero_grad()
    torch.manual_seed(seed)
    outs = outputs(calls, given)
    torch.manual_seed(seed + 1000)  # a draw in the backward would be another one
    sum(out.square().sum() for out in outs).backward()  # type: ignore[union-attr]
    gradients = [weight.grad for weight in model.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [out.detach() for out in outs], gradients  # type: ignore[return-value]


def check(compiled: Calls, eager: Calls, model: nn.Module, given: Any) -> None:
    """Each call has its masks, as the eager run with the same seed, in the forward and in the backward."""
    mine, gradients = run(compiled, model, given)
    for a, b in itertools.combinations(mine, 2):
        assert not torch.equal(a, b), "two calls have the same masks"
    expected, right = run(eager, model, given)
    torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(gradients, right)


def twice(rnn: nn.Module) -> Calls:
    return lambda x: [rnn(x)[0], rnn(x)[0]]


def in_a_loop(rnn: nn.Module) -> Calls:
    def calls(x: Tensor) -> list[Tensor]:
        found = []
        for _ in range(3):
            x = rnn(x)[0]
            found.append(x)
        return found

    return calls


def with_pairs_drawn_inside(rnn: nn.Module) -> Calls:
    def calls(x: Tensor) -> list[Tensor]:
        first, second = frd.draw_rng(x.device), frd.draw_rng(x.device)
        return [rnn(x, rng=first)[0], rnn(x, rng=second)[0]]

    return calls


def in_checkpoints(use_reentrant: bool) -> Callable[[nn.Module], Calls]:
    def make(rnn: nn.Module) -> Calls:
        return lambda x: [checkpoint(lambda x: rnn(x)[0], x, use_reentrant=use_reentrant) for _ in range(2)]

    return make


def in_one_checkpoint(rnn: nn.Module) -> Calls:
    return lambda x: checkpoint(lambda x: [rnn(x)[0], rnn(x)[0]], x, use_reentrant=False)


PROGRAMS = {
    "twice": twice,
    "loop": in_a_loop,
    "pairs drawn inside": with_pairs_drawn_inside,
    "checkpoints": in_checkpoints(use_reentrant=False),
    "one checkpoint": in_one_checkpoint,
}


@pytest.mark.parametrize(("backend", "program"), [*(("aot_eager", name) for name in PROGRAMS), ("inductor", "twice")])
@pytest.mark.parametrize("cell", MODULES)
def test_calls_of_one_module_in_one_graph(backend: str, cell: str, program: str) -> None:
    rnn = build(cell)
    calls = PROGRAMS[program](rnn)
    check(torch.compile(calls, backend=backend, fullgraph=True), calls, rnn, make_input())


@pytest.mark.parametrize("cell", MODULES)
def test_reentrant_checkpoints(cell: str) -> None:
    rnn = build(cell)
    calls = in_checkpoints(use_reentrant=True)(rnn)
    check(torch.compile(calls, backend="aot_eager"), calls, rnn, make_input().requires_grad_())


@pytest.mark.parametrize(("backend", "cell"), [("aot_eager", "LSTM"), ("aot_eager", "GRU"), ("inductor", "LSTM")])
def test_the_reference_too(backend: str, cell: str) -> None:
    sites = dict.fromkeys(SITES, 0.0) | {"weight_dropout": 0.3}  # it is compiled step by step, which takes a while
    rnn, x = build(cell, backend="reference", **sites), make_input()[:2]
    check(torch.compile(twice(rnn), backend=backend, fullgraph=True), twice(rnn), rnn, x)


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("LSTM", {"dynamic": True, "backend": "aot_eager"}),
        ("GRU", {"dynamic": True}),
        ("LSTM", {"mode": "max-autotune-no-cudagraphs"}),
        ("GRU", {"mode": "reduce-overhead"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_modes(cell: str, options: dict[str, Any]) -> None:
    rnn = build(cell)
    check(torch.compile(twice(rnn), fullgraph=True, **options), twice(rnn), rnn, make_input())


@pytest.mark.parametrize("cell", MODULES)
def test_packed(cell: str) -> None:
    rnn = build(cell)
    check(torch.compile(twice(rnn), backend="aot_eager"), twice(rnn), rnn, make_input(packed=True))


@pytest.mark.parametrize("cell", MODULES)
def test_masks_on_in_eval(cell: str) -> None:
    rnn = build(cell, mc=True).eval()
    check(torch.compile(twice(rnn), backend="aot_eager", fullgraph=True), twice(rnn), rnn, make_input())
    with torch.no_grad():
        first, second = outputs(torch.compile(twice(rnn), backend="aot_eager", fullgraph=True), make_input())
    assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:.*freezing")
def test_frozen_weights() -> None:
    rnn = build("LSTM", mc=True).eval()
    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        first, second = outputs(torch.compile(twice(rnn), fullgraph=True), make_input())
    assert not torch.equal(first, second)


@pytest.mark.parametrize("cell", MODULES)
def test_several_modules(cell: str) -> None:
    """Equal weights, so that equal masks would give equal outputs."""
    model = nn.ModuleList([build(cell), build(cell)])
    model[1].load_state_dict(model[0].state_dict())

    def calls(x: Tensor) -> list[Tensor]:
        return [rnn(x)[0] for rnn in model]

    check(torch.compile(calls, backend="aot_eager", fullgraph=True), calls, model, make_input())


@pytest.mark.parametrize("cell", MODULES)
def test_compiled_autograd(cell: str) -> None:
    rnn, x = build(cell), make_input()

    def step(x: Tensor) -> list[Tensor]:
        outs = twice(rnn)(x)
        sum(out.square().sum() for out in outs).backward()  # type: ignore[union-attr]
        return outs

    def found(step: Calls) -> tuple[list[Tensor], list[Tensor]]:
        rnn.zero_grad()
        torch.manual_seed(3)
        return step(x), [weight.grad for weight in rnn.parameters()]  # type: ignore[misc]

    counters["compiled_autograd"].clear()
    with torch._dynamo.config.patch(compiled_autograd=True):
        mine = found(torch.compile(step, backend="aot_eager"))
    assert counters["compiled_autograd"]["captures"] == 1
    torch.testing.assert_close(mine, found(step))
    assert not torch.equal(*mine[0])


@pytest.mark.parametrize("budget", [0.05, 0.5])
@pytest.mark.parametrize("cell", MODULES)
def test_a_partitioner_with_little_memory(cell: str, budget: float) -> None:
    rnn = build(cell)
    with torch._functorch.config.patch(activation_memory_budget=budget):
        compiled = torch.compile(in_a_loop(rnn), backend="aot_eager_decomp_partition", fullgraph=True)
        check(compiled, in_a_loop(rnn), rnn, make_input())


class Siamese(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.rnn(x)[0], self.rnn(x)[0]


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
@pytest.mark.parametrize("cell", MODULES)
def test_an_exported_program(cell: str, strict: bool) -> None:
    """Two calls inside, the program called twice: four draws, loaded from a file, decomposed or compiled too."""
    model, x = Siamese(build(cell)), make_input()
    program = export(model, (x,), strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    eager: Calls = lambda x: [*model(x), *model(x)]  # noqa: E731
    for exported in (program.module(), loaded.module(), loaded.run_decompositions().module()):
        both: Calls = lambda x, exported=exported: [*exported(x), *exported(x)]  # type: ignore[misc]  # noqa: E731
        for calls in (both, torch.compile(both, backend="aot_eager")):
            torch.manual_seed(5)
            mine = outputs(calls, x)
            torch.manual_seed(5)
            torch.testing.assert_close(mine, outputs(eager, x))
            assert all(not torch.equal(a, b) for a, b in itertools.combinations(mine, 2))


def test_the_pass_that_merges_leaves_draws_alone() -> None:
    """What compilers run; equal operands, as of ``sum`` here, are what it merges."""

    def calls(x: Tensor) -> tuple[Tensor, ...]:
        return draw("cpu") + 1, draw("cpu") + 1, x.sum() + 1, x.sum() + 2

    graph = fx_graph_cse(make_fx(calls, tracing_mode="fake")(torch.ones(3)).graph)
    targets = [str(node.target) for node in graph.nodes]
    assert targets.count("fused_rnn_dropout.draw.default") == 2 and targets.count("aten.sum.default") == 1


def test_a_draw_makes_one_small_tensor_and_reads_the_generator_once() -> None:
    before = torch.manual_seed(1).get_state()
    pair = draw("cpu")
    torch.manual_seed(1)
    assert torch.equal(pair, torch.empty(2, dtype=torch.int64).random_(-(2**63), None))
    assert not torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("cell", MODULES)
def test_a_trace(cell: str) -> None:
    """TorchScript runs operators that it does not know as random once, and makes constants of what they gave."""
    model, x = Siamese(build(cell)), make_input()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, (x,), check_trace=False), buffer)
    buffer.seek(0)
    traced = torch.jit.load(buffer).eval()  # which changes nothing in what was traced in training
    both: Calls = lambda x: [*traced(x), *traced(x), *traced(x)]  # noqa: E731
    eager: Calls = lambda x: [*model(x), *model(x), *model(x)]  # noqa: E731
    torch.manual_seed(5)
    mine = outputs(both, x)
    torch.manual_seed(5)
    torch.testing.assert_close(mine, outputs(eager, x))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(mine, 2))
