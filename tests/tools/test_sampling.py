"""Samples of what is long: what stays in them, and that the same seed gives the same one."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sampled
import sampling

ROOT = Path(__file__).resolve().parents[2]
pytest_plugins = ["pytester"]

MANY = """
import pytest

@pytest.mark.parametrize("number", range(200))
@pytest.mark.parametrize("kind", ["a", "b", "c"])
def test_many(number, kind):
    pass

@pytest.mark.parametrize("number", range({few}))
def test_few(number):
    pass

def test_alone():
    pass

@pytest.mark.whole
@pytest.mark.parametrize("number", range(50))
def test_quick(number):
    pass

class TestOther:
    @pytest.mark.parametrize("number", range(60))
    def test_many(self, number):
        pass

@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.skip) for n in range(1, 100))])
def test_mostly_skipped(number):
    pass
"""


def test_a_sample_has_its_size_order_and_traits():
    items = list(range(1000))
    one = sampling.sample(items, 20, "seed")
    assert len(one) == 20 and one == sorted(set(one))
    assert one == sampling.sample(items, 20, "seed") != sampling.sample(items, 20, "another")
    assert sampling.sample(items, 2000, "seed") == items and sampling.sample([], 3, "seed") == []
    for count in (1, 60):
        with_traits = sampling.sample(items, count, "seed", lambda item: [item % 50])
        assert {item % 50 for item in with_traits} == set(range(50)) and len(with_traits) == max(count, 50)


def test_every_item_has_its_turn():
    drawn = [set(sampling.sample(range(40), 10, str(seed), lambda item: [item % 3])) for seed in range(60)]
    assert set.union(*drawn) == set(range(40))


def test_commit(monkeypatch, tmp_path):
    assert re.fullmatch(r"[0-9a-f]{40,64}|none", sampling.commit())
    monkeypatch.setattr(sampling, "ROOT", tmp_path)
    assert sampling.commit() == "none"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sampling.commit() == "none"


CONFTEST = """
import sampled

def pytest_addoption(parser):
    sampled.add_options(parser)

def pytest_configure(config):
    sampled.configure(config)
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Runs pytest, in a process of its own, on :data:`MANY` with the option."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tools"), str(ROOT / "tests")]))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=MANY.format(few=sampled.FEW))
    return functools.partial(pytester.runpytest_subprocess, "--collect-only", "-q", "-p", "no:cacheprovider")


def collected(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("test_it.py::")]


def test_every_test_keeps_cases(run):
    whole, done = collected(run()), run("--sample", "0.05", "--sample-seed", "x")
    some = collected(done)
    assert set(some) < set(whole) and [name for name in whole if name in some] == some
    names = ("py::test_many", "test_few", "test_alone", "test_quick", "TestOther::test_many")
    counts = [sum(line.partition("[")[0].endswith(name) for line in some) for name in names]
    assert counts == [30, sampled.FEW, 1, 50, sampled.FEW]
    for kind in "abc":
        assert any(f"[{kind}-" in name for name in some)
    assert "test_it.py::test_mostly_skipped[0]" in some, "one that is skipped does not stand in for it"
    assert re.search(r"\(\d+ deselected\)", done.stdout.str())
    assert some == collected(run("--sample", "0.05", "--sample-seed", "x"))
    assert some != collected(run("--sample", "0.05", "--sample-seed", "y"))


def test_the_sample_is_of_what_was_chosen(run):
    some = collected(run("--sample", "0.01", "--sample-seed", "x", "-k", "test_many and b-1"))
    assert len(some) == sampled.FEW and all("[b-1" in name for name in some)


@pytest.mark.parametrize("share", ["0", "1.5", "nan", "some"])
def test_a_share_is_a_share(run, share):
    done = run("--sample", share)
    assert done.ret == pytest.ExitCode.USAGE_ERROR and "argument --sample: " in done.stderr.str()


def test_this_conftest_says_what_it_leaves_out():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "tests/masks/test_counters.py",
        "tests/kernels/test_chunks.py",
    ]
    done = subprocess.run(
        [*command, "--sample", "0.1", "--sample-seed", "x"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "a sample of the cases of large tests: --sample 0.1 --sample-seed x; without --sample" in done.stdout
    assert re.search(r"\d+/\d+ tests collected \(\d+ deselected\)", done.stdout)
