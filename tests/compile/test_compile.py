"""torch.compile, torch.export and checkpointing: the same masks, the same gradients, and no needless compilation."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
import torch.nn.functional as F
from grids import has
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.export import Dim, export
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import fused_rnn_dropout as frd
from fused_rnn_dropout.cells import MODULES

pytestmark = [
    pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]

T, B, I, H = 4, 3, 5, 6
LENGTHS = {"sorted": torch.tensor([4, 3, 1]), "unsorted": torch.tensor([2, 4, 3])}
SITES: dict[str, Any] = {
    "input_dropout": 0.2,
    "inter_layer_dropout": frd.LockedDropout(0.3, per="step"),
    "output_dropout": 0.25,
    "hidden_dropout": 0.2,
    "weight_dropout": frd.WeightDropout(0.4, inputs=True),
    "update_dropout": 0.3,
    "cell_dropout": 0.15,
    "zoneout_c": 0.25,
    "zoneout_h": 0.2,
}
RNG = torch.tensor([5, 6])


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Nothing compiled before, not in another run either: caches on disk do not notice that our gradients changed."""
    torch.compiler.reset()
    torch.set_num_threads(1)  # sizes are tiny: on a busy machine a second thread is mostly waited for
    caches = torch._inductor.config.patch(fx_graph_cache=False)
    with caches, torch._functorch.config.patch(enable_autograd_cache=False):
        yield


def build(cell: str, layers: int = 2, **kwargs: Any) -> nn.Module:
    sites = {name: value for name, value in SITES.items() if has(cell, name)}
    return getattr(frd, cell)(I, H, layers, **{**sites, **kwargs})


def make_input(form: str = "padded") -> tuple[Tensor, Any]:
    """A leaf, and what the module is given: that leaf, or a PackedSequence whose data is it."""
    if form in LENGTHS:
        like = pack_padded_sequence(torch.randn(T, B, I), LENGTHS[form], enforce_sorted=form == "sorted")
        data = like.data.requires_grad_()
        return data, like
    x = torch.randn({"unbatched": (T, I), "batch_first": (B, T, I)}.get(form, (T, B, I)), requires_grad=True)
    return x, x


def make_state(rnn: nn.Module, form: str) -> Any:
    count = rnn.num_layers * (2 if rnn.bidirectional else 1)
    rows = () if form == "unbatched" else (B,)
    h_0, c_0 = (torch.randn(count, *rows, width, requires_grad=True) for width in (rnn.proj_size or H, H))
    return (h_0, c_0) if rnn.mode == "LSTM" else h_0


def flat(result: Any) -> list[Tensor]:
    out, last = result
    return [out.data if isinstance(out, PackedSequence) else out, *(last if isinstance(last, tuple) else (last,))]


def leaves_of(rnn: nn.Module, x: Tensor, hx: Any = None) -> list[Tensor]:
    return [x, *(hx if isinstance(hx, tuple) else () if hx is None else (hx,)), *rnn.parameters()]


