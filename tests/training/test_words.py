"""Word dropout and data noising: which words they touch, what stands there afterwards, and what they leave alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout import masks
from fused_rnn_dropout.sites import KIND, stream, threshold
from fused_rnn_dropout.training import DataNoising, WordDropout

T, B, E, V, P = 40, 6, 5, 11, 0.3
RNG = torch.tensor([3, -8])
LENGTHS = torch.tensor([9, 3, 12, 1, 12, 5])


def text(*shape: int) -> Tensor:
    return torch.randint(V, shape or (T, B), generator=torch.Generator().manual_seed(2))


def vectors(*shape: int) -> Tensor:
    return torch.rand(*(shape or (T, B, E)), generator=torch.Generator().manual_seed(2)) + 0.5


def numbers(kind: str, count: int, examples: Tensor | None = None, begin: int = 0) -> Tensor:
    """(T, B, count), by the function that the golden vectors hold."""
    steps = torch.arange(begin, begin + T)
    return masks.words(RNG, torch.arange(B) if examples is None else examples, steps, count, stream(KIND[kind], 0))


MAKE: dict[str, Any] = {
    "word": lambda p=P, **options: WordDropout(p, **options),
    "blank": lambda p=P, **options: DataNoising(p, blank=V, **options),
    "unigram": lambda p=P, **options: DataNoising(p, counts=torch.arange(V), **options),
}
every_module = pytest.mark.parametrize("name", MAKE)


def packed_rows(data: Tensor) -> PackedSequence:
    return PackedSequence(data, torch.tensor([len(data) - 1, 1]))


def given(name: str) -> Tensor:
    return vectors() if name == "word" else text()


# ---------------------------------------------------------------------------------------------------------------------
# What each does
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
def test_a_dropped_word_is_zero_and_the_others_stay(scaled: bool) -> None:
    x = vectors()
    dropped = numbers("WORD", 1)[..., 0] < threshold(P)
    assert 0.2 < dropped.float().mean() < 0.4
    expected = torch.where(dropped[..., None], 0.0, x / (1 - P) if scaled else x)
    torch.testing.assert_close(WordDropout(P, scaled=scaled)(x, rng=RNG), expected, rtol=1e-6 if scaled else 0, atol=0)


def test_a_dropped_word_gives_no_gradient_and_hides_an_inf() -> None:
    x = vectors()
    dropped = numbers("WORD", 1)[..., 0] < threshold(P)
    x[dropped] = float("inf")
    out = WordDropout(P)(x.requires_grad_(), rng=RNG)
    out.sum().backward()
    assert bool(out.isfinite().all()) and x.grad is not None
    assert torch.equal(x.grad, (~dropped).float()[..., None].expand_as(x))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_blank_noising(dtype: torch.dtype) -> None:
    words = text().to(dtype)
    noised = numbers("NOISING", 2)[..., 0] < threshold(P)
    result = MAKE["blank"]()(words, rng=RNG)
    assert result.dtype == dtype and torch.equal(result, torch.where(noised, V, words).to(dtype))


def test_unigram_noising_draws_in_proportion_to_the_counts() -> None:
    counts = torch.tensor([0.0, 5.0, 0.0, 3.0, 2.0, 0.0])
    words = torch.zeros(2000, 50, dtype=torch.int64)  # of a word that is never drawn
    result = DataNoising(0.5, counts=counts)(words, rng=RNG)
    found = torch.bincount(result.flatten(), minlength=6).double()
    expected = torch.cat([torch.tensor([0.5]), 0.5 * counts[1:] / 10]) * words.numel()
    spread = (expected * (1 - expected / words.numel())).sqrt()
    assert bool(((found - expected).abs() <= 5 * spread).all())  # exactly 0 where the count is


def test_which_word_is_drawn_has_a_number_of_its_own() -> None:
    """A word that is replaced has a small first number: drawn by it too, common words alone would come."""
    words = torch.full((T, B), V)
    result = DataNoising(0.1, counts=torch.ones(V))(words.repeat(30, 1), rng=RNG)
    replaced = result[result != V]
    assert len(replaced) > 500 and len(replaced.unique()) == V


def test_the_ends_of_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number at the border of two words is the upper one's, and none is that of a word with a count of 0."""
    borders = torch.tensor([0, 2**31 - 1, 2**31, 2**32 - 1])
    monkeypatch.setattr(masks, "words", lambda *_: torch.stack((torch.zeros_like(borders), borders), -1)[:, None])
    words = torch.zeros(4, 1, dtype=torch.int64)
    assert DataNoising(1.0, counts=[0.0, 1.0, 1.0, 0.0])(words).flatten().tolist() == [1, 1, 2, 2]


def test_spared_words_stay() -> None:
    words = text()
    for noise in (DataNoising(1.0, blank=V, spared=[0, 3]), DataNoising(1.0, counts=[0] * V + [1], spared=(0, 3))):
        assert torch.equal(noise(words), torch.where((words == 0) | (words == 3), words, V))


# ---------------------------------------------------------------------------------------------------------------------
# Counters
# ---------------------------------------------------------------------------------------------------------------------


@every_module
def test_batch_first_one_sequence_and_parts(name: str) -> None:
    module, data = MAKE[name](), given(name)
    whole = module(data, rng=RNG)
    assert torch.equal(MAKE[name](batch_first=True)(data.transpose(0, 1), rng=RNG), whole.transpose(0, 1))
    parts = [module(data[:7], rng=RNG), module(data[7:], rng=RNG, step_offset=7)]
    assert torch.equal(torch.cat(parts), whole)
    ids = torch.tensor([4, 1])
    assert torch.equal(module(data[:, ids], rng=RNG, example_ids=ids), whole[:, ids])
    if name != "word":
        assert torch.equal(module(data[:, 0], rng=RNG), whole[:, 0])
    with frd.hold_masks(module, RNG):
        assert torch.equal(torch.cat([module(data[:7]), module(data[7:])]), whole)


