"""The bench: that it compares like with like, that its statistics are what they are called, and that all of it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("bench", reason="the bench is part of a checkout, not of the installed package")
from bench import criteria, memory, report
from bench.__main__ import main
from bench.contenders import BY_NAME, CONTENDERS, RATES, rates_of, runner
from bench.loops import Loop, WeightDrop
from bench.measure import FEWEST, FEWEST_SLOW, median_of, paired, ratio_of
from bench.profile import profile
from bench.shapes import QUICK, SHAPES, Shape
from fused_rnn_dropout import ops

SHAPE = Shape("tiny", 5, 3, 4, 6, "small", "")


# --------------------------------------------------------------------------------------------------------------------
# Like with like
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_the_loop_is_the_layer(cell: str, careful: bool) -> None:
    """Without sites, and in eval with them but zoneout, the loop computes what torch does."""
    rnn = getattr(nn, cell)(4, 6).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    for rates in ({}, {name: rate for name, rate in RATES.items() if not name.startswith("zoneout")}):
        loop = Loop(cell, 4, 6, rates, careful=careful).double().train(not rates)
        loop.load_state_dict(rnn.state_dict())
        torch.testing.assert_close(loop(x)[0], rnn(x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(RATES))
def test_every_site_of_the_loop_acts(name: str) -> None:
    for cell in ("LSTM", "GRU"):
        if name in rates_of(cell):
            loop = Loop(cell, 4, 6, {name: 0.5})
            x = torch.randn(5, 3, 4)
            assert not torch.equal(loop(x)[0], loop(x)[0])


def test_the_loop_keeps_the_old_state_at_rate_one() -> None:
    loop = Loop("LSTM", 4, 6, {"zoneout_h": 1.0, "zoneout_c": 1.0})
    assert torch.equal(loop(torch.randn(5, 3, 4))[0], torch.zeros(5, 3, 6))


def test_weight_drop_is_torchs_module_with_dropped_weights() -> None:
    rnn = nn.LSTM(4, 6)
    wrapped = WeightDrop(nn.LSTM(4, 6), 0.5)
    with torch.no_grad():
        wrapped.raw.copy_(rnn.weight_hh_l0)
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            wrapped.rnn.get_parameter(name).copy_(rnn.get_parameter(name))
    x = torch.randn(5, 3, 4)
    assert torch.equal(wrapped.eval()(x)[0], rnn(x)[0])
    out = wrapped.train()(x)[0]
    assert not torch.equal(out, rnn(x)[0])
    out.sum().backward()
    dropped = wrapped.rnn.weight_hh_l0 == 0
    assert dropped.any()
    assert wrapped.raw.grad is not None
    assert (wrapped.raw.grad[dropped] == 0).all()


def test_all_contenders_have_every_site_of_one_layer() -> None:
    ours = BY_NAME["all"].build("LSTM", SHAPE)
    assert dict.fromkeys(ours.sites) == dict.fromkeys(name for name in ours.sites if name in RATES)
    assert set(ours.sites) == set(RATES)


@pytest.mark.parametrize("task", ["train", "forward", "eval"])
@pytest.mark.parametrize("name", [c.name for c in CONTENDERS if not c.compiles and c.package is None])
def test_every_contender_runs(name: str, task: str) -> None:
    for cell in ("LSTM", "GRU"):
        runner(BY_NAME[name].build(cell, SHAPE), SHAPE, task)()


# --------------------------------------------------------------------------------------------------------------------
# Statistics
# --------------------------------------------------------------------------------------------------------------------


def test_paired_rounds_take_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = paired(runs, slow=["c"], rounds=FEWEST + 2)
    assert order[:6] == list("abcabc")  # first calls, then a warm-up
    rounds = order[6:]
    assert rounds[:6] == list("abccba")
    assert rounds[-4:] == ["b", "a", "a", "b"] if FEWEST % 2 else ["a", "b", "b", "a"]
    assert [len(timings.rounds[name]) for name in "abc"] == [FEWEST + 2, FEWEST + 2, FEWEST]


def test_a_contender_that_takes_long_takes_part_in_few_rounds() -> None:
    calls: list[str] = []
    runs = {"quick": lambda: calls.append("quick"), "long": lambda: torch.randn(200_000).sort()}
    timings = paired(runs, slow=["long"], rounds=6, budget=1e-6)
    assert [len(timings.rounds[name]) for name in runs] == [6, FEWEST_SLOW]


def test_ratio_of_medians() -> None:
    assert ratio_of([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).value == 2.0
    assert ratio_of([2.0, 4.0, 100.0], [1.0, 2.0]).value == 3.0 / 1.5  # only rounds in which both took part
    value = median_of([1.0, 2.0, 3.0, 4.0, 50.0])
    assert value.value == 3.0
    assert 1.0 <= value.low <= 3.0 <= value.high <= 50.0
    steady = ratio_of([2.0] * 9, [1.0] * 9)
    assert steady == (2.0, 2.0, 2.0)


def _results(train: dict[str, list[float]], shape: Shape, cell: str = "LSTM") -> dict:
    return {
        "shapes": [shape._asdict()],
        "timings": [{"cell": cell, "shape": shape.name, "task": "train", "first": train, "rounds": train}],
        "memory": [{"cell": cell, "shape": shape.name, "contender": name, "mib": 10.0} for name in train],
        "sgemm": {"best": 100.0},
    }


def test_criteria_say_what_is_missed_and_by_how_much() -> None:
    shape = next(s for s in SHAPES if s.name == "wide")
    found = {
        (v.criterion.meaning, v.cell): v
        for v in criteria.verdicts(_results({"all": [1.2] * 5, "torch": [1.0] * 5, "none": [1.0] * 5}, shape))
    }
    every = found["every site / nn.LSTM without, train", "LSTM"]
    assert not every.met
    assert str(every) == "missed by 0.10"
    assert found["ours without / nn.LSTM without, train", "LSTM"].met
    share = found["share of the sgemm rate, train", "LSTM"]
    assert share.value.value == pytest.approx(shape.flops("LSTM", "train") / 1.2 / 100e9)
    assert found["peak memory, every site / torch", "LSTM"].met


def test_flops_are_those_of_the_products() -> None:
    # 5 * 3 rows, (4 + 6) columns of each of 4 * 6 gates, a multiplication and an addition each.
    assert SHAPE.flops("LSTM", "eval") == 2 * 15 * 10 * 24
    assert SHAPE.flops("GRU", "train") == 3 * 2 * 15 * 10 * 18
    packed = next(s for s in SHAPES if s.kind == "packed")
    lengths = packed.lengths()
    assert lengths is not None
    assert lengths == sorted(lengths, reverse=True)
    assert packed.useful() == sum(lengths) / (packed.steps * packed.batch)


# --------------------------------------------------------------------------------------------------------------------
# All of it
# --------------------------------------------------------------------------------------------------------------------


def test_quick_run_report_and_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    output, page = tmp_path / "results.json", tmp_path / "page.md"
    assert main(["--quick", "--rounds", "2", "--output", str(output)]) == 0
    capsys.readouterr()
    results = json.loads(output.read_text())
    assert {entry["task"] for entry in results["timings"]} == {"train", "forward", "eval", "scaling"}
    assert "compiled" in results["skipped"]
    rounds = results["timings"][0]["rounds"]
    assert all(len(rounds[name]) == 2 and min(rounds[name]) > 0 for name in ("torch", "all", "loop"))
    assert all(entry["mib"] > 0 for entry in results["memory"])

    assert main(["report", str(output), "--plots", str(tmp_path / "plots")]) == 0
    printed = capsys.readouterr().out
    assert "packed / padded times useful fraction" in printed
    assert "that loop over x.unbind()" in printed
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"ratios.png", "memory.png"}

    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert main(["readme", str(output), str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| LSTM | quick" in text
    page.write_text("no markers")
    assert main(["readme", str(output), str(page)]) == 1
    assert page.read_text() == "no markers"


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--shapes", "huge"])
    assert "no such shape: huge" in capsys.readouterr().err
    assert main(["--rounds", "1"]) == 1
    assert "--rounds at least 2" in capsys.readouterr().err


@pytest.mark.skipif(not memory.available(), reason="needs Linux's high-water mark of resident memory")
def test_memory_is_that_of_one_call() -> None:
    """The gates, cells and gradients of a layer whose sizes are known; nothing that does not depend on the steps."""
    shape = Shape("long", 400, 32, 64, 64, "small", "")
    rows = shape.steps * shape.batch
    least = 4 * rows * (4 + 1 + 1) * shape.units / 2**20  # gates, c, h
    found = memory.in_process("LSTM", shape, "none", 1)
    again = memory.in_process("LSTM", shape, "recompute", 1)
    assert least < found < 3 * least
    assert again < found


def test_profile_accounts_for_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ops.cpu_profile(True)
    rnn = BY_NAME["all"].build("LSTM", Shape("p", 20, 8, 64, 64, "small", ""))
    out = rnn(torch.randn(20, 8, 64, requires_grad=True))[0]
    out.sum().backward()
    phases = ops.cpu_profile(False)
    assert list(phases) == list(ops.PHASES)
    assert all(phases[name] > 0 for name in phases if name != "wait")
    assert all(seconds == 0 for seconds in ops.cpu_profile(False).values())  # read once
    rnn(torch.randn(20, 8, 64))
    assert all(seconds == 0 for seconds in ops.cpu_profile(False).values())  # off
    table = profile(("GRU",), QUICK[:1], "train", 1, rounds=1)
    assert "| GRU | quick | none " in table
    assert "recurrent product" in table
