"""Rates that are learned: relaxed masks, the penalty of Gaussian noise on weights, hypergradients of real masks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn_dropout as frd
from fused_rnn_dropout import reference
from fused_rnn_dropout.training import (
    ConcreteDropout,
    HypergradientSchedule,
    OutputDropout,
    gaussian_dropout_kl,
    mc_predict,
)

T, B, I, H = 5, 3, 4, 6


# ---------------------------------------------------------------------------------------------------------------------
# Concrete dropout
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_a_cold_relaxed_mask_is_a_mask(p: float) -> None:
    torch.manual_seed(0)
    mask = ConcreteDropout(p, temperature=1e-3).mask(400, 500).detach()
    scale = 1 / (1 - p)
    dropped, kept = (mask < 0.01 * scale).double().mean(), (mask > 0.99 * scale).double().mean()
    assert abs(float(dropped) - p) < 5 * (p * (1 - p) / mask.numel()) ** 0.5 + 0.003
    assert float(dropped + kept) > 0.98
    assert abs(float(mask.mean()) - 1) < 0.02


def test_the_gradient_of_the_rate_is_that_of_the_formula() -> None:
    drop = ConcreteDropout(0.3, temperature=0.5).double()
    weight = torch.randn(20, dtype=torch.float64)

    def loss(logit: Tensor) -> Tensor:
        with torch.no_grad():
            drop.logit.copy_(logit)
        return (drop.mask(20, generator=torch.Generator().manual_seed(3)) * weight).sum()

    start = drop.logit.detach().clone()
    loss(start).backward()
    ends = [float(loss(start + side).detach()) for side in (1e-6, -1e-6)]
    assert drop.logit.grad is not None
    assert math.isclose(float(drop.logit.grad), (ends[0] - ends[1]) / 2e-6, rel_tol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_rate_moves_where_the_loss_wants_it(sign: int) -> None:
    """The mask's variance is p / (1-p): a loss that punishes it lowers the rate, one that rewards it raises it."""
    torch.manual_seed(1)
    drop = ConcreteDropout(0.4)
    optimizer = torch.optim.SGD(drop.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (sign * (drop(torch.ones(1, 40, 50)) - 1).square().mean()).backward()
        optimizer.step()
    found = float(drop.p.detach())
    assert found < 0.3 if sign > 0 else found > 0.5


def test_it_serves_as_an_explicit_mask_of_a_step() -> None:
    drop = ConcreteDropout(0.3).double()
    weights = [torch.randn(4 * H, n, dtype=torch.float64) / 3 for n in (I, H)]
    x, h, c = torch.randn(T, B, I), torch.randn(B, H), torch.randn(B, H)
    masks = {"hidden": drop.mask(1, B, H), "update": drop.mask(T, B, H)}
    out, _ = reference.lstm(x.double(), (h.double(), c.double()), (*weights, None, None), masks)
    out.square().sum().backward()
    assert drop.logit.grad is not None and float(drop.logit.grad) != 0


def test_one_mask_for_all_steps_and_none_in_eval() -> None:
    drop, x = ConcreteDropout(0.4), torch.ones(T, B, 30)
    out = drop(x)
    assert torch.equal(out, out[:1].expand_as(out)) and not torch.equal(out[:, 0], out[:, 1])
    assert drop.eval()(x) is x


def test_cold_it_is_output_dropout_held_and_switched_as_that_is() -> None:
    cold, drop = ConcreteDropout(0.4, temperature=1e-4).double(), OutputDropout(0.4)
    rng, x = torch.tensor([3, 4]), torch.rand(T, B, 30, dtype=torch.float64) + 0.5
    right = drop(x, rng=rng, example_ids=torch.tensor([5, 0, 2]))
    torch.testing.assert_close(cold(x, rng=rng, example_ids=torch.tensor([5, 0, 2])), right)
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False)
    torch.testing.assert_close(cold(packed, rng=rng).data, drop(packed, rng=rng).data)
    with frd.hold_masks(cold, rng):
        assert torch.equal(torch.cat([cold(x[:2]), cold(x[2:])]), cold(x, rng=rng))
    assert not torch.equal(cold(x), cold(x)) and {*cold.state_dict()} == {"logit"}
    assert not torch.equal(frd.mc_dropout(cold.eval())(x), x)
    samples = mc_predict(nn.Sequential(ConcreteDropout(0.4), nn.Flatten(2)).eval(), x.float(), samples=50)
    assert not torch.allclose(samples, x.float().softmax(-1), atol=1e-3)


