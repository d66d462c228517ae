"""Published recipes over a folder of the user's own: what is read, what it costs, what is trained."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

import fused_rnn_dropout as frd
from examples.language_model.data import CorpusError
from examples.review import __main__ as program
from examples.review import folder, published, recipe
from fused_rnn_dropout.training import NTASGD

SENTENCES = "the cat sat on the mat\nthe dog sat on the <unk>\n"


@pytest.fixture
def ptb(tmp_path):
    for split, times in (("train", 40), ("valid", 20), ("test", 20)):
        (tmp_path / f"ptb.{split}.txt").write_text(SENTENCES * times)
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """The recipes with small layers and short segments, all else as it is."""
    for name, found in published.RECIPES.items():
        sizes = {"hidden": 8, "embedding": 6 if found.kind == "awd" else 8, "batch": 4, "steps": 7, "epochs": 2}
        monkeypatch.setitem(published.RECIPES, name, dataclasses.replace(found, passes=2, **sizes))


@pytest.mark.parametrize("name", published.RECIPES)
def test_a_recipe_says_what_it_costs_and_is_trained(name, ptb, small, capsys):
    out = ptb / "out.jsonl"
    assert program.main(["train", str(ptb), "--recipe", name, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert published.RECIPES[name].published in shown and "with evaluation about" in shown
    assert shown.index("parameters") < shown.index("epoch 1 of 2") < shown.index("epoch 2 of 2") < shown.index("test:")
    (line,) = map(json.loads, out.read_text().splitlines())
    # Rates that are made for a thousand units do not let eight of them learn, so that no loss has to fall here.
    assert line["row"] == name and len(line["valid"]) == 2 and all(map(math.isfinite, line["valid"]))
    assert line["settings"]["task"] == "published" and line["figures"]["test"] > 0


def test_the_cost_alone_trains_nothing(ptb, small, capsys, monkeypatch):
    monkeypatch.setattr(program.recipe_program, "train", None)
    assert program.main(["train", str(ptb), "--recipe", "awd-ptb", "--cost", "--epochs", "3"]) == 0
    assert "3 epochs of 20 updates at" in capsys.readouterr().out  # of 139 steps in segments of 7


def test_settings_are_those_of_the_papers():
    """Numbers of parameters, as far as the papers give them: 24 M for AWD-LSTM, 20 M and 66 M for 650 and 1,500."""
    text = published.Text(torch.zeros(2, 1, dtype=torch.int64), *[torch.zeros(2, 1)] * 2, 10_000, "")
    millions = {}
    for name, settings in published.RECIPES.items():
        recipe.check_extras(settings.extras)
        if settings.level == "word":
            model = published.build(settings, text)
            millions[name] = round(sum(parameter.numel() for parameter in model.parameters()) / 1e6)
            assert any(isinstance(layer, frd.LSTM) for layer in model.modules())
    assert millions == {"awd-ptb": 24, "zaremba-medium": 20, "gal-large": 66}


def test_a_sum_of_losses_is_a_mean_with_its_rate(ptb):
    """35 steps at a learning rate of 1 on the sum are a learning rate of 35 on the mean; norms are 35 times smaller."""
    settings = published.RECIPES["zaremba-medium"]
    assert settings.extras["sgd"] == 35 and settings.clip * 35 == 5
    ids = torch.zeros(36, 2, dtype=torch.int64)
    awd = dataclasses.replace(published.RECIPES["awd-ptb"], hidden=4, embedding=4)
    model = published.build(awd, published.Text(ids, ids, ids, 3, ""))
    assert isinstance(recipe.Recipe(model, awd, ids).optimizer, NTASGD)


def test_words_and_characters_of_a_folder(ptb):
    words = folder.load_folder(ptb, "word")
    assert words.vocabulary[0] == "the" and {folder.END, "<unk>", "cat"} <= set(words.vocabulary)
    assert len(words.parts["train"]) == 40 * 14 and len(words.parts["test"]) == 20 * 14
    first = [words.vocabulary[index] for index in words.parts["train"][:8]]
    assert first == ["the", "cat", "sat", "on", "the", "mat", folder.END, "the"]
    characters = folder.load_folder(ptb, "char")
    assert "".join(characters.vocabulary[index] for index in characters.parts["train"][:8]) == "the_cat_"
    for split in folder.SPLITS:
        (ptb / f"ptb.char.{split}.txt").write_text("a b _ a\n")
    apart = folder.load_folder(ptb, "char")
    assert [apart.vocabulary[index] for index in apart.parts["train"]] == ["a", "b", "_", "a", folder.END]


def test_a_word_that_is_not_in_the_training_text(ptb):
    (ptb / "ptb.test.txt").write_text("the zebra\n")
    words = folder.load_folder(ptb, "word")
    assert [words.vocabulary[index] for index in words.parts["test"]] == ["the", "<unk>", folder.END]
    (ptb / "ptb.train.txt").write_text("the cat\n")
    (ptb / "ptb.valid.txt").write_text("the cat\n")
    with pytest.raises(CorpusError, match="'zebra' of test is not in the training text, which has no <unk>"):
        folder.load_folder(ptb, "word")


@pytest.mark.parametrize(("wrong", "says"), [
    (["--device", "cuda"], "this torch finds no CUDA device"),
    (["--device", "abacus"], "--device abacus"),
    (["--epochs", "0"], "--epochs should be at least 1, got 0"),
])  # fmt: skip
def test_bad_options_are_named(wrong, says, ptb, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main(["train", str(ptb), "--recipe", "awd-ptb", *wrong]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_without_the_corpus_is_named(tmp_path, capsys):
    assert program.main(["train", str(tmp_path), "--recipe", "awd-ptb"]) == 2
    assert "should have one of ptb.train.txt, wiki.train.tokens, train.txt" in capsys.readouterr().err
    (tmp_path / "train.txt").write_text("\n")
    assert program.main(["train", str(tmp_path), "--recipe", "awd-ptb"]) == 2
    assert "train.txt: no text in it" in capsys.readouterr().err
