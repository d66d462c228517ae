"""``bench run`` and ``bench compare``: what they measure and refuse, and what is told from noise."""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fused_rnn_dropout as frd
from fused_rnn_dropout import cli
from fused_rnn_dropout.bench import compare, run, single
from fused_rnn_dropout.bench.__main__ import main, parser
from fused_rnn_dropout.bench.measure import Interval
from fused_rnn_dropout.bench.shapes import Shape

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--shape", "5,3,4,6", "--rounds", "2", "--threads", "1"]


# --------------------------------------------------------------------------------------------------------------------
# run
# --------------------------------------------------------------------------------------------------------------------


def measured(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    output = tmp_path / "out.json"
    assert main(["run", *TINY, *arguments, "--output", str(output)]) == 0
    return json.loads(output.read_text())


def test_a_table_json_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sites = "weight=0.5:mode=row,zoneout_c=0.1,hidden-dropout=0.25"
    results = measured(tmp_path, "--sites", sites, "--against", "nn,none,weight-drop,reference", "--dtype", "fp64")
    printed = capsys.readouterr().out
    by_task = {entry["task"]: entry["rounds"] for entry in results["timings"]}
    assert list(by_task) == ["train", "forward", "eval"]
    assert list(by_task["train"]) == ["ours", "nn", "none", "weight-drop", "reference"]
    assert "weight-drop" not in by_task["eval"]  # it drops nothing there
    assert all(len(seconds) == 2 and min(seconds) > 0 for rounds in by_task.values() for seconds in rounds.values())
    assert results["dtype"] == "float64" and "mode='row'" in results["sites"]
    assert "ours, weight_dropout=0.5, zoneout_c=0.1, hidden_dropout=0.25" in printed
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == sum(map(len, by_task.values()))
    for row in rows:
        assert f"| {row['task']} " in printed and f"| {row['contender']} " in printed
        seconds = by_task[row["task"]][row["contender"]]
        assert float(row["ms"]) == pytest.approx(500 * sum(seconds))
        assert (row["T"], row["B"], row["I"], row["H"], row["cell"], row["layers"]) == ("5", "3", "4", "6", "LSTM", "1")
        assert float(row["ms_low"]) <= float(row["ms"]) <= float(row["ms_high"])
    assert results["environment"]["command"].startswith("python -m bench run --shape 5,3,4,6 --rounds 2")
    assert "--output" not in results["environment"]["command"]
    # What is written is a result of the bench like any other.
    assert main(["report", str(tmp_path / "out.json")]) == 0
    assert "torch.nn's layer, no dropout" in capsys.readouterr().out


def options_of(*arguments: str) -> argparse.Namespace:
    return parser().parse_args(["run", *arguments])


@pytest.mark.parametrize("cell", ["LSTM", "gru", "rnn-tanh", "RNN_RELU"])
def test_ours_is_the_layer_that_was_asked_for(cell: str) -> None:
    options = options_of(
        "--shape", "5,3,4,6", "--cell", cell, "--sites", "input=0.2,zoneout_h=0.1", "--layers", "2", "--bidirectional",
        "--recompute",
    )  # fmt: skip
    (shape,) = single._shapes(options)
    rnn = single._ours(options)(options.cell, shape)
    assert type(rnn) is {"LSTM": frd.LSTM, "gru": frd.GRU}.get(cell, frd.RNN)
    assert (rnn.input_size, rnn.hidden_size, rnn.num_layers, rnn.bidirectional, rnn.recompute) == (4, 6, 2, True, True)
    assert {name: spec.p if hasattr(spec, "p") else spec.z for name, spec in rnn.sites.items()} == {
        "input_dropout": 0.2,
        "zoneout_h": 0.1,
    }
    if cell.upper().startswith("RNN"):
        assert rnn.nonlinearity == cell[4:].lower()


def test_every_rival_has_the_sites_of_ours() -> None:
    options = options_of("--shape", "5,3,4,6", "--sites", "weight=0.5,zoneout_h=0.1,update=0.2")
    (shape,) = single._shapes(options)
    built = {name: rival.build("LSTM", shape, options.sites) for name, rival in single.RIVALS.items()}
    for name in ("loop", "careful-loop"):
        assert {site: rate for site, rate in built[name].rates.items() if rate} == {
            "weight_dropout": 0.5,
            "zoneout_h": 0.1,
            "update_dropout": 0.2,
        }
        assert built[name].careful == (name == "careful-loop")
    assert built["weight-drop"].rate == 0.5
    assert built["reference"].backend == "reference" and set(built["reference"].sites) == set(options.sites)
    assert type(built["nn"]) is torch.nn.LSTM and not built["none"].sites


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_backend_that_was_asked_for_runs(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    make = single._ours

    def ours(options: argparse.Namespace) -> Any:
        return lambda cell, shape: seen.append(rnn := make(options)(cell, shape)) or rnn

    monkeypatch.setattr(single, "_ours", ours)
    measured(tmp_path, "--backend", backend, "--tasks", "eval")
    assert {rnn.backend for rnn in seen} == {backend}


def test_layers_directions_and_packed_input(tmp_path: Path) -> None:
    more = ["--layers", "2", "--bidirectional", "--packed", "--sites", "dropout=0.3", "--tasks", "train"]
    results = measured(tmp_path, *more)
    assert results["shapes"] == [Shape("5x3x4x6", 5, 3, 4, 6, "packed", "", 2, 2)._asdict()]
    (entry,) = results["timings"]
    assert set(entry["rounds"]) == {"ours", "nn"}


def test_flops_of_layers_and_directions() -> None:
    shape = Shape("s", 5, 3, 4, 6, "other", "", 2, 2)
    # 15 rows; in each direction 4 + 6 columns below and 12 + 6 above, of 3 * 6 rows of gates.
    assert shape.flops("GRU", "eval") == 2 * 15 * (10 + 18) * 18 * 2
    assert Shape("s", 5, 3, 4, 6, "other", "").flops("RNN_TANH", "train") == 3 * 2 * 15 * 10 * 6


REFUSED = {
    ("--shape", "70,20"): "argument --shape: '70,20' should be T,B,I,H",
    ("--shape", "70,20,4,0"): "four numbers of at least 1",
    ("--shape", "70,20,4,x"): "should be T,B,I,H",
    ("--cell", "QRNN"): "there is no cell 'QRNN'; allowed are LSTM, GRU, RNN, RNN_TANH, RNN_RELU",
    ("--dtype", "int8"): "there is no dtype 'int8'; allowed are fp32 or float32, bf16 or bfloat16",
    ("--sites", "wieght=0.5"): "there is no site 'wieght'; allowed are dropout, input, inter_layer, output, hidden,",
    ("--sites", "weight"): "'weight' should be a site and its rate, as in weight=0.5",
    ("--sites", "weight=1.5"): "weight_dropout",
    ("--sites", "weight=much"): "'weight=much'",
    ("--sites", "weight=0.1,weight_dropout=0.2"): "weight_dropout stands twice",
    ("--sites", "weight=0.1:shape=row"): "'shape' is no option of weight_dropout: its options are mode, inputs",
    ("--against", "keras"): "there is no rival keras; allowed are nn, none, loop",
    ("--tasks", "fit"): "there is no task fit; allowed are train, forward, eval",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_arguments_that_are_refused(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", *TINY, *arguments])
    assert ended.value.code == 2 and REFUSED[arguments] in capsys.readouterr().err


IMPOSSIBLE = {
    "--cell GRU --sites zoneout_c=0.1,weight=0.5": "--sites zoneout_c: no site of a GRU; allowed are dropout, input,",
    "--cell RNN_TANH --sites cell=0.1": "--sites cell_dropout: no site of an RNN; allowed are",
    "--sites cell=0.1 --against loop": "--against loop: it has no cell_dropout; its sites are input_dropout,",
    "--sites weight=0.1:mode=row --against loop": "--against loop: it has no options, and there are some of weight",
    "--cell RNN_RELU --against loop": "--against loop: it is written for LSTM, GRU, RNN_TANH, not for RNN_RELU",
    "--layers 2 --against loop": "--against loop: it is one layer in one direction",
    "--packed --against careful-loop": "--against careful-loop: it is one layer in one direction over a padded batch",
    "--against weight-drop": "--against weight-drop: it needs weight_dropout among --sites",
    "--sites dropout=0.1,inter_layer=0.1 --layers 2": "dropout and inter_layer_dropout are the same site",
    "--sites weight=0.1:per_example=True": "no fused backend computes weight_dropout=WeightDropout(per_example=True)",
    "--backend cuda": "--backend cuda on --device cpu: ",
    "--layers 0": "--layers should be at least 1, got 0",
    "--rounds 1": "--rounds at least 2",
    "--output out.csv": "--output should end in .json, got out.csv",
    "--graphs": "--graphs is about --device cuda",
    "--tf32": "--tf32 is about float32 products on cuda",
}


@pytest.mark.parametrize("text", IMPOSSIBLE)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "run", lambda *_: pytest.fail("it has begun to measure"))
    assert main(["run", *TINY, *text.split()]) == 1
    assert IMPOSSIBLE[text] in capsys.readouterr().err


def test_every_site_and_cell_of_the_tables_is_known() -> None:
    from fused_rnn_dropout.cells import CELLS
    from fused_rnn_dropout.sites import SITES

    for site in SITES:
        assert list(single._sites(f"{site.name}=0.5")) == [site.name]
        assert list(single._sites(f"{site.name.removesuffix('_dropout')}=0.5")) == [site.name]
    assert [single._cell(name) for name in CELLS] == list(CELLS)


def test_a_failure_on_a_gpu_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a result as a run on a GPU would leave it: the others' rows stand, and the exit status is 1."""
    results = measured(tmp_path, "--tasks", "train")
    entry = results["timings"][0]
    del entry["rounds"]["ours"]
    entry["failed"] = {"ours": "RuntimeError: no room"}
    text = single.text_of(results)
    assert "| ours | FAILED: RuntimeError: no room" in text and "| nn " in text
    assert [row["contender"] for row in single.rows_of(results)] == ["nn"]
    monkeypatch.setattr(single, "run", lambda _: results)
    assert main(["run", *TINY, "--output", str(tmp_path / "again.json")]) == 1


def test_the_installed_command_is_the_same_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.json"
    assert cli.main(["bench", "run", *TINY, "--tasks", "eval", "--output", str(output)]) == 0
    command = json.loads(output.read_text())["environment"]["command"]
    assert command == "fused-rnn-dropout bench run --shape 5,3,4,6 --rounds 2 --threads 1 --tasks eval"
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "--help"])
    assert ended.value.code == 0 and "usage: fused-rnn-dropout bench" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["bench", "fused_rnn_dropout.bench"])
