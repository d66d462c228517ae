"""docs/training.md: its programs run, and every name and file in its table is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fused_rnn_dropout as frd
from examples.review import grid

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs_run(program: str) -> None:
    exec(compile(program, "docs/training.md", "exec"), {})


def test_the_table_names_what_there_is() -> None:
    named = set()
    for row in ROWS:
        _, _, where, tests, _ = row
        for path in re.findall(r"`(tests/.*?)`", tests):
            assert (ROOT / path).is_file(), path
        named |= set(re.findall(r"`(?:frd\.)?(\w+)", where))
    missing = {name for name in frd.training.__all__ if name not in named} - {"Fraternal", "AWDLSTMEncoder"}
    assert len(ROWS) > 10 and not missing
    known = {*frd.training.__all__, *frd.__all__, *frd.sites.SITE, "convert", "mc"}
    assert named <= known, named - known


def test_what_is_measured_is_in_the_study_and_the_rest_is_said() -> None:
    study = grid.study()
    known = {row.name for row in study.rows} | {sweep.name for sweep in study.sweeps} | {"awd without"}
    for *_, measured in ROWS:
        named = set(re.findall(r"`(.*?)`", measured))
        assert named <= known, named - known
        assert named or "not run" in measured or "MC less eval" in measured