def test_the_penalty() -> None:
    drop, weight = ConcreteDropout(0.2), torch.randn(7, 5)
    found = drop.penalty(weight, examples=50, length_scale=0.1)
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    expected = (0.01 * float(weight.square().sum()) / (2 * 0.8) - 5 * entropy) / 50
    assert math.isclose(float(found.detach()), expected, rel_tol=1e-5)
    # Without weights the entropy alone counts: it is largest at 1/2.
    for start in (0.1, 0.9):
        drop = ConcreteDropout(start)
        drop.penalty(torch.zeros(7, 5), examples=1).backward()
        assert drop.logit.grad is not None and (float(drop.logit.grad) < 0) == (start < 0.5)


def test_kl_of_noise_on_weights() -> None:
    """Against the divergence itself, by quadrature: they differ by one constant over the whole range of alpha."""

    def divergence(alpha: float) -> float:
        # E_{n ~ N(1, alpha)} log|n| - log sqrt(alpha), up to a constant: of N(w, alpha w^2) from a log-uniform prior
        n = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64) * math.sqrt(alpha) + 1
        density = torch.exp(-((n - 1) ** 2) / (2 * alpha)) / math.sqrt(2 * math.pi * alpha)
        values = density * n.abs().clamp(min=1e-12).log()
        return float(torch.trapezoid(values, n)) - 0.5 * math.log(alpha)

    rates = (0.05, 0.2, 0.5, 0.8, 0.95)
    apart = [gaussian_dropout_kl(p) - divergence(p / (1 - p)) for p in rates]
    assert max(apart) - min(apart) < 0.02
    assert gaussian_dropout_kl(1 - 1e-6) < 1e-3 and gaussian_dropout_kl(1e-6) > 5
    p = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gaussian_dropout_kl, p)
    assert math.isclose(float(gaussian_dropout_kl(p.detach())), gaussian_dropout_kl(0.3))


# ---------------------------------------------------------------------------------------------------------------------
# Hypergradients
# ---------------------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, **sites: Any) -> None:
        super().__init__()
        self.rnn = frd.LSTM(I, H, dtype=torch.float64, **sites)
        self.output = OutputDropout(0.3)
        self.decoder = nn.Linear(H, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.output(self.rnn(x)[0]))


def problem(**sites: Any) -> tuple[Model, Any, Any]:
    torch.manual_seed(4)
    model = Model(**sites)
    data = [torch.randn(T, 8, I, dtype=torch.float64) for _ in range(2)]
    targets = [torch.randn(T, 8, 1, dtype=torch.float64) for _ in range(2)]
    return model, *(lambda x=x, y=y: (model(x) - y).square().mean() for x, y in zip(data, targets, strict=True))


def test_a_loss_that_fails_leaves_the_rates() -> None:
    model, _, valid = problem(weight_dropout=0.4)

    def fails() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        HypergradientSchedule(model).hypergradients(fails, valid)
    assert (model.rnn.weight_dropout, model.output.p) == (0.4, 0.3)