def test_both_doors(module: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", module, "--version"], cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stdout.decode()) == (0, f"fused_rnn_dropout {frd.__version__}\n"), done.stderr


# --------------------------------------------------------------------------------------------------------------------
# compare
# --------------------------------------------------------------------------------------------------------------------

SHAPE = Shape("s", 5, 3, 4, 6, "other", "")


def made_up(path: Path, seed: int, rounds: int = 20, machine: float = 1.0, more: int = 0, **factors: float) -> Path:
    """A result whose rounds have 5 % of noise, shared by half between the contenders of a round, on a machine that is
    ``machine`` times slower; ``factors`` are those of contenders. ``more``: further contenders.
    """
    draw = random.Random(seed)
    names = {"nn": 1.0, "ours": 0.9, **{f"o{i}": 1.0 for i in range(more)}}
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        load = machine * abs(draw.gauss(1, 0.05))
        for name, seconds in names.items():
            found[name].append(seconds * factors.get(name, 1.0) * load * abs(draw.gauss(1, 0.05)))
    environment = {"processor": "made up", "torch": "0", "threads": 1}
    path.write_text(
        json.dumps(
            {
                "environment": environment, "device": "cpu", "dtype": "float32", "shapes": [SHAPE._asdict()],
                "sites": "", "ours": [name for name in names if name != "nn"], "skipped": {},
                "timings": [{"cell": "LSTM", "shape": "s", "task": "train", "first": {}, "rounds": found}],
            }
        )
    )  # fmt: skip
    return path


def compared(before: Path, after: Path, *more: str) -> int:
    return main(["compare", str(before), str(after), *more])


def test_a_regression_is_found_and_noise_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, same = made_up(tmp_path / "a.json", 1), made_up(tmp_path / "b.json", 2)
    slower, faster = made_up(tmp_path / "c.json", 3, ours=1.25), made_up(tmp_path / "d.json", 4, ours=0.8)
    assert compared(before, same) == 0
    assert "Nothing of ours is slower" in capsys.readouterr().out
    assert compared(before, slower) == compare.REGRESSION
    printed = capsys.readouterr().out
    assert "slower: 1," in printed and "1 of ours slower" in printed
    assert "As multiples of the time of nn" in printed
    assert compared(before, faster) == 0
    assert "faster: 1," in capsys.readouterr().out
    assert compared(before, slower, "--threshold", "0.5") == 0  # it is smaller than what is asked about


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(1.04, 1.3, "slower"), (1.02, 1.3, "cannot be told"), (0.9, 0.96, "faster"), (0.9, 0.98, "cannot be told"),
     (0.98, 1.02, "the same"), (0.9, 1.3, "cannot be told")],
)  # fmt: skip
def test_the_whole_interval_decides(low: float, high: float, says: str) -> None:
    assert compare.verdict(Interval((low + high) / 2, low, high), 0.03) == says


