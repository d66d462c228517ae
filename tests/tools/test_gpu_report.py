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

from bench.gpu_report import main, read_tests

ROOT = Path(__file__).resolve().parents[2]

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
    assert tests is not None and tests.passed == 1 and not tests.cut_off
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
    (tmp_path / "exchange.md").write_text("a word's way\n")
    pages = ["--page", str(tmp_path / "exchange.md")]
    assert main([*step, *pages, "--tests", str(record), "--results", str(found), "--output", str(page)]) == 0
    text = page.read_text()
    assert "Nothing failed." in text and "passed, 7 s" in text and "Made-up GPU" in text and "# In float32" in text
    assert "1 passed, 0 failed, 2 skipped" in text and "- skipped, 2: memory is short" in text
    whole = json.loads(page.with_suffix(".json").read_text())
    assert "## Exchange\n\na word's way\n" in text and whole["pages"] == {"exchange": "a word's way"}
    assert whole["tests"]["tests"]["passed"] == 1 and whole["results"]["float32"]["device"] == "cuda"


def test_the_page_of_a_build_that_failed_needs_nothing_but_python(tmp_path: Path) -> None:
    """Neither torch, which may be what is missing, nor the package, which was not built."""
    log, page = tmp_path / "build.log", tmp_path / "report.md"
    log.write_text("error: there is no nvcc\n")
    command = [sys.executable, "-S", "-m", "bench.gpu_report"]  # -S: without installed packages
    arguments = ["--step", "build", "1", "3", log, "--not-run=doctor", "--output", page]
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=without, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    text = page.read_text()
    assert "FAILED: exit status 1, 3 s" in text and "error: there is no nvcc" in text
    assert "NOT RUN" in text and "- matplotlib: the bench draws no plots" in text


def test_a_dry_run_is_not_taken_for_a_run(tmp_path: Path) -> None:
    page = tmp_path / "report.md"
    assert main(["--dry-run", "--step", "doctor", "0", "7", "doctor.log", "--output", str(page)]) == 0
    assert page.read_text().startswith("# A dry run") and json.loads(page.with_suffix(".json").read_text())["dry_run"]


WHAT = {
    "tests": "test_bad: AssertionError: masks differ",
    "no tests": "0 passed, 0 failed",
    "no record": "**The tests did not run to their end",
    "half a record": "**The tests did not run to their end",
    "cut off": "**It was ended while a test ran: others have not run.**",
    "step": "error: out of memory",
    "over time": "FAILED: over its time, 9 s",
    "killed": "FAILED: ended by SIGKILL, 9 s",
    "interrupted": "INTERRUPTED, 9 s",
    "not run": "NOT RUN",
    "contender": "- LSTM awd train, recompute: RuntimeError: no room",
    "no results": ".json: not written",
    "no page": "schedules.md: not written",
}


@pytest.mark.parametrize("what", WHAT)
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
    if what == "half a record":
        record.write_text(record.read_text()[:-20])
    if what == "cut off":
        record.write_text(record.read_text().replace("</testsuite>", '<testcase time="0.000" /></testsuite>'))
    status = {"step": "3", "over time": "124", "killed": "137", "interrupted": "130"}.get(what, "0")
    written = tmp_path / "schedules.md"
    if what != "no page":
        written.write_text("side by side")
    steps = [
        "--page",
        str(written),
        "--step",
        "bench",
        status,
        "9",
        str(log),
        *(["--not-run=triton"] if what == "not run" else []),
    ]
    assert main(["--tests", str(record), "--results", str(found), *steps, "--output", str(page)]) == 1
    text = page.read_text()
    assert "**Something failed: see below.**" in text and "Nothing failed." not in text
    assert WHAT[what] in text