@pytest.mark.parametrize("sites", [{"weight_dropout": 0.4}, {"zoneout_c": 0.3, "weight_dropout": 0.4}], ids=str)
def test_they_are_the_change_of_the_loss_after_an_update(sites: dict[str, Any], monkeypatch: Any) -> None:
    """By brute force: the update is made at both rates, and the validation loss is read after it."""
    model, train, valid = problem(**sites)
    eta, delta = 1e-4, 0.1
    pair = torch.tensor([3, 4])
    monkeypatch.setattr(frd.training.hypergradient, "draw_rng", lambda device: pair)
    schedule = HypergradientSchedule(model, eta=eta, delta=delta)
    found = schedule.hypergradients(train, valid)
    assert set(found) == {*sites, "output_dropout"}
    before = [p.detach().clone() for p in model.parameters()]
    for site, rate in schedule.rates.items():
        module: Any = model.output if site == "output_dropout" else model.rnn
        losses = []
        for end in (rate + delta, rate - delta):
            module.set_rate(site, end)
            with frd.hold_masks(model, {"rnn": pair, "output": pair}):
                gradients = torch.autograd.grad(train(), list(model.parameters()))
            with torch.no_grad():
                for p, b, g in zip(model.parameters(), before, gradients, strict=True):
                    p.copy_(b - eta * g)
                losses.append(float(valid_in_eval(model, valid)))
                for p, b in zip(model.parameters(), before, strict=True):
                    p.copy_(b)
        module.set_rate(site, rate)
        assert math.isclose(found[site], (losses[0] - losses[1]) / (2 * delta), rel_tol=0.02), site


def valid_in_eval(model: nn.Module, valid: Any) -> Tensor:
    model.eval()
    loss = valid()
    model.train()
    return loss


def test_a_step_moves_the_rates_within_their_bounds_and_nothing_else() -> None:
    model, train, valid = problem(weight_dropout=0.4)
    train().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    weights = [p.detach().clone() for p in model.parameters()]
    schedule = HypergradientSchedule(model, lr=1e9, largest=0.03, bounds=(0.2, 0.41))
    for _ in range(3):
        before = dict(schedule.rates)
        after = schedule.step(train, valid)
        assert after == schedule.rates
        for site, rate in after.items():
            assert rate in (0.2, 0.41) or 0 < abs(rate - before[site]) <= 0.03 + 1e-12
    assert model.rnn.weight_dropout == after["weight_dropout"] and model.output.p == after["output_dropout"]
    assert model.training and all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_a_step_goes_down_the_hypergradient() -> None:
    model, train, valid = problem(weight_dropout=0.4)
    schedule = HypergradientSchedule(model, ["weight_dropout"], lr=1e-3)
    torch.manual_seed(5)
    gradient = schedule.hypergradients(train, valid)["weight_dropout"]
    torch.manual_seed(5)
    assert math.isclose(schedule.step(train, valid)["weight_dropout"], 0.4 - 1e-3 * gradient) and model.output.p == 0.3


@pytest.mark.parametrize(("make", "says"), [
    (lambda: ConcreteDropout(0.0), r"p should be inside \(0, 1\)"),
    (lambda: ConcreteDropout(1.5), "p should be a number in range"),
    (lambda: ConcreteDropout(0.5, temperature=0.0), "temperature should be above 0"),
    (lambda: ConcreteDropout()(torch.ones(3)), "x should have 3 dimensions, got 1"),
    (lambda: ConcreteDropout().penalty(torch.ones(3), examples=3), "weight should be a matrix, got 1"),
    (lambda: ConcreteDropout().penalty(torch.ones(3, 3), examples=0), "examples should be at least 1, got 0"),
    (lambda: gaussian_dropout_kl(0.0), r"p should be inside \(0, 1\), got 0"),
    (lambda: HypergradientSchedule(problem()[0], ["weight_dropout"]), "weight_dropout is configured in no module"),
    (lambda: HypergradientSchedule(nn.Linear(2, 2)), "no module of the model has a site configured"),
    (lambda: HypergradientSchedule(problem()[0], lr=0.0), "lr should be above 0"),
    (lambda: HypergradientSchedule(problem()[0], bounds=(0.5, 0.1)), "bounds should be two rates"),
    (lambda: HypergradientSchedule(nn.ModuleList([OutputDropout(0.1), OutputDropout(0.2)])),
     "output_dropout has rates 0.1, 0.2 in several module"),
])  # fmt: skip
def test_bad_arguments(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
