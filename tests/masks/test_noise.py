"""Noise in a mask's place, multiplied or added, masks of h that are drawn per step, and zoneout of whole steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fused_rnn_dropout as frd
from fused_rnn_dropout import masks, reference
from fused_rnn_dropout.sites import KIND, stream, threshold

T, B, I, H = 7, 4, 5, 6
RNG = torch.tensor([21, -4])

SPECS: dict[str, Any] = {
    "input_dropout": frd.LockedDropout,
    "output_dropout": frd.LockedDropout,
    "hidden_dropout": frd.HiddenDropout,
    "weight_dropout": frd.WeightDropout,
}
NOISES = ("gaussian", "additive")


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
    torch.testing.assert_close(masks.additive(numbers(512), torch.tensor(threshold(p)), torch.float64), noise - 1)


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
    assert torch.equal(masks.additive(numbers(9), torch.tensor(0), torch.float32), torch.zeros(8, 64, 9))
    for spec in (frd.LockedDropout, frd.HiddenDropout, frd.WeightDropout):
        for noise in NOISES:
            with pytest.raises(ValueError, match=f"{spec.__name__} noise='{noise}' needs p < 1"):
                spec(1.0, noise=noise)
        with pytest.raises(ValueError, match=f"{spec.__name__} noise should be one of 'bernoulli', 'gaussian', 'add"):
            spec(0.5, noise="normal")
    rnn = frd.LSTM(I, H, backend="reference", hidden_dropout=frd.HiddenDropout(0.3, noise="gaussian"))
    with pytest.raises(ValueError, match="needs p < 1"):
        rnn.set_rate("hidden_dropout", 1.0)
    assert rnn.hidden_dropout == 0.3


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_noise_of_a_layer(name: str, cell: str, kind: str) -> None:
    """In training it moves every element and lasts as the mask would; in eval there is none; a rate can change."""
    site = {name: SPECS[name](0.3, noise=kind)}
    rnn = getattr(frd, cell)(I, H, backend="reference", dtype=torch.float64, **site)
    (noise,) = exported(cell, **site).values()
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
    site = {"weight_dropout": frd.WeightDropout(0.3, noise="gaussian")}
    rnn = frd.RNN(I, H, backend="reference", dtype=torch.float64, **site)
    factor = frd.export_masks(rnn, torch.zeros(1, B, I, dtype=torch.float64), RNG)["weight_hh_l0"]
    x, h = torch.randn(1, B, I, dtype=torch.float64), torch.randn(1, B, H, dtype=torch.float64)
    out, _ = rnn(x, h, rng=RNG)
    out.sum().backward()
    expected = (1 - out[0] ** 2).T @ h[0] * factor
    torch.testing.assert_close(rnn.weight_hh_l0.grad, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Noise that is added
# ---------------------------------------------------------------------------------------------------------------------

ADDED: dict[str, Any] = {
    "input_dropout": frd.LockedDropout(0.2, noise="additive"),
    "output_dropout": frd.LockedDropout(0.3, per="step", noise="additive"),
    "hidden_dropout": frd.HiddenDropout(0.4, per="step", noise="additive"),
    "weight_dropout": frd.WeightDropout(0.1, inputs=True, noise="additive"),
}


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _by_hand(cell: str, reset_after: bool, x: Any, w: Any, noise: Any) -> Any:
    """The equations with every noise, in NumPy."""
    w_ih, w_hh = w["weight_ih_l0"] + noise["weight_ih_noise_l0"], w["weight_hh_l0"] + noise["weight_hh_noise_l0"]
    h = c = np.zeros((B, H))
    outputs = []
    for t in range(T):
        a = (x[t] + noise["input_noise"][0]) @ w_ih.T + w["bias_ih_l0"]
        read = h + noise["hidden_noise_l0"][t]
        u = read @ w_hh.T + w["bias_hh_l0"]
        if cell == "LSTM":
            i, f, g, o = np.split(a + u, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
        elif cell == "GRU":
            (x_r, x_z, x_n), (u_r, u_z, u_n) = np.split(a, 3, axis=1), np.split(u, 3, axis=1)
            r, z = _sigmoid(x_r + u_r), _sigmoid(x_z + u_z)
            before = (r * read) @ w_hh[2 * H :].T + w["bias_hh_l0"][2 * H :]
            h = z * h + (1 - z) * np.tanh(x_n + (r * u_n if reset_after else before))
        else:
            h = np.tanh(a + u)
        outputs.append(h + noise["output_noise"][t])
    return np.stack(outputs)


@pytest.mark.parametrize(("cell", "options"), [("LSTM", {}), ("GRU", {}), ("GRU", {"reset_after": False}), ("RNN", {})])
def test_what_is_added_where(cell: str, options: Any) -> None:
    """What recurs, and the last state, are without the noise that is read from them."""
    rnn = getattr(frd, cell)(I, H, backend="reference", dtype=torch.float64, **options, **ADDED)
    x = torch.randn(T, B, I, dtype=torch.float64)
    drawn = frd.export_masks(rnn, x, RNG)
    weights = {name: weight.detach().numpy() for name, weight in rnn.named_parameters()}
    noise = {name: value.numpy() for name, value in drawn.items()}
    expected = _by_hand(cell, options.get("reset_after", True), x.numpy(), weights, noise)
    out, last = rnn(x, rng=RNG)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=0, atol=1e-13)
    h_n = (last[0] if cell == "LSTM" else last)[0]
    torch.testing.assert_close(h_n, out[-1] - drawn["output_noise"][-1])


def test_it_leaves_the_mean_and_adds_a_variance() -> None:
    """Where the cell is linear: a relu far above 0. Var = s^2 times the sum of squares of what reads the noise."""
    p, rows = 0.2, 40_000
    site = {"hidden_dropout": frd.HiddenDropout(p, per="step", noise="additive")}
    rnn = frd.RNN(I, H, nonlinearity="relu", backend="reference", dtype=torch.float64, **site)
    with torch.no_grad():
        rnn.bias_hh_l0.fill_(100.0)
        x = torch.randn(1, 1, I, dtype=torch.float64).expand(1, rows, I)
        h = torch.randn(1, 1, H, dtype=torch.float64).expand(1, rows, H)
        given, plain = rnn(x, h, rng=RNG)[0][0], rnn.eval()(x, h)[0][0, 0]
        variance = p / (1 - p) * rnn.weight_hh_l0.square().sum(1)
    assert ((given.mean(0) - plain).abs() < 5 * (variance / rows).sqrt()).all()
    assert ((given.var(0) / variance - 1).abs() < 5 * (2 / rows) ** 0.5).all()


def test_a_gradient_goes_through_as_if_it_were_not_there() -> None:
    """It is that at the noisy point: by differences, with every noise and a projection."""
    g = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    noise = {"input_noise": normal(2, 3, I), "hidden_noise": normal(2, 3, 2), "weight_hh_noise": normal(3, 8, 2),
             "weight_ih_noise": normal(8, I), "weight_hr_noise": normal(2, 2)}  # fmt: skip
    shapes = ((2, 3, I), (3, 2), (3, 2), (8, I), (8, 2), (8,), (8,), (2, 2))

    def run(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> Tensor:
        return reference.lstm(x, (h, c), weights, noise)[0]

    assert torch.autograd.gradcheck(run, [normal(*shape).requires_grad_() for shape in shapes])


def test_what_a_noise_that_is_added_needs() -> None:
    for spec in (frd.LockedDropout, frd.HiddenDropout):
        with pytest.raises(ValueError, match=f"{spec.__name__} noise='additive' needs tied=True, got tied=False"):
            spec(0.5, tied=False, noise="additive")
    with pytest.raises(ValueError, match="WeightDropout noise='additive' needs mode='element', got mode='row'"):
        frd.WeightDropout(0.5, mode="row", noise="additive")
    for name, spec in ADDED.items():
        with pytest.raises(ValueError, match=rf"{name}=\w+\(noise='additive'\)"):
            frd.LSTM(I, H, backend="cpu", **{name: spec})(torch.zeros(T, B, I))
    weights = [torch.zeros(4 * H, I), torch.zeros(4 * H, H), None, None]
    state = (torch.zeros(B, H), torch.zeros(B, H))
    with pytest.raises(ValueError, match=r"masks\['weight_hr_noise'\] needs a projection"):
        reference.lstm(torch.zeros(T, B, I), state, weights, {"weight_hr_noise": torch.zeros(H, H)})
    with pytest.raises(ValueError, match=r"masks\['hidden_noise'\] should have shape"):
        reference.lstm(torch.zeros(T, B, I), state, weights, {"hidden_noise": torch.zeros(B, H)})


# ---------------------------------------------------------------------------------------------------------------------
# Masks of h per step
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["bernoulli", *NOISES])
def test_a_mask_of_h_per_step(noise: str) -> None:
    (mask,) = exported(hidden_dropout=frd.HiddenDropout(0.5, per="step", noise=noise)).values()
    assert mask.shape == (T, B, H) and not torch.equal(mask[0], mask[1])
    (once,) = exported(hidden_dropout=frd.HiddenDropout(0.5, noise=noise)).values()
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
