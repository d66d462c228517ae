"""NT-ASGD: when it begins to average, what it averages, and how it gets along with torch's tools."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from fused_rnn_dropout.training import NTASGD, bptt_learning_rate


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((3, 2), (4,))]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params:
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = gradient.to(parameter.dtype)


def run(optimizer: Any, params: list[nn.Parameter], rates: list[float], seed: int = 1) -> list[list[Tensor]]:
    """Iterates after each step."""
    found = []
    for step, rate in enumerate(rates):
        give_gradients(params, seed + step)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        found.append([parameter.detach().clone() for parameter in params])
    return found


RATES = [1.0, 1.0, 0.5, 1.0, 0.25]


def test_it_is_sgd_before_the_trigger() -> None:
    mine, theirs = parameters(), parameters()
    a = run(NTASGD(mine, 1.0, weight_decay=0.01), mine, RATES)
    b = run(torch.optim.SGD(theirs, 1.0, weight_decay=0.01), theirs, RATES)
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("n", "losses", "trigger"),
    [
        # Compared with the best of all but the last n of those before.
        (2, [5, 4, 3, 2, 1], None),
        (2, [5, 4, 6, 7], 3),  # 7 > min(5)
        (2, [5, 4, 4.5, 4.5], None),  # 4.5 > 5 does not hold: 4 is among the last two
        (2, [5, 4, 4.5, 4.5, 4.5], 4),  # now it is not
        (5, [3, 9, 9, 9, 9, 9], None),  # five losses before are not more than n
        (5, [3, 9, 9, 9, 9, 9, 9], 6),
        (1, [1, 1, 1], None),  # not worse
        (1, [1, float("inf"), 2], 2),
    ],
)
def test_the_trigger(n: int, losses: list[float], trigger: int | None) -> None:
    optimizer = NTASGD(parameters(), 1.0, n=n)
    seen = [optimizer.observe(loss) for loss in losses]
    assert seen == [trigger is not None and epoch >= trigger for epoch in range(len(losses))]
    assert optimizer.losses == tuple(losses) and optimizer.averaging == seen[-1]


def test_the_average_is_the_mean_of_the_iterates() -> None:
    params = parameters()
    optimizer = NTASGD(params, 1.0)
    run(optimizer, params, RATES)
    optimizer.start_averaging()
    iterates = run(optimizer, params, RATES, seed=20)
    with optimizer.averaged():
        for index, parameter in enumerate(params):
            torch.testing.assert_close(parameter.data, torch.stack([step[index] for step in iterates]).mean(0))
    torch.testing.assert_close([parameter.data for parameter in params], iterates[-1], rtol=0, atol=0)


def test_an_average_begins_anew() -> None:
    params = parameters()
    optimizer = NTASGD(params, 1.0)
    for seed in (3, 20):
        optimizer.start_averaging()
        iterates = run(optimizer, params, RATES, seed)
    with optimizer.averaged():
        torch.testing.assert_close(params[0].data, torch.stack([step[0] for step in iterates]).mean(0))


def test_the_rate_acts_at_once_and_one_step_late_in_torch() -> None:
    moved = {}
    for name in ("mine", "lag_compat", "torch"):
        parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer: Any = torch.optim.ASGD([parameter], 1.0, t0=0, lambd=0)
        if name != "torch":
            optimizer = NTASGD([parameter], 1.0, lag_compat=name == "lag_compat")
            optimizer.start_averaging()
        moved[name] = []
        for length in (70, 70, 35, 70, 70):
            parameter.grad = torch.ones_like(parameter)
            before = parameter.item()
            with bptt_learning_rate(optimizer, length, 70):
                optimizer.step()
            moved[name].append(before - parameter.item())
    assert moved == {"mine": [1, 1, 0.5, 1, 1], "lag_compat": [1, 1, 1, 0.5, 1], "torch": [1, 1, 1, 0.5, 1]}


def test_lag_compat_is_torchs_asgd() -> None:
    mine, theirs = parameters(), parameters()
    optimizer = NTASGD(mine, 1.0, weight_decay=0.01, lag_compat=True)
    optimizer.start_averaging()
    right = torch.optim.ASGD(theirs, 1.0, t0=0, lambd=0, weight_decay=0.01)
    torch.testing.assert_close(run(optimizer, mine, RATES), run(right, theirs, RATES))
    with optimizer.averaged():
        torch.testing.assert_close([p.data for p in mine], [right.state[p]["ax"] for p in theirs])


def test_before_the_trigger_there_is_no_average() -> None:
    params = parameters()
    optimizer = NTASGD(params, 1.0)
    last = run(optimizer, params, RATES)[-1]
    with optimizer.averaged():
        torch.testing.assert_close([parameter.data for parameter in params], last, rtol=0, atol=0)


@pytest.mark.parametrize("swapped", [False, True])
def test_state_dict(swapped: bool) -> None:
    params = parameters()
    optimizer = NTASGD(params, 1.0, n=1)
    for loss in (1.0, 2.0, 3.0):
        optimizer.observe(loss)
    assert optimizer.averaging
    run(optimizer, params, RATES)
    if swapped:
        optimizer.swap_in()
    weights = [nn.Parameter(parameter.detach().clone()) for parameter in params]
    other = NTASGD(weights, 7.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.averaging and other.losses == (1.0, 2.0, 3.0) and other.swapped == swapped
    for each in (optimizer, other):
        each.swap_out()
    run(optimizer, params, RATES, 30), run(other, weights, RATES, 30)
    with optimizer.averaged(), other.averaged():
        torch.testing.assert_close(params, weights, rtol=0, atol=0)


def test_an_average_of_sixteen_bits_goes_on_in_more() -> None:
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = NTASGD([parameter], 1.0)
    optimizer.start_averaging()
    for step in range(600):
        if step == 300:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = NTASGD([parameter], 1.0)
            optimizer.load_state_dict(saved)
        parameter.grad = torch.full_like(parameter, -1.0 if step == 300 else 0.0)  # 1, then 2
        optimizer.step()
    average = optimizer.state[parameter]["average"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.tensor([1.5]), rtol=1e-5, atol=0)


def test_schedulers_and_closures() -> None:
    params = parameters()
    optimizer = NTASGD(params, 1.0)
    scheduler = MultiStepLR(optimizer, [1], gamma=0.5)
    rates = []
    for _ in range(3):
        assert optimizer.step(lambda: torch.tensor(4.0)) == 4.0
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert rates == [1.0, 0.5, 0.5]
    LambdaLR(optimizer, lambda epoch: 0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_group_that_comes_later() -> None:
    optimizer = NTASGD(parameters(), 1.0, n=1)
    for loss in (1.0, 2.0, 3.0):
        optimizer.observe(loss)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 3.0})
    assert optimizer.param_groups[1]["averaging"] and optimizer.param_groups[1]["losses"] == (1.0, 2.0, 3.0)


def test_parameters_without_a_gradient_stay() -> None:
    params = parameters()
    optimizer = NTASGD(params, 1.0, weight_decay=0.5)
    optimizer.start_averaging()
    before = params[1].detach().clone()
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    with optimizer.averaged():
        assert torch.equal(params[1], before)


def test_sparse_gradients() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    before, optimizer = embedding.weight.detach().clone(), NTASGD(embedding.parameters(), 0.5)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    optimizer.step()
    expected = before - 0.5 * torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0])[:, None]
    torch.testing.assert_close(embedding.weight.data, expected)
    decaying = NTASGD(embedding.parameters(), 0.5, weight_decay=0.1)
    with pytest.raises(RuntimeError, match="weight_decay should be 0 for sparse gradients"):
        decaying.step()


def test_bad_use() -> None:
    params = parameters()
    optimizer = NTASGD(params, 1.0)
    optimizer.start_averaging()
    run(optimizer, params, [1.0])
    with optimizer.averaged():
        for call in (optimizer.step, optimizer.swap_in, optimizer.start_averaging):
            with pytest.raises(RuntimeError, match="while the average is swapped in"):
                call()
    with pytest.raises(ValueError, match="loss should be a number, got NaN"):
        optimizer.observe(float("nan"))
    for options, message in (
        ({"lr": -1.0}, "lr should"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"n": 0}, "n should be an int of"),
        ({"n": 2.5}, "n should be an int of"),
    ):
        with pytest.raises(ValueError, match=message):
            NTASGD(params, **options)  # type: ignore[arg-type]
