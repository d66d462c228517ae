"""Monte Carlo prediction: which masks its samples have, how they are averaged, and what it leaves as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout.training import EmbeddingDropout, mc_predict

V, T, B, K = 7, 4, 3, 5


class Model(nn.Module):
    def __init__(self, embedding: float = 0.0, per: str = "type", batch_first: bool = False, **sites: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = EmbeddingDropout(nn.Embedding(V, 6), embedding, per=per, batch_first=batch_first)
        self.rnn = frd.LSTM(6, 6, batch_first=batch_first, **sites)
        self.decoder = nn.Sequential(nn.Dropout(0.9), nn.Linear(6, V))
        nn.init.normal_(self.decoder[1].weight, std=2.0)
        self.calls: list[Tensor] = []

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        self.calls.append(self.decoder(self.rnn(self.words(ids))[0]))
        return self.calls[-1], None


class Transposed(nn.Module):
    def forward(self, result: tuple[Tensor, None]) -> Tensor:
        return result[0].transpose(0, 1)


IDS = torch.randint(V, (T, B), generator=torch.Generator().manual_seed(1))


def by_hand(model: Model, power: float = 1.0, temperature: float = 1.0) -> Tensor:
    """From the logits that the model noted: samples, steps, examples, words."""
    logits = torch.cat([call.unflatten(1, (-1, B)).transpose(0, 1) for call in model.calls]).double()
    p = (logits / temperature).softmax(-1)
    mean = p.log().mean(0).exp() if power == 0 else p.pow(power).mean(0).pow(1 / power)
    return mean / mean.sum(-1, keepdim=True)


@pytest.mark.parametrize("power", [1.0, 0.0, 0.5, 2.0])
def test_the_average(power: float) -> None:
    model = Model(hidden_dropout=0.5, zoneout_h=0.3)
    found = mc_predict(model, IDS, samples=K, power=power, temperature=1.3)
    assert found.shape == (T, B, V) and len(model.calls) == 1 and model.calls[0].shape == (T, K * B, V)
    torch.testing.assert_close(found.double(), by_hand(model, power, 1.3), rtol=1e-5, atol=1e-6)


def test_samples_are_rows_with_masks_of_their_own() -> None:
    model = Model(hidden_dropout=0.5)
    mc_predict(model, IDS, samples=K)
    samples = model.calls[0].unflatten(1, (K, B)).transpose(0, 1)
    assert all(not torch.allclose(samples[0], samples[k]) for k in range(1, K))


def test_samples_in_several_calls() -> None:
    model = Model(hidden_dropout=0.5)
    found = mc_predict(model, IDS, samples=K, together=2)
    assert [call.size(1) // B for call in model.calls] == [2, 2, 1]
    torch.testing.assert_close(found.double(), by_hand(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({"weight_dropout": 0.5}, K),
        ({"weight_dropout": frd.WeightDropout(0.5, per_example=True), "backend": "reference"}, 1),
        ({"hidden_dropout": frd.HiddenDropout(0.5, batch_shared=True)}, K),
        ({"embedding": 0.5}, K),
        ({"embedding": 0.5, "per": "example"}, 1),
        ({"embedding": 0.5, "per": "token"}, 1),
    ],
)
def test_masks_of_a_call_get_a_call_each(options: dict[str, Any], calls: int) -> None:
    model = Model(**options)
    mc_predict(model, IDS, samples=K)
    assert len(model.calls) == calls
    samples = torch.cat([call.unflatten(1, (-1, B)).transpose(0, 1) for call in model.calls])
    assert len(samples) == K and all(not torch.allclose(samples[0], samples[k]) for k in range(1, K))


def test_batch_first() -> None:
    model = Model(batch_first=True, hidden_dropout=0.5)
    found = mc_predict(model, IDS.t(), samples=K, batch_dim=0)
    samples = model.calls[0].unflatten(0, (K, B))
    torch.testing.assert_close(found, samples.softmax(-1).mean(0))


def test_the_multiplier() -> None:
    model = Model(embedding=0.5, per="token", hidden_dropout=0.8)
    mc_predict(model, IDS, samples=2, multiplier=0.0)
    torch.testing.assert_close(*model.calls[0].unflatten(1, (2, B)).unbind(1))
    seen = []
    model.rnn.register_forward_pre_hook(lambda *_: seen.append((model.words.p, model.rnn.hidden_dropout)))
    mc_predict(model, IDS, samples=1, multiplier=2.0)
    mc_predict(model, IDS, samples=1, multiplier={"embedding_dropout": 0.0})
    assert seen == [(1.0, 1.0), (0.0, 0.8)] and (model.words.p, model.rnn.hidden_dropout) == (0.5, 0.8)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(fails: bool) -> None:
    model = Model(hidden_dropout=0.5)
    model.decoder.eval()
    model.rnn.mc = True
    seen = []
    hook = model.decoder.register_forward_pre_hook(lambda module, _: seen.append((module.training, model.rnn.training)))
    if fails:
        model.decoder[1] = nn.Linear(5, V)
        with pytest.raises(RuntimeError):
            mc_predict(model, IDS, samples=2, multiplier=0.5)
    else:
        assert not mc_predict(model, IDS, samples=2, multiplier=0.5).requires_grad
    hook.remove()
    assert seen == [(False, False)]
    assert model.training and model.rnn.training and not model.decoder.training and not model.decoder[0].training
    assert model.rnn.mc and not model.words.mc and model.rnn.hidden_dropout == 0.5


def test_the_spread_is_that_of_the_masks() -> None:
    """Against many passes one by one: the same mean."""
    model = Model(update_dropout=0.5)
    found = mc_predict(model, IDS, samples=4000)
    again = mc_predict(model, IDS, samples=4000)
    model.eval(), frd.mc_dropout(model)
    with torch.no_grad():
        one_by_one = torch.stack([model(IDS)[0].softmax(-1) for _ in range(1000)])
    error = (one_by_one.std(0) / 1000**0.5).clamp(min=1e-4)
    assert ((found - one_by_one.mean(0)).abs() < 6 * error).all() and not torch.equal(found, again)
    assert ((found - model.eval()(IDS)[0].softmax(-1)).abs() > 6 * error).any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: mc_predict(Model(hidden_dropout=0.5), IDS, samples=0),
            ValueError,
            "samples should be an int of at least 1, got 0",
        ),
        (
            lambda: mc_predict(Model(hidden_dropout=0.5), IDS, together=0),
            ValueError,
            "together should be an int of at least 1, got 0",
        ),
        (
            lambda: mc_predict(Model(hidden_dropout=0.5), IDS, temperature=0),
            ValueError,
            "temperature should be above 0",
        ),
        (lambda: mc_predict(Model(hidden_dropout=0.5), IDS, samples=2.5), ValueError, "samples should be an int"),  # type: ignore[arg-type]
        (lambda: mc_predict(Model(hidden_dropout=0.5), IDS, batch_dim=-1), ValueError, "batch_dim should be an int"),
        (
            lambda: mc_predict(nn.Sequential(Model(hidden_dropout=0.5), Transposed()), IDS, samples=2),
            ValueError,
            r"logits should have 6 rows in dimension 1, .*got shape \(6, 4, 7\)",
        ),
        (lambda: mc_predict(Model(), IDS), ValueError, "no site of this package configured"),
        (lambda: mc_predict(Model(hidden_dropout=0.5), IDS, IDS[:, :2]), ValueError, r"one number of rows.*\(4, 2\)"),
        (lambda: mc_predict(Model(hidden_dropout=0.5), IDS, IDS[0]), ValueError, "one number of rows"),
        (lambda: mc_predict(Model(hidden_dropout=0.5)), ValueError, "one number of rows"),
        (lambda: mc_predict(Model(hidden_dropout=0.5), 3), TypeError, "inputs should be tensors, got int"),  # type: ignore[arg-type]
        (lambda: mc_predict(3, IDS), TypeError, "model should be an nn.Module"),  # type: ignore[arg-type]
        (
            lambda: mc_predict(Model(hidden_dropout=0.5), IDS, multiplier=-1),
            ValueError,
            "multiplier should be at least",
        ),
        (
            lambda: mc_predict(Model(hidden_dropout=0.5), IDS, multiplier={"zoneout_c": 1}),
            ValueError,
            "names zoneout_c",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
