"""Plants faults in the sources, one at a time, and checks that the tests catch each of them.

    python tools/faults.py [cpu | cuda | triton | python ...] [--list] [--only NAME ...] [--sample N] [--jobs N]

The faults are data: tests/faults/BACKEND.toml holds a table [[fault]] for each, with

    name           what is wrong
    file, old      a text that stands there exactly once,
    new            and what takes its place
    tests, select  which tests shall catch it, as files and as pytest's -k; [defaults] has them for those without

For each the sources are changed in a copy of the checkout, which is built as its backend needs it: the CPU's kernels
for the baseline instruction set, CUDA's for the host shim, Triton's for its interpreter; what is Python alone needs no
build. Then the tests run until the first one fails. All those that caught a fault run on the unchanged sources at the
end, and must pass. Exits with 1 if a fault goes unnoticed, or was caught by a test that fails anyway.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cpu_library
from sampling import ROOT, commit, sample

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same under this name
    import tomli as tomllib

DATA = ROOT / "tests" / "faults"
COPIED = ("csrc", "fused_rnn_dropout", "examples", "tests", "tools", "pyproject.toml")
OBJECTS = "build/cuda-host"
"""What the host shim's sources were compiled to. Copies take it over, and compile what a fault changes."""
LIMIT = 900
"""Seconds for the tests of one fault; a fault that makes them wait for ever is caught too."""


