"""hold_masks under torch.compile: around compiled code and inside it, without a compilation for each step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import fused_rnn_dropout as frd
from fused_rnn_dropout.cells import MODULES

pytestmark = [
    pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]

T, B, I, H = 14, 3, 5, 6
SITES: dict[str, Any] = {
    "input_dropout": 0.2,
    "dropout": 0.3,
    "hidden_dropout": 0.2,
    "weight_dropout": 0.4,
    "update_dropout": 0.3,
    "zoneout_h": 0.2,
}
RNG = torch.tensor([5, 6])


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    torch.set_num_threads(1)
    caches = torch._inductor.config.patch(fx_graph_cache=False)
    with caches, torch._functorch.config.patch(enable_autograd_cache=False):
        yield


def build(cell: str) -> Any:
    return getattr(frd, cell)(I, H, 2, dtype=torch.float64, **SITES)


def make_input() -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)


def make_state(cell: str) -> Any:
    zeros = torch.zeros(2, B, H, dtype=torch.float64)
    return (zeros, zeros) if cell == "LSTM" else zeros


def in_parts(rnn: Callable[..., Any], x: Tensor, lengths: list[int], state: Any) -> Tensor:
    outs = []
    for part in x.split(lengths):
        out, state = rnn(part, state)
        outs.append(out)
    return torch.cat(outs)


def assert_close(mine: Tensor, expected: Tensor, x: Tensor) -> None:
    """Results and gradients."""
    torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-13)
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (mine, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("given", [True, False], ids=["rng", "drawn"])
@pytest.mark.parametrize("cell", MODULES)
def test_steps_compile_nothing_again(cell: str, given: bool) -> None:
    """Twice at most, for a state without a history and one with it; a second sequence finds all compiled."""
    rnn, x = build(cell), make_input()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    for _ in range(2):
        with frd.hold_masks(compiled, rng=RNG if given else None) as held:
            mine = in_parts(compiled, x, [1] * T, make_state(cell))
            assert dict(held.step_offset) == {"_orig_mod": T}
        assert_close(mine, rnn(x, rng=held.rng["_orig_mod"])[0], x)
        assert counter.frame_count == 2


@pytest.mark.parametrize("cell", MODULES)
def test_chunks_of_any_length(cell: str) -> None:
    rnn, x = build(cell), make_input()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    with frd.hold_masks(rnn, rng=RNG):
        mine = in_parts(compiled, x, [3, 4, 2, 5], make_state(cell))
    assert_close(mine, rnn(x, rng=RNG)[0], x)
    assert counter.frame_count <= 3


class Model(nn.Module):
    def __init__(self, cell: str) -> None:
        super().__init__()
        self.first, self.second = build(cell), getattr(frd, cell)(H, H, dtype=torch.float64, zoneout_h=0.3)

    def forward(self, x: Tensor, first: Any, second: Any) -> tuple[Tensor, Any, Any]:
        x, first = self.first(x, first)
        x, second = self.second(x, second)
        return x, first, second


@pytest.mark.parametrize("cell", MODULES)
def test_layers_of_a_compiled_model_count_apart(cell: str) -> None:
    model, x = Model(cell), make_input()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        start = (make_state(cell), model.second(torch.zeros(1, B, H, dtype=torch.float64))[1])
        with frd.hold_masks(model, rng={"first": RNG, "second": RNG + 1}) as held:
            model.second(torch.zeros(2, B, H, dtype=torch.float64), start[1])  # the second is two steps ahead
            outs, states = [], start
            for part in x.split(1):
                out, *states = compiled(part, *states)
                outs.append(out)
            assert dict(held.step_offset) == {"first": T, "second": T + 2}
        between = model.first(x, start[0], rng=RNG)[0]
        expected = model.second(between, start[1], rng=RNG + 1, step_offset=2)[0]
    torch.testing.assert_close(torch.cat(outs), expected, rtol=1e-11, atol=1e-13)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("given", [True, False], ids=["rng", "drawn"])
@pytest.mark.parametrize("cell", MODULES)
def test_a_hold_inside_compiled_code(cell: str, given: bool) -> None:
    rnn, x = build(cell), make_input()

    def forward(x: Tensor, state: Any) -> Tensor:
        with frd.hold_masks(rnn, rng=RNG if given else None):
            return in_parts(rnn, x, [1, 1, 2, 10], state)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(forward, fullgraph=True, backend=counter)
    for seed in (1, 2):
        torch.manual_seed(seed)
        mine = compiled(x, make_state(cell))
        torch.manual_seed(seed)
        assert_close(mine, rnn(x, rng=RNG if given else frd.draw_rng("cpu"))[0], x)
    assert counter.frame_count == 1
    assert not torch.equal(rnn(x)[0], rnn(x)[0])  # left


def test_inductor() -> None:
    rnn, x = build("LSTM"), make_input()
    compiled = torch.compile(rnn, fullgraph=True)
    with frd.hold_masks(rnn) as held:
        mine = in_parts(compiled, x, [5, 5, 4], make_state("LSTM"))
    assert_close(mine, rnn(x, rng=held.rng[""])[0], x)


def test_held_or_not_is_another_graph() -> None:
    rnn, x = build("GRU"), make_input()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    for _ in range(2):
        assert not torch.equal(compiled(x)[0], compiled(x)[0])
        with frd.hold_masks(rnn, rng=RNG) as held:
            assert torch.equal(compiled(x)[0], rnn(x, rng=RNG)[0])
            assert torch.equal(compiled(x, rng=RNG + 1)[0], rnn(x, rng=RNG + 1)[0])
            assert torch.equal(compiled(x, step_offset=3)[0], rnn(x, rng=RNG, step_offset=3)[0])
            assert held.step_offset[""] == T
    assert counter.frame_count <= 4


def test_the_first_hold_of_a_thread_is_seen() -> None:
    """The code was compiled where there had never been one."""
    rnn, x = build("GRU"), make_input()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")

    def work() -> tuple[Tensor, Tensor]:
        compiled(x)
        with frd.hold_masks(rnn, rng=RNG):
            return compiled(x)[0], rnn(x, rng=RNG)[0]

    with ThreadPoolExecutor(1) as fresh:
        got, want = fresh.submit(work).result()
    assert torch.equal(got, want)


def test_threads_do_not_mix() -> None:
    rnn, x = build("LSTM"), make_input()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    with frd.hold_masks(rnn):
        in_parts(compiled, x, [1] * T, make_state("LSTM"))  # Dynamo compiles in one thread at a time
    barrier, found = threading.Barrier(2), {}

    def run(number: int) -> None:
        state, outs = make_state("LSTM"), []
        with frd.hold_masks(rnn, rng=RNG + number):
            for part in x.split(1):
                barrier.wait(timeout=100)
                out, state = compiled(part, state)
                outs.append(out)
        found[number] = torch.cat(outs)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert_close(found[number], rnn(x, rng=RNG + number)[0], x)


def test_a_checkpoint_inside_compiled_code_is_never_silent() -> None:
    """Dynamo refuses it in a whole graph; with a graph break it is an eager checkpoint, whose recomputation raises."""
    rnn, x = build("LSTM"), make_input()

    def forward(x: Tensor) -> Tensor:
        return checkpoint(lambda value: rnn(value)[0] * 2, x, use_reentrant=False)

    with frd.hold_masks(rnn):
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(forward, fullgraph=True, backend="aot_eager")(x)
        out = torch.compile(forward, backend="aot_eager")(x)
    with pytest.raises(RuntimeError, match="Pass both rng= and step_offset="):
        out.sum().backward()
