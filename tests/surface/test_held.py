"""hold_masks: a sequence that comes in several calls has the masks that it has in one piece."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from grids import has
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils.checkpoint import checkpoint

import fused_rnn_dropout as frd
from fused_rnn_dropout import recomputation
from fused_rnn_dropout.cells import MODULES
from fused_rnn_dropout.sites import SITE

pytestmark = [
    pytest.mark.filterwarnings("ignore:zoneout_c with cell_dropout"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]

BACKENDS = ("cpu", "reference")
T, B, I, H = 9, 3, 5, 6
RNG = torch.tensor([5, 6])
KINDS: dict[str, dict[str, Any]] = {
    "per sequence": {"input_dropout": 0.3, "hidden_dropout": 0.3, "cell_dropout": 0.2, "output_dropout": 0.2},
    "per step": {"dropout": 0.4, "update_dropout": 0.3, "input_dropout": frd.LockedDropout(0.3, per="step")},
    "weight": {"weight_dropout": frd.WeightDropout(0.4, inputs=True)},
    "zoneout": {"zoneout_h": 0.4},
}
ALL = {name: spec for sites in KINDS.values() for name, spec in sites.items()}
CHUNKS = {"single steps": [1] * T, "chunks": [2, 4, 1, 2], "whole": [T]}


def build(cell: str, layers: int = 2, **kwargs: Any) -> Any:
    kwargs = {name: value for name, value in kwargs.items() if name not in SITE or has(cell, name)}
    return getattr(frd, cell)(I, H, layers, dtype=torch.float64, **kwargs)


def make_input(*shape: int, **kwargs: Any) -> Tensor:
    return torch.randn(*(shape or (T, B, I)), dtype=torch.float64, **kwargs)


def in_parts(rnn: Callable[..., Any], x: Tensor, lengths: list[int], state: Any = None) -> tuple[Tensor, Any]:
    outs = []
    for part in x.split(lengths):
        out, state = rnn(part, state)
        outs.append(out)
    return torch.cat(outs), state


def assert_close(mine: Any, expected: Any) -> None:
    torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-13)


def outcome(function: Callable[[], Any]) -> Any:
    """What the function gives in a thread of its own."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


# --------------------------------------------------------------------------------------------------------------------
# In parts as in one piece
# --------------------------------------------------------------------------------------------------------------------


GRID = [(backend, kind, lengths) for backend in BACKENDS for kind in (*KINDS, "all") for lengths in CHUNKS]


