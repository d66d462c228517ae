"""Chains of steps side by side: what runs when, and what is said of a step that fails."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from pathlib import Path

import lanes
import pytest

ROOT = Path(__file__).resolve().parents[2]


def step(name: str, code: str = "") -> lanes.Step:
    return lanes.Step(name, [sys.executable, "-c", code])


def run(folder: Path, *chains: list[lanes.Step], count: int = 2, **environment: str) -> dict[str, lanes.Outcome]:
    outcomes = lanes.Lanes(chains, count, folder, {**os.environ, **environment}).run()
    return {outcome.name: outcome for outcome in outcomes}


def test_two_at_a_time_and_a_chain_in_its_order(tmp_path):
    """Each of the first two waits for the other, and ``c`` for what ``b`` has made."""
    waiting = """
import os, sys, time
own, other = sys.argv[1:]
open(own, "w").close()
while not os.path.exists(other):
    time.sleep(0.01)
"""
    first, second = tmp_path / "first", tmp_path / "second"
    a = lanes.Step("a", [sys.executable, "-c", waiting, str(first), str(second)])
    b = lanes.Step("b", [sys.executable, "-c", waiting, str(second), str(first)])
    outcomes = run(tmp_path, [a], [b, step("c", f"open({str(second)!r}); print('here', flush=True)")])
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"a": 0, "b": 0, "c": 0}
    assert outcomes["c"].log.read_text() == "here\n"


def test_no_more_than_the_lanes(tmp_path):
    alone = f"import os, time; os.chdir({str(tmp_path)!r}); os.mkdir('one'); time.sleep(0.2); os.rmdir('one')"
    chains = [[step(name, alone)] for name in "abc"]
    assert all(outcome.status == 0 for outcome in run(tmp_path, *chains, count=1).values())


def test_a_step_that_fails(tmp_path, capsys):
    noisy = "import sys; print(*range(1000), sep='\\n'); print('the reason', file=sys.stderr); sys.exit(3)"
    other = step("other", "import os; print(os.environ['WORD'])")
    outcomes = run(tmp_path, [step("bad", noisy), step("after")], [other], WORD="given")
    assert (outcomes["bad"].status, outcomes["after"].status, outcomes["other"].status) == (3, None, 0)
    assert outcomes["other"].log.read_text() == "given\n"
    assert not lanes.report(list(outcomes.values()))
    said = capsys.readouterr().out
    assert re.search(r"^ +0:\d\d  bad FAILED with status 3, \d+ s$", said, re.M)
    assert "######## FAILED: bad; the end of" in said and "\n999\nthe reason\n" in said and "\n880\n" not in said
    assert re.search(r"^after .* not run: a step before it failed$", said, re.M)
    assert re.search(r"^bad +\d+  FAILED: the reason$", said, re.M) and re.search(r"^other +\d+  given$", said, re.M)
    assert lanes.report([outcomes["other"]])


def test_a_verdict_is_the_steps_own(tmp_path):
    outcomes = run(tmp_path, [step("a", "print('==== 3 passed in 1 s ====\\n\\nnox > Session a was successful.')")])
    assert lanes.verdict(outcomes["a"]) == "3 passed in 1 s"
    assert lanes.verdict(run(tmp_path, [step("b")])["b"]) == ""


def test_stopping_ends_what_runs_and_starts_nothing(tmp_path):
    """Also what a step has started itself."""
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    made = lanes.Lanes([[step("long", child)], [step("never")]], 1, tmp_path, os.environ)
    thread = threading.Thread(target=made.run)
    thread.start()
    while not made.running:
        time.sleep(0.01)
    made.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert [(outcome.name, outcome.status is not None and outcome.status < 0) for outcome in made.outcomes] == [
        ("long", True), ("never", False),
    ]  # fmt: skip
    assert made.outcomes[1].status is None


def test_the_targets_of_nox():
    nox = pytest.importorskip("nox", reason="nox is in the extra dev")
    assert nox
    import noxfile

    steps = {name for chain in noxfile.CHAINS for name in chain}
    assert steps == set(noxfile.STEPS) and {"tests", "faults", "lint", "wheel"} <= steps
    for name in steps:
        assert getattr(noxfile, name).__doc__, "nox --list shows it"


def test_the_two_commands_are_the_readmes():
    readme, targets = ((ROOT / name).read_text("utf-8") for name in ("README.md", "noxfile.py"))
    for command in ("test", "demo"):
        assert re.search(rf"^ *bash scripts/{command}\.sh( |$)", readme, re.M)
        assert f'"bash", "scripts/{command}.sh"' in targets