def results_and_gradients(results: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    loss = sum(result.square().sum() for result in results)
    return [r.detach() for r in results] + list(torch.autograd.grad(loss, leaves))


def assert_equal(mine: list[Tensor], expected: list[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(mine, expected, strict=True)):
        assert torch.equal(a, b), f"tensor {index} differs by {(a - b).abs().max()}"


# --------------------------------------------------------------------------------------------------------------------
# Compiled and eager are the same
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["padded", "batch_first", "unbatched", "sorted", "unsorted"])
@pytest.mark.parametrize("with_state", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize(("cell", "proj"), [("LSTM", 3), *((cell, 0) for cell in MODULES)])
def test_a_whole_graph_with_every_site(cell: str, proj: int, with_state: bool, form: str) -> None:
    kwargs: dict[str, Any] = {"proj_size": proj} if proj else {}
    rnn = build(cell, bidirectional=True, batch_first=form == "batch_first", recompute=with_state, **kwargs)
    x, given = make_input(form)
    hx = make_state(rnn, form) if with_state else None
    leaves = leaves_of(rnn, x, hx)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    assert_equal(
        results_and_gradients(flat(compiled(given, hx, rng=RNG)), leaves),
        results_and_gradients(flat(rnn(given, hx, rng=RNG)), leaves),
    )


@pytest.mark.parametrize(("cell", "form"), [("LSTM", "padded"), ("GRU", "unsorted"), ("RNN", "padded")])
def test_inductor(cell: str, form: str) -> None:
    rnn = build(cell)
    x, given = make_input(form)
    compiled = torch.compile(rnn, fullgraph=True)
    leaves = leaves_of(rnn, x)
    mine = results_and_gradients(flat(compiled(given, rng=RNG)), leaves)
    for a, b in zip(mine, results_and_gradients(flat(rnn(given, rng=RNG)), leaves), strict=True):
        torch.testing.assert_close(a, b)  # inductor adds up the gradients in its own order


@pytest.mark.parametrize("cell", MODULES)
def test_training_eval_and_mc_are_other_graphs(cell: str) -> None:
    rnn, (x, _) = build(cell), make_input()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    leaves, seen = leaves_of(rnn, x), []
    for training, mc in ((True, False), (False, False), (False, True), (True, False), (False, False)):
        rnn.train(training).mc = mc
        found = results_and_gradients(flat(compiled(x, rng=RNG)), leaves)
        assert_equal(found, results_and_gradients(flat(rnn(x, rng=RNG)), leaves))
        seen.append(found[0])
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[4]) and not torch.equal(seen[0], seen[1])
    assert counter.frame_count == 3
    with torch.no_grad():
        assert torch.equal(flat(compiled(x, rng=RNG))[0], seen[1])


@pytest.mark.parametrize("cell", MODULES)
def test_other_arguments_of_the_forward(cell: str) -> None:
    rnn, (x, given) = build(cell), make_input("unsorted")
    rng = {"weight": RNG + 1, "state": RNG + 2, None: RNG}
    ids = torch.tensor([7, 0, 3])
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    mine = compiled(given, rng=rng, example_ids=ids, step_offset=9)
    expected = rnn(given, rng=rng, example_ids=ids, step_offset=9)
    assert_equal(results_and_gradients(flat(mine), [x]), results_and_gradients(flat(expected), [x]))
    assert not torch.equal(flat(mine)[0], flat(rnn(given, rng=RNG, example_ids=ids, step_offset=9))[0])


@pytest.mark.parametrize("cell", MODULES)
def test_autocast_inside_the_graph(cell: str) -> None:
    rnn, (x, _) = build(cell), make_input()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        mine, expected = flat(compiled(x, rng=RNG)), flat(rnn(x, rng=RNG))
    assert [result.dtype for result in mine] == [result.dtype for result in expected]
    leaves = leaves_of(rnn, x)
    # eager backward and compiled backward both run outside autocast
    assert_equal(results_and_gradients(mine, leaves), results_and_gradients(expected, leaves))


@pytest.mark.parametrize("cell", MODULES)
def test_weights_given_from_outside(cell: str) -> None:
    rnn, (x, _) = build(cell), make_input()
    weights = {name: (weight + 0.1).detach().requires_grad_() for name, weight in rnn.named_parameters()}

    def forward(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
        return flat(functional_call(rnn, weights, (x,), {"rng": RNG}))

    leaves = [x, *weights.values()]
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    mine, expected = compiled(weights, x), forward(weights, x)
    assert_equal(results_and_gradients(mine, leaves), results_and_gradients(expected, leaves))
    assert not torch.equal(mine[0], flat(rnn(x, rng=RNG))[0])


@pytest.mark.parametrize("cell", MODULES)
def test_errors_keep_their_words(cell: str) -> None:
    rnn = build(cell)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"input.size\(-1\) must be equal to input_size. Expected 5, got 6"):
        compiled(torch.randn(T, B, I + 1), rng=RNG)
    with pytest.raises(Exception, match="example_ids should be an int64 tensor"):
        compiled(torch.randn(T, B, I), rng=RNG, example_ids=torch.arange(B + 1))
    with pytest.raises(RuntimeError, match="example_ids must be in"):  # values are seen when the graph runs
        compiled(torch.randn(T, B, I), rng=RNG, example_ids=torch.tensor([0, 1, -1]))


# --------------------------------------------------------------------------------------------------------------------
# Inside a model
# --------------------------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """Words in, a class for each out, with dropout of torch's own beside ours."""

    def __init__(self, cell: str, p: float = 0.5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, I)
        self.rnn = build(cell)
        self.decoder = nn.Linear(H, 3)
        self.p = p

    def forward(self, words: Tensor, rng: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out = self.rnn(self.embedding(words), rng=rng)[0]
        return self.decoder(F.dropout(out, self.p, self.training)), out


def run_model(forward: Callable[..., Any], model: nn.Module, *args: Any) -> tuple[Tensor, list[Tensor]]:
    """What the layer gave, and logits and gradients of the whole."""
    logits, out = forward(*args)
    return out.detach(), [
        logits.detach(), *torch.autograd.grad(logits.square().sum() + out.sum(), list(model.parameters()))
    ]  # fmt: skip


@pytest.mark.parametrize(("cell", "backend"), [("LSTM", "inductor"), ("LSTM", "aot_eager"), ("GRU", "aot_eager")])
def test_a_model_with_dropout_beside(cell: str, backend: str) -> None:
    """Given ``rng`` our masks are the same, whatever generator torch's own dropout reads."""
    model, words = Tagger(cell), torch.randint(11, (T, B))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.manual_seed(1)
    out, rest = run_model(compiled, model, words, RNG)
    torch.manual_seed(1)
    expected_out, expected_rest = run_model(model, model, words, RNG)
    torch.testing.assert_close(out, expected_out)
    assert torch.equal(out == 0, expected_out == 0) and (out == 0).any()
    if backend == "inductor":  # its own random numbers
        assert not torch.allclose(rest[0], expected_rest[0])
    else:
        assert_equal(rest, expected_rest)
    model.eval()
    out, rest = run_model(compiled, model, words, RNG)
    for a, b in zip([out, *rest], [(e := run_model(model, model, words, RNG))[0], *e[1]], strict=True):
        torch.testing.assert_close(a, b)


def test_the_same_seed_beside_dropout_needs_fallback_random() -> None:
    """With the option, a seed gives the eager run: our pair and torch's masks come from one generator, in order."""
    model, words = Tagger("LSTM"), torch.randint(11, (T, B))
    with torch._inductor.config.patch(fallback_random=True):
        compiled = torch.compile(model, fullgraph=True)
        torch.manual_seed(2)
        out, rest = run_model(compiled, model, words)
        torch.manual_seed(2)
        expected_out, expected_rest = run_model(model, model, words)
    for a, b in zip([out, *rest], [expected_out, *expected_rest], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("cell", "backend"), [("LSTM", "inductor"), ("LSTM", "aot_eager"), ("GRU", "aot_eager")])
def test_the_same_seed_alone_draws_the_same(cell: str, backend: str) -> None:
    rnn, (x, _) = build(cell), make_input()
    compiled = torch.compile(rnn, fullgraph=True, backend=backend)
    compiled(x)
    after: list[Tensor] = []
    outs: list[list[Tensor]] = []
    for run in (compiled, rnn):
        torch.manual_seed(4)
        outs.append([flat(run(x))[0] for _ in range(3)])
        after.append(torch.get_rng_state())
    for mine, expected in zip(*outs, strict=True):
        torch.testing.assert_close(mine, expected)
        assert torch.equal(mine == 0, expected == 0)
    assert not torch.equal(outs[0][0], outs[0][1]) and not torch.equal(outs[0][1], outs[0][2])
    assert torch.equal(*after)  # the generator has moved on by the same amount


@pytest.mark.parametrize("cell", MODULES)
def test_nothing_is_drawn_where_no_mask_is(cell: str) -> None:
    rnn, (x, _) = build(cell), make_input()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    rnn.eval()
    state = torch.get_rng_state()
    flat(compiled(x))[0].sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("budget", "given"), [(0.0, True), (0.05, True), (0.05, False), (0.5, False), (1.0, False)])
def test_a_partitioner_that_recomputes(budget: float, given: bool) -> None:
    """With little budget for activations, backward runs forwards again, but not ``draw``.

    With none at all it runs every random operator again, torch's own dropout included; a given pair is safe even there.
    """
    rnn, (x, _) = build("LSTM"), make_input()
    rng = RNG if given else None
    leaves = leaves_of(rnn, x)
    with torch._functorch.config.patch(activation_memory_budget=budget):
        compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager_decomp_partition")
        torch.manual_seed(7)
        results = flat(compiled(x, rng=rng))
        torch.manual_seed(99)  # what a second draw would read
        mine = results_and_gradients(results, leaves)
    torch.manual_seed(7)
    assert_equal(mine, results_and_gradients(flat(rnn(x, rng=rng)), leaves))


# --------------------------------------------------------------------------------------------------------------------
# How often it is compiled
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", MODULES)
def test_no_rate_compiles_anything_again(cell: str) -> None:
    rnn, (x, _) = build(cell), make_input()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    leaves = leaves_of(rnn, x)
    before = results_and_gradients(flat(compiled(x, rng=RNG)), leaves)
    for name in rnn.sites:
        for change in (
            lambda name=name: rnn.set_rate(name, 0.0),  # stays configured
            lambda name=name: rnn.set_rate(name, 1.0),
            lambda name=name: setattr(rnn, name, 0.55),
        ):
            change()
            found = results_and_gradients(flat(compiled(x, rng=RNG)), leaves)
            assert_equal(found, results_and_gradients(flat(rnn(x, rng=RNG)), leaves))
            assert not torch.equal(found[0], before[0]), name
            before = found
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["aot_eager", "aot_eager_decomp_partition", "inductor"])
@pytest.mark.parametrize("cell", MODULES)
def test_a_rate_that_moves_between_forward_and_backward(cell: str, backend: str) -> None:
    """Backward reads the rates of its forward, wherever the partitioner cuts the graph."""
    rnn, (x, _) = build(cell), make_input()
    compiled = torch.compile(rnn, fullgraph=True, backend=backend)
    leaves = leaves_of(rnn, x)
    expected = results_and_gradients(flat(rnn(x, rng=RNG)), leaves)
    results = flat(compiled(x, rng=RNG))
    for name in rnn.sites:
        rnn.set_rate(name, 0.9)
    for a, b in zip(results_and_gradients(results, leaves), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cell", MODULES)
def test_offsets_and_lengths_become_dynamic(cell: str) -> None:
    """One compilation more for the first change of each, none for the second: segments of any length, any number."""
    rnn = build(cell)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    x = torch.randn(T, B, I)

    def same(x: Tensor, offset: int) -> None:
        mine = flat(compiled(x, rng=RNG, step_offset=offset))
        assert_equal(mine, flat(rnn(x, rng=RNG, step_offset=offset)))

    for offset in (0, 3, 5, 9, 2**31, 2**32 - 100):
        same(x, offset)
    assert counter.frame_count <= 2
    offsets = counter.frame_count
    for steps in (4, 6, 9, 31):
        same(torch.randn(steps, B, I), 7)
    assert counter.frame_count <= offsets + 1
    lengths = counter.frame_count
    for batch in (2, 5, 8):
        same(torch.randn(6, batch, I), 7)
    assert counter.frame_count <= lengths + 1


def test_lengths_of_packed_inputs_become_dynamic() -> None:
    rnn = build("LSTM")
    counter = CompileCounter()
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    for lengths in ([4, 3, 1], [6, 6, 2], [5, 4, 4], [9, 2, 1], [7, 7, 7]):
        given = pack_padded_sequence(torch.randn(max(lengths), B, I), torch.tensor(lengths))
        assert_equal(flat(compiled(given, rng=RNG)), flat(rnn(given, rng=RNG)))
    assert counter.frame_count <= 3


def random_batch(enforce_sorted: bool, rows: int, longest: int) -> PackedSequence:
    lengths = torch.randint(1, longest + 1, (rows,))
    lengths[0] = longest
    if enforce_sorted:
        lengths = lengths.sort(descending=True).values
    return pack_padded_sequence(torch.randn(longest, rows, I), lengths, enforce_sorted=enforce_sorted)


def random_batches(count: int) -> Iterator[PackedSequence]:
    """Every kind of size first, sorted and not, then random ones; data is a leaf that needs a gradient."""
    kinds = [(rows, longest, fixed) for rows in (1, 3) for longest in (1, 4) for fixed in (False, True)]
    for index in range(count):
        rows, longest, fixed = kinds[-index - 1] if index < len(kinds) else torch.randint(1, 10, (3,)).tolist()
        batch = random_batch(bool(fixed % 2), rows, longest)
        batch.data.requires_grad_()
        yield batch


@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("cell", MODULES)
def test_packed_batches_of_any_kind(cell: str, with_state: bool) -> None:
    """With sizes marked as unknown there are two graphs, for batches that come sorted and that do not."""
    rnn = build(cell)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    for given in random_batches(30):
        rows = int(given.batch_sizes[0])
        state = [torch.randn(2, rows, H) for _ in range(2 if cell == "LSTM" else 1)]
        for part in given:
            if part is not None:
                torch._dynamo.decorators.mark_unbacked(part, 0)
        for part in state:
            torch._dynamo.decorators.mark_unbacked(part, 1)
        hx = None if not with_state else tuple(state) if cell == "LSTM" else state[0]
        mine, expected = flat(compiled(given, hx, rng=RNG)), flat(rnn(given, hx, rng=RNG))
        assert_equal(results_and_gradients(mine, [given.data]), results_and_gradients(expected, [given.data]))
    assert counter.frame_count == 2


def test_packed_batches_whose_sizes_are_not_marked() -> None:
    """Dynamo takes each size of 1, and sizes that happen to be equal, for another graph: a dozen at most."""
    rnn = build("LSTM")
    counter = CompileCounter()
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    with torch._dynamo.config.patch(recompile_limit=16):
        for given in random_batches(60):
            assert_equal(flat(compiled(given, rng=RNG)), flat(rnn(given, rng=RNG)))
    assert counter.frame_count <= 12


def test_a_state_of_another_batch_than_the_packed_input() -> None:
    rnn = build("GRU")
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    for enforce_sorted in (True, False):
        given = random_batch(enforce_sorted, 3, 4)
        with pytest.raises(Exception, match="Runtime assertion failed|Expected hidden size"):
            compiled(given, torch.zeros(2, 4, H), rng=RNG)


@pytest.mark.parametrize("cell", MODULES)
def test_packed_batches_in_any_order_of_rows(cell: str) -> None:
    """Without dynamic=True, batches that all come with enforce_sorted=False stay within the limit too."""
    rnn = build(cell)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, backend=counter)
    # The worst order: rows, then lengths, then their sum change alone, so that each becomes dynamic on its own.
    sizes = [
        (2, 3),
        (3, 3),
        (2, 4),
        *[(rows, longest) for rows in (1, 2, 5, 9) for longest in (1, 2, 5, 9, 31)],
    ]
    for rows, longest in sizes:
        given = random_batch(False, rows, longest)
        assert_equal(flat(compiled(given, rng=RNG)), flat(rnn(given, rng=RNG)))
    assert counter.frame_count <= 7


