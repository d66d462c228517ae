"""Translation: catalogs that are read, pieces that come back as text, masks that are held in the decoder's loop."""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path

import pytest
import torch

from examples.language_model.data import CorpusError
from examples.review import __main__ as program
from examples.review import catalogs, pieces, results, translation, translation_grid
from examples.review import translator as translator_module
from examples.review.translator import Translator
from fused_rnn_dropout import LockedDropout

SENTENCES = [f"Delete the {thing} of this {owner}" for thing in ("page", "image", "user", "event", "order", "person")
             for owner in ("site", "shop", "tree", "team", "family", "project", "report")]  # fmt: skip


def install(folder: Path, package: str, messages: dict[str, str], language: str = "de") -> None:
    """A package of one catalog, as pip leaves it; the file as msgfmt writes it: offsets of the two texts, sorted."""
    path = f"{package.lower()}/locale/{language}/LC_MESSAGES/django.mo"
    rows = sorted({"": "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n != 1);\n",
                   **messages}.items())  # fmt: skip
    tables, texts, begin = [], b"", 28 + 16 * len(rows)
    for side in (0, 1):
        for row in rows:
            data = row[side].encode()
            tables.append(struct.pack("<II", len(data), begin + len(texts)))
            texts += data + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(rows), 28, 28 + 8 * len(rows), 0, 0)
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_bytes(head + b"".join(tables) + texts)
    information = folder / f"{package}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (information / "RECORD").write_text(f"{path},,\n")


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """Packages of these names, in front of any others, whose translations are their messages word by word."""
    folder = tmp_path / "site"
    folder.mkdir()
    for number, package in enumerate((*catalogs.TRAIN_PACKAGES, catalogs.VALID_PACKAGE)):
        words = {text: text.replace("the", "das").replace("of this", "von jenem") for text in SENTENCES[number::5]}
        install(folder, package, words)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_catalog_as_pairs(tmp_path, monkeypatch):
    install(tmp_path, "frdcatalog", {
        "Delete it": "Lösche es",
        "verb\x04Open a\n  file": "Öffne eine\nDatei",
        "one thing\x00many things": "ein Ding\x00viele Dinge",
        "Delete": "Löschen",
        "Too many words are in this": "Zu viele Wörter sind in diesem",
        "No translation": "No translation",
    })  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path))
    found = catalogs.pairs_of("frdcatalog", "de", longest=5)
    assert [(pair.source, pair.target) for pair in found] == [
        ("Delete it", "Lösche es"), ("Open a file", "Öffne eine Datei"), ("one thing", "ein Ding"),
    ]  # fmt: skip
    with pytest.raises(CorpusError, match="frdcatalog has no catalog of the language 'nl'"):
        catalogs.pairs_of("frdcatalog", "nl", 5)
    with pytest.raises(CorpusError, match="the package frdcatalogue is not installed"):
        catalogs.pairs_of("frdcatalogue", "de", 5)


def test_a_file_that_is_no_catalog_is_named(installed):
    path = next(installed.glob("wagtail/locale/de/LC_MESSAGES/*.mo"))
    path.write_bytes(b"no catalog")
    with pytest.raises(CorpusError, match="django.mo"):
        catalogs.load_pairs("de", 12)


def test_validation_is_another_programs_text(installed):
    found = catalogs.load_pairs("de", 12)
    train, valid = ({pair.source for pair in part} for part in (found.train, found.valid))
    assert train | valid == set(SENTENCES) and not train & valid
    assert valid == set(SENTENCES[4::5])


def test_a_text_comes_back_from_its_pieces():
    texts = ["Delete the page, please.", "the page: 10 %(count)s", "Löschen  der Seite"]
    made = pieces.Pieces(texts, frequent=2)
    assert {"\u2581the", "\u2581page"} <= set(made.tokens) and "\u2581Delete" not in made.tokens
    assert len(set(made.tokens)) == len(made)
    for text in (*texts, "please Delete Seite"):
        assert made.decode(made.encode(text)) == text
    assert pieces.UNKNOWN in made.encode("ж") and made.encode("the")[-1] == pieces.END
    ids, lengths = pieces.padded([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 8], [6, pieces.PAD], [7, pieces.PAD]] and lengths.tolist() == [3, 1]


def translator(cell: str = "LSTM", **decoder_sites) -> Translator:
    torch.manual_seed(0)
    return Translator(11, 13, 6, 8, cell, {}, decoder_sites)


SOURCE, LENGTHS = torch.tensor([[4, 5], [6, 7], [8, 0]]), torch.tensor([3, 2])
TARGET = torch.tensor([[5, 6], [7, 2], [2, 0]])


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_padding_changes_nothing(cell):
    model = translator(cell).eval()
    alone = model(SOURCE[:2, 1:], LENGTHS[1:], TARGET[:2, 1:])
    torch.testing.assert_close(model(SOURCE, LENGTHS, TARGET)[:2, 1:], alone)


