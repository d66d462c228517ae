"""Kneser-Ney noising: counts and noise worked out with dictionaries, one word at a time."""

from __future__ import annotations

import copy
import pickle
from collections import Counter, defaultdict
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout import masks
from fused_rnn_dropout.sites import KIND, stream, threshold
from fused_rnn_dropout.training import KneserNeyNoising
from fused_rnn_dropout.training.kneser_ney import Bigrams

T, B, V, P = 40, 6, 9, 0.7
RNG = torch.tensor([3, -8])
LENGTHS = torch.tensor([9, 3, 12, 1, 12, 5])
NEVER = V - 1  # a word that the text does not have


def text(*shape: int, seed: int = 2) -> Tensor:
    return torch.randint(V - 1, shape or (T + 1, B), generator=torch.Generator().manual_seed(seed))


def made(p: float = P, **options: Any) -> KneserNeyNoising:
    return KneserNeyNoising(p, text=text(60, 2, seed=5), vocabulary=V, **options)


def packed(lengths: list[int]) -> PackedSequence:
    return pack_padded_sequence(text(max(lengths), len(lengths)), torch.tensor(lengths), enforce_sorted=False)


def counted(trained_on: Tensor) -> tuple[dict[int, Fraction], list[int]]:
    """N(w .) / c(w) by word, and N(. w) of every word."""
    after: dict[int, Counter[int]] = defaultdict(Counter)
    before: dict[int, set[int]] = defaultdict(set)
    for column in trained_on.T.tolist() if trained_on.dim() == 2 else [trained_on.tolist()]:
        for first, second in zip(column, column[1:], strict=False):
            after[first][second] += 1
            before[second].add(first)
    return {w: Fraction(len(found), found.total()) for w, found in after.items()}, [len(before[w]) for w in range(V)]


def drawn(number: int, weights: list[int]) -> int:
    """The first word whose share of the numbers of 32 bits ends above this one."""
    for word in range(V):
        if number < round(sum(weights[: word + 1]) / sum(weights) * 2**32):
            return word
    raise AssertionError


