"""The pages of the techniques: programs run, every name and file of their tables is there, and none is left out."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import fused_rnn_dropout as frd
from examples.review import grid
from examples.review.techniques import TECHNIQUES

ROOT = Path(__file__).parents[2]
PAGE, API = ((ROOT / "docs" / name).read_text("utf-8") for name in ("training.md", "api.md"))
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMED = {*frd.training.__all__} - {"Fraternal", "AWDLSTMEncoder"}  # what a loss returns; a part of both models
"""What a page of techniques has to name."""


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs_run(program: str) -> None:
    exec(compile(program, "docs/training.md", "exec"), {})


def test_the_page_names_what_there_is() -> None:
    (table,) = re.findall(r"\| For \| Names \|\n(.*?)\n\n", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", table)) == NAMED


def test_the_table_of_techniques_names_what_there_is() -> None:
    named = {name for each in TECHNIQUES for name in re.findall(r"`(?:frd\.)?(\w+)", each.where)}
    known = {*frd.training.__all__, *frd.__all__, *frd.sites.SITE, "mc"}
    assert named <= known, named - known
    assert not {*NAMED, *frd.sites.SITE} - named
    for each in TECHNIQUES:
        assert each.tests and all((ROOT / "tests" / path).is_file() for path in each.tests), each.name
    assert len({each.name for each in TECHNIQUES}) == len(TECHNIQUES)


def test_what_is_measured_is_in_the_study() -> None:
    known = {row.name for row in grid.study().rows}
    asked = {name for each in TECHNIQUES for name in (*each.rows, each.base)}
    assert asked <= known, asked - known


def _documented(target: str) -> list[Any]:
    """What a block of the API page shows: one object, or what its module offers."""
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError:
        path, _, name = target.rpartition(".")
        return [getattr(importlib.import_module(path), name)]
    return [getattr(module, name) for name in module.__all__] if hasattr(module, "__all__") else [module]


def test_the_api_page_has_every_name() -> None:
    """With a docstring; and of a class that can be configured, one that says what its arguments are."""
    shown = [found for target in re.findall(r"^::: (\S+)", API, re.M) for found in _documented(target)]
    shown += [
        getattr(frd.options, name) for name in re.findall(r"\w+", re.findall(r"members: \[(Locked.*?)\]", API)[0])
    ]
    offered = [getattr(frd, name) for name in frd.__all__ if name not in ("reference", "training")]
    offered += [getattr(frd.training, name) for name in frd.training.__all__]
    missing = [found.__name__ for found in offered if not any(found is other for other in shown)]
    assert not missing
    short = [found.__name__ for found in offered if len(found.__doc__ or "") < 60]
    assert not short
