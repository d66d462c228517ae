"""One page of a whole run of scripts/gpu.sh, which calls this: machine, steps, tests, measurements, and what failed.

    python -m bench.gpu_report --output report.md --step NAME STATUS SECONDS LOG ...

Where there are no measurements it needs nothing but Python, so that it can tell that the package was not built.
"""

from __future__ import annotations

import argparse
import json
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple

TAIL = 40
"""Lines of a failed step's log that are shown."""

PACKAGES = {
    "pytest-xdist": "tests run one after the other, and Triton's are not done in ten minutes",
    "triton": "there is no Triton backend, and its tests are skipped",
    "hypothesis": "tests/kernels/test_properties.py is skipped",
    "expecttest": "tests/surface/test_torch_database.py is skipped",
    "pybind11": "tests of the GPU's kernels on the host fail; those marked gpu do not need it",
    "matplotlib": "the bench draws no plots",
}
"""Packages that a run can do without, and at what cost."""

OVER_TIME, INTERRUPTED = 124, 130


class Tests(NamedTuple):
    """A run of pytest.

    Attributes:
        failed: name and message.
        skipped: number by reason.
        cut_off: whether a test was running when the run was ended.
    """

    passed: int
    failed: list[tuple[str, str]]
    skipped: dict[str, int]
    seconds: float
    cut_off: bool = False

    @property
    def all_well(self) -> bool:
        return self.passed > 0 and not self.failed and not self.cut_off


def read_tests(path: Path) -> Tests | None:
    """From the XML that ``pytest --junitxml`` writes; None where there is none, or half of one."""
    try:
        cases = xml.parse(path).getroot().iter("testcase")
    except (FileNotFoundError, xml.ParseError):
        return None
    passed, failed, skipped, seconds, cut_off = 0, [], Counter[str](), 0.0, False
    for case in cases:
        seconds += float(case.get("time", 0))
        if case.get("name") is None:  # so pytest writes the one that Ctrl-C interrupts
            cut_off = True
            continue
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = [found for kind in ("failure", "error") for found in case.findall(kind)]
        skip = case.find("skipped")
        if bad:
            failed.append((name, bad[0].get("message", "").strip()))
        elif skip is not None:
            skipped[skip.get("message", "")] += 1
        else:
            passed += 1
    return Tests(passed, failed, dict(skipped), seconds, cut_off)


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
        if self.status == OVER_TIME:
            return "FAILED: over its time"
        if self.status == INTERRUPTED:
            return "INTERRUPTED"
        if self.status - 128 in set(Signals):
            return f"FAILED: ended by {Signals(self.status - 128).name}"
        return f"FAILED: exit status {self.status}"


def _of_tests(path: Path, tests: Tests | None) -> str:
    if tests is None:
        return f"**The tests did not run to their end: {path} is not there, or not whole.**"
    parts = [
        f"`{path.stem}`: {tests.passed} passed, {len(tests.failed)} failed, {sum(tests.skipped.values())} skipped in "
        f"{tests.seconds:.0f} s."
    ]
    parts += ["**It was ended while a test ran: others have not run.**"] if tests.cut_off else []
    parts += ["\n".join(f"- FAILED {name}: {message}" for name, message in tests.failed)] if tests.failed else []
    parts += ["\n".join(f"- skipped, {n}: {why}" for why, n in tests.skipped.items())] if tests.skipped else []
    return "\n\n".join(parts)


def _of_log(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-TAIL:] if path.exists() else [f"there is no {path}"]
    return "```\n" + "\n".join(lines) + "\n```"


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


class Measured(NamedTuple):
    """A file of ``python -m bench``, and what is said of it."""

    results: dict[str, Any]
    machine: str
    failures: str
    report: str


def measured(path: Path) -> Measured:
    # Here, as both need torch and the library.
    from fused_rnn_dropout.bench.report import failures, machine, report
    from fused_rnn_dropout.bench.run import load

    results = load(path)
    return Measured(results, machine(results), failures(results), report(results).removeprefix("# Measurements\n\n"))


