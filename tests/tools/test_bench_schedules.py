"""``bench schedules``: right first, then timed; its table names a schedule where it was the fastest, nowhere else."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import host_run
import pytest
import torch

import fused_rnn_dropout as frd
from fused_rnn_dropout import library, schedule_table
from fused_rnn_dropout import schedules as choice
from fused_rnn_dropout.bench import schedules
from fused_rnn_dropout.bench.__main__ import main
from fused_rnn_dropout.bench.schedules import TORCH, Contender, Grid, Point, rows
from fused_rnn_dropout.schedule_table import Kind, Size

ROOT = Path(__file__).resolve().parents[2]
KIND = Kind("a GPU", "", "LSTM", "float32", 1, True, True)
PERSISTENT, ALTERNATING = Contender("cuda", "persistent"), Contender("cuda", "alternating")
SEQUENCE, TRITONS = Contender("triton", "sequence"), Contender("triton", "alternating")


def point(size: tuple[int, int, int], times: dict[Any, float], kind: Kind = KIND) -> Point:
    return Point(kind, Size(*size), times, {}, {})


def grid(fastest: Any, sizes: tuple[tuple[int, ...], ...] = ((1, 5), (2, 7), (3, 9))) -> list[Point]:
    """Points in which ``fastest(size)`` takes 1 us, the other 2, and torch less than both."""
    both = {PERSISTENT: 2.0, ALTERNATING: 2.0, TORCH: 0.1}
    return [point(size, both | {fastest(size): 1.0}) for size in itertools.product(*sizes)]  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------------------------------


def test_one_row_where_one_is_the_fastest() -> None:
    (row,) = rows(grid(lambda size: PERSISTENT))
    assert row.kind == KIND._replace(backend="cuda") and row.schedule == "persistent"
    assert (row.hidden_size, row.batch, row.steps) == ((1, 5), (2, 7), (3, 9))
    assert row.microseconds == {"persistent": (1.0, 1.0), "alternating": (2.0, 2.0)}


def test_nothing_is_said_of_what_lies_between_where_it_changes() -> None:
    """At 5 units it does; each of the two widths has a row of its own."""
    found = rows(grid(lambda size: PERSISTENT if size[0] == 1 else ALTERNATING))
    assert {(row.hidden_size, row.schedule) for row in found} == {((1, 1), "persistent"), ((5, 5), "alternating")}
    assert all((row.batch, row.steps) == ((2, 7), (3, 9)) for row in found)


@pytest.mark.parametrize("odd", list(itertools.product((1, 5), (2, 7), (3, 9))))
def test_each_corner_counts(odd: tuple[int, int, int]) -> None:
    found = rows(grid(lambda size: ALTERNATING if size == odd else PERSISTENT))
    for size in itertools.product((1, 3, 5), (2, 4, 7), (3, 5, 9)):
        named = {row.schedule for row in found if row.holds(Size(*size))}
        faces = [size[axis] != {1: 5, 5: 1, 2: 7, 7: 2, 3: 9, 9: 3}[odd[axis]] for axis in range(3)]
        assert named == ({"alternating"} if size == odd else set() if all(faces) else {"persistent"}), size


def test_rows_reach_from_neighbour_to_neighbour() -> None:
    found = rows(grid(lambda size: PERSISTENT, ((1, 2, 4, 8), (3,), (6,))))
    assert [row.hidden_size for row in found] == [(1, 2), (2, 4), (4, 8)]
    assert all((row.batch, row.steps) == ((3, 3), (6, 6)) for row in found)


def test_who_took_no_part_at_a_corner_is_not_named() -> None:
    """Persistent fits at 1 unit alone, where it is the fastest."""
    points = grid(lambda size: PERSISTENT)
    for one in points:
        if one.size.hidden_size == 5:
            del one.microseconds[PERSISTENT]
    found = {row.hidden_size: row for row in rows(points)}
    assert {bounds: row.schedule for bounds, row in found.items()} == {(1, 1): "persistent", (5, 5): "alternating"}
    assert found[(5, 5)].microseconds == {"alternating": (2.0, 2.0)}
    for one in points:
        one.microseconds.clear()
    assert rows(points) == []


def test_backends_are_apart() -> None:
    times: dict[Any, float] = {PERSISTENT: 4.0, ALTERNATING: 3.0, SEQUENCE: 1.0, TRITONS: 2.0}
    found = rows([point((1, 1, 1), times)])
    assert {(row.kind.backend, row.schedule) for row in found} == {("cuda", "alternating"), ("triton", "sequence")}
    assert [sorted(row.microseconds) for row in found] == [["alternating", "persistent"], ["alternating", "sequence"]]


def test_kinds_are_apart() -> None:
    other = KIND._replace(gradients=False)
    found = rows([point((1, 1, 1), {PERSISTENT: 1.0}), point((1, 1, 1), {ALTERNATING: 1.0}, other)])
    assert {(row.kind.gradients, row.schedule) for row in found} == {(True, "persistent"), (False, "alternating")}


# --------------------------------------------------------------------------------------------------------------------
# On the host
# --------------------------------------------------------------------------------------------------------------------

SMALL = Grid(cells=("GRU",), dtypes=("float32",), hidden=(4,), batch=(2,), steps=(3,), rounds=2)


@pytest.fixture(autouse=True)
def as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """No schedule is asked for; Triton's interpreter, which takes seconds for a call, stays away."""
    for variable in choice.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    torch.set_num_threads(1)


