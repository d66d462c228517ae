"""tools/check_exchange.py tells right exchanges from wrong ones; all of its cases are run by ``nox -s exchange``."""

from __future__ import annotations

from pathlib import Path

import check_exchange
import pytest

QUICK = {case.name: (case, right) for group, right in ((check_exchange.RIGHT, True), (check_exchange.FAULTS, False))
         for case in group if "3 blocks" not in case.name and "late" not in case.name}  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return check_exchange.build(tmp_path_factory.mktemp("exchange"))


@pytest.mark.parametrize("name", QUICK)
def test_cases_come_out_as_they_should(program: Path, name: str) -> None:
    case, right = QUICK[name]
    found, states, why = check_exchange.walk(program, case)
    assert found == right and bool(why) != right and states > 1


@pytest.mark.parametrize("name", [name for name, (case, _) in QUICK.items() if case.polls])
def test_polls_that_fail_change_nothing(program: Path, name: str) -> None:
    case, right = QUICK[name]
    assert check_exchange.walk(program, case, polls=True)[0] == right


def test_no_two_cases_are_one() -> None:
    cases = (*check_exchange.RIGHT, *check_exchange.FAULTS)
    assert len({case.name for case in cases}) == len({case.options for case in check_exchange.RIGHT}) + len(
        {case.options for case in check_exchange.FAULTS}
    )


def test_a_case_that_comes_out_wrong_is_told(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, fault = check_exchange.RIGHT[0], check_exchange.FAULTS[0]
    monkeypatch.setattr(check_exchange, "build", lambda folder: program)
    monkeypatch.setattr("sys.argv", ["check_exchange.py"])
    for rights, faults, status in ((right, fault, 0), (fault, fault, 1), (right, right, 1)):
        monkeypatch.setattr(check_exchange, "RIGHT", (rights,))
        monkeypatch.setattr(check_exchange, "FAULTS", (faults,))
        assert check_exchange.main() == status
    said = capsys.readouterr().out
    assert "all as they should be" in said and "are not as they should be" in said


def test_options_that_there_are_not(program: Path) -> None:
    with pytest.raises(RuntimeError, match="no option color=red"):
        check_exchange.walk(program, check_exchange.Case("a case", "color=red"))
    with pytest.raises(RuntimeError, match="too large"):
        check_exchange.walk(program, check_exchange.Case("a case", "blocks=9 words=3"))


def test_only_some(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["check_exchange.py", "--list", "--only", "running counter"])
    assert check_exchange.main() == 0
    assert capsys.readouterr().out == "fault  one running counter\n"
    monkeypatch.setattr("sys.argv", ["check_exchange.py", "--only", "no such case"])
    with pytest.raises(SystemExit):
        check_exchange.main()
