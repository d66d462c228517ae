"""The page that a run on a GPU writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("bench", reason="the bench is part of a checkout, not of the installed package")
from test_bench import made_up_gpu_results

from bench.__main__ import main
from bench.gpu_report import read_tests

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
    step = ["--step", "correct", "0", "7", "correct.log"]
    assert main(["gpu-report", *step, "--tests", str(record), "--results", str(found), "--output", str(page)]) == 0
    text = page.read_text()
    assert "Nothing failed." in text and "passed, 7 s" in text and "Made-up GPU" in text and "# In float32" in text
    assert "1 passed, 0 failed, 2 skipped" in text and "- skipped, 2: memory is short" in text
    whole = json.loads(page.with_suffix(".json").read_text())
    assert whole["tests"]["tests"]["passed"] == 1 and whole["results"]["float32"]["device"] == "cuda"


@pytest.mark.parametrize("what", ["tests", "no tests", "no record", "step", "over time", "contender", "no results"])
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
    status = {"step": "3", "over time": "124"}.get(what, "0")
    steps = ["--step", "bench", status, "9", str(log)]
    assert main(["gpu-report", "--tests", str(record), "--results", str(found), *steps, "--output", str(page)]) == 1
    text = page.read_text()
    said = {
        "tests": "test_bad: AssertionError: masks differ",
        "no tests": "0 passed, 0 failed",
        "no record": "**The tests did not run to their end",
        "step": "error: out of memory",
        "over time": "FAILED: over its time, 9 s",
        "contender": "- LSTM awd train, recompute: RuntimeError: no room",
        "no results": "| not written",
    }
    assert "**Something failed: see below.**" in text and "Nothing failed." not in text
    assert said[what] in text