def test_a_slower_machine_is_no_regression(tmp_path: Path) -> None:
    before, after = made_up(tmp_path / "a.json", 1), made_up(tmp_path / "b.json", 2, machine=1.5)
    assert compared(before, after) == 0
    assert compared(before, after, "--relative-to", "none") == compare.REGRESSION


def test_a_slower_torch_is_none_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = made_up(tmp_path / "a.json", 1), made_up(tmp_path / "b.json", 2, nn=1.5)
    assert compared(before, after, "--relative-to", "none") == 0
    assert "slower: 1," in capsys.readouterr().out  # it is told, and does not count


@pytest.mark.slow
def test_of_many_comparisons_of_the_same_few_are_wrong(tmp_path: Path) -> None:
    """At most one pair of results in twenty has anything that is called slower or faster, at no threshold at all."""
    pairs, wrong = 40, 0
    for seed in range(pairs):
        runs = [
            compare.rounds_of(run.load(made_up(tmp_path / "x.json", 2 * seed + i, rounds=20, more=3))) for i in (0, 1)
        ]
        found = [change.verdict for change in compare.changes(runs[0], runs[1], "nn", 0.0)]
        assert len(found) == 4
        wrong += any(verdict in ("slower", "faster") for verdict in found)
    assert wrong <= 5  # of 40 at 5 %, more than 5 come once in a hundred times


