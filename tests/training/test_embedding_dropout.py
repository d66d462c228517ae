"""Embedding dropout: which words it drops, what it leaves alone, and what training does with it."""

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
from fused_rnn_dropout.sites import KIND, SEQ, stream, threshold
from fused_rnn_dropout.training import EmbeddingDropout

V, D, T, B, P = 23, 6, 9, 4, 0.4
RNG = torch.tensor([5, -6])


def build(per: str = "type", p: float = P, **options: Any) -> EmbeddingDropout:
    batch_first = options.pop("batch_first", False)
    torch.manual_seed(1)
    return EmbeddingDropout(nn.Embedding(V, D, **options), p, per=per, batch_first=batch_first)


def words(*shape: int) -> Tensor:
    return torch.randint(V, shape or (T, B), generator=torch.Generator().manual_seed(2))


def table(b: Tensor, c: Tensor) -> Tensor:
    """Factors (len(c), len(b), V) of the whole vocabulary, by the function that the golden vectors hold."""
    random = masks.words(RNG, b, c, V, stream(KIND["EMBEDDING"], 0))
    return masks.factor(random, torch.tensor(threshold(P)), torch.float32)


def expected_factor(per: str, ids: Tensor) -> Tensor:
    once, zero = torch.tensor([SEQ]), torch.tensor([0])
    if per == "type":
        return table(zero, once)[0, 0, ids]
    examples = torch.arange(ids.size(1))
    if per == "example":
        return table(examples, once)[0][examples, ids]
    return table(examples, torch.arange(ids.size(0)))[torch.arange(ids.size(0))[:, None], examples, ids]


@pytest.mark.parametrize("per", ["type", "example", "token"])
def test_the_mask_is_a_function_of_the_word(per: str) -> None:
    drop, ids = build(per), words()
    factor = expected_factor(per, ids)
    assert 0 < (factor == 0).sum() < factor.numel()
    assert torch.equal(drop(ids, rng=RNG), drop.embedding(ids) * factor[..., None])
    turned = EmbeddingDropout(drop.embedding, P, per=per, batch_first=True)
    assert torch.equal(turned(ids.t(), rng=RNG), drop(ids, rng=RNG).transpose(0, 1))


def test_occurrences_of_a_word() -> None:
    ids = words(200, 3)
    for per, alike in (("type", (0, 1)), ("example", (0,)), ("token", ())):
        dropped = (build(per)(ids, rng=RNG) == 0).all(-1)
        for dim in (0, 1):  # over steps, over examples
            same = all(
                len(set(dropped[ids == word].tolist())) == 1
                if dim == 1
                else all(len(set(dropped[:, b][ids[:, b] == word].tolist())) <= 1 for b in range(3))
                for word in range(V)
            )
            assert same == (dim in alike), (per, dim)


def test_rate_and_mean() -> None:
    drop = EmbeddingDropout(nn.Embedding(50_000, 1), 0.3)
    nn.init.ones_(drop.embedding.weight)
    out = drop(torch.arange(50_000), rng=RNG)
    rate = (out == 0).double().mean()
    assert abs(float(rate) - 0.3) < 5 * (0.3 * 0.7 / 50_000) ** 0.5
    assert torch.equal(out[out != 0], torch.full_like(out[out != 0], 1 / 0.7))


def test_gradient_is_that_of_the_masked_matrix() -> None:
    drop, ids = build(), words()
    out = drop(ids, rng=RNG)
    weight = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * weight).sum(), drop.embedding.weight)
    matrix = drop.embedding.weight.detach().clone().requires_grad_()
    factor = table(torch.tensor([0]), torch.tensor([SEQ]))[0, 0]
    (right,) = torch.autograd.grad((nn.functional.embedding(ids, matrix * factor[:, None]) * weight).sum(), matrix)
    torch.testing.assert_close(gradient, right)
    assert (factor == 0).any() and (gradient[factor == 0] == 0).all()


@pytest.mark.parametrize("options", [{"padding_idx": 3}, {"scale_grad_by_freq": True}, {"sparse": True},
                                     {"max_norm": 0.5}], ids=lambda options: next(iter(options)))  # fmt: skip
def test_what_the_embedding_does_it_still_does(options: dict[str, Any]) -> None:
    ids = words()
    ids[0] = 3
    drop, plain = build(**options), build(p=0.0, **options)
    assert torch.equal(drop.embedding.weight, plain.embedding.weight)
    factor = expected_factor("type", ids)[..., None]
    mine, right = drop(ids, rng=RNG), plain(ids) * factor
    assert torch.equal(mine, right)
    mine.square().sum().backward(), right.square().sum().backward()
    grads = [module.embedding.weight.grad for module in (drop, plain)]
    assert grads[0] is not None and grads[0].is_sparse == grads[1].is_sparse == options.get("sparse", False)
    assert torch.equal(grads[0].to_dense(), grads[1].to_dense())
    if "padding_idx" in options:
        assert (grads[0][3] == 0).all()


def test_a_tied_decoder_reads_the_undropped_matrix() -> None:
    drop, ids = build(), words()
    decoder = nn.Linear(D, V, bias=False)
    decoder.weight = drop.embedding.weight
    before = decoder.weight.detach().clone()
    logits = decoder(drop(ids, rng=RNG))
    assert torch.equal(decoder.weight, before) and decoder.weight is drop.embedding.weight
    torch.testing.assert_close(logits, (drop.embedding(ids) * expected_factor("type", ids)[..., None]) @ before.t())
    logits.sum().backward()
    never = [word for word in range(V) if word not in ids]
    assert never and (drop.embedding.weight.grad[never] != 0).all()  # from the decoder alone


