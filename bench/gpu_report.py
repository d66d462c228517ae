"""One page of a whole run on a GPU: machine, tests, measurements, and what failed. ``scripts/gpu.sh`` calls it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .report import failures, machine, report, table
from .run import load

TAIL = 40
"""Lines of a failed step's log that are shown."""


class Tests(NamedTuple):
    """A run of pytest. ``failed``: name and message; ``skipped``: reason and number."""

    passed: int
    failed: list[tuple[str, str]]
    skipped: dict[str, int]
    seconds: float


def read_tests(path: Path) -> Tests:
    """From the XML that ``pytest --junitxml`` writes."""
    passed, failed, skipped, seconds = 0, [], Counter[str](), 0.0
    for case in xml.parse(path).getroot().iter("testcase"):
        seconds += float(case.get("time", 0))
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = [found for kind in ("failure", "error") for found in case.findall(kind)]
        skip = case.find("skipped")
        if bad:
            failed.append((name, bad[0].get("message", "").strip()))
        elif skip is not None:
            skipped[skip.get("message", "")] += 1
        else:
            passed += 1
    return Tests(passed, failed, dict(skipped), seconds)


class Step(NamedTuple):
    """A step of the script: its exit status, and where its output is."""

    name: str
    status: int
    seconds: int
    log: Path

    @property
    def outcome(self) -> str:
        if self.status == 0:
            return "passed"
        return "FAILED: over its time" if self.status in OVER_TIME else f"FAILED: exit status {self.status}"


OVER_TIME = (124, 137)
"""What ``timeout`` returns; 137 where it had to kill."""


def _of_tests(path: Path, tests: Tests | None) -> str:
    if tests is None:
        return f"**The tests did not run to their end: there is no {path}.**"
    parts = [
        f"`{path.stem}`: {tests.passed} passed, {len(tests.failed)} failed, {sum(tests.skipped.values())} skipped in "
        f"{tests.seconds:.0f} s."
    ]
    parts += ["\n".join(f"- FAILED {name}: {message}" for name, message in tests.failed)] if tests.failed else []
    parts += ["\n".join(f"- skipped, {n}: {why}" for why, n in tests.skipped.items())] if tests.skipped else []
    return "\n\n".join(parts)


def _of_log(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-TAIL:] if path.exists() else [f"there is no {path}"]
    return "```\n" + "\n".join(lines) + "\n```"


class Run(NamedTuple):
    """All that is on the page. None where a record of tests is missing; ``missing``: results that are."""

    steps: list[Step]
    tests: dict[Path, Tests | None]
    results: list[dict[str, Any]]
    missing: list[Path]

    @property
    def all_well(self) -> bool:
        if not self.steps or any(step.status for step in self.steps) or self.missing:
            return False
        ran = all(tests is not None and tests.passed > 0 and not tests.failed for tests in self.tests.values())
        return ran and not any(failures(found) for found in self.results)


def page(run: Run) -> str:
    parts = ["# A run on a GPU", "Nothing failed." if run.all_well else "**Something failed: see below.**"]
    rows = [
        *((step.name, f"{step.outcome}, {step.seconds} s") for step in run.steps),
        *(
            (f"tests, {path.stem}", "no record" if of is None else f"{of.passed} passed, {len(of.failed)} failed")
            for path, of in run.tests.items()
        ),
        *((f"measurements, {found['dtype']}", "failures" if failures(found) else "complete") for found in run.results),
        *((str(path), "not written") for path in run.missing),
    ]
    parts += [table(("", ""), rows)]
    if run.results:
        parts += ["## Machine", machine(run.results[0])]
    for step in run.steps:
        if step.status:
            parts += [f"## Failed: {step.name}", f"{step.outcome}. The end of `{step.log}`:", _of_log(step.log)]
    if run.tests:
        parts += ["## Tests", *(_of_tests(path, of) for path, of in run.tests.items())]
    for found in run.results:
        parts.append(f"# In {found['dtype']}")
        parts.append(report(found).removeprefix("# Measurements\n\n"))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write(steps: Sequence[Step], tests: Sequence[Path], results: Sequence[Path], output: Path) -> bool:
    """Writes ``output`` and a JSON file beside it; returns whether everything went well.

    Args:
        steps: those that ran.
        tests: JUnit's XML, of each run of pytest.
        results: files of ``python -m bench``.
        output: a markdown file.
    """
    run = Run(
        list(steps),
        {path: read_tests(path) if path.exists() else None for path in tests},
        [load(path) for path in results if path.exists()],
        [path for path in results if not path.exists()],
    )
    output.write_text(page(run))
    record = {
        "steps": {step.name: {"outcome": step.outcome, "seconds": step.seconds} for step in run.steps},
        "tests": {path.stem: None if of is None else of._asdict() for path, of in run.tests.items()},
        "results": {each["dtype"]: each for each in run.results},
        "missing": [str(path) for path in run.missing],
    }
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return run.all_well