class Run(NamedTuple):
    """All that is on the page.

    Attributes:
        not_run: names of steps that others, or Ctrl-C, kept from running.
        pages: text that a step wrote, by the name of its file.
        tests: None where a record is missing.
        missing: results and pages that are.
        dry: whether the CPU was in the GPU's place.
    """

    steps: Sequence[Step]
    not_run: Sequence[str]
    tests: dict[Path, Tests | None]
    measured: list[Measured]
    pages: dict[str, str]
    missing: list[Path]
    dry: bool

    @staticmethod
    def read(
        steps: Sequence[Step],
        not_run: Sequence[str],
        tests: Sequence[Path],
        results: Sequence[Path],
        pages: Sequence[Path] = (),
        dry: bool = False,
    ) -> Run:
        """From the files that the steps have left."""
        return Run(
            steps,
            not_run,
            {path: read_tests(path) for path in tests},
            [measured(path) for path in results if path.exists()],
            {path.stem: path.read_text().strip() for path in pages if path.exists()},
            [path for path in (*results, *pages) if not path.exists()],
            dry,
        )

    @property
    def all_well(self) -> bool:
        if not self.steps or self.not_run or self.missing or any(step.status for step in self.steps):
            return False
        ran = all(tests is not None and tests.all_well for tests in self.tests.values())
        return ran and not any(found.failures for found in self.measured)


def page(run: Run) -> str:
    title = "# A dry run, with the CPU in the GPU's place: it says nothing of a GPU" if run.dry else "# A run on a GPU"
    parts = [title, "Nothing failed." if run.all_well else "**Something failed: see below.**"]
    rows = [
        *((step.name, f"{step.outcome}, {step.seconds} s") for step in run.steps),
        *((name, "NOT RUN") for name in run.not_run),
        *(
            (f"tests, {path.stem}", "no record" if of is None else f"{of.passed} passed, {len(of.failed)} failed")
            for path, of in run.tests.items()
        ),
        *(
            (f"measurements, {found.results['dtype']}", "failures" if found.failures else "complete")
            for found in run.measured
        ),
        *((str(path), "not written") for path in run.missing),
    ]
    parts += ["\n".join(f"- {name}: {outcome}" for name, outcome in rows)]
    if lacking := [f"- {name}: {cost}" for name, cost in PACKAGES.items() if not _installed(name)]:
        parts += ["Not installed here:", "\n".join(lacking)]
    if run.measured:
        parts += ["## Machine", run.measured[0].machine]
    for step in run.steps:
        if step.status:
            parts += [f"## Failed: {step.name}", f"{step.outcome}. The end of `{step.log}`:", _of_log(step.log)]
    if run.tests:
        parts += ["## Tests", *(_of_tests(path, of) for path, of in run.tests.items())]
    for name, text in run.pages.items():
        parts += [f"## {name.capitalize()}", text]
    for found in run.measured:
        parts += [f"# In {found.results['dtype']}", found.report]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write(run: Run, output: Path) -> None:
    """Writes ``output``, a markdown file, and a JSON file beside it."""
    output.write_text(page(run))
    record = {
        "dry_run": run.dry,
        "all_well": run.all_well,
        "steps": {step.name: {"outcome": step.outcome, "seconds": step.seconds} for step in run.steps},
        "not_run": list(run.not_run),
        "tests": {path.stem: None if of is None else of._asdict() for path, of in run.tests.items()},
        "results": {found.results["dtype"]: found.results for found in run.measured},
        "pages": run.pages,
        "missing": [str(path) for path in run.missing],
    }
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page; returns 0 if nothing failed, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_report", description="One page of a run of scripts/gpu.sh."
    )
    add = parser.add_argument
    of_step = ("NAME", "STATUS", "SECONDS", "LOG")
    add("--step", nargs=4, action="append", default=[], metavar=of_step, help="a step that ran")
    add("--not-run", action="append", default=[], metavar="NAME", help="a step that should have run")
    add("--tests", type=Path, action="append", default=[], help="what pytest --junitxml wrote")
    add("--results", type=Path, action="append", default=[], help="what python -m bench wrote")
    add("--page", type=Path, action="append", default=[], help="text in markdown that a step wrote")
    add("--dry-run", action="store_true", help="say that the CPU was in the GPU's place")
    add("--output", type=Path, required=True, help="a markdown file")
    options = parser.parse_args(arguments)
    steps = [Step(name, int(status), int(took), Path(log)) for name, status, took, log in options.step]
    run = Run.read(steps, options.not_run, options.tests, options.results, options.page, options.dry_run)
    write(run, options.output)
    print(f"wrote {options.output}: {'nothing failed' if run.all_well else 'SOMETHING FAILED, it says what'}")
    return 0 if run.all_well else 1


if __name__ == "__main__":
    sys.exit(main())
