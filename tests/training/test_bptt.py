"""Random lengths of BPTT segments: their distribution, their cover, and the learning rate that goes with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fused_rnn_dropout.training import bptt_learning_rate, random_bptt_length, random_bptt_slices


def lengths(count: int, **options: object) -> torch.Tensor:
    return torch.tensor([random_bptt_length(70, **options) for _ in range(count)])  # type: ignore[arg-type]


def test_distribution() -> None:
    found = lengths(20_000).double()
    short = found < 52.5
    assert abs(float(short.double().mean()) - 0.05) < 5 * (0.05 * 0.95 / 20_000) ** 0.5
    # An integer below a normal number: half less than its mean.
    assert abs(float(found[~short].mean()) - 69.5) < 5 * 5 / 19_000**0.5
    assert abs(float(found[short].mean()) - 34.5) < 5 * 5 / 1_000**0.5
    assert abs(float(found[~short].std()) - 5) < 0.2


def test_limits() -> None:
    wide = lengths(2_000, std=60.0)
    assert wide.min() == 5 and wide.max() == 90
    assert set(lengths(500, std=60.0, maximum=24, minimum=23).tolist()) == {23, 24}
    rounded = lengths(2_000, std=60.0, multiple_of=8)
    assert (rounded % 8 == 0).all() and rounded.min() == 8 and rounded.max() == 88
    assert set(lengths(300, short=1.0, std=0.0).tolist()) == {35} and set(lengths(9, short=0, std=0).tolist()) == {70}


def test_generator() -> None:
    generator = torch.Generator().manual_seed(3)
    first = lengths(20, generator=generator)
    state = torch.get_rng_state()
    assert torch.equal(lengths(20, generator=generator.manual_seed(3)), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("steps", [0, 1, 5, 1000])
def test_slices_cover_every_step_once(steps: int) -> None:
    slices = list(random_bptt_slices(steps, 70, std=20.0))
    assert torch.equal(torch.cat([torch.arange(steps)[part] for part in [slice(0), *slices]]), torch.arange(steps))
    assert not slices or slices[-1].stop == steps
    assert all(5 <= part.stop - part.start <= 90 for part in slices[:-1])


@pytest.mark.parametrize("tensor", [False, True])
def test_the_learning_rate_of_one_update(tensor: bool) -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    rate = torch.tensor(2.0, dtype=torch.float64) if tensor else 2.0
    optimizer = torch.optim.SGD([parameter], lr=rate)  # type: ignore[arg-type]
    moved = []
    for length in (70, 35, 70, 140):
        parameter.grad = torch.ones_like(parameter)
        before = parameter.item()
        with bptt_learning_rate(optimizer, length, 70):
            optimizer.step()
        moved.append(before - parameter.item())
        assert float(optimizer.param_groups[0]["lr"]) == 2.0
    assert moved == [2.0, 1.0, 2.0, 4.0]
    assert (optimizer.param_groups[0]["lr"] is rate) == tensor or not tensor


def test_the_rate_comes_back_after_an_error() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    with pytest.raises(KeyError), bptt_learning_rate(optimizer, 35, 70):
        raise KeyError
    assert optimizer.param_groups[0]["lr"] == 2.0
    with pytest.raises(RuntimeError, match="step its scheduler after the block"), bptt_learning_rate(optimizer, 35, 70):
        optimizer.param_groups[0]["lr"] = 7.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bptt": 0}, "bptt should be at least 1, got 0"),
        ({"bptt": 70, "short": 1.5}, r"short should be in \[0, 1\], got 1.5"),
        ({"bptt": 70, "std": -1.0}, "std should be at least 0"),
        ({"bptt": 70, "minimum": 0}, "minimum should be at least 1"),
        ({"bptt": 70, "maximum": 4}, "maximum should be at least minimum=5"),
        ({"bptt": 70, "multiple_of": 100}, "maximum should be at least minimum=5, in multiples of 100"),
    ],
)
def test_bad_input(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_bptt_length(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "bptt", "name"), [(0, 70, "length"), (-5, 70, "length"), (5, 0, "bptt")])
def test_no_rate_of_nothing(length: int, bptt: int, name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=2.0)
    message = f"{name} should be at least 1, got"
    with pytest.raises(ValueError, match=message), bptt_learning_rate(optimizer, length, bptt):
        pass
    assert optimizer.param_groups[0]["lr"] == 2.0