@pytest.mark.parametrize("per", ["type", "example", "token"])
def test_split_over_calls(per: str) -> None:
    drop, ids = build(per), words()
    whole = drop(ids, rng=RNG)
    later = drop(ids[4:], rng=RNG, step_offset=4)
    assert torch.equal(torch.cat([drop(ids[:4], rng=RNG), later]), whole)
    rows = torch.tensor([3, 1])
    assert torch.equal(drop(ids[:, rows], rng=RNG, example_ids=rows), whole[:, rows])


@pytest.mark.parametrize("per", ["type", "example", "token"])
def test_packed(per: str) -> None:
    drop, ids, lengths = build(per), words(), torch.tensor([3, 9, 1, 5])
    packed = drop(pack_padded_sequence(ids, lengths, enforce_sorted=False), rng=RNG)
    right = pack_padded_sequence(drop(ids, rng=RNG), lengths, enforce_sorted=False)
    assert torch.equal(packed.data, right.data) and torch.equal(packed.unsorted_indices, right.unsorted_indices)
    example_ids = torch.tensor([7, 0, 5, 2])
    mine = drop(pack_padded_sequence(ids, lengths, enforce_sorted=False), rng=RNG, example_ids=example_ids)
    right = pack_padded_sequence(drop(ids, rng=RNG, example_ids=example_ids), lengths, enforce_sorted=False)
    assert torch.equal(mine.data, right.data)


def test_eval_and_mc() -> None:
    drop, ids = build().eval(), words()
    state = torch.get_rng_state()
    assert torch.equal(drop(ids), drop.embedding(ids)) and torch.equal(torch.get_rng_state(), state)
    frd.mc_dropout(nn.ModuleList([drop]))
    assert torch.equal(drop(ids, rng=RNG), drop.train()(ids, rng=RNG)) and not torch.equal(drop(ids), drop(ids))


def test_the_ends_of_the_rate() -> None:
    ids, nothing = words(), build(p=0.0)
    state = torch.get_rng_state()
    assert torch.equal(nothing(ids), nothing.embedding(ids)) and torch.equal(torch.get_rng_state(), state)
    nothing.set_rate("embedding_dropout", 0.0)
    assert torch.equal(nothing(ids), nothing.embedding(ids)) and not torch.equal(torch.get_rng_state(), state)
    everything = build(p=1.0)
    everything.embedding.weight.data[5] = torch.inf
    assert (everything(ids) == 0).all()


def test_a_narrow_dtype_is_scaled_in_float32() -> None:
    drop, ids = build().to(torch.bfloat16), words()
    right = (drop.embedding(ids).float() * expected_factor("type", ids)[..., None]).to(torch.bfloat16)
    assert drop(ids, rng=RNG).dtype == torch.bfloat16 and torch.equal(drop(ids, rng=RNG), right)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("per", ["type", "token"])
def test_compiled_code_sees_a_new_rate(per: str, backend: str) -> None:
    drop, ids = build(per), words()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(drop, fullgraph=True, backend=counter)
    for rate in (P, 0.0, 0.9, 1.0, 0.1):
        drop.set_rate("embedding_dropout", rate)
        assert torch.equal(compiled(ids, rng=RNG), drop(ids, rng=RNG))
    assert counter.frame_count == 1


def test_held() -> None:
    drop, ids = build("token"), words()
    with frd.hold_masks(nn.Sequential(drop)) as held:
        parts = torch.cat([drop(ids[:2]), drop(ids[2:3]), drop(ids[3:])])
        assert held.step_offset["0"] == T
    assert torch.equal(parts, drop(ids, rng=held.rng["0"]))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda module: pickle.loads(pickle.dumps(module))],
                         ids=["deepcopy", "copy", "pickle"])  # fmt: skip
def test_a_copy_has_its_own_rate(copied: Any) -> None:
    drop, ids = build(), words()
    twin = copied(drop)
    assert torch.equal(twin(ids, rng=RNG), drop(ids, rng=RNG)) and twin.p == P
    twin.p = 0.9
    assert drop.p == P and torch.equal(drop(ids, rng=RNG), build()(ids, rng=RNG))
    assert not torch.equal(twin(ids, rng=RNG), drop(ids, rng=RNG))


def test_state_dict_holds_the_matrix_alone() -> None:
    assert list(build().state_dict()) == ["embedding.weight"] and "p=0.4" in repr(build())
    assert not {"_thresholds", "_placed"} & set(build().__getstate__())  # no tensor of a device in a pickle


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: EmbeddingDropout(nn.Linear(2, 3)), TypeError, "embedding should be an nn.Embedding, got Linear"),
        (lambda: build("word"), ValueError, "per should be one of 'type', 'example', 'token', got 'word'"),
        (lambda: build(p=1.5), ValueError, r"embedding_dropout should be a number in range \[0, 1\].*1.5"),
        (lambda: build(p=float("nan")), ValueError, "embedding_dropout should be a number"),
        (lambda: build().set_rate("dropout", 0.5), ValueError, "'dropout' is not a site of a EmbeddingDropout"),
        (lambda: build("token")(words(2, 3, 4)), ValueError, "words should have 1 or 2 dimensions where per='token'"),
        (
            lambda: build("token")(PackedSequence(words(3, 2), torch.tensor([2, 1]))),
            ValueError,
            "words should have 1 dimensions where per=.token., got 2",
        ),
        (lambda: build()(words(), rng=torch.zeros(3)), ValueError, "rng should be an int64 tensor of shape"),
        (lambda: build()(words(), rng={None: RNG}), TypeError, "rng of a EmbeddingDropout should be"),
        (lambda: build()([1, 2]), TypeError, "words should be a Tensor or a PackedSequence, got list"),
        (lambda: build("example")(words(), example_ids=torch.arange(3)), ValueError, "example_ids should be an int64"),
        (lambda: build()(words() + V), IndexError, "out of range"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