def test_what_it_writes_is_what_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "table.json"
    with host_run.run_on_host():
        text, failed = schedules.schedules(SMALL, output, "the command")
        assert not failed and "Made by `the command`." in text
        assert output.with_suffix(".md").read_text().strip() == text
        whole = json.loads(output.read_text())
        assert whole["about"]["command"] == "the command"
        inside = [row for row in whole["rows"] if row["inside"] and row["gradients"]]
        (row,) = inside
        assert row["device"] == "cpu" and sorted(row["microseconds"]) == ["alternating", "persistent"]
        monkeypatch.setenv("FRD_SCHEDULE_TABLE", str(output))
        found = frd.explain(frd.GRU(4, 4, zoneout_h=0.1, backend="cuda"), torch.zeros(3, 2, 4))
        assert found.walk[row["schedule"]] == "taken" and "the table of cpu, in us a step: " in found.schedule
        assert "Failed:" not in text and ", cudnn: hidden_dropout, update_dropout, zoneout_h act inside a step" in text
    for what in ("GRU | float32 | every site | 4, 2, 3 | forward and backward", "no site    | 4, 2, 3 | forward  "):
        assert what in text, text


def test_each_contender_runs_its_own_schedule() -> None:
    with host_run.run_on_host():
        shim = host_run.host_module()
        bench = schedules.Bench.of(KIND._replace(cell="GRU"), 4, "cpu")
        ran = {}
        for one in (PERSISTENT, ALTERNATING):
            run = bench._run(one, bench.layers[one], schedules.Shape("s", 3, 2, 4, 4, "other", ""), "train")
            shim.take_launches()
            run()
            ran[one] = "persistent_kernel" in shim.take_launches()
            bench._run(one, bench.layers[one], schedules.Shape("s", 3, 2, 4, 4, "other", ""), "eval")()
            assert bench.layers[one].training  # which has masks
        assert ran == {PERSISTENT: True, ALTERNATING: False}
        assert all(name not in os.environ for name in choice.VARIABLES.values())


def test_forward_alone_is_with_masks_and_without_gradients() -> None:
    with host_run.run_on_host():
        (found,) = schedules.measure(SMALL, lambda _: None)
    by_kind = {(one.kind.inside, one.kind.gradients): one for one in found}
    assert len(by_kind) == len(found) == 4
    for (inside, _), one in by_kind.items():
        names = {str(of) for of in one.microseconds}
        assert names == {"persistent", "alternating", "torch"} | (set() if inside else {"cudnn"})
        assert all(us > 0 for us in one.microseconds.values()) and not one.wrong


