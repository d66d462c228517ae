"""Each header of the sources includes what it uses: it compiles alone, whatever stands before it elsewhere."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HEADERS = sorted(str(path.relative_to(CSRC)) for path in CSRC.rglob("*.h"))
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
OF_AN_INSTRUCTION_SET = ["-DFRD_ISA=baseline", "-DFRD_LANES=4"]  # see cpu/isa_baseline.cpp
ON_THE_HOST = ["-DFRD_CUDA_ON_HOST", f"-I{ROOT / 'tests/cuda/host'}", f"-I{ROOT / 'tests/cuda'}"]

pytestmark = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="needs a C++ compiler")


def compile_alone(header: Path) -> subprocess.CompletedProcess[str]:
    torch = [f"-I{path}" for path in cpp_extension.include_paths()]
    options = ["-std=c++20", "-fsyntax-only", "-x", "c++", "-Wno-psabi", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command = [*COMPILER, *options, *OF_AN_INSTRUCTION_SET, *ON_THE_HOST, f"-I{CSRC}", *torch, str(header)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("header", HEADERS)
def test_compiles_alone(header: str) -> None:
    done = compile_alone(CSRC / header)
    assert done.returncode == 0, f"{header} needs another header to be included before it:\n{done.stderr[-2000:]}"


def test_sees_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "lacks.h").write_text("inline std::size_t nothing() { return 0; }\n")
    assert compile_alone(tmp_path / "lacks.h").returncode != 0
