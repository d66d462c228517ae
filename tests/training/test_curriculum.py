"""Rates that change: their curves, who sees them, and that nothing is compiled again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import ExponentialLR

import fused_rnn_dropout as frd
from fused_rnn_dropout.training import CurriculumSchedule, EmbeddingDropout

RNG = torch.tensor([3, 4])
N = 20


class Model(nn.Module):
    def __init__(self, **sites: Any) -> None:
        super().__init__()
        self.words = EmbeddingDropout(nn.Embedding(11, 6), 0.1)
        self.rnn = frd.LSTM(6, 7, **(sites or {"weight_dropout": 0.5, "zoneout_h": 0.2}))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.rnn(self.words(ids, rng=RNG), rng=RNG)[0]
        return out


IDS = torch.arange(20).view(5, 4) % 11


def rates(model: Model) -> list[float]:
    return [model.words.p, model.rnn.weight_dropout, model.rnn.zoneout_h]


@pytest.mark.parametrize(
    ("curve", "right"),
    [
        ("curriculum", lambda t: 1 - math.exp(-10 * t / N)),
        ("annealed", lambda t: math.exp(-10 * t / N)),
        ("linear", lambda t: max(0.0, 1 - t / N)),
        (lambda t: t / 100, lambda t: t / 100),
    ],
    ids=["curriculum", "annealed", "linear", "function"],
)
def test_curves(curve: Any, right: Any) -> None:
    model = Model()
    schedule = CurriculumSchedule(model, N, curve=curve)
    for t in range(2 * N):
        assert rates(model) == pytest.approx([right(t) * p for p in (0.1, 0.5, 0.2)])
        schedule.step()


def test_the_curriculum_begins_at_zero_and_rises_to_its_end() -> None:
    model = Model()
    schedule = CurriculumSchedule(model, N, {"weight_dropout": 0.6})
    found = []
    for _ in range(5 * N):
        found.append(model.rnn.weight_dropout)
        schedule.step()
    assert found[0] == 0 and all(a < b for a, b in zip(found[:30], found[1:31], strict=True))
    assert found[N] == pytest.approx(0.6 * (1 - math.exp(-10))) and found[-1] == pytest.approx(0.6)
    assert model.words.p == 0.1 and model.rnn.zoneout_h == 0.2  # not asked for
    slow = CurriculumSchedule(Model(), N, gamma=0.1)
    assert slow.factor(10) == pytest.approx(1 - math.exp(-1))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_sees_each_rate_and_compiles_once(backend: str) -> None:
    model = Model()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    schedule = CurriculumSchedule(compiled, N)
    seen = []
    for _ in range(6):
        out = compiled(IDS)
        assert torch.equal(out, model(IDS))
        fresh = Model(weight_dropout=model.rnn.weight_dropout or 1e-12, zoneout_h=model.rnn.zoneout_h or 1e-12)
        fresh.words.set_rate("embedding_dropout", model.words.p)
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(out, fresh(IDS))
        seen.append(out)
        schedule.step()
    assert counter.frame_count == 1
    assert all(not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False))


def test_it_follows_an_optimizer_beside_a_scheduler() -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    learning_rate = ExponentialLR(optimizer, 0.5)
    schedule = CurriculumSchedule(model, N)
    handle = schedule.follow(optimizer)
    for _ in range(3):
        optimizer.step()
        learning_rate.step()
    assert schedule.last_step == 3 and optimizer.param_groups[0]["lr"] == 0.125
    assert model.rnn.weight_dropout == pytest.approx(0.5 * (1 - math.exp(-1.5)))
    handle.remove()
    optimizer.step()
    assert schedule.last_step == 3


def test_state_dict() -> None:
    model, other = Model(), Model()
    schedule = CurriculumSchedule(model, N)
    for _ in range(7):
        schedule.step()
    later = CurriculumSchedule(other, N, {"embedding_dropout": 0.9, "weight_dropout": 0.9, "zoneout_h": 0.9})
    later.load_state_dict(schedule.state_dict())
    assert rates(other) == rates(model)
    later.step(), schedule.step()
    assert rates(other) == rates(model) and later.last_step == 8
    with pytest.raises(ValueError, match="it differs in weight_dropout of rnn"):
        CurriculumSchedule(Model(zoneout_h=0.2), N).load_state_dict(schedule.state_dict())


def test_lightning() -> None:
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()
            self.seen: list[float] = []

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            self.seen.append(self.model.rnn.weight_dropout)
            return self.model(batch.t()).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    schedule = CurriculumSchedule(module, N)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=2, callbacks=[schedule.lightning_callback()],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(IDS.t().repeat(2, 1), batch_size=1))
    right = [0.5 * (1 - math.exp(-0.5 * (batch // 2))) for batch in range(8)]
    assert module.seen == pytest.approx(right) and schedule.last_step == 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CurriculumSchedule(3, N), TypeError, "model should be an nn.Module, got int"),  # type: ignore[arg-type]
        (lambda: CurriculumSchedule(Model(), 0), ValueError, "steps should be at least 1, got 0"),
        (lambda: CurriculumSchedule(Model(), math.nan), ValueError, "steps should be at least 1, got nan"),
        (lambda: CurriculumSchedule(Model(), N, {}), ValueError, "rates should name a site, got none"),
        (lambda: CurriculumSchedule(Model(), N, gamma=-1), ValueError, "gamma should be at least 0, got -1"),
        (lambda: CurriculumSchedule(Model(), N, curve="cosine"), ValueError, "curve should be one of 'curriculum'"),
        (lambda: CurriculumSchedule(Model(), N, {"zoneout_c": 0.1}), ValueError,
         "no module .* has zoneout_c configured; configured are embedding_dropout, weight_dropout, zoneout_h"),
        (lambda: CurriculumSchedule(Model(), N, {"zoneout_h": 1.1}), ValueError, "rate of zoneout_h should be a"),
        (lambda: CurriculumSchedule(nn.Linear(2, 2), N), ValueError, "no module of the model has a site configured"),
        (lambda: CurriculumSchedule(Model(), N, curve=lambda t: 20.0), ValueError, "should be a number in range"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