def test_other_numbers_than_the_reference_s_are_told_and_never_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The persistent kernel's masks of another seed."""
    measured = schedules._numbers

    def wrong(rnn: Any, x: Any, rng: Any, gradients: bool) -> Any:
        persistent = os.environ.get("FRD_CUDA_SCHEDULE") == "persistent" and rnn.backend == "cuda"
        return measured(rnn, x, rng + 1 if persistent else rng, gradients)

    monkeypatch.setattr(schedules, "_numbers", wrong)
    with host_run.run_on_host():
        text, failed = schedules.schedules(SMALL._replace(steps=(40,)), tmp_path / "table.json", "")
    assert failed and "H=4 B=2, persistent: its numbers differ from the reference's by" in text
    for row in json.loads((tmp_path / "table.json").read_text())["rows"]:
        assert not row["inside"] or (row["schedule"] == "alternating" and "persistent" not in row["microseconds"])


@pytest.mark.parametrize("when", ["at first", "when it is timed"])
def test_a_schedule_that_fails_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    name = "difference" if when == "at first" else "runner"
    measured = getattr(schedules, name)

    def fails(rnn: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            getattr(rnn, "backend", None) == "cuda"
            and os.environ.get("FRD_CUDA_SCHEDULE", "persistent") == "persistent"
        ):
            raise RuntimeError("the launch failed\nand more")
        return measured(rnn, *args, **kwargs)

    monkeypatch.setattr(schedules, name, fails)
    with host_run.run_on_host():
        text, failed = schedules.schedules(SMALL, tmp_path / "table.json", "")
    assert failed and "persistent: RuntimeError: the launch failed\n" in text


def test_numbers_that_are_none_are_far_from_the_reference_s(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, x = frd.GRU(4, 4), torch.zeros(3, 2, 4)
    results = iter(([torch.tensor([1.0, float("nan")])], [torch.ones(2)]))
    monkeypatch.setattr(schedules, "_numbers", lambda *_: next(results))
    assert schedules.difference(rnn, rnn, x, False) == float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_tolerance_tells_masks_apart(dtype: torch.dtype) -> None:
    """The same layer on other masks is beyond it, in eval it is within."""
    torch.manual_seed(0)
    exact = frd.LSTM(16, 16, zoneout_h=0.1, dtype=torch.float64, backend="reference")
    rounded = frd.LSTM(16, 16, zoneout_h=0.1, backend="reference")
    rounded.load_state_dict(exact.state_dict())
    rounded = rounded.to(dtype).double()
    x = torch.randn(schedules.CHECKED, 4, 16)
    assert schedules.difference(rounded.eval(), exact.eval(), x, True) <= schedules.tolerance(dtype)
    other = frd.LSTM(16, 16, zoneout_h=0.2, dtype=torch.float64, backend="reference")
    other.load_state_dict(exact.state_dict())
    assert schedules.difference(other.train(), exact.train(), x, True) > schedules.tolerance(dtype)


# --------------------------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if library.gpu_devices != {"cuda"}:
        pytest.skip("a GPU's kernels run on the host")
    assert main(["schedules", "--output", str(tmp_path / "t.json")]) == 1
    assert "error: --device cuda: there is no CUDA device here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--hidden", "4,x"], "should be whole numbers from 1 on with commas between them, got '4,x'"),
        (["--batch", "0"], "should be whole numbers from 1 on"),
        (["--cells", "QRNN"], "there is no cell QRNN"),
        (["--dtypes", "int8"], "there is no dtype int8"),
    ],
)
def test_options_that_there_are_not(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["schedules", *given])
    assert said in capsys.readouterr().err


def test_rounds_that_are_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--rounds", "1"], ["--budget", "0"]):
        assert main(["schedules", *given]) == 1
        assert "--rounds should be at least 2 and --budget above 0" in capsys.readouterr().err


def test_as_the_dry_run_runs_it(tmp_path: Path) -> None:
    """A module on the host's kernels, as a program."""
    few = ("--cells", "GRU", "--dtypes", "float32", "--hidden", "4", "--batch", "2", "--steps", "3", "--rounds", "2")
    command = [sys.executable, "tests/host_run.py", "bench", "schedules", *few, "--output", str(tmp_path / "t.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path}/t.json: FRD_SCHEDULE_TABLE={tmp_path}/t.json" in done.stdout
    text = (tmp_path / "t.json").read_text()
    assert schedule_table.parse(text, choice.NAMES, ("GRU",))