def test_the_interval_holds_the_truth() -> None:
    """Coverage of the ratio of ratios at 95 %, on made-up rounds."""
    inside = 0
    for seed in range(60):
        draw = random.Random(seed)
        sides = []
        for factor in (1.0, 1.1):
            load = [abs(draw.gauss(1, 0.2)) for _ in range(25)]
            sides.append(([factor * x * abs(draw.gauss(1, 0.05)) for x in load], load))
        found = compare.ratio(sides[0], sides[1], 0.95)
        inside += found.low <= 1.1 <= found.high
    assert inside >= 51


def test_few_rounds_tell_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = made_up(tmp_path / "a.json", 1), made_up(tmp_path / "b.json", 2, rounds=4, ours=3.0)
    assert compared(before, after) == 0
    assert "fewer than 5 rounds" in capsys.readouterr().out


def changed(path: Path, **parts: Any) -> Path:
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, **parts}))
    return path


def test_results_that_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = made_up(tmp_path / "a.json", 1)
    for parts, said in (
        ({"dtype": "bfloat16"}, "dtype is float32, then bfloat16"),
        ({"sites": "weight_dropout"}, "sites is none, then weight_dropout"),
        ({"timings": []}, "no cell, shape, task and contender in common"),
    ):
        assert compared(before, changed(made_up(tmp_path / "b.json", 2), **parts)) == 1
        assert said in capsys.readouterr().err
    assert compared(before, before, "--relative-to", "keras") == 1
    assert "--relative-to keras: allowed are nn, ours, none" in capsys.readouterr().err
    assert compared(before, before, "--threshold", "2") == 1
    assert "--threshold should be a share" in capsys.readouterr().err
    (tmp_path / "c.json").write_text("[1]")
    assert compared(before, tmp_path / "c.json") == 1
    assert "c.json is not a result of the bench" in capsys.readouterr().err
    assert compared(before, tmp_path / "none.json") == 1
    assert "none.json" in capsys.readouterr().err


def test_another_machine_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = made_up(tmp_path / "a.json", 1), made_up(tmp_path / "b.json", 2)
    changed(after, environment={"processor": "another", "torch": "0", "threads": 1})
    assert compared(before, after) == 0
    assert "note: measured with another processor: made up, then another" in capsys.readouterr().err
