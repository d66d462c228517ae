"""Runs chains of steps side by side, a log for each step: what CI does with the targets of noxfile.py.

A chain is a list of steps that go one after the other; a step that fails ends its chain, and the other chains go on.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TAIL = 120
"""Lines of a failed step's log that are shown."""


@dataclass(frozen=True)
class Step:
    name: str
    command: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """``status``: of the step's process, or None where it was not started, since one before it in its chain failed."""

    name: str
    status: int | None
    seconds: float
    log: Path


def say(text: str) -> None:
    print(text, flush=True)


class Lanes:
    """Some lanes, which take the chains in their order, each the next that none has taken.

    Args:
        chains: the steps. Long chains first make the last ones end together.
        count: lanes, each of which runs one process at a time.
        folder: where the logs go, as STEP.log.
        environment: of the processes.
    """

    def __init__(
        self, chains: Sequence[Sequence[Step]], count: int, folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.count, self.folder, self.environment = count, folder, dict(environment)
        self.waiting: queue.SimpleQueue[Sequence[Step]] = queue.SimpleQueue()
        for chain in chains:
            self.waiting.put(chain)
        self.outcomes: list[Outcome] = []
        self.running: set[subprocess.Popen] = set()
        self.stopped = False
        self.lock = threading.Lock()
        self.start = time.monotonic()

    def at(self) -> str:
        seconds = round(time.monotonic() - self.start)
        return f"{seconds // 60:3}:{seconds % 60:02}"

    def run_step(self, step: Step) -> Outcome:
        start, log = time.monotonic(), self.folder / f"{step.name}.log"
        say(f"{self.at()}  {step.name} begins")
        with log.open("w") as output:
            with self.lock:
                if self.stopped:
                    return Outcome(step.name, None, 0.0, log)
                process = subprocess.Popen(
                    step.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    env=self.environment, start_new_session=True,
                )  # fmt: skip
                self.running.add(process)
            status = process.wait()
        with self.lock:
            self.running.discard(process)
        seconds = time.monotonic() - start
        say(f"{self.at()}  {step.name} {f'FAILED with status {status}' if status else 'is done'}, {seconds:.0f} s")
        return Outcome(step.name, status, seconds, log)

    def run_lane(self) -> None:
        while True:
            try:
                chain = self.waiting.get_nowait()
            except queue.Empty:
                return
            well = True
            for step in chain:
                log = self.folder / f"{step.name}.log"
                outcome = self.run_step(step) if well else Outcome(step.name, None, 0.0, log)
                self.outcomes.append(outcome)
                well = outcome.status == 0

    def stop(self) -> None:
        """Ends what runs, with all that it has started, and starts nothing more."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                os.killpg(process.pid, signal.SIGTERM)

    def run(self) -> list[Outcome]:
        """All chains; returns how each step fared, in the order of their ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        threads = [threading.Thread(target=self.run_lane) for _ in range(self.count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            self.stop()
            raise
        return self.outcomes


def verdict(outcome: Outcome) -> str:
    """What a step itself says at its end: the last line of its log that is not nox's."""
    if outcome.status is None:
        return "not run: a step before it failed"
    lines = outcome.log.read_text(errors="replace").splitlines()
    own = [line for line in lines if line.strip() and not line.startswith("nox > ")]
    return f"{'FAILED: ' if outcome.status else ''}{own[-1].strip(' =') if own else ''}"


def report(outcomes: Sequence[Outcome]) -> bool:
    """Shows the end of each failed step's log, and a table of all; returns whether every step went well."""
    for outcome in outcomes:
        if outcome.status:
            say(f"\n######## FAILED: {outcome.name}; the end of {outcome.log}:")
            say("\n".join(outcome.log.read_text(errors="replace").splitlines()[-TAIL:]))
    say(f"\n{'step':<12} seconds")
    for outcome in sorted(outcomes, key=lambda outcome: -outcome.seconds):
        say(f"{outcome.name:<12} {outcome.seconds:7.0f}  {verdict(outcome)}")
    return all(outcome.status == 0 for outcome in outcomes)