def test_masks_last_for_the_decoders_loop():
    """What is dropped behind the attention, and what the cell is given, is the same at each step."""
    model = translator(output_dropout=0.5, input_dropout=0.5, hidden_dropout=0.3).train()
    dropped, held = [], []
    with torch.no_grad():
        model.decoder.mix.bias.fill_(3.0)  # nothing is 0 but what is dropped
    model.decoder.output.register_forward_hook(lambda _, given, out: dropped.append(out == 0))
    hold_masks = translator_module.frd.hold_masks

    def kept(module):
        held.append(hold_masks(module))
        return held[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(translator_module.frd, "hold_masks", kept)
        model(SOURCE, LENGTHS, TARGET)
    assert 0 < int(dropped[0].sum()) < dropped[0].numel()
    assert torch.equal(dropped[0], dropped[1]) and torch.equal(dropped[0], dropped[2])
    (hold,) = held
    assert hold.step_offset["cell"] == 3 and hold.rng["cell"] is not None
    dropped.clear()
    model(SOURCE, LENGTHS, TARGET)
    model(SOURCE, LENGTHS, TARGET)
    assert not torch.equal(dropped[0], dropped[3]), "another call has masks of its own"


def test_masks_per_sequence_outside_the_hold_would_raise():
    """What the loop is guarded against: a mask per sequence, drawn anew at each step."""
    model = translator(hidden_dropout=0.5).train()
    encoded, seen = model.encode(SOURCE, LENGTHS)
    state, context = model.decoder.begin(encoded, LENGTHS)
    with pytest.raises(RuntimeError, match="hold_masks"):
        model.decoder(TARGET[0], state, context, encoded, seen)


def test_translations_are_what_teacher_forcing_finds_most_probable():
    model = translator(input_dropout=LockedDropout(0.5)).train()
    (first, second) = model.translate(SOURCE, LENGTHS, 5)
    assert not model.training and len(first) == len(second) <= 5
    logits = model(SOURCE, LENGTHS, torch.tensor([first, second]).t())
    assert logits.argmax(-1).t().tolist() == [first, second]
    other = model(SOURCE, LENGTHS, (torch.tensor([first, second]).t() + 1) % 13)
    assert torch.equal(other[0], logits[0])
    assert not torch.isclose(other[1:], logits[1:]).all(-1).any(), "what came before is read"


def test_loss_leaves_padding_out():
    model = translator().eval()
    batch = translation.Batch(SOURCE, LENGTHS, TARGET)
    logs = model(SOURCE, LENGTHS, TARGET).detach().log_softmax(-1)
    places = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]
    expected = -sum(float(logs[step, row, TARGET[step, row]]) for step, row in places) / 5
    assert math.isclose(translation.loss(model, batch).item(), expected, rel_tol=1e-5)
    assert math.isclose(translation.evaluate(model, [batch]), expected / math.log(2), abs_tol=1e-4)


def test_units_that_cannot_be_halved():
    with pytest.raises(ValueError, match="units should be even, got 7"):
        Translator(5, 5, 4, 7, "LSTM", {}, {})


def test_a_missing_sacrebleu_is_named(installed, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr(translation, "load_pairs", None)  # nothing is read or trained before that is known
    command = ["--results", str(tmp_path / "r.jsonl"), "--tiny", "--task", "translation", "run"]
    assert program.main(command) == 2
    assert "the package sacrebleu, which scores, cannot be imported" in capsys.readouterr().err


def test_a_tiny_grid_from_end_to_end(installed, tmp_path, capsys):
    pytest.importorskip("sacrebleu")
    path = tmp_path / "results.jsonl"
    command = ["--results", str(path), "--tiny", "--task", "translation"]
    assert program.main([*command, "run"]) == 0
    lines = results.load(path)
    assert len(lines) == 6
    for line in lines:
        assert line["settings"]["task"] == "translation" and line["valid"][1] < line["valid"][0]
        assert 0 <= line["figures"]["BLEU"] <= 100 and 0 <= line["figures"]["chrF"] <= 100
    assert program.main([*command, "check", "--cells", "2"]) == 0
    assert capsys.readouterr().out.count("off by 0.00000") == 4
    assert program.main([*command, "table"]) == 0
    assert "6 of 6 cells" in capsys.readouterr().out


def test_scores_are_those_of_the_text(monkeypatch):
    pytest.importorskip("sacrebleu")
    texts = ["lösche das Bild von jenem Haus", "öffne die Seite von diesem Baum"]
    made = pieces.Pieces(texts, 1)
    rows = [made.encode(text) for text in texts]
    model = translator()
    monkeypatch.setattr(model, "translate", lambda *_: rows)
    batch = [translation.Batch(SOURCE, LENGTHS, TARGET)]
    assert translation.scores(model, batch, texts, made) == {"BLEU": 100.0, "chrF": 100.0}
    assert translation.scores(model, batch, texts[::-1], made)["BLEU"] < 50


def test_rows_drop_at_their_own_place():
    for row in translation_grid.study().rows:
        settings = row.settings
        model = Translator(5, 5, 4, 8, settings.cell, settings.encoder_sites, settings.decoder_sites)
        assert json.loads(json.dumps(settings.record())) == settings.record()
        for place, sites, layer in (("encoder", settings.encoder_sites, model.encoder),
                                    ("decoder", settings.decoder_sites, model.decoder.cell)):  # fmt: skip
            assert bool(sites) == (place in row.name or "both" in row.name)
            for site, rate in sites.items():
                output = place == "decoder" and site == "output_dropout"
                assert rate == (model.decoder.output.p if output else getattr(layer, site))


def test_packages_are_not_imported(installed):
    before = set(sys.modules)
    catalogs.load_pairs("de", 12)
    assert not {name.split(".")[0] for name in set(sys.modules) - before} & {"django", "wagtail", "pretix", "gramps"}
