"""The one command for a machine with a GPU, as far as it goes without one: what it refuses, and the page it writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("bench", reason="the bench is part of a checkout, not of the installed package")
from test_bench import made_up_gpu_results

from bench.__main__ import main
from bench.gpu_report import read_tests

ROOT = Path(__file__).resolve().parents[1]

TESTS = """
import pytest
def test_good(): pass
@pytest.mark.parametrize("n", [1, 2])
def test_skipped(n): pytest.skip("memory is short")
"""
BAD = """
def test_bad(): assert 1 == 2, "masks differ"
@pytest.fixture
def broken(): raise RuntimeError("no device")
def test_error(broken): pass
"""


def junit(folder: Path, source: str) -> Path:
    """What pytest writes of a run of ``source``."""
    folder.mkdir()
    (folder / "test_some.py").write_text(source)
    record = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", folder, f"--junitxml={record}"]
    subprocess.run([*command, folder / "test_some.py"], capture_output=True)
    return record


def test_tests_are_read(tmp_path: Path) -> None:
    tests = read_tests(junit(tmp_path / "t", TESTS + BAD))
    assert tests.passed == 1
    assert tests.skipped == {"memory is short": 2}
    assert [name.rpartition("::")[2] for name, _ in tests.failed] == ["test_bad", "test_error"]
    assert "masks differ" in tests.failed[0][1] and "no device" in tests.failed[1][1]


def results(path: Path, fails: bool) -> Path:
    made_up = made_up_gpu_results()
    if not fails:
        for entry in made_up["timings"]:
            entry["failed"] = {}
    path.write_text(json.dumps(made_up))
    return path


def test_page_of_a_run_in_which_nothing_failed(tmp_path: Path) -> None:
    page, record = tmp_path / "report.md", junit(tmp_path / "t", TESTS)
    found = results(tmp_path / "float32.json", fails=False)
    assert main(["gpu-report", "--tests", str(record), "--results", str(found), "--output", str(page)]) == 0
    text = page.read_text()
    assert "Nothing failed." in text and "Made-up GPU" in text and "# In float32" in text
    assert "1 passed, 0 failed, 2 skipped" in text and "- skipped, 2: memory is short" in text
    whole = json.loads(page.with_suffix(".json").read_text())
    assert whole["tests"]["passed"] == 1 and whole["results"]["float32"]["device"] == "cuda"


@pytest.mark.parametrize("what", ["tests", "no tests", "no record", "step", "contender", "no results"])
def test_what_fails_is_on_the_page(what: str, tmp_path: Path) -> None:
    page, log = tmp_path / "report.md", tmp_path / "step.log"
    source = TESTS + BAD if what == "tests" else TESTS
    if what == "no tests":
        source = source.replace("def test_good(): pass", "")
    record = tmp_path / "none.xml" if what == "no record" else junit(tmp_path / "t", source)
    found = results(tmp_path / "float32.json", what == "contender")
    if what == "no results":
        found.unlink()
    log.write_text("line\n" * 100 + "error: out of memory\n")
    steps = ["--failed", "measurements", str(log)] if what == "step" else []
    assert main(["gpu-report", "--tests", str(record), "--results", str(found), *steps, "--output", str(page)]) == 1
    text = page.read_text()
    said = {
        "tests": "test_bad: AssertionError: masks differ",
        "no tests": "0 passed, 0 failed",
        "no record": "**The tests did not run to their end",
        "step": "error: out of memory",
        "contender": "- LSTM awd train, recompute: RuntimeError: no room",
        "no results": "| not written",
    }
    assert "**Something failed: see below.**" in text and "Nothing failed." not in text
    assert said[what] in text


@pytest.mark.parametrize("listing", [None, "exit 9", "echo 'No devices were found'"], ids=["missing", "fails", "none"])
def test_the_command_stops_at_once_without_a_gpu(listing: str | None, tmp_path: Path) -> None:
    """In a folder of its own, so that an environment that it began to make would be seen."""
    (tmp_path / "scripts").mkdir()
    for name in ("gpu.sh", "environment.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "grep"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    if listing is not None:
        (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{listing}\n")
        (tools / "nvidia-smi").chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/gpu.sh"], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "there is no NVIDIA GPU here" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "scripts"]


def test_the_command_goes_through_every_step(tmp_path: Path) -> None:
    """With a stand-in for the GPU's tool and for the environment, whose Python only notes what it is called with."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "gpu.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / "environment.sh").write_text("say() { echo; }\nfail() { exit 1; }\n")
    tools, python = tmp_path / "bin", tmp_path / ".venv" / "bin" / "python"
    tools.mkdir()
    python.parent.mkdir(parents=True)
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: made up'\n")
    python.write_text('#!/bin/sh\necho "$FRD_CUDA $*" >>calls\ncase "$*" in *pytest*) exit 3 ;; esac\n')
    for tool in (tools / "nvidia-smi", python):
        tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "FRD_GPU_DTYPES": "float16"}
    subprocess.run(["bash", "scripts/gpu.sh", "--quick"], cwd=tmp_path, env=environment, check=True)
    _, tests, bench, report = (tmp_path / "calls").read_text().splitlines()
    assert tests == "1 -m pytest -m gpu --junitxml=build/gpu/tests.xml"
    assert bench == "1 -m bench --device cuda --compiled --dtype float16 --output build/gpu/float16.json --quick"
    assert report == (
        "1 -m bench gpu-report --tests build/gpu/tests.xml --output gpu-report.md "
        "--failed tests marked gpu build/gpu/tests.log --results build/gpu/float16.json"
    )
