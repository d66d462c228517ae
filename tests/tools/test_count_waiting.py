"""What tools/count_waiting.py counts: nothing is drawn between the words that a step waits for and its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import count_waiting
import pytest
from count_waiting import Count
from persistent_plans import Device, Layer, build, plans

ROOT = count_waiting.ROOT
SHIM = Device(8, 0, 16, 99 * 1024)
"""What the host shim says that it is."""
T, B, H = 6, 16, 40
"""Of tests/cuda/waiting.cu."""


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Count]:
    found = count_waiting.count(count_waiting.build(program=tmp_path_factory.mktemp("waiting") / "waiting"))
    return {one.case: one for one in found}


def test_cells_and_passes(counts: dict[str, Count]) -> None:
    cells, passes = ("LSTM", "GRU", "RNN_TANH"), ("forward", "backward")
    assert set(counts) == {f"{c} {p} {s} sites" for c in cells for p in passes for s in ("with", "without")}


def test_nothing_is_drawn_between_poll_and_publish(counts: dict[str, Count]) -> None:
    for case, one in counts.items():
        assert one.between == 0, case
        assert (one.drawn > 0) == ("with sites" in case), case


def test_each_call_of_a_step_is_drawn_once(counts: dict[str, Count]) -> None:
    """Of a GRU a step, which has two sites that draw at each, one call begins each group of eight units of a row."""
    groups, rows = H // 8, B
    of_steps = T * rows * groups * (1 + 2)
    assert counts["GRU forward with sites"].drawn >= of_steps


def test_words_are_those_of_the_plan(counts: dict[str, Count], tmp_path: Path) -> None:
    """Each once a step, or again where it was too early: never fewer, and no others."""
    cases = [case for case in counts if case.endswith("without sites")]
    layers = [Layer(case.split()[0], "float32", B, H, h0=True, backward="backward" in case) for case in cases]
    for case, plan in zip(cases, plans(build(tmp_path), [(SHIM, layer) for layer in layers]), strict=True):
        one = counts[case]
        assert isinstance(plan, dict)
        assert (one.blocks, one.words) == (plan["blocks"], plan["words_read"]), case
        assert one.steps == T - ("forward" in case)


def test_a_draw_in_between_is_counted(tmp_path: Path) -> None:
    """The masks of a step drawn when its words are there."""
    for name in ("csrc", "tests/cuda"):
        shutil.copytree(ROOT / name, tmp_path / name)
    kernel = tmp_path / "csrc/cuda/persistent_forward.h"
    text = kernel.read_text()
    draw = "      draw_step(s_, l_.masks, place_, t, this->drawn_of(step));\n"
    wait = "      x.begin_write(step);\n      __syncthreads();\n"
    assert text.count(draw) == text.count(wait) == 1
    kernel.write_text(text.replace(draw, "").replace(wait, draw + wait))
    found = count_waiting.count(count_waiting.build(tmp_path, tmp_path / "waiting"))
    for one in found:
        assert (one.between > 0) == (one.case.endswith("forward with sites")), one
