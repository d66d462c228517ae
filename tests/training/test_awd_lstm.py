"""AWD-LSTM: that it is what its parts make, that each of its sites acts, and fastai's weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout.training import (
    AWDLSTM,
    NTASGD,
    AWDLSTMClassifier,
    AWDLSTMEncoder,
    FraternalLoss,
    OutputDropout,
    activation_regularization,
    load_fastai,
    temporal_activation_regularization,
)
from fused_rnn_dropout.training.awd_lstm import derived, detach

V, E, H, T, B = 13, 6, 9, 7, 3
RNG = torch.tensor([2**63 - 1, 2**63 - 1])  # the sum with a layer's number wraps
OFF = dict.fromkeys(
    ("embedding_dropout", "input_dropout", "inter_layer_dropout", "output_dropout", "weight_dropout"), 0.0
)
WORDS = torch.randint(V, (T, B), generator=torch.Generator().manual_seed(1))


def build(num_layers: int = 3, **options: Any) -> AWDLSTM:
    torch.manual_seed(0)
    return AWDLSTM(V, E, H, num_layers, **options)


def plain(model: AWDLSTM, words: Tensor) -> Tensor:
    """The same with torch.nn's layers."""
    x = F.embedding(words, model.encoder.words.embedding.weight)
    for rnn in model.encoder.rnns:
        theirs = nn.LSTM(rnn.input_size, rnn.hidden_size)
        theirs.load_state_dict(rnn.state_dict())
        x = theirs(x)[0]
    return F.linear(x, model.decoder.weight, model.decoder.bias)


def test_without_masks_it_is_a_stack_of_torchs() -> None:
    model = build()
    assert [(rnn.input_size, rnn.hidden_size) for rnn in model.encoder.rnns] == [(E, H), (H, H), (H, E)]
    torch.testing.assert_close(model.eval()(WORDS)[0], plain(model, WORDS))
    torch.testing.assert_close(build(**OFF)(WORDS)[0], plain(model, WORDS))
    assert model.decoder.weight is model.encoder.words.embedding.weight
    assert build(tied=False).decoder.weight is not build(tied=False).encoder.words.embedding.weight


def test_with_masks_it_is_its_parts() -> None:
    model, ids = build(zoneout_c=0.2), torch.tensor([5, 0, 2])
    encoder, options = model.encoder, {"example_ids": ids, "step_offset": 4}
    x = encoder.words(WORDS, rng=derived(RNG, 0), **options)
    for layer, rnn in enumerate(encoder.rnns):
        assert rnn.input_dropout == (0.25 if layer else 0.4) and rnn.weight_dropout == 0.5 and rnn.zoneout_c == 0.2
        x, _ = rnn(x, rng=derived(RNG, layer + 1), **options)
    encoded = model.encode(WORDS, rng=RNG, **options)
    dropped = encoder.output(x, rng=derived(RNG, 4), example_ids=ids)
    assert torch.equal(encoded.raw, x) and torch.equal(encoded.dropped, dropped) and not torch.equal(x, dropped)
    assert torch.equal(encoded.logits, model.decoder(dropped))
    assert len({tuple(derived(RNG, number).tolist()) for number in range(5)}) == 5
    masks = [frd.export_masks(encoder.rnns[layer], torch.zeros(T, B, H), derived(RNG, layer + 1)) for layer in (1, 2)]
    assert not torch.equal(masks[0]["input"], masks[1]["input"])


@pytest.mark.parametrize("site", list(OFF))
def test_each_site_acts_in_training_and_not_in_eval(site: str) -> None:
    model = build(**{**OFF, site: 0.5})
    assert not torch.allclose(model(WORDS)[0], model(WORDS)[0])
    for training in (False, True, False):  # and again after a cycle
        model.train(training)
        assert torch.equal(model(WORDS)[0], model(WORDS)[0]) != training
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(WORDS)[0], model(WORDS)[0])
    model.train()(WORDS)[0].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_segments_of_one_sequence() -> None:
    model = build()
    whole, last = model(WORDS, rng=RNG)
    first, state = model(WORDS[:3], rng=RNG)
    second, end = model(WORDS[3:], detach(state), rng=RNG, step_offset=3)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(end, last)
    assert all(not part.requires_grad for pair in detach(state) for part in pair)
    with frd.hold_masks(model):
        parts = [model(WORDS[:3])]
        parts.append(model(WORDS[3:], parts[0][1]))
    with frd.hold_masks(model) as held:
        pass
    assert {"encoder.words", "encoder.output", "encoder.rnns.0"} <= set(held.rng)


