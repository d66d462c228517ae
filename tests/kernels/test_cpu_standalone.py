"""The CPU kernels in programs without torch or Python: tests/cpu/parts.cpp and tests/cpu/random_layers.cpp."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import cpu_library
import pytest
from targets import HAS_BF16

from fused_rnn_dropout import ops

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
LANES = {"baseline": 4, "avx2": 8, "avx512": 16, "avx512bf16": 16}
MACHINE = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
    "avx512bf16": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-DFRD_BF16_DOT"],
}

pytestmark = pytest.mark.cpu_kernels


def compiler() -> list[str]:
    return [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++20", "-Wno-psabi", f"-I{CSRC}"]


def build(target: Path, *arguments: str | Path) -> Path:
    subprocess.run([*compiler(), "-O1", *arguments, "-pthread", "-o", target], check=True)
    return target


@pytest.fixture(scope="module", params=list(LANES))
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for one instruction set."""
    isa = request.param
    if not HAS_BF16 if isa == "avx512bf16" else isa not in ops.cpu_isas():
        pytest.skip(f"this processor has no {isa}")
    flags = [f"-DFRD_ISA={isa}", f"-DFRD_LANES={LANES[isa]}", *MACHINE[isa]]
    target = tmp_path_factory.mktemp("parts") / isa
    return build(target, *flags, ROOT / "tests/cpu/parts.cpp", CSRC / "cpu/scratch.cpp")


@pytest.mark.parametrize("name", ["pack", "gemm", "products", "few_rows", "masks", "bfloat16", "functions"])
def test_parts(parts: Path, name: str) -> None:
    done = subprocess.run([parts, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_part_is_asked_for(parts: Path) -> None:
    found = subprocess.run([parts], capture_output=True, text=True, check=True).stdout.split()
    assert found == ["pack", "gemm", "products", "few_rows", "masks", "bfloat16", "functions"]


@pytest.fixture(scope="module")
def random_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, for the baseline instruction set alone, which takes least time to compile."""
    folder = tmp_path_factory.mktemp("layers")
    (folder / "others.cpp").write_text(cpu_library.STUBS)
    kernels = [CSRC / f"cpu/{name}.cpp" for name in ("dispatch", "scratch", "isa_baseline")]
    return build(folder / "random_layers", ROOT / "tests/cpu/random_layers.cpp", folder / "others.cpp", *kernels)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_results_do_not_depend_on_threads(random_layers: Path, threads: int) -> None:
    def results(threads: int) -> list[str]:
        command = [random_layers, "0", "0", "200", str(threads)]
        env = {**os.environ, "FRD_CPU_BF16": "emulated"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.splitlines()

    alone = results(1)
    for dtype in (1, 2, 3):
        assert len({line.split()[dtype] for line in alone}) == 200, "layers must differ"
    assert results(threads) == alone


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512bf16"])
def test_nothing_shared_is_compiled_for_one_instruction_set(isa: str) -> None:
    """The linker may keep that copy of a function for every processor."""
    source = CSRC / f"cpu/isa_{isa}.cpp"
    text = subprocess.run([*compiler(), "-E", source], capture_output=True, text=True, check=True).stdout
    entered = list(dict.fromkeys(re.findall(r'^# 1 "([^"]+)" 1', text, re.M)))
    begin = entered.index(str(CSRC / "cpu/kernels.h"))
    assert begin > 5
    for name in entered[begin:]:
        path = Path(name)
        in_core = path.is_relative_to(CSRC / "core")  # templates over Math, and functions that are always inlined
        assert in_core or (path.is_relative_to(CSRC) and "namespace frd::cpu::FRD_ISA {" in path.read_text()), name
