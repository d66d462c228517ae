"""The table of what the GPU's kernels may use, tests/budgets/cuda.json, names the kernels of the sources and no others.

That they keep to it is checked by tools/compile_cuda.py, which needs nvcc.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path: path.read_text() for path in sorted((ROOT / "csrc/cuda").glob("*.*")) if path.suffix in (".cu", ".h")}
KERNEL = re.compile(r"(?:template <([^>]*)>\s*)?__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(")
TYPES = {"float", "double", "half", "bfloat16"}
EXCHANGED = TYPES - {"double"}  # what the kernels of the persistent schedule are for
WORDS = {"PhasedFloat", "PhasedPair", "Tagged"}
LIST = re.search(r"using EveryCell = CellList<(.*)>;", (ROOT / "csrc/cuda/cells.h").read_text())
assert LIST
CELLS = set(LIST[1].split(", "))


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    return json.loads((ROOT / "tests/budgets/cuda.json").read_text())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_cuda", ROOT / "tools/compile_cuda.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


def kernels_of_the_sources() -> dict[str, tuple[str, str]]:
    """Name: template parameters, source."""
    found = {name: (parameters, text) for text in SOURCES.values() for parameters, name in KERNEL.findall(text)}
    assert len(found) == sum(text.count("__global__ void") for text in SOURCES.values()), (
        "a kernel that KERNEL overlooks"
    )
    return found


def own(table: dict[str, Any]) -> dict[str, Any]:
    return {name: budget for name, budget in table["kernels"].items() if not name.startswith("selftest::")}


def test_every_kernel_has_a_budget_and_every_budget_a_kernel(table):
    assert {name.split("<")[0] for name in own(table)} == set(kernels_of_the_sources())


@pytest.mark.parametrize("kernel", kernels_of_the_sources())
def test_every_instantiation_has_one(table, kernel):
    parameters, _ = kernels_of_the_sources()[kernel]
    names = [name for name in own(table) if name.split("<")[0] == kernel]
    arguments = [re.findall(r"\w+(?:<[^>]*>)?", name.partition("<")[2]) for name in names]
    kinds = [parameter.strip().rsplit(" ", 1) for parameter in parameters.split(",") if parameter]
    assert all(len(given) == len(kinds) for given in arguments)
    persistent = kernel.startswith("persistent_") or any(name == "Word" for _, name in kinds)
    for index, (kind, name) in enumerate(kinds):
        given = {each[index] for each in arguments}
        if kind == "bool":
            assert given == {"true", "false"}
        elif kind == "int":
            assert len(given) >= 2, "one for whole rows and one for the others"
        elif name == "S":
            assert given == {"float", "double"}
        elif name == "Equations":
            assert given == CELLS
        elif name == "Word":
            assert given == WORDS
        elif name == "Tiles":
            assert len(given) >= 2, "one for small layers and one for large ones"
        else:
            assert given == (EXCHANGED if persistent else TYPES)


def test_every_target_has_a_figure(table, script):
    assert table["targets"] == list(script.TARGETS)
    for name, budget in table["kernels"].items():
        targets = [t for t in table["targets"] if t >= 80 or not name.startswith("selftest::")]
        figures = [*budget["opcodes"].values(), *(budget[key] for key in ("registers", "shared", "blocks", "limit"))]
        for figure in figures:
            assert not isinstance(figure, dict) or list(map(int, figure)) == targets, name


def test_vectorised_kernels_are_held_to_their_wide_accesses(table, script):
    wide = {name: budget["opcodes"] for name, budget in own(table).items() if script.vectorised(name)}
    assert len(wide) >= 4 * 8
    for name, opcodes in wide.items():
        for access in ("LDG", "STG"):
            assert any(opcode.startswith(f"{access}.E.") for opcode in opcodes), name


def test_persistent_kernels_multiply_in_tensor_cores(table, script):
    persistent = [budget for name, budget in own(table).items() if name.split("<")[0] in script.PERSISTENT]
    assert len(persistent) >= 2 * 4 * 3 * 2
    for budget in persistent:
        for target in script.TARGETS:
            assert target < 80 or script.of_target(budget["opcodes"]["HMMA"], target) > 0


def test_wrappers_of_instructions_are_held_to_them(table):
    found = {opcode for name, budget in table["kernels"].items() if "::" in name for opcode in budget["opcodes"]}
    assert found == {"HMMA", "LDGSTS", "LDSM"}


@pytest.mark.parametrize("kernel", kernels_of_the_sources())
def test_blocks_are_as_large_as_the_budget_takes_them_for(table, script, kernel):
    steps = (ROOT / "csrc/cuda/rows.h").read_text()
    units, rows = re.search(r"BLOCK_UNITS = (\d+), BLOCK_ROWS = (\d+);", steps).groups()
    assert int(units) * int(rows) == script.THREADS
    _, text = kernels_of_the_sources()[kernel]
    if kernel not in script.OTHER_THREADS:
        assert "block_of_rows()" in text or "block_in_line()" in text
    for name, budget in own(table).items():
        assert budget["threads"] == script.threads_of(name)


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "blocks", "limit"),
    [  # by hand, from the limits of each architecture
        (80, 128, 32, 0, 16, "warps"),
        (80, 128, 40, 0, 12, "registers"),
        (80, 128, 128, 0, 4, "registers"),
        (90, 1, 16, 0, 32, "blocks"),
        (86, 256, 20, 0, 6, "warps"),
        (75, 256, 65, 0, 3, "registers"),
        (80, 128, 32, 32 << 10, 4, "shared memory"),
        (75, 128, 32, 32 << 10, 2, "shared memory"),
    ],
)
def test_occupancy(script, target, threads, registers, shared, blocks, limit):
    assert script.occupancy(script.TARGETS[target], threads, registers, shared) == (blocks, limit)


def test_what_is_over_budget_is_named(script):
    budget = {"threads": 128, "registers": {"80": 32, "90": 40}, "shared": 0, "blocks": 12, "opcodes": {"LDG.E.128": 2}}
    good = script.Figures(registers=40, opcodes={"LDG.E.128": 2})
    assert script.over_budget("k<4>", 90, good, budget) == []
    assert script.over_budget("k<4>", 80, good, budget) == ["k<4> on sm_80: registers 40, budget 32"]
    worse = script.Figures(registers=48, shared=16, opcodes={"LDG.E.128": 1})
    assert script.over_budget("k<4>", 90, worse, budget) == [
        "k<4> on sm_90: registers 48, budget 40",
        "k<4> on sm_90: bytes of shared memory 16, budget 0",
        "k<4> on sm_90: blocks per multiprocessor 10, budget 12, limited by registers",
        "k<4> on sm_90: LDG.E.128 1, budget 2",
    ]


def test_a_compiler_of_another_cuda_has_room(script):
    budget = {"threads": 128, "registers": {"80": 32, "90": 40}, "shared": 0, "blocks": 8, "opcodes": {"LDG.E.128": 2}}
    most = 32 + script.MORE_REGISTERS
    for registers, words in ((most, []), (most + 1, [f"k<4> on sm_80: registers {most + 1}, budget {most}"])):
        figures = script.Figures(registers=registers)
        assert script.over_budget("k<4>", 80, figures, budget, script.MORE_REGISTERS) == words
    assert script.over_budget("k<4>", 80, script.Figures(registers=32), budget) != []
    spilling = {"k<1>": {80: script.Figures(registers=32, spills=28, stack=8)}}
    assert script.forbidden(spilling, set(), script.MOST_SPILLS) == [] != script.forbidden(spilling, set())
    spilling["k<1>"][80].spills = script.MOST_SPILLS + 1
    assert script.forbidden(spilling, set(), script.MOST_SPILLS) != []
    assert script.major_of("Build cuda_13.0.r13.0/compiler.36424714_0") == "13"
    assert script.major_of("Build NVRTC and ptxas V12.9.86") == "12"


def test_the_page_has_the_figures_of_the_table(table, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import registers

    text = registers.PAGE.read_text()
    shown = text.split(registers.BEGIN)[1].split(registers.END)[0].strip()
    assert shown == registers.page_of(table["kernels"]).strip() and shown.count("\n") > 16