def test_dynamic_from_the_start() -> None:
    rnn = build("GRU")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, dynamic=True, backend=counter)
    for steps, batch in ((4, 3), (7, 2), (2, 9)):
        x = torch.randn(steps, batch, I, requires_grad=True)
        leaves = leaves_of(rnn, x)
        mine = results_and_gradients(flat(compiled(x, rng=RNG)), leaves)
        assert_equal(mine, results_and_gradients(flat(rnn(x, rng=RNG)), leaves))
    assert counter.frame_count == 1


# --------------------------------------------------------------------------------------------------------------------
# Export
# --------------------------------------------------------------------------------------------------------------------


class Regressor(nn.Module):
    """Floating point all the way, so that the gradient of the input can be compared too."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.encoder = nn.Linear(I, I)
        self.rnn = build(cell, bidirectional=True)
        self.decoder = nn.Linear(2 * H, 2)

    def forward(self, x: Tensor, rng: Tensor | None = None) -> Tensor:
        return self.decoder(self.rnn(self.encoder(x), rng=rng)[0])


def train(model: nn.Module, x: Tensor, *rng: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    model(x, *rng).square().sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    return {name: gradient.clone() for name, gradient in gradients.items()}


DYNAMIC = {0: Dim("T", min=1, max=100), 1: Dim("B", min=1, max=100)}


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
@pytest.mark.parametrize("cell", MODULES)
def test_an_exported_program_trains(cell: str, strict: bool) -> None:
    model, x = Regressor(cell), torch.randn(T, B, I)
    program = export(model, (x, RNG), strict=strict, dynamic_shapes=(DYNAMIC, None))
    kept = [str(node.target) for node in program.graph.nodes if "fused_rnn_dropout" in str(node.target)]
    assert kept == ["fused_rnn_dropout.layer.default"] * 2
    exported = program.module()
    for steps, batch in ((T, B), (9, 5), (2, 1)):
        x = torch.randn(steps, batch, I)
        mine, expected = train(exported, x, RNG), train(model, x, RNG)
        assert mine.keys() == expected.keys()
        assert_equal(list(mine.values()), list(expected.values()))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()  # rates are no part of a state_dict, but they are of a program
    assert_equal(list(train(loaded, x, RNG).values()), list(train(model, x, RNG).values()))


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
def test_an_exported_program_draws_anew_at_each_call(strict: bool) -> None:
    model, x = Regressor("LSTM"), torch.randn(T, B, I)
    exported = export(model, (x,), strict=strict).module()
    outs = []
    for run in (exported, model):
        torch.manual_seed(8)
        outs.append([run(x) for _ in range(2)])
    assert_equal(outs[0], outs[1])
    assert not torch.equal(outs[0][0], outs[0][1])
    torch.manual_seed(9)
    mine = train(exported, x)
    torch.manual_seed(9)
    assert_equal(list(mine.values()), list(train(model, x).values()))


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
@pytest.mark.parametrize("cell", MODULES)
def test_export_for_inference(cell: str, strict: bool) -> None:
    model, x = Regressor(cell).eval(), torch.randn(T, B, I)
    with torch.no_grad():
        program = export(model, (x,), strict=strict, dynamic_shapes=(DYNAMIC,))
        assert not any("draw" in str(node.target) for node in program.graph.nodes)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
        x = torch.randn(7, 2, I)
        state = torch.get_rng_state()
        assert torch.equal(loaded(x), model(x))
        assert torch.equal(torch.get_rng_state(), state)
    # Exported without gradients, it can be trained all the same: the gradient is part of the operator.
    assert_equal(list(train(loaded, x).values()), list(train(model, x).values()))


def test_export_with_decompositions_for_inference() -> None:
    model, x = Regressor("GRU").eval(), torch.randn(T, B, I)
    program = export(model, (x,)).run_decompositions()
    assert any("fused_rnn_dropout.layer.default" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), model(x))


# --------------------------------------------------------------------------------------------------------------------
# Checkpoints
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False], ids=["rng", "drawn"])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@pytest.mark.parametrize("cell", MODULES)
def test_a_checkpoint_draws_the_same_masks_again(cell: str, use_reentrant: bool, given: bool) -> None:
    rnn, (x, _) = build(cell), make_input()
    rng = RNG if given else None
    torch.manual_seed(5)
    out = checkpoint(lambda x: rnn(x, rng=rng)[0], x, use_reentrant=use_reentrant)
    torch.manual_seed(1000)  # the recomputation must not see this
    out.square().sum().backward()
    mine = [leaf.grad.clone() for leaf in leaves_of(rnn, x)]
    torch.manual_seed(5)
    expected = rnn(x, rng=rng)[0]
    assert torch.equal(out, expected)
    assert_equal(mine, list(torch.autograd.grad(expected.square().sum(), leaves_of(rnn, x))))


@pytest.mark.parametrize(("cell", "backend"), [("LSTM", "aot_eager"), ("GRU", "inductor")])
def test_a_compiled_checkpoint(cell: str, backend: str) -> None:
    rnn, (x, _) = build(cell), make_input()

    def forward(x: Tensor) -> Tensor:
        return checkpoint(lambda x: rnn(x)[0], x, use_reentrant=False)

    compiled = torch.compile(forward, fullgraph=True, backend=backend)
    torch.manual_seed(5)
    out = compiled(x)
    torch.manual_seed(1000)
    mine = results_and_gradients([out], leaves_of(rnn, x))
    torch.manual_seed(5)
    for a, b in zip(mine, results_and_gradients([rnn(x)[0]], leaves_of(rnn, x)), strict=True):
        torch.testing.assert_close(a, b)


_KEPT: dict[str, tuple[Any, ...]] = {
    "nothing": (),
    "multiplications": (torch.ops.aten.mul.Tensor,),
    "layers": (torch.ops.fused_rnn_dropout.layer_forward.default, torch.ops.fused_rnn_dropout.dropout.default),
    "draw": (torch.ops.fused_rnn_dropout.draw.default,),
}


def _choose(kept: str, ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keep = kept == "everything" or op in _KEPT[kept]
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _contexts(kept: str) -> Any:
    return create_selective_checkpoint_contexts(functools.partial(_choose, kept))


@pytest.mark.parametrize("kept", ["everything", *_KEPT])
@pytest.mark.parametrize("run", ["eager", "aot_eager"])
def test_a_selective_checkpoint(run: str, kept: str) -> None:
    """Whichever operators are kept, and whichever run again, the gradient is the same."""
    rnn, (x, _) = build("LSTM"), make_input()
    contexts = functools.partial(_contexts, kept)

    def forward(x: Tensor) -> Tensor:
        return checkpoint(lambda x: rnn(x * 2)[0], x, use_reentrant=False, context_fn=contexts)

    torch.manual_seed(5)
    out = forward(x) if run == "eager" else torch.compile(forward, backend=run)(x)
    torch.manual_seed(1000)
    (mine,) = torch.autograd.grad(out.square().sum(), x)
    torch.manual_seed(5)
    expected = rnn(x * 2)[0]
    assert torch.equal(out, expected)
    assert torch.equal(mine, torch.autograd.grad(expected.square().sum(), x)[0])


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_a_private_generator_in_a_recomputation_is_refused(use_reentrant: bool) -> None:
    rnn, (x, _) = build("LSTM"), make_input()
    generator = torch.Generator().manual_seed(3)
    out = checkpoint(lambda x: rnn(x, rng=frd.draw_rng("cpu", generator))[0], x, use_reentrant=use_reentrant)
    state = generator.get_state()
    with pytest.raises(RuntimeError, match="rng="):
        out.sum().backward()
    assert torch.equal(generator.get_state(), state)
    rng = frd.draw_rng("cpu", generator)  # what the message advises
    out = checkpoint(lambda x: rnn(x, rng=rng)[0], x, use_reentrant=use_reentrant)
    (mine,) = (out.sum().backward(), x.grad)[1:]
    assert torch.equal(mine, torch.autograd.grad(rnn(x, rng=rng)[0].sum(), x)[0])
