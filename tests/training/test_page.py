"""docs/training.md: its programs run, and every name and file in its table is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fused_rnn_dropout as frd

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
        for path in re.findall(r"`(tests/.*?)`", row[-1]):
            assert (ROOT / path).is_file(), path
        named |= set(re.findall(r"`(?:frd\.)?(\w+)", row[-2]))
    missing = {name for name in frd.training.__all__ if name not in named} - {"Fraternal", "AWDLSTMEncoder"}
    assert len(ROWS) > 10 and not missing
    known = {*frd.training.__all__, *frd.__all__, *frd.sites.SITE, "convert", "mc"}
    assert named <= known, named - known