def test_held_segments_are_the_whole() -> None:
    model = build(output_dropout=0.6)
    with frd.hold_masks(model) as held:
        first, state = model(WORDS[:3])
        second, _ = model(WORDS[3:], state)
        pairs = dict(held.rng)
    with frd.hold_masks(model, pairs):
        torch.testing.assert_close(model(WORDS)[0], torch.cat([first, second]))


def test_it_trains_by_the_recipe() -> None:
    model = build(1)
    optimizer = NTASGD(model.parameters(), 3.0, n=2, weight_decay=1.2e-6)
    targets = WORDS.roll(-1, 0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        encoded = model.encode(WORDS)
        assert encoded.logits is not None
        loss = F.cross_entropy(encoded.logits.flatten(0, 1), targets.flatten())
        penalty = activation_regularization(encoded.dropped) + temporal_activation_regularization(encoded.raw)
        (loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        with optimizer.averaged(), torch.no_grad():
            model.eval()
            losses.append(float(F.cross_entropy(model(WORDS)[0].flatten(0, 1), targets.flatten())))
            model.train()
        optimizer.observe(losses[-1])
    assert min(losses) < 0.9 * losses[0]


def test_output_dropout_is_that_of_a_layer() -> None:
    layer = frd.LSTM(E, E, output_dropout=0.4)
    drop, x = OutputDropout(0.4), torch.randn(T, B, E)
    raw = frd.LSTM(E, E)
    raw.load_state_dict(layer.state_dict())
    rng, ids = torch.tensor([1, 2]), torch.tensor([4, 1, 7])
    torch.testing.assert_close(drop(raw(x)[0], rng=rng, example_ids=ids), layer(x, rng=rng, example_ids=ids)[0])
    lengths = torch.tensor([2, 7, 4])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    right = pack_padded_sequence(drop(x, rng=rng, example_ids=ids), lengths, enforce_sorted=False)
    assert torch.equal(drop(packed, rng=rng, example_ids=ids).data, right.data)
    assert torch.equal(drop.eval()(x), x)
    for bad, error, says in (
        (x[0], ValueError, "x should have 3 dimensions, got 2"),
        (x.long(), ValueError, "x should have a floating dtype, got torch.int64"),
        (packed._replace(data=packed.data[:, 0]), ValueError, "data of x should have 2 dimensions, got 1"),
        ([1.0], TypeError, "x should be a Tensor or a PackedSequence, got list"),
    ):
        with pytest.raises(error, match=says):
            drop(bad)


def test_masks_of_the_output_can_be_shared() -> None:
    model = build(**{**OFF, "output_dropout": 0.5})
    targets = WORDS.roll(-1, 0)
    assert FraternalLoss(share="output")(model, WORDS, target=targets).penalty < 1e-10
    assert FraternalLoss(share="embedding")(model, WORDS, target=targets).penalty > 1e-6


@pytest.mark.parametrize("training", [False, True])
def test_the_classifier_does_not_see_padding(training: bool) -> None:
    model = AWDLSTMClassifier(build(2, **OFF).encoder, 4, 8, (0.0, 0.0)).train(training)
    lengths = torch.tensor([2, 7, 4])
    other = WORDS.clone()
    for row, length in enumerate(lengths):
        other[int(length) :, row] = 5
    first, second = model(WORDS, lengths), model(other, lengths)
    assert first.shape == (B, 4)
    torch.testing.assert_close(first, second)
    out = model.encoder(WORDS).raw
    rows = [out[: int(length), row] for row, length in enumerate(lengths)]
    pooled = torch.stack([torch.cat([row[-1], row.amax(0), row.mean(0)]) for row in rows])
    torch.testing.assert_close(first, model.head(pooled))
    first.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# fastai
# ---------------------------------------------------------------------------------------------------------------------


def fastai_state(prefix: str = "0.", decoder: bool = True) -> dict[str, Tensor]:
    """A made-up state with the names that fastai gives."""
    model = build()
    state = {f"{prefix}encoder.weight": model.decoder.weight.detach()}
    state[f"{prefix}encoder_dp.emb.weight"] = state[f"{prefix}encoder.weight"].clone()
    for layer, rnn in enumerate(model.encoder.rnns):
        for name, value in rnn.state_dict().items():
            kept = "weight_hh_l0_raw" if name == "weight_hh_l0" else f"module.{name}"
            state[f"{prefix}rnns.{layer}.{kept}"] = value
        state[f"{prefix}rnns.{layer}.module.weight_hh_l0"] = F.dropout(rnn.weight_hh_l0.detach(), 0.5)
    if decoder:
        state["1.decoder.weight"] = state[f"{prefix}encoder.weight"].clone()
        state["1.decoder.bias"] = torch.randn(V)
    return state


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_fastais_language_model(saved: bool, tied: bool) -> None:
    state = fastai_state()
    torch.manual_seed(7)
    model = AWDLSTM(V, E, H, 3, tied=tied).eval()
    load_fastai(model, {"model": state, "opt": {}} if saved else state)
    assert torch.equal(model.decoder.bias, state["1.decoder.bias"])
    for layer, rnn in enumerate(model.encoder.rnns):
        assert torch.equal(rnn.weight_hh_l0, state[f"0.rnns.{layer}.weight_hh_l0_raw"])
    right = build()
    right.decoder.bias.data.copy_(state["1.decoder.bias"])
    torch.testing.assert_close(model(WORDS)[0], plain(right, WORDS))
    assert (model.decoder.weight is model.encoder.words.embedding.weight) == tied
    if not tied:
        own = torch.randn(V, E)
        load_fastai(model, {**state, "1.decoder.weight": own})
        assert torch.equal(model.decoder.weight, own)


@pytest.mark.parametrize("prefix", ["", "0.", "0.module."])
def test_fastais_encoder(prefix: str) -> None:
    state = fastai_state(prefix, decoder=prefix == "0.")
    if prefix == "0.module.":
        state["1.layers.0.0.weight"] = torch.zeros(3)
    torch.manual_seed(7)
    encoder = AWDLSTMEncoder(V, E, H).eval()
    load_fastai(AWDLSTMClassifier(encoder, 2) if prefix == "0.module." else encoder, state)
    torch.testing.assert_close(encoder(WORDS).raw, build().eval().encoder(WORDS).raw)


def test_what_does_not_fit_is_named_and_loads_nothing() -> None:
    def without(key: str) -> dict[str, Tensor]:
        return {name: value for name, value in fastai_state().items() if name != key}

    model = AWDLSTM(V, E, H, 3)
    before = copy.deepcopy(model.state_dict())
    other = torch.zeros(V, E)
    for state, message in (
        ({"weight": other}, "state has no encoder.weight"),
        (without("0.rnns.1.weight_hh_l0_raw"), "state lacks 0.rnns.1.weight_hh_l0_raw, which a model of 3 layers has"),
        ({**fastai_state(), "0.rnns.3.weight_hh_l0_raw": other}, "state has 0.rnns.3.weight_hh_l0_raw, which"),
        ({**fastai_state(), "0.encoder_dp.emb.weight": other}, "should be equal, and differ"),
        ({**fastai_state(), "1.decoder.weight": other}, "the saved decoder is not tied"),
        (without("1.decoder.bias"), "state lacks 1.decoder.bias: it is no language model's"),
        ({**fastai_state(), "1.layers.0.weight": other}, "state has 1.layers.0.weight: it is no language model's"),
    ):
        with pytest.raises(ValueError, match=message):
            load_fastai(model, state)
    with pytest.raises(RuntimeError, match="size mismatch for words.embedding.weight"):
        load_fastai(AWDLSTM(V + 1, E, H, 3), fastai_state())
    with pytest.raises(TypeError, match="model should be an AWDLSTM"):
        load_fastai(nn.Linear(2, 2), fastai_state())  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="num_layers should be at least 1, got 0"):
        build(0)
    with pytest.raises(ValueError, match=r"state should have a pair \(h, c\) for each of 3 layers, got 1"):
        build()(WORDS, [(torch.zeros(1, B, H), torch.zeros(1, B, H))])
    with pytest.raises(ValueError, match="weight_dropout should be a number"):
        build(weight_dropout=2.0)
    for name in ("batch_first", "dropout", "mc", "bidirectional", "foo"):
        with pytest.raises(TypeError, match=f"AWDLSTMEncoder got an unexpected keyword argument '{name}'"):
            build(**{name: True})
    with pytest.raises(ValueError, match=r"words should have 2 dimensions \(T, B\), got 1"):
        build()(WORDS[0])
    for rng, error in ((5, TypeError), ({None: RNG}, TypeError), (torch.zeros(3, dtype=torch.int64), ValueError)):
        with pytest.raises(error, match="rng .*should be an int64 tensor of shape"):
            build()(WORDS, rng=rng)


def test_packed_words_give_packed_logits() -> None:
    model, lengths = build(zoneout_c=0.2), torch.tensor([2, 7, 4])
    logits, state = model(pack_padded_sequence(WORDS, lengths, enforce_sorted=False), rng=RNG)
    right = pack_padded_sequence(model(WORDS, rng=RNG)[0], lengths, enforce_sorted=False)
    torch.testing.assert_close(logits.data, right.data)
    assert torch.equal(logits.batch_sizes, right.batch_sizes) and state[0][0].shape == (1, B, H)
