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


def _of_tests(tests: Tests | None) -> str:
    if tests is None:
        return "**The tests did not run to their end: there is no record of them.**"
    parts = [
        f"{tests.passed} passed, {len(tests.failed)} failed, {sum(tests.skipped.values())} skipped in "
        f"{tests.seconds:.0f} s."
    ]
    parts += ["\n".join(f"- FAILED {name}: {message}" for name, message in tests.failed)] if tests.failed else []
    parts += ["\n".join(f"- skipped, {n}: {why}" for why, n in tests.skipped.items())] if tests.skipped else []
    return "\n\n".join(parts)


def _of_log(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-TAIL:] if path.exists() else [f"there is no {path}"]
    return "```\n" + "\n".join(lines) + "\n```"


def _all_well(
    tests: Tests | None, results: Sequence[dict[str, Any]], missing: Sequence[Path], steps: Sequence[Any]
) -> bool:
    ran = tests is not None and tests.passed > 0 and not tests.failed
    return ran and not steps and not missing and not any(failures(found) for found in results)


def page(tests: Tests | None, results: Sequence[dict[str, Any]], missing: Sequence[Path], steps: Sequence[Any]) -> str:
    """The page. ``missing``: results that were to be there; ``steps``: name and log of every step that failed."""
    good = _all_well(tests, results, missing, steps)
    parts = ["# A run on a GPU", "Nothing failed." if good else "**Something failed: see below.**"]
    rows = [
        ("tests", "no record" if tests is None else f"{tests.passed} passed, {len(tests.failed)} failed"),
        *((f"measurements, {found['dtype']}", "failures" if failures(found) else "complete") for found in results),
        *((str(path), "not written") for path in missing),
    ]
    parts += [table(("", ""), rows)]
    if results:
        parts += ["## Machine", machine(results[0])]
    for name, log in steps:
        parts += [f"## Failed: {name}", f"The end of `{log}`:", _of_log(Path(log))]
    parts += ["## Tests", _of_tests(tests)]
    for found in results:
        parts.append(f"# In {found['dtype']}")
        parts.append(report(found).removeprefix("# Measurements\n\n"))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write(tests: Path, results: Sequence[Path], steps: Sequence[Any], output: Path) -> bool:
    """Writes ``output`` and a JSON file beside it; returns whether everything went well.

    Args:
        tests: JUnit's XML.
        results: files of ``python -m bench``.
        steps: name and log of every step that failed.
        output: a markdown file.
    """
    of_tests = read_tests(tests) if tests.exists() else None
    found = [load(path) for path in results if path.exists()]
    missing = [path for path in results if not path.exists()]
    output.write_text(page(of_tests, found, missing, steps))
    record = {
        "tests": None if of_tests is None else of_tests._asdict(),
        "results": {each["dtype"]: each for each in found},
        "failed_steps": [name for name, _ in steps],
        "missing": [str(path) for path in missing],
    }
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return _all_well(of_tests, found, missing, steps)
