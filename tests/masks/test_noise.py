"""Gaussian noise in a mask's place, masks of h that are drawn per step, and zoneout of whole steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fused_rnn_dropout as frd
from fused_rnn_dropout import masks
from fused_rnn_dropout.sites import KIND, stream, threshold

T, B, I, H = 7, 4, 5, 6
RNG = torch.tensor([21, -4])

NOISE: dict[str, Any] = {
    "input_dropout": frd.LockedDropout(0.3, noise="gaussian"),
    "output_dropout": frd.LockedDropout(0.3, noise="gaussian"),
    "hidden_dropout": frd.HiddenDropout(0.3, noise="gaussian"),
    "weight_dropout": frd.WeightDropout(0.3, noise="gaussian"),
}


def numbers(count: int) -> Tensor:
    return masks.words(RNG, torch.arange(64), torch.arange(8), count, stream(KIND["HIDDEN"], 0))


def exported(cell: str = "LSTM", **sites: Any) -> dict[str, Tensor]:
    rnn = getattr(frd, cell)(I, H, backend="reference", dtype=torch.float64, **sites)
    return frd.export_masks(rnn, torch.zeros(T, B, I, dtype=torch.float64), RNG)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_mean_and_variance_are_those_of_the_mask(p: float) -> None:
    noise = masks.gaussian(numbers(512), torch.tensor(threshold(p)), torch.float64)
    n, alpha = noise.numel(), p / (1 - p)
    assert abs(float(noise.mean()) - 1) < 5 * (alpha / n) ** 0.5
    assert abs(float(noise.var()) / alpha - 1) < 5 * (2 / n) ** 0.5
    mask = masks.factor(numbers(512), torch.tensor(threshold(p)), torch.float64)
    assert abs(float(mask.var()) / alpha - 1) < 0.05


def test_its_distribution_is_the_normal_one() -> None:
    """Each number means the quantile at its own place, so that sorted numbers are sorted noise."""
    normal = masks.gaussian(numbers(512), torch.tensor(threshold(0.5)), torch.float64).flatten() - 1  # variance 1
    ranks = torch.arange(1, normal.numel() + 1, dtype=torch.float64) / normal.numel()
    distance = (torch.special.ndtr(normal.sort().values) - ranks).abs().max()
    assert float(distance) * normal.numel() ** 0.5 < 2.5  # Kolmogorov and Smirnov: 1 chance in 100,000
    ends = masks.gaussian(torch.tensor([0, 2**31, 2**32 - 1]), torch.tensor(threshold(0.5)), torch.float64) - 1
    assert bool(ends.isfinite().all()) and float(ends[0]) == -float(ends[2]) < -6 and abs(float(ends[1])) < 1e-8


def test_rate_0_is_no_noise_and_1_is_refused() -> None:
    assert torch.equal(masks.gaussian(numbers(9), torch.tensor(0), torch.float32), torch.ones(8, 64, 9))
    for spec in (frd.LockedDropout, frd.HiddenDropout, frd.WeightDropout):
        with pytest.raises(ValueError, match=f"{spec.__name__} noise='gaussian' needs p < 1"):
            spec(1.0, noise="gaussian")
        with pytest.raises(ValueError, match=f"{spec.__name__} noise should be one of 'bernoulli', 'gaussian'"):
            spec(0.5, noise="normal")
    rnn = frd.LSTM(I, H, backend="reference", hidden_dropout=NOISE["hidden_dropout"])
    with pytest.raises(ValueError, match="needs p < 1"):
        rnn.set_rate("hidden_dropout", 1.0)
    assert rnn.hidden_dropout == 0.3


@pytest.mark.parametrize("name", NOISE)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_noise_of_a_layer(name: str, cell: str) -> None:
    """In training it moves every element and lasts as the mask would; in eval there is none; a rate can change."""
    rnn = getattr(frd, cell)(I, H, backend="reference", dtype=torch.float64, **{name: NOISE[name]})
    (noise,) = (mask for key, mask in exported(cell, **{name: NOISE[name]}).items())
    dropped = next(iter(exported(cell, **{name: 0.3}).values()))
    assert noise.shape == dropped.shape and not bool((noise == 0).any() | (noise == 1).any())
    x = torch.randn(T, B, I, dtype=torch.float64)
    plain = getattr(frd, cell)(I, H, dtype=torch.float64)
    plain.load_state_dict(rnn.state_dict())
    assert not torch.allclose(rnn(x, rng=RNG)[0], plain(x)[0])
    rnn.set_rate(name, 0.0)
    torch.testing.assert_close(rnn(x, rng=RNG)[0], plain(x)[0])
    rnn.set_rate(name, 0.3)
    torch.testing.assert_close(rnn.eval()(x)[0], plain(x)[0])


def test_noise_on_weights_is_in_the_gradient() -> None:
    rnn = frd.RNN(I, H, backend="reference", dtype=torch.float64, weight_dropout=NOISE["weight_dropout"])
    factor = frd.export_masks(rnn, torch.zeros(1, B, I, dtype=torch.float64), RNG)["weight_hh_l0"]
    x, h = torch.randn(1, B, I, dtype=torch.float64), torch.randn(1, B, H, dtype=torch.float64)
    out, _ = rnn(x, h, rng=RNG)
    out.sum().backward()
    expected = (1 - out[0] ** 2).T @ h[0] * factor
    torch.testing.assert_close(rnn.weight_hh_l0.grad, expected)


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
def test_a_mask_of_h_per_step(noise: str) -> None:
    mask = exported(hidden_dropout=frd.HiddenDropout(0.5, per="step", noise=noise))["hidden_l0"]
    assert mask.shape == (T, B, H) and not torch.equal(mask[0], mask[1])
    once = exported(hidden_dropout=frd.HiddenDropout(0.5, noise=noise))["hidden_l0"]
    assert once.shape == (1, B, H)
    with pytest.raises(ValueError, match="HiddenDropout tied=False needs per='sequence'"):
        frd.HiddenDropout(0.5, tied=False, per="step")


def test_a_mask_of_h_per_step_needs_no_hold_in_a_cell() -> None:
    cell = frd.LSTMCell(I, H, backend="reference", hidden_dropout=frd.HiddenDropout(0.5, per="step"))
    x, state = torch.randn(B, I), (torch.randn(B, H), torch.randn(B, H))
    assert not torch.equal(cell(x, state)[0], cell(x, state)[0])


# ---------------------------------------------------------------------------------------------------------------------
# Zoneout of whole steps
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("per", ["step", "sequence"])
def test_all_units_share_a_bit(cell: str, per: str) -> None:
    sites = {"zoneout_h": frd.Zoneout(0.5, per=per, unit_shared=True)}
    if cell == "LSTM":
        sites["zoneout_c"] = frd.Zoneout(0.5, per=per, unit_shared=True)
    for name, mask in exported(cell, **sites).items():
        assert mask.shape == (T if per == "step" else 1, B, H)
        assert torch.equal(mask, mask[..., :1].expand_as(mask)), name
        assert 0 < float(mask.mean()) < 1, "examples and steps have bits of their own"


def test_a_step_is_skipped_whole_where_c_and_h_share() -> None:
    both = {
        "zoneout_c": frd.Zoneout(0.5, unit_shared=True),
        "zoneout_h": frd.Zoneout(0.5, shared=True, unit_shared=True),
    }
    rnn = frd.LSTM(I, H, backend="reference", dtype=torch.float64, **both)
    x, keep = torch.randn(T, B, I, dtype=torch.float64), exported(**both)["zoneout_c_l0"][..., 0]
    out, _ = rnn(x, rng=RNG)
    before = torch.cat([torch.zeros(1, B, H, dtype=torch.float64), out[:-1]])
    assert torch.equal((out == before).all(-1), keep == 1)
    # A row with its skipped steps cut out is a row of nn.LSTM.
    plain = torch.nn.LSTM(I, H, dtype=torch.float64)
    plain.load_state_dict(rnn.state_dict())
    for row in range(B):
        taken = keep[:, row] == 0
        torch.testing.assert_close(plain(x[taken, row])[0], out[taken, row])


def test_its_eval_is_that_of_bits_by_unit() -> None:
    x, outs = torch.randn(T, B, I), []
    for unit_shared in (False, True):
        torch.manual_seed(0)
        rnn = frd.GRU(I, H, backend="reference", zoneout_h=frd.Zoneout(0.4, unit_shared=unit_shared)).eval()
        outs.append(rnn(x)[0])
    torch.manual_seed(0)
    assert torch.equal(*outs) and not torch.allclose(outs[0], torch.nn.GRU(I, H)(x)[0])