@every_module
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed(name: str, batch_first: bool) -> None:
    module, data = MAKE[name](), given(name)
    packed = pack_padded_sequence(data, LENGTHS, enforce_sorted=False)
    result = MAKE[name](batch_first=batch_first)(packed, rng=RNG)
    right = pack_padded_sequence(module(data, rng=RNG), LENGTHS, enforce_sorted=False)
    assert isinstance(result, PackedSequence) and torch.equal(result.data, right.data)


def test_the_two_are_independent_of_each_other() -> None:
    zeroed = WordDropout(P)(vectors(), rng=RNG)[..., 0] == 0
    blank = DataNoising(P, blank=V)(text(), rng=RNG) == V
    both = float((zeroed & blank).float().mean())
    assert abs(both - P * P) < 5 * (P * P / (T * B)) ** 0.5 and not torch.equal(zeroed, blank)


# ---------------------------------------------------------------------------------------------------------------------
# As modules
# ---------------------------------------------------------------------------------------------------------------------


@every_module
def test_eval_leaves_alone_and_mc_does_not(name: str) -> None:
    module, data = MAKE[name](), given(name)
    assert not torch.equal(module(data), module(data)), "each call draws"
    before = torch.get_rng_state()
    assert module.eval()(data) is data
    assert MAKE[name](0.0)(data) is data and torch.equal(before, torch.get_rng_state()), "nothing is drawn"
    frd.mc_dropout(nn.Sequential(module))
    assert not torch.equal(module(data), data)


@every_module
def test_a_new_rate_compiles_nothing_again(name: str) -> None:
    module, data = MAKE[name](), given(name)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for rate in (P, 0.0, 1.0):
        module.set_rate(module.site, rate)
        assert torch.equal(compiled(data, rng=RNG), module(data, rng=RNG))
    assert counter.frame_count == 1


@every_module
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_state(name: str, copied: Any) -> None:
    module, data = MAKE[name](), given(name)
    assert not module.state_dict()
    assert torch.equal(copied(module)(data, rng=RNG), module(data, rng=RNG))


def test_repr() -> None:
    assert repr(WordDropout(0.2, batch_first=True)) == "WordDropout(p=0.2, batch_first=True)"
    assert repr(WordDropout(0.2, scaled=True)) == "WordDropout(p=0.2, scaled=True)"
    assert repr(DataNoising(0.2, blank=7, spared=[0])) == "DataNoising(p=0.2, blank=7, spared=(0,))"
    assert repr(DataNoising(0.2, counts=[1, 2])) == "DataNoising(p=0.2, counts of 2 words)"


@pytest.mark.parametrize(("make", "error", "says"), [
    (lambda: WordDropout(1.5), ValueError, r"word_dropout should be a number in range \[0, 1\]"),
    (lambda: WordDropout(0.1, scaled=1), TypeError, "scaled should be of type bool, got: int"),
    (lambda: WordDropout(0.1, batch_first=0), TypeError, "batch_first should be of type bool, got: int"),
    (lambda: DataNoising(-1, blank=0), ValueError, "data_noising should be a number"),
    (lambda: DataNoising(0.1), ValueError, "takes blank or counts, one of them"),
    (lambda: DataNoising(0.1, blank=0, counts=[1]), ValueError, "takes blank or counts, one of them"),
    (lambda: DataNoising(0.1, blank=-1), ValueError, "blank should be the id of a word, got -1"),
    (lambda: DataNoising(0.1, blank=True), ValueError, "blank should be the id of a word, got True"),
    (lambda: DataNoising(0.1, counts=[0, 0]), ValueError, "counts should be of shape .*not all 0"),
    (lambda: DataNoising(0.1, counts=[1, -1, 3]), ValueError, "counts should be"),
    (lambda: DataNoising(0.1, counts=[1, float("inf")]), ValueError, "counts should be"),
    (lambda: DataNoising(0.1, counts=[[1.0]]), ValueError, "counts should be"),
    (lambda: WordDropout()(text()), ValueError, "x should have 3 dimensions, got 2"),
    (lambda: WordDropout()(text(2, 3, 4)), ValueError, "x should have a floating dtype, got torch.int64"),
    (lambda: WordDropout()(packed_rows(vectors(3))), ValueError, "data of x should have 2 dimensions, got 1"),
    (lambda: DataNoising(0.1, blank=0, spared=3), TypeError, "spared should hold ids of words, got 3"),
    (lambda: DataNoising(0.1, blank=0, spared=[1.5]), TypeError, r"spared should hold ids of words, got \[1.5\]"),
    (lambda: WordDropout()([1.0]), TypeError, "x should be a Tensor or a PackedSequence, got list"),
    (lambda: MAKE["blank"]()(vectors()), ValueError, "words should be int64 or int32 with 1 or 2 dim"),
    (lambda: MAKE["blank"]()(text(2, 3, 4)), ValueError, "words should be int64 or int32 with 1 or 2 dim"),
    (lambda: MAKE["blank"]()([1]), TypeError, "words should be a Tensor or a PackedSequence, got list"),
    (lambda: MAKE["blank"]()(text(), rng=torch.tensor([1.0, 2.0])), ValueError, "rng should be an int64 tensor"),
    (lambda: MAKE["word"]()(vectors(), step_offset=-1), ValueError, "step_offset should be at least 0"),
])  # fmt: skip
def test_bad_arguments(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()