# Triton's interpreter is slow: all kinds at once are enough for it.
@pytest.mark.parametrize(("backend", "kind", "lengths"), [*GRID, ("triton", "all", "chunks")])
@pytest.mark.parametrize("cell", MODULES)
def test_in_parts_as_in_one_piece(cell: str, backend: str, kind: str, lengths: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    rnn, x = build(cell, backend=backend, **KINDS.get(kind, ALL)), make_input()
    whole, last = rnn(x, rng=RNG)
    with frd.hold_masks(rnn, rng=RNG) as held:
        out, state = in_parts(rnn, x, CHUNKS[lengths])
        assert held.step_offset == {"": T}
    assert_close((out, state), (whole, last))
    if lengths != "whole":  # without a hold the masks change, in the same loop
        with pytest.raises(AssertionError):
            assert_close(in_parts(rnn, x, CHUNKS[lengths])[0], whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", MODULES)
def test_the_masks_bit_for_bit(cell: str, backend: str) -> None:
    """Both directions; a mask per step is cut, one per sequence or of a weight is the same in each part."""
    rnn, x = build(cell, backend=backend, bidirectional=True, **ALL), make_input()
    whole, start = frd.export_masks(rnn, x, rng=RNG), 0
    with frd.hold_masks(rnn, rng=RNG) as held:
        for part in x.split(CHUNKS["chunks"]):
            masks = frd.export_masks(rnn, part)
            assert held.step_offset == {"": start}  # the export does not go on
            assert masks.keys() == whole.keys() and any("reverse" in name for name in masks)
            for name, mask in masks.items():
                per_step = whole[name].dim() == 3 and whole[name].size(0) == T
                expected = whole[name][start : start + len(part)] if per_step else whole[name]
                assert torch.equal(mask, expected), name
            rnn(part)
            start += len(part)


@pytest.mark.parametrize("cell", MODULES)
def test_an_export_draws_what_the_next_call_uses(cell: str) -> None:
    rnn, x = build(cell, **ALL), make_input()
    with frd.hold_masks(rnn) as held:
        assert held.rng == {"": None}
        masks = frd.export_masks(rnn, x)
        pair = held.rng[""]
        rnn(x)
        assert held.rng[""] is pair
    again = frd.export_masks(rnn, x, rng=pair)
    assert all(torch.equal(mask, again[name]) for name, mask in masks.items())


@pytest.mark.parametrize("cell", MODULES)
def test_truncated_backpropagation(cell: str) -> None:
    """A backward for each chunk, states detached between them: gradients of the same masks given by hand."""
    rnn, x = build(cell, **ALL), make_input()
    gradients: list[list[Tensor]] = []
    for by_hand in (False, True):
        rnn.zero_grad()
        state, start = None, 0
        with frd.hold_masks(rnn, rng=RNG):
            for part in x.split([4, 3, 2]):
                given = {"rng": RNG, "step_offset": start} if by_hand else {}
                out, state = rnn(part, state, **given)
                out.square().sum().backward()
                state = tuple(s.detach() for s in state) if cell == "LSTM" else state.detach()
                start += len(part)
        gradients.append([weight.grad.clone() for weight in rnn.parameters()])
    assert all(map(torch.equal, *gradients))


class Attention(nn.Module):
    """A decoder over an encoder: the decoder's input at each step is a mean of the encoder's outputs."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.encoder, self.decoder = (
            build(cell, **ALL),
            getattr(frd, cell)(H, H, dtype=torch.float64, **KINDS["zoneout"]),
        )

    def forward(self, x: Tensor, rng: dict[str, Tensor] | None = None) -> Tensor:
        given: dict[str, Any] = {} if rng is None else {"rng": rng["encoder"]}
        memory, state = self.encoder(x, **given)
        outs, state = [memory[-1:]], None
        for step in range(4):
            given = {} if rng is None else {"rng": rng["decoder"], "step_offset": step}
            weights = torch.softmax((memory * outs[-1]).sum(-1, keepdim=True), 0)
            out, state = self.decoder((weights * memory).sum(0, keepdim=True), state, **given)
            outs.append(out)
        return torch.cat(outs[1:])


@pytest.mark.parametrize("cell", MODULES)
def test_a_decoder_with_attention(cell: str) -> None:
    model, x = Attention(cell), make_input()
    pairs = {"encoder": RNG, "decoder": RNG + 1}
    with frd.hold_masks(model, rng=pairs) as held:
        mine = model(x)
        assert held.step_offset == {"encoder": T, "decoder": 4}
    assert_close(mine, model(x, pairs))
    with frd.hold_masks(model) as held:
        mine = model(x)
        drawn = dict(held.rng)
    assert not torch.equal(drawn["encoder"], drawn["decoder"])
    assert_close(mine, model(x, drawn))


@pytest.mark.parametrize("cell", MODULES)
def test_a_recurrent_policy(cell: str) -> None:
    """Single steps without gradients while it acts, sequences with them while it learns: the same masks."""
    rnn, x = build(cell, **ALL), make_input()
    with torch.inference_mode(), frd.hold_masks(rnn) as held:
        acted, _ = in_parts(rnn, x, [1] * T)
    for _ in range(2):
        with frd.hold_masks(rnn, rng=held.rng):
            learnt, _ = rnn(x)
            learnt.sum().backward()
            assert_close(learnt.detach(), acted.clone())
    with frd.hold_masks(rnn):  # a pair that is drawn without gradients serves a call that needs them
        with torch.inference_mode():
            rnn(x[:1])
        rnn(x[1:])[0].sum().backward()


@pytest.mark.parametrize("cell", MODULES)
def test_packed_inputs_count_their_longest_row(cell: str) -> None:
    rnn = build(cell, **ALL)
    rows = [make_input(n, I) for n in (5, 2, 4)]
    with frd.hold_masks(rnn, rng=RNG) as held:
        first, state = rnn(pack_sequence(rows, enforce_sorted=False))
        assert held.step_offset[""] == 5
        second, _ = rnn(pack_padded_sequence(make_input(3, 3, I), torch.tensor([3, 3, 1])), state)
        assert held.step_offset[""] == 8
    assert isinstance(first, PackedSequence) and isinstance(second, PackedSequence)
    assert torch.equal(first.data, rnn(pack_sequence(rows, enforce_sorted=False), rng=RNG)[0].data)


def test_other_shapes_of_input_count_steps_too() -> None:
    rnn = build("GRU", batch_first=True, **ALL)
    with frd.hold_masks(rnn) as held:
        rnn(make_input(B, 4, I))
        rnn(make_input(3, I))
        assert held.step_offset[""] == 7


@pytest.mark.parametrize("cell", MODULES)
def test_other_examples_at_each_call(cell: str) -> None:
    rnn, x = build(cell, **ALL), make_input()
    with frd.hold_masks(rnn, rng=RNG):
        for start, ids in ((0, [4, 0, 9]), (3, [1, 2, 3]), (6, [9, 0, 4])):
            given = torch.tensor(ids)
            mine = rnn(x[:3], example_ids=given)[0]
            assert torch.equal(mine, rnn(x[:3], rng=RNG, step_offset=start, example_ids=given)[0])


# --------------------------------------------------------------------------------------------------------------------
# What counts
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", MODULES)
def test_calls_that_do_not_count(cell: str) -> None:
    rnn, x = build(cell, **ALL), make_input()
    other = RNG + 7
    with frd.hold_masks(rnn, rng=RNG) as held:
        rnn(x)
        rnn.eval()
        assert torch.equal(rnn(x)[0], rnn(x, rng=RNG)[0])
        rnn.train()
        assert torch.equal(rnn(x, rng=other)[0], rnn(x, rng=other, step_offset=0)[0])
        for step in (0, 4):
            assert torch.equal(rnn(x, step_offset=step)[0], rnn(x, rng=RNG, step_offset=step)[0])
        with pytest.raises(RuntimeError, match=r"input.size\(-1\)"):
            rnn(make_input(T, B, I + 1))
        with pytest.raises(TypeError, match="step_offset should be an int"):
            rnn(x, step_offset=False)
        assert held.step_offset[""] == T
        rnn.eval().mc = True
        assert torch.equal(rnn(x)[0], rnn(x, rng=RNG, step_offset=T)[0])
        assert held.step_offset[""] == 2 * T


@pytest.mark.parametrize("cell", MODULES)
def test_what_is_drawn(cell: str) -> None:
    """One pair a layer, at its first masked call, by the operator that every call draws with."""
    model, x = nn.ModuleList([build(cell, **ALL), build(cell, **ALL), build(cell)]), make_input()
    torch.manual_seed(3)
    expected = [frd.draw_rng("cpu"), frd.draw_rng("cpu")]
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with frd.hold_masks(model) as held:
        model.eval()[0](x)
        model.train()[2](x)
        for index in (1, 0, 1, 0):
            model[index](x)
    assert torch.equal(held.rng["1"], expected[0]) and torch.equal(held.rng["0"], expected[1]) and held.rng["2"] is None
    assert torch.equal(torch.get_rng_state(), after)
    assert dict(held.step_offset) == {"0": 2 * T, "1": 2 * T, "2": T}
    with frd.hold_masks(model, rng=held.rng) as again:
        assert dict(again.rng) == dict(held.rng)
    with pytest.raises(TypeError):
        held.step_offset["0"] = 4  # type: ignore[index]


def test_groups_of_sites() -> None:
    rnn, x = build("LSTM", **ALL), make_input()
    pairs = {"weight": RNG + 1, None: RNG}
    with frd.hold_masks(rnn, rng={"": pairs}):
        assert_close(in_parts(rnn, x, [4, 5])[0], rnn(x, rng=pairs, step_offset=0)[0])


def test_one_module_in_several_places() -> None:
    shared = build("GRU", **ALL)
    model, x = nn.ModuleDict({"a": shared, "b": shared}), make_input()
    with frd.hold_masks(model) as held:
        assert list(held.rng) == ["a"]
        model["a"](x)
        assert torch.equal(model["b"](x)[0], shared(x, rng=held.rng["a"], step_offset=T)[0])
    with frd.hold_masks(model, rng={"b": RNG}) as held:
        assert held.rng["a"] is RNG
    with pytest.raises(ValueError, match="names one module twice, the one at 'a'"):
        frd.hold_masks(model, rng={"a": RNG, "b": RNG})
    with frd.hold_masks(model, rng=RNG):  # one layer, however often it hangs there
        pass


# --------------------------------------------------------------------------------------------------------------------
# Which hold
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", MODULES)
def test_nested(cell: str) -> None:
    model, x = nn.ModuleDict({"a": build(cell, **ALL), "b": build(cell, **ALL)}), make_input()
    a, b = model["a"], model["b"]
    with frd.hold_masks(model, rng={"a": RNG, "b": RNG + 1}) as outer:
        a(x), b(x)
        with frd.hold_masks(a, rng=RNG + 2) as inner:
            assert torch.equal(a(x)[0], a(x, rng=RNG + 2, step_offset=0)[0])
            assert torch.equal(b(x)[0], b(x, rng=RNG + 1, step_offset=T)[0])
            assert (inner.step_offset, outer.step_offset) == ({"": T}, {"a": T, "b": 2 * T})
        assert torch.equal(a(x)[0], a(x, rng=RNG, step_offset=T)[0])
    first, second = a(x)[0], a(x)[0]
    assert not torch.equal(first, second)


def test_an_exception_leaves_too() -> None:
    rnn, x = build("LSTM", **ALL), make_input()
    with pytest.raises(KeyError), frd.hold_masks(rnn):
        raise KeyError
    assert not torch.equal(rnn(x)[0], rnn(x)[0])
    assert frd.export_masks(rnn, x, rng=RNG, step_offset=0).keys()
    hold = frd.hold_masks(rnn)
    with hold:
        pass
    with pytest.raises(RuntimeError, match="entered once"), hold:
        pass


@pytest.mark.parametrize("cell", MODULES)
def test_threads_do_not_mix(cell: str) -> None:
    rnn, x = build(cell, **ALL), make_input()
    barrier = threading.Barrier(2)
    found: dict[int, Tensor] = {}

    def run(number: int) -> None:
        outs, state = [], None
        with frd.hold_masks(rnn, rng=RNG + number):
            for part in x.split(1):
                barrier.wait(timeout=60)
                out, state = rnn(part, state)
                outs.append(out)
        found[number] = torch.cat(outs)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert_close(found[number], rnn(x, rng=RNG + number)[0])
    with frd.hold_masks(rnn, rng=RNG):
        assert not outcome(lambda: torch.equal(rnn(x)[0], rnn(x)[0]))  # a thread that entered nothing


def test_tasks_do_not_mix() -> None:
    rnn, x = build("GRU", **ALL), make_input()

    async def run(number: int) -> Tensor:
        outs, state = [], None
        with frd.hold_masks(rnn, rng=RNG + number):
            for part in x.split(1):
                await asyncio.sleep(0)
                out, state = rnn(part, state)
                outs.append(out)
        return torch.cat(outs)

    async def both() -> list[Tensor]:
        return await asyncio.gather(run(0), run(1))

    for number, out in enumerate(asyncio.run(both())):
        assert_close(out, rnn(x, rng=RNG + number)[0])


def test_replicas_of_data_parallel_are_refused() -> None:
    rnn, x = build("LSTM", **ALL), make_input()
    replica = rnn._replicate_for_data_parallel()
    for name, weight in rnn.named_parameters():
        setattr(replica, name, weight)

    def call(**kwargs: Any) -> str:
        try:
            replica(x, **kwargs)
        except RuntimeError as error:
            return str(error)
        return "nothing"

    with frd.hold_masks(rnn):
        assert "replicas of DataParallel: pass rng= and step_offset=" in outcome(call)
        assert outcome(lambda: call(rng=RNG, step_offset=0)) == "nothing"
    assert outcome(call) == "nothing"


def test_copies_are_not_held() -> None:
    rnn, x = build("LSTM", **ALL), make_input()
    with frd.hold_masks(rnn, rng=RNG):
        rnn(x)
        for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
            assert not torch.equal(other(x)[0], other(x)[0])
        assert torch.equal(rnn(x)[0], rnn(x, rng=RNG, step_offset=T)[0])


# --------------------------------------------------------------------------------------------------------------------
# Refused
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rng", "error", "message"),
    [
        (RNG, ValueError, "equal masks: pass a dict by module path, of 'a', 'b.rnn'"),
        ({"c": RNG}, ValueError, "at 'c' there is no .*those of this model are at 'a', 'b.rnn'"),
        ({"b": RNG}, ValueError, "at 'b' there is no"),
        ({None: RNG}, ValueError, "goes by module path, and at None there is no"),
        ({"a": 3}, TypeError, r"rng\['a'\] should be an int64 tensor of shape \(2,\), got int"),
        ({"a": RNG.int()}, ValueError, r"rng\['a'\] should be an int64 tensor.*int32"),
        ({"a": {"weights": RNG}}, ValueError, r"rng\['a'\] has a key 'weights'; allowed are 'input'"),
        ({"a": {None: torch.zeros(3)}}, ValueError, r"rng\['a'\]\[None\] should be an int64 tensor"),
        ([RNG, RNG], TypeError, "rng should be an int64 tensor of shape"),
    ],
)
def test_refused_pairs(rng: Any, error: type[Exception], message: str) -> None:
    model = nn.ModuleDict({"a": frd.LSTM(I, H), "b": nn.ModuleDict({"rnn": frd.GRU(I, H)})})
    with pytest.raises(error, match=message):
        frd.hold_masks(model, rng=rng)


def test_refused_models() -> None:
    with pytest.raises(ValueError, match=r"hold_masks found no fused_rnn_dropout.LSTM, GRU or RNN.*convert\(\)"):
        frd.hold_masks(nn.LSTM(I, H))
    for function in (frd.hold_masks, frd.mc_dropout):
        with pytest.raises(TypeError, match="takes an nn.Module, got str"):
            function("model")  # type: ignore[arg-type]


def test_what_is_seen_at_the_call() -> None:
    rnn, x = build("LSTM", **ALL), make_input()
    with frd.hold_masks(rnn, rng=RNG.to("meta")), pytest.raises(ValueError, match="rng should be on cpu.*got meta"):
        rnn(x)
    with frd.hold_masks(rnn, rng={"": {"weight": RNG}}), pytest.raises(ValueError, match="rng lacks 'input'"):
        rnn(x)


@pytest.mark.parametrize("cell", MODULES)
def test_programs_are_not_recorded(cell: str) -> None:
    rnn, x = build(cell, **ALL), make_input()
    for strict in (False, True):
        with frd.hold_masks(rnn), pytest.raises(Exception, match=f"a held {cell} cannot be exported.*rng= and step_"):
            torch.export.export(rnn, (x,), strict=strict)
    with frd.hold_masks(rnn), pytest.raises(RuntimeError, match=f"a held {cell} cannot be exported"):
        torch.jit.trace(rnn, (x,), check_trace=False)


# --------------------------------------------------------------------------------------------------------------------
# Recomputation
# --------------------------------------------------------------------------------------------------------------------

BOTH = "Pass both rng= and step_offset="


@pytest.fixture
def no_marks() -> Iterator[None]:
    """A test leaves none behind; what others left before it is theirs."""

    def marks() -> list[set[Any]]:
        gc.collect()
        return [set(kept) for kept in (recomputation._marks, recomputation._compiled, recomputation._for_ever)]

    before = marks()
    yield
    assert all(now <= then for now, then in zip(marks(), before, strict=True))


def checkpointed(rnn: Callable[..., Any], x: Tensor, use_reentrant: bool, **kwargs: Any) -> Tensor:
    return checkpoint(lambda value: rnn(value, **kwargs)[0] * 2, x, use_reentrant=use_reentrant)


@pytest.mark.usefixtures("no_marks")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("after", [False, True], ids=["inside", "after"])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@pytest.mark.parametrize("cell", MODULES)
def test_a_recomputation_raises(cell: str, use_reentrant: bool, after: bool, compiled: bool) -> None:
    """Inside the hold and after it, whatever other steps came between; and never for a call that was not held."""
    torch.compiler.reset()
    rnn, x = build(cell, **ALL), make_input(requires_grad=True)
    run = torch.compile(rnn, fullgraph=True, backend="aot_eager") if compiled else rnn

    def go() -> None:
        with frd.hold_masks(rnn):
            out = checkpointed(run, x, use_reentrant)
            run(x)
            if not after:
                out.sum().backward()
        out.sum().backward()

    with pytest.raises(RuntimeError, match=BOTH):
        go()
    gc.collect()
    checkpointed(run, x, use_reentrant).sum().backward()


@pytest.mark.usefixtures("no_marks")
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@pytest.mark.parametrize("cell", MODULES)
def test_a_recomputation_that_says_both(cell: str, use_reentrant: bool) -> None:
    rnn, x = build(cell, **ALL), make_input(requires_grad=True)
    with frd.hold_masks(rnn):
        rnn(x)
        out = checkpointed(rnn, x, use_reentrant, rng=RNG, step_offset=2)
        rnn(x)
        out.sum().backward()
    (expected,) = torch.autograd.grad((rnn(x, rng=RNG, step_offset=2)[0] * 2).sum(), x)
    assert torch.equal(x.grad, expected)


@pytest.mark.usefixtures("no_marks")
@pytest.mark.parametrize("given", [True, False], ids=["rng", "drawn"])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@pytest.mark.parametrize("cell", MODULES)
def test_a_recomputation_of_the_whole_block(cell: str, use_reentrant: bool, given: bool) -> None:
    """A hold inside the checkpoint is entered again with it, and draws the same pair again."""
    rnn, x = build(cell, **ALL), make_input(requires_grad=True)

    def block(value: Tensor) -> Tensor:
        with frd.hold_masks(rnn, rng=RNG if given else None):
            return in_parts(rnn, value, [4, 5])[0]

    torch.manual_seed(5)
    out = checkpoint(block, x, use_reentrant=use_reentrant)
    torch.manual_seed(1000)
    out.square().sum().backward()
    torch.manual_seed(5)
    expected = block(x)
    assert torch.equal(out, expected)
    assert torch.equal(x.grad, torch.autograd.grad(expected.square().sum(), x)[0])


@pytest.mark.usefixtures("no_marks")
def test_other_layers_are_recomputed_as_ever() -> None:
    """A live graph of a held layer, eager or compiled, is nothing to another layer's checkpoint."""
    torch.compiler.reset()
    held, other, x = build("LSTM", **ALL), build("GRU", **ALL), make_input(requires_grad=True)
    for run in (held, torch.compile(held, fullgraph=True, backend="aot_eager")):
        with frd.hold_masks(held):
            kept = run(x)[0]
        (kept.sum() + checkpointed(other, x, False).sum()).backward()
        del kept


def test_frozen_layers_raise_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph of theirs says that a checkpoint holds them."""
    monkeypatch.setattr(recomputation, "_for_ever", [])
    rnn, head = build("LSTM", **ALL).requires_grad_(False), nn.Linear(H, 1, dtype=torch.float64)
    x = make_input()
    with frd.hold_masks(rnn):
        out = checkpoint(lambda value: head(rnn(value)[0]), x, use_reentrant=False)
    with pytest.raises(RuntimeError, match=BOTH):
        out.sum().backward()
