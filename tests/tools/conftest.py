"""What tests of the tools share: compilers that a machine may lack."""

from __future__ import annotations

from pathlib import Path

import compile_cuda
import pytest


@pytest.fixture(scope="session")
def disassembling_nvcc() -> Path:
    """nvcc, with the disassembler that goes with it. A toolkit may come without one; the test is skipped then."""
    try:
        nvcc = compile_cuda.find_nvcc()
        compile_cuda.find_nvdisasm(nvcc)
    except SystemExit as missing:
        pytest.skip(str(missing))
    return nvcc
