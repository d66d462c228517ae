"""FraternalLoss: its variants, what both passes share, and what does not count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout.training import EmbeddingDropout, FraternalLoss

V, T, B = 11, 5, 3


class Model(nn.Module):
    """Notes the logits of its passes, and what masks they had."""

    def __init__(self, **sites: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = EmbeddingDropout(nn.Embedding(V, 6), sites.pop("embedding_dropout", 0.3))
        self.rnn = frd.LSTM(6, 6, **(sites or {"weight_dropout": 0.4, "output_dropout": 0.4}))
        self.decoder = nn.Linear(6, V)
        self.norm = nn.BatchNorm1d(V)
        self.passes: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, ids: Tensor, state: Any = None, scale: float = 1.0) -> tuple[Tensor, Any]:
        hidden, state = self.rnn(self.words(ids), state)
        self.passes.append(self.decoder(hidden) * scale)
        self.modes.append(self.training)
        return self.passes[-1], state


def data() -> tuple[Tensor, Tensor]:
    ids = torch.randint(V, (T + 1, B), generator=torch.Generator().manual_seed(1))
    return ids[:-1], ids[1:]


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, V), target.reshape(-1))


@pytest.mark.parametrize("variant", ["fraternal", "pi", "eld", "rdrop"])
def test_variants(variant: str) -> None:
    model, (x, target) = Model(), data()
    result = FraternalLoss(0.7, variant)(model, x, target=target, scale=2.0)
    z1, z2 = model.passes
    assert not torch.equal(z1, z2) and result.first[0] is z1
    squares = (z1 - z2).pow(2).mean()
    kl = sum(
        F.kl_div(a.log_softmax(-1), b.softmax(-1), reduction="none").sum(-1).mean() for a, b in ((z1, z2), (z2, z1))
    )
    right = {
        "fraternal": (loss_of(z1, target) + loss_of(z2, target)) / 2 + 0.7 * squares,
        "pi": loss_of(z1, target) + 0.7 * squares,
        "eld": loss_of(z1, target) + 0.7 * squares,
        "rdrop": loss_of(z1, target) + loss_of(z2, target) + 0.7 * kl / 2,
    }[variant]
    torch.testing.assert_close(result.loss, right)
    torch.testing.assert_close(result.penalty, kl / 2 if variant == "rdrop" else squares)
    gradients = torch.autograd.grad(result.loss, list(model.rnn.parameters()), retain_graph=True)
    for mine, theirs in zip(gradients, torch.autograd.grad(right, list(model.rnn.parameters())), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_second_pass_of_eld_is_eval() -> None:
    model, (x, target) = Model(), data()
    model.norm.eval()
    FraternalLoss(variant="eld")(model, x, target=target)
    assert model.modes == [True, False] and model.training and model.rnn.training and not model.norm.training
    assert torch.equal(model.passes[1], model.eval()(x)[0])


def test_equal_masks_have_no_penalty() -> None:
    model, (x, target) = Model(), data()
    share = ("embedding", "input", "inter_layer", "output", "hidden", "weight", "state")
    result = FraternalLoss(0.7, share=share)(model, x, target=target)
    assert torch.equal(*model.passes) and result.penalty == 0
    torch.testing.assert_close(result.loss, loss_of(model.passes[0], target))


def test_without_kappa_it_is_the_mean_loss() -> None:
    model, (x, target) = Model(), data()
    result = FraternalLoss(0.0)(model, x, target=target)
    torch.testing.assert_close(result.loss, sum(loss_of(z, target) for z in model.passes) / 2)
    assert result.penalty > 0


@pytest.mark.parametrize("shared", ["weight", "output", "embedding"])
def test_shared_groups(shared: str) -> None:
    """With one site the passes are equal where its group is shared, and differ where another is."""
    for site in ("weight", "output", "embedding"):
        off = {"embedding_dropout": 0.0, "zoneout_h": frd.Zoneout(0.0)}
        model, (x, target) = Model(**{**off, f"{site}_dropout": 0.5}), data()
        FraternalLoss(share=shared)(model, x, target=target)
        assert torch.equal(*model.passes) == (site == shared), site
        before = model.passes
        FraternalLoss(share=[shared])(model, x, target=target)
        assert not torch.equal(before[0], model.passes[2])  # the next call draws anew


def test_layers_do_not_share_a_pair() -> None:
    model = nn.Sequential(frd.LSTM(4, 4, weight_dropout=0.5), frd.LSTM(4, 4, weight_dropout=0.5))
    model[1].load_state_dict(model[0].state_dict())
    seen = []

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnns = model

        def forward(self, x: Tensor) -> Tensor:
            seen.append([rnn(x)[0] for rnn in self.rnns])
            out: Tensor = seen[-1][0]
            return out

    x = torch.randn(T, B, 4)
    FraternalLoss(share="weight")(Both(), x, target=torch.zeros(T, B, dtype=torch.int64))
    assert torch.equal(seen[0][0], seen[1][0]) and not torch.equal(seen[0][0], seen[0][1])


@pytest.mark.parametrize("variant", ["fraternal", "rdrop"])
def test_ignored_targets_do_not_count(variant: str) -> None:
    logits = [torch.randn(T, B, V, requires_grad=True) for _ in range(2)]
    target = data()[1].clone()
    target[3:, 1] = 7
    with torch.no_grad():
        for z in logits:
            z[3:, 1] = torch.nan
    turns = iter(logits)

    class Fixed(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            return next(turns)

    target[target == 7] = -1
    result = FraternalLoss(0.5, variant, ignore_index=-1)(Fixed(), torch.zeros(1), target=target)
    kept = (target != -1).reshape(-1)
    z1, z2 = (z.detach().reshape(-1, V)[kept] for z in logits)
    if variant == "fraternal":
        torch.testing.assert_close(result.penalty, (z1 - z2).pow(2).mean())
    else:
        p1, p2 = z1.softmax(-1), z2.softmax(-1)
        right = 0.5 * (p1 * (p1 / p2).log() + p2 * (p2 / p1).log()).sum(-1).mean()
        torch.testing.assert_close(result.penalty, right)
    result.penalty.backward()
    assert all((z.grad[3:, 1] == 0).all() and z.grad.isfinite().all() for z in logits)


def test_a_criterion_of_ones_own() -> None:
    model, (x, target) = Model(), data()

    def criterion(logits: Tensor, ids: Tensor) -> Tensor:
        return logits.sum() + ids.sum()

    result = FraternalLoss(0.0, "pi", criterion=criterion)(model, x, target=target)
    torch.testing.assert_close(result.loss, model.passes[0].sum() + target.sum())


def test_bad_input() -> None:
    model, (x, target) = Model(), data()
    for options, message in (
        ({"variant": "both"}, "variant should be one of 'fraternal'"),
        ({"kappa": -1.0}, "kappa should be at least 0, got -1.0"),
        ({"share": ["weights"]}, "share has a group 'weights'; allowed are 'input'"),
        ({"share": ["weight"], "variant": "eld"}, "share should be empty with variant='eld'"),
    ):
        with pytest.raises(ValueError, match=message):
            FraternalLoss(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="target should be a Tensor, got list"):
        FraternalLoss()(model, x, target=[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit a target of shape"):
        FraternalLoss()(model, x, target=target[1:])
    with pytest.raises(ValueError, match="the model has no module of this package with masks of weight to share"):
        FraternalLoss(share="weight")(nn.Linear(3, 3), x, target=target)

    class Strange(nn.Module):
        def forward(self, _: Tensor) -> dict[str, int]:
            return {}

    with pytest.raises(TypeError, match="model should return logits, or a tuple that begins with them, got dict"):
        FraternalLoss()(Strange(), x, target=target)
