"""The command line, in this process: what it prints, what it writes, and its exit status."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_rnn_dropout as frd
from fused_rnn_dropout import cli, doctor, library, ops
from fused_rnn_dropout.cells import MODULES
from fused_rnn_dropout.program import NOBODY_READS

ROOT = Path(__file__).resolve().parents[2]


def status_of_exit(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return caught.value.code


# --------------------------------------------------------------------------------------------------------------------
# doctor
# --------------------------------------------------------------------------------------------------------------------


def test_doctor_reports_and_checks(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for expected in (torch.__version__, frd.__version__, ops.build_info()["isa"]):
        assert expected in shown
    assert re.search(r"^self check +ok", shown, re.M)
    missing = library.obstacle("cuda", "cuda")
    found = "there: kernels" if torch.cuda.is_available() else "its kernels for CUDA"
    assert re.search(rf"^backend cuda +{re.escape(f'not there: {missing}' if missing else found)}", shown, re.M)


def test_doctor_fails_where_the_kernels_are_wrong(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "self_check", lambda: {"LSTM": 1e-3, "GRU": math.nan})
    assert cli.main(["doctor"]) == 1
    assert re.search(r"^self check +FAILED", capsys.readouterr().out, re.M)


def test_self_check_sees_a_wrong_result(monkeypatch):
    good = doctor.self_check()
    assert set(good) == set(MODULES) and max(good.values()) < 1e-12
    forward = frd.GRU.forward

    def wrong(self, *args, **kwargs):
        out, state = forward(self, *args, **kwargs)
        return (out * (1 + 1e-6) if self.backend == "cpu" else out), state

    monkeypatch.setattr(frd.GRU, "forward", wrong)
    assert doctor.self_check()["GRU"] > 1e-7


def test_doctor_names_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda package: None)
    cli.main(["doctor"])
    assert re.search(r"^backend triton +missing: .*pip install", capsys.readouterr().out, re.M)


def test_doctor_says_how_to_get_the_gpus_kernels(monkeypatch):
    monkeypatch.setattr(library, "_no_cuda", "no kernels in this test")
    monkeypatch.setattr(doctor.shutil, "which", lambda name, **_: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    text = doctor.about_cuda()
    assert "no kernels in this test; to get it, install a build of torch for CUDA, then build" in text
    assert "FRD_CUDA=1" in text and "there is no nvcc on the PATH" in text
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor.shutil, "which", lambda name, **_: f"/somewhere/{name}")
    text = doctor.about_cuda()
    assert "to get it, build fused_rnn_dropout anew" in text and "nvcc is /somewhere/nvcc" in text


def test_doctor_looks_for_what_triton_compiles_with(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path))
    text = doctor.about_launcher()
    assert "missing" in text and f"Python.h in {tmp_path}" in text and "python3-dev" in text
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    text = doctor.about_launcher()
    assert "missing: a C compiler (gcc or clang;" in text and "Python.h" not in text
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/bin/my-cc" if name == "my-cc" else None)
    monkeypatch.setenv("CC", "my-cc")
    assert doctor.about_launcher().startswith("there: /bin/my-cc")


def test_doctor_counts_in_english(capsys, monkeypatch):
    assert [doctor.counted(number, "thread") for number in (1, 2)] == ["1 thread", "2 threads"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 1)
    doctor.report()
    shown = capsys.readouterr().out
    assert ", 1 thread, CUDA" in shown and ", 1 processor\n" in shown


# --------------------------------------------------------------------------------------------------------------------
# explain
# --------------------------------------------------------------------------------------------------------------------


def test_explain_prints_what_explain_says(capsys):
    arguments = "explain --input-size 6 --hidden-size 5 --num-layers 2 --bidirectional --steps 4 --batch 3"
    assert cli.main([*arguments.split(), "--weight-dropout", "0.5,mode=row,inputs=true", "--zoneout-c", "0.1"]) == 0
    rnn = frd.LSTM(6, 5, 2, bidirectional=True, zoneout_c=0.1,
                   weight_dropout=frd.WeightDropout(0.5, mode="row", inputs=True))  # fmt: skip
    assert capsys.readouterr().out == f"{frd.explain(rnn, torch.zeros(4, 3, 6))}\n"


def test_explain_of_a_gru_in_eval(capsys):
    arguments = "explain --cell gru --dtype bfloat16 --eval --dropout 0.2 --num-layers 2 --backend reference"
    assert cli.main(arguments.split()) == 0
    shown = capsys.readouterr().out
    assert "GRU(" in shown and "bfloat16" in shown and "reference" in shown and "off: eval" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--weight-dropout 1.5", "range [0, 1]"),
        ("--weight-dropout nan", "range [0, 1]"),
        ("--weight-dropout half", "could not convert"),
        ("--weight-dropout 0.5,mode=column", "'element', 'row'"),
        ("--weight-dropout 0.5,rows=true", "mode, inputs, projection, per_example"),
        ("--dropout 0.5,per=step", "no options"),
        ("--hidden-size 0", "at least 1"),
        ("--hidden-size x", "invalid positive integer"),
        ("--steps 99999999999999999999", "below 2**63"),
        ("--cell rnn", "invalid choice"),
    ],
)
def test_explain_refuses_bad_values(capsys, arguments, message):
    assert status_of_exit(["explain", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--hidden-size 99999999", "cannot be made here"),
        ("--cell gru --zoneout-c 0.1", "--zoneout-c is not a site of a GRU"),
        ("--cell gru --proj-size 3", "--proj-size"),
        ("--num-layers 2 --dropout 0.1 --inter-layer-dropout 0.1", "give one of them"),
        ("--weight-dropout 0.5,projection=true", "proj_size is 0"),
        ("--backend cuda", "cuda"),
        ("--backend cpu --hidden-dropout 0.5,tied=false", 'backend="reference"'),
    ],
)
def test_explain_refuses_bad_combinations(capsys, arguments, message):
    assert cli.main(["explain", *arguments.split()]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


# --------------------------------------------------------------------------------------------------------------------
# the command line itself
# --------------------------------------------------------------------------------------------------------------------


def test_version(capsys):
    assert status_of_exit(["--version"]) == 0
    assert capsys.readouterr().out.startswith(
        f"fused_rnn_dropout {frd.__version__}, torch {torch.__version__}, Python 3."
    )


def in_a_shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(("arguments", "unbuffered"), [("doctor", ""), ("explain", "1"), ("--help", "")])
def test_a_reader_that_goes_away(arguments, unbuffered):
    done = in_a_shell(f'"$PYTHON" -m fused_rnn_dropout {arguments} | true', PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == NOBODY_READS and not done.stderr


def test_the_command_that_has_gone(capsys):
    assert cli.main(["demo", "--quick"]) == 2
    printed = capsys.readouterr()
    assert "bash scripts/demo.sh runs it" in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert (ROOT / "examples" / "language_model" / "__main__.py").exists() and (ROOT / "scripts" / "demo.sh").exists()


@pytest.mark.parametrize("arguments", [[], ["dance"], ["explain", "--steps", "0"]])
def test_bad_options(capsys, arguments):
    assert status_of_exit(arguments) == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["README.md", "docs/usage.md"])
def test_the_code_of_a_page_runs(capsys, page):
    code = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)
    assert code
    for block in code:
        exec(compile(block, page, "exec"), {})
    assert page != "README.md" or "weight_dropout=0.5" in capsys.readouterr().out
