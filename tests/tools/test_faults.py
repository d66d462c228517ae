"""The planted faults still fit the sources, and their runner tells those that are caught from those that are not."""

from __future__ import annotations

from pathlib import Path

import faults
import pytest

ROOT = Path(__file__).resolve().parents[2]
ALL = {f"{backend}: {fault.name}": fault for backend in faults.BACKENDS for fault in faults.load(backend)}


def test_no_two_have_one_name():
    for backend in faults.BACKENDS:
        names = [fault.name for fault in faults.load(backend)]
        assert len(names) == len(set(names)) > 20
    assert {path.stem for path in faults.DATA.iterdir()} == set(faults.BACKENDS)


@pytest.mark.whole
@pytest.mark.parametrize("name", ALL)
def test_it_applies(name):
    """Its text stands there exactly once, so that nothing else is changed with it."""
    fault = ALL[name]
    assert fault.old != fault.new and fault.occurrences(ROOT) == 1
    assert fault.tests and all((ROOT / test).is_file() for test in fault.tests)


@pytest.fixture
def fault(tmp_path: Path) -> faults.Fault:
    (tmp_path / "source").write_text("one two three two")
    return faults.Fault("a name", "source", "one", "1", ("tests/test_it.py",), "")


def test_it_is_planted_and_taken_out(fault, tmp_path):
    source = tmp_path / "source"
    with fault.planted(tmp_path):
        assert source.read_text() == "1 two three two"
    with pytest.raises(KeyError), fault.planted(tmp_path):
        raise KeyError
    assert source.read_text() == "one two three two"
    for old, count in (("two", 2), ("four", 0)):
        expected = pytest.raises(ValueError, match=f"a name: source holds '{old}' {count} times")
        with expected, fault._replace(old=old).planted(tmp_path):
            pass


TESTS = """
def test_sees_one():
    assert open("source").read().startswith("one")

def test_sees_three():
    assert "three" in open("source").read()

def test_fails_anyway():
    assert "four" in open("source").read()

def test_that_kills():
    import os, signal
    if "died" in open("source").read():
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Plants faults in a small checkout of one source and four tests; returns what is wrong."""
    root = tmp_path / "checkout"
    (root / "tests").mkdir(parents=True)
    (root / "tests" / "test_it.py").write_text(TESTS)
    (root / "source").write_text("one two three")

    def build(copy: Path) -> None:
        if "unbuildable" in (copy / "source").read_text():
            raise RuntimeError("the sources do not compile")

    monkeypatch.setattr(faults, "ROOT", root)
    monkeypatch.setattr(faults, "COPIED", ("tests", "source"))
    monkeypatch.setitem(faults.BACKENDS, "cpu", faults.Backend(build, {}))

    def run(*changes: tuple[str, str, str], jobs: int = 1) -> list[str]:
        made = [faults.Fault(f"fault {n}", "source", old, new, ("tests/test_it.py",), select)
                for n, (old, new, select) in enumerate(changes)]  # fmt: skip
        return faults.plant("cpu", made, jobs)

    return run


def test_what_is_caught(runner, capsys):
    caught = (("one", "1", "sees"), ("three", "3", "sees"), ("two", "died", "kills"))
    assert runner(*caught) == runner(*caught, jobs=2) == []
    said = capsys.readouterr().out
    for test in ("test_sees_one", "test_sees_three", "test_that_kills"):
        assert f"caught by tests/test_it.py::{test}\n" in said


def test_what_is_wrong(runner):
    """A fault that no test sees, that a failing test sees, that does not compile, that no test is run for."""
    assert runner(("two", "2", "sees")) == ["cpu: fault 0: unnoticed"]
    assert runner(("one", "1", "anyway")) == ["cpu: tests/test_it.py::test_fails_anyway fails without a fault"]
    assert runner(("two", "unbuildable", "sees")) == ["cpu: the sources do not compile"]
    assert "could not run" in runner(("two", "2", "no_such_test"))[0]
    assert "0 times, not once" in runner(("four", "2", "sees"))[0]


def test_a_sample_is_of_every_backend(monkeypatch, capsys):
    for seed in ("a", "b"):
        monkeypatch.setattr("sys.argv", ["faults.py", "--list", "--sample", "2", "--seed", seed])
        assert faults.main() == 0
    lines = capsys.readouterr().out.splitlines()
    half = len(lines) // 2
    (first, *one), (second, *other) = lines[:half], lines[half:]
    assert one != other and "--seed a" in first and "--seed b" in second
    assert [line.partition(":")[0] for line in one] == [name for name in faults.BACKENDS for _ in range(2)]
    assert set(one) < set(ALL)


@pytest.mark.parametrize("arguments", [["vulkan"], ["--only", "no such fault"], ["--sample", "0"], ["--jobs", "0"]])
def test_bad_options(monkeypatch, capsys, arguments):
    monkeypatch.setattr("sys.argv", ["faults.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        faults.main()
    assert caught.value.code == 2 and "error: " in capsys.readouterr().err
