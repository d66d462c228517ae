"""The examples, on tiny settings: that each runs, is short, and shows what it says; the notebook's outputs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import random
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import awd_lstm, convert_pretrained, export_and_serve, recurrent_ppo, speech, time_series

FOLDER = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short_and_listed(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") < 150
    assert f"python -m examples.{path.stem}" in text.split('"""')[1], "its docstring says how to run it"
    assert f"]({path.name})" in (FOLDER / "README.md").read_text("utf-8")


def test_awd_lstm_learns(tmp_path: Path) -> None:
    draw = random.Random(0)
    text = " ".join(draw.choice(("one two three", "four five six")) for _ in range(700))
    path = tmp_path / "words.txt"
    path.write_text(text)
    tiny = ["--epochs", "3", "--width", "16", "--layers", "2", "--batch", "8", "--bptt", "20", "--rate", "5"]
    losses = awd_lstm.main(["--text", str(path), *tiny])
    assert losses[-1] < losses[0] < 2.1, losses  # log 7 = 1.95 is that of a guess


def test_time_series_knows_what_it_does_not_know() -> None:
    covered, home, away = time_series.main(["--updates", "60", "--units", "24", "--batch", "32", "--samples", "10"])
    assert 0.8 < covered <= 1
    assert home > 0 and away > 0 and home != away


def test_a_series_is_predicted_from_its_own_past() -> None:
    series = torch.nn.utils.rnn.pack_sequence([torch.arange(5.0)[:, None], torch.arange(10.0, 13.0)[:, None]])
    before, after = time_series.pairs(series)
    assert torch.equal(before.data[:, 0] + 1, after)


def test_ratios_of_ppo_begin_at_one() -> None:
    tiny = ["--updates", "6", "--steps", "5", "--batch", "16", "--units", "16", "--epochs", "2"]
    _, farthest = recurrent_ppo.main(tiny)
    assert farthest < 1e-5
    _, drawn_anew = recurrent_ppo.main([*tiny, "--draw-anew"])
    assert drawn_anew > 1e-3


def test_speech_learns() -> None:
    before, after = speech.main(["--updates", "120", "--batch", "16", "--units", "48", "--projected", "24"])
    assert after < 0.7 < before, (before, after)


def test_distance_of_symbols() -> None:
    assert speech.collapse([0, 1, 1, 0, 1, 2, 2, 0]) == [1, 1, 2]
    assert speech.distance([1, 2, 3], [1, 3, 3, 4]) == 2 and speech.distance([], [5, 6]) == 2


def test_a_converted_model_is_tuned_and_taken_back() -> None:
    plain, converted = convert_pretrained.main(["--updates", "20", "--tuning", "10", "--units", "16"])
    assert plain > 0 and converted > 0 and plain != converted


@pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("lightning", "pytorch_lightning")),
    reason="Lightning is not installed",
)
def test_lightning_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples import lightning_module

    monkeypatch.chdir(tmp_path)  # where Lightning would write
    metrics = lightning_module.main(["--epochs", "2", "--sequences", "256", "--units", "8"])
    assert metrics["valid_loss"] < 1.5
    assert metrics["zoneout_c"] > 0


def asked(port: int, body: str) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}", body.encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_what_is_exported_is_served(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    export_and_serve.main(["export", str(path), "--updates", "30"])
    with export_and_serve.server(path, 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        question = '{"series": [0.1, 0.4, 0.9]}'
        first, again = asked(running.server_port, question), asked(running.server_port, question)
        other = asked(running.server_port, '{"series": [0.1, 0.4, 0.9, 0.5]}')
        for wrong in ('{"series": []}', "{}", "no JSON", '{"series": ["a"]}', "[]"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                asked(running.server_port, wrong)
            assert refused.value.code == 400 and "series" in json.load(refused.value)["error"]
        running.shutdown()
    assert first == again and first != other and first["deviation"] > 0


# --------------------------------------------------------------------------------------------------------------------
# The notebook
# --------------------------------------------------------------------------------------------------------------------

NOTEBOOK = FOLDER / "first_steps.ipynb"


def test_the_notebook_is_valid_and_was_run_in_order() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    if importlib.util.find_spec("nbformat"):
        import nbformat

        nbformat.validate(notebook)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}, "something is printed, something drawn, nothing raised"
    assert NOTEBOOK.stat().st_size < 200_000


def test_what_the_notebook_prints_is_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code, run here; not the picture, which needs matplotlib."""
    pytest.importorskip("matplotlib").use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            shown = "".join("".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream")
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec("".join(cell["source"]), names)  # the notebook is ours
            assert printed.getvalue() == shown, "run it again: python tools/notebook.py"