def by_hand(words: Tensor, targets: Tensor, p: float, trained_on: Tensor) -> tuple[Tensor, Tensor]:
    ratio, weights = counted(trained_on)
    numbers = masks.words(RNG, torch.arange(B), torch.arange(T), 3, stream(KIND["NOISING"], 0)).tolist()
    words, targets = words.clone(), targets.clone()
    for t in range(T):
        for b in range(B):
            which, word, target = numbers[t][b]
            if which < threshold(p) * ratio.get(int(words[t, b]), Fraction(0)):
                words[t, b], targets[t, b] = drawn(word, weights), drawn(target, weights)
    return words, targets


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(90,), (60, 2)])
def test_against_counts_by_hand(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    whole, trained_on = text().to(dtype), text(*shape, seed=5).to(dtype)
    module = KneserNeyNoising(P, text=trained_on, vocabulary=V)
    results = module(whole[:-1], whole[1:], rng=RNG)
    for result, expected, given in zip(
        results, by_hand(whole[:-1], whole[1:], P, trained_on), (whole[:-1], whole[1:]), strict=True
    ):
        assert result.dtype == dtype and torch.equal(result, expected) and not torch.equal(result, given)


@pytest.mark.parametrize("trained_on", [text(90), text(30, 4), text(2, 1)])
def test_counts_of_bigrams(trained_on: Tensor) -> None:
    """No pair reaches from the end of a column to the beginning of the next."""
    ratio, predecessors = counted(trained_on)
    followed, successors, found = Bigrams.of(trained_on, V)
    assert int(followed.sum()) == trained_on[1:].numel() and found.tolist() == predecessors
    assert {w: Fraction(int(successors[w]), int(followed[w])) for w in range(V) if followed[w]} == ratio


def test_frequencies() -> None:
    """How often a pair is noised goes by its first word; what comes is as likely as it has predecessors."""
    # 0 is always followed by 1, which is followed by 0, 2, 3 or 4, each of which goes back to 1 through 5.
    trained_on = torch.tensor([0, 1, 0, 1, 2, 5, 1, 3, 5, 1, 4, 5, 1, 0])
    ratio, weights = counted(trained_on)
    assert ratio == {0: Fraction(1, 2), 1: Fraction(4, 5), 2: 1, 3: 1, 4: 1, 5: Fraction(1, 3)} and weights[:6] == [
        1,
        2,
        1,
        1,
        1,
        3,
    ]
    module, rows = KneserNeyNoising(P, text=trained_on, vocabulary=V), 60_000
    target = torch.full((rows,), NEVER)  # which the noise never is, so that it shows what was noised
    for word, share in ratio.items():
        noisy, after = module(torch.full((rows,), word), target, rng=RNG)
        noised = after != NEVER
        p, count = P * float(share), int(noised.sum())
        assert abs(count - rows * p) < 5 * (rows * p * (1 - p)) ** 0.5
        assert torch.equal(noisy[~noised], torch.full((rows - count,), word))
        for found in (noisy[noised], after[noised]):
            for other, weight in enumerate(weights):
                q = weight / sum(weights)
                assert abs(int((found == other).sum()) - count * q) <= 5 * (count * q * (1 - q)) ** 0.5
        both = int(((noisy == 5) & (after == 5) & noised).sum())
        q = (weights[5] / sum(weights)) ** 2
        assert abs(both - count * q) < 5 * (count * q * (1 - q)) ** 0.5, "the two are independent of each other"


def test_a_word_without_a_successor_stays_and_others_need_not() -> None:
    trained_on = torch.tensor([0, 1, 2])
    module = KneserNeyNoising(1.0, text=trained_on, vocabulary=V)
    words, targets = torch.tensor([[0], [1], [2], [NEVER]]), torch.full((4, 1), NEVER)
    noisy, after = module(words, targets)
    assert bool((after[:2] != NEVER).all() & (noisy[:2] != 0).all()), "rate 1, and a successor that came once"
    assert torch.equal(noisy[2:], words[2:]) and torch.equal(after[2:], targets[2:])


def test_a_pair_with_a_spared_word_stays() -> None:
    whole = text()
    words, targets = whole[:-1].clone(), whole[1:].clone()
    targets[::7] = -100
    noisy, after = made(1.0, spared=(0, -100))(words, targets)
    stays = (words == 0) | (targets == 0) | (targets == -100)
    assert torch.equal(noisy[stays], words[stays]) and torch.equal(after[stays], targets[stays])
    assert not torch.equal(noisy, words)


# ---------------------------------------------------------------------------------------------------------------------
# Counters, and the module
# ---------------------------------------------------------------------------------------------------------------------


def test_batch_first_one_sequence_and_parts() -> None:
    module, whole = made(), text()
    pair = whole[:-1], whole[1:]
    right = torch.stack(module(*pair, rng=RNG))
    other = made(batch_first=True)(*(ids.T for ids in pair), rng=RNG)
    assert torch.equal(torch.stack(other).transpose(1, 2), right)
    parts = [module(*(ids[:7] for ids in pair), rng=RNG), module(*(ids[7:] for ids in pair), rng=RNG, step_offset=7)]
    assert torch.equal(torch.cat([torch.stack(part) for part in parts], 1), right)
    chosen = torch.tensor([4, 1])
    some = module(*(ids[:, chosen] for ids in pair), rng=RNG, example_ids=chosen)
    assert torch.equal(torch.stack(some), right[:, :, chosen])
    assert torch.equal(torch.stack(module(*(ids[:, 0] for ids in pair), rng=RNG)), right[:, :, 0])
    with frd.hold_masks(module, RNG):
        parts = [module(*(ids[:7] for ids in pair)), module(*(ids[7:] for ids in pair))]
    assert torch.equal(torch.cat([torch.stack(part) for part in parts], 1), right)


def test_packed() -> None:
    module, whole = made(), text()
    pair = whole[:-1], whole[1:]
    packed = [pack_padded_sequence(ids, LENGTHS, enforce_sorted=False) for ids in pair]
    for result, padded in zip(module(*packed, rng=RNG), module(*pair, rng=RNG), strict=True):
        right = pack_padded_sequence(padded, LENGTHS, enforce_sorted=False)
        assert isinstance(result, PackedSequence) and torch.equal(result.data, right.data)


def test_no_change_of_dtype_moves_a_rate() -> None:
    whole = text(4000)
    pair = whole[:-1], whole[1:]
    expected = made()(*pair, rng=RNG)
    for dtype in (torch.bfloat16, torch.float64):
        for result, right in zip(made().to(dtype)(*pair, rng=RNG), expected, strict=True):
            assert torch.equal(result, right)


def test_eval_leaves_alone_and_nothing_is_drawn() -> None:
    whole = text()
    before = torch.get_rng_state()
    for module in (made().eval(), made(0.0)):
        words, targets = module(whole[:-1], whole[1:])
        assert torch.equal(words, whole[:-1]) and torch.equal(targets, whole[1:])
    assert torch.equal(before, torch.get_rng_state())


def test_a_new_rate_compiles_nothing_again() -> None:
    module, whole = made(), text()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for rate in (P, 0.0, 1.0):
        module.set_rate("data_noising", rate)
        for mine, right in zip(
            compiled(whole[:-1], whole[1:], rng=RNG), module(whole[:-1], whole[1:], rng=RNG), strict=True
        ):
            assert torch.equal(mine, right)
    assert counter.frame_count == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_state(copied: Any) -> None:
    module, whole = made(), text()
    assert not module.state_dict()
    pair = whole[:-1], whole[1:]
    assert torch.equal(torch.stack(copied(module)(*pair, rng=RNG)), torch.stack(module(*pair, rng=RNG)))
    assert repr(made(0.2, spared=[0])) == "KneserNeyNoising(p=0.2, bigrams of 9 words, spared=(0,))"


@pytest.mark.parametrize(("make", "error", "says"), [
    (lambda: made(1.5), ValueError, r"data_noising should be a number in range \[0, 1\]"),
    (lambda: made(batch_first=1), TypeError, "batch_first should be of type bool, got: int"),
    (lambda: KneserNeyNoising(text=[1, 2], vocabulary=V), TypeError, "text should be a Tensor"),
    (lambda: KneserNeyNoising(text=text().float(), vocabulary=V), ValueError, "text should be int64 or int32"),
    (lambda: KneserNeyNoising(text=text(1), vocabulary=V), ValueError, r"text should have two steps or more.*\(1,\)"),
    (lambda: KneserNeyNoising(text=text(), vocabulary=3), ValueError, r"text should have words in \[0, 3\)"),
    (lambda: KneserNeyNoising(text=-text(), vocabulary=V), ValueError, r"words in \[0, 9\).*got -7 to 0"),
    (lambda: made()([1], text(4)), TypeError, "words should be a Tensor or a PackedSequence, got list"),
    (lambda: made()(text(4), [1]), TypeError, "targets should be a Tensor or a PackedSequence, got list"),
    (lambda: made()(text(4), text(4).float()), ValueError, "targets should be int64 or int32"),
    (lambda: made()(text(4), text(5)), ValueError, r"targets should be of the type and shape of words.*\(5,\)"),
    (lambda: KneserNeyNoising(text=text(), vocabulary=9.5), TypeError, "vocabulary should be of type int, got: float"),
    (lambda: made(spared="a"), TypeError, "spared should hold ids of words, got 'a'"),
    (lambda: made()(packed([3, 1]), packed([2, 2])), ValueError, "targets should be packed as words are"),
    (lambda: made()(packed([3, 2]), packed([2, 3])), ValueError, "targets should be packed as words are"),
    (lambda: made()(text(4) - 9, text(4)), IndexError, "index out of range"),
])  # fmt: skip
def test_bad_arguments(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()