class Fault(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    select: str

    def occurrences(self, root: Path) -> int:
        """How often the text that it changes stands in its file; once, or the fault is another than was meant."""
        return (root / self.file).read_text("utf-8").count(self.old)

    @contextmanager
    def planted(self, root: Path) -> Iterator[None]:
        """The fault is in the sources below ``root`` meanwhile.

        Raises:
            ValueError: its text does not stand there exactly once.
        """
        if (count := self.occurrences(root)) != 1:
            raise ValueError(f"{self.name}: {self.file} holds {self.old!r} {count} times, not once")
        path = root / self.file
        text = path.read_text("utf-8")
        path.write_text(text.replace(self.old, self.new), "utf-8")
        try:
            yield
        finally:
            path.write_text(text, "utf-8")


class Backend(NamedTuple):
    """``build`` makes a copy ready for its tests, and is called again after each change of a source.

    It raises RuntimeError where the sources do not compile: no test has caught a fault then.
    """

    build: Callable[[Path], None]
    environment: dict[str, str]


def build_host_module(root: Path) -> None:
    if (ROOT / OBJECTS).is_dir():
        shutil.copytree(ROOT / OBJECTS, root / OBJECTS, dirs_exist_ok=True)
    done = subprocess.run([sys.executable, root / "tests/cuda/build.py"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the sources do not compile:\n{done.stderr[-2000:]}")


BACKENDS = {
    "cpu": Backend(cpu_library.build, {}),
    "cuda": Backend(build_host_module, {}),
    "triton": Backend(lambda root: None, {"TRITON_INTERPRET": "1"}),
    "python": Backend(lambda root: None, {}),
}


def load(backend: str) -> list[Fault]:
    """The faults of tests/faults/BACKEND.toml."""
    data = tomllib.loads((DATA / f"{backend}.toml").read_text("utf-8"))
    defaults = {"select": "", **data["defaults"]}
    return [Fault(**{**defaults, **table, "tests": tuple(table.get("tests", defaults["tests"]))})
            for table in data["fault"]]  # fmt: skip


def copy_to(root: Path) -> Path:
    root.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root)
    return root


class Verdict(NamedTuple):
    """Whether the tests passed, and which was the first to fail, ``""`` where none can be named."""

    passed: bool
    first: str


def run_tests(root: Path, backend: Backend, arguments: list[str]) -> Verdict:
    """Runs tests until one fails.

    Raises:
        RuntimeError: no test ran, or pytest could not.
    """
    environment = {**os.environ, **backend.environment, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-v", "--no-header", "-p", "no:cacheprovider", "--tb=line"]
    try:
        done = subprocess.run(
            [*command, *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, "")
    if done.returncode not in (0, 1) and done.returncode > 0:
        raise RuntimeError(f"the tests could not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    # The last test that was started: where a signal ended the process, nothing else names it.
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+::\S.*?)(?: - .*)?$", done.stdout, re.M)
    started = re.findall(r"^(tests/\S+::.*?) *(?:[A-Z]+ .*)?$", done.stdout, re.M)
    return Verdict(done.returncode == 0, (failed or started[-1:] or [""])[0] if done.returncode else "")


def attempt(fault: Fault, backend: Backend, copies: queue.Queue[Path]) -> tuple[Verdict, float]:
    start, root = time.monotonic(), copies.get()
    try:
        with fault.planted(root):
            backend.build(root)
            select = ["-k", fault.select] if fault.select else []
            return run_tests(root, backend, [*select, *fault.tests]), time.monotonic() - start
    finally:
        copies.put(root)


def plant(name: str, faults: list[Fault], jobs: int) -> list[str]:
    """Plants ``faults`` of the backend ``name``, and says how each fared; returns what is wrong."""
    backend, wrong, catchers = BACKENDS[name], [], []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            copies.put(copy_to(Path(folder) / str(number)))
        results = [pool.submit(attempt, fault, backend, copies) for fault in faults]
        for number, (fault, result) in enumerate(zip(faults, results, strict=True), 1):
            try:
                verdict, seconds = result.result()
            except (ValueError, RuntimeError) as error:
                wrong.append(f"{name}: {error}")
                continue
            said = "UNNOTICED" if verdict.passed else f"caught by {verdict.first or 'tests that did not end'}"
            print(f"[{name} {number}/{len(faults)}, {seconds:.0f} s] {fault.name}: {said}", flush=True)
            if verdict.passed:
                wrong.append(f"{name}: {fault.name}: unnoticed")
            elif verdict.first:
                catchers.append(verdict.first)
        root = copies.get()
        backend.build(root)
        if catchers and not (verdict := run_tests(root, backend, sorted(set(catchers)))).passed:
            wrong.append(f"{name}: {verdict.first} fails without a fault")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help="of cpu, cuda, triton, python (default: all)")
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only the faults whose names contain NAME")
    parser.add_argument("--sample", type=int, metavar="N", help="of each backend N faults, that the seed chooses")
    parser.add_argument("--seed", metavar="TEXT", help="of the sample (default: the hash of the commit)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="faults at a time (default: %(default)s)")
    options = parser.parse_args()
    if unknown := sorted(set(options.backends) - BACKENDS.keys()):
        parser.error(f"no such backend: {', '.join(unknown)}; there are {', '.join(BACKENDS)}")
    if options.jobs < 1 or (options.sample is not None and options.sample < 1):
        parser.error("--jobs and --sample should be at least 1")
    chosen = {
        name: [fault for fault in load(name) if not options.only or any(part in fault.name for part in options.only)]
        for name in options.backends or BACKENDS
    }
    if options.sample:
        seed = options.seed or commit()
        print(f"a sample, again with --sample {options.sample} --seed {seed}; without --sample all are planted")
        chosen = {name: sample(faults, options.sample, f"{seed} {name}") for name, faults in chosen.items()}
    if not any(chosen.values()):
        parser.error(f"no fault has {' or '.join(options.only)} in its name")
    if options.list:
        print("\n".join(f"{name}: {fault.name}" for name, faults in chosen.items() for fault in faults))
        return 0
    wrong = [line for name, faults in chosen.items() if faults for line in plant(name, faults, options.jobs)]
    for line in wrong:
        print(f"WRONG  {line}")
    print(f"{sum(map(len, chosen.values()))} faults planted: {f'{len(wrong)} wrong' if wrong else 'all caught'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
