"""nvcc's command line for CUDA 12: what it takes, and that host and device agree on the names of kernels."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tools import nvcc12

MANGLED = "_ZN3frd4cuda48_GLOBAL__N__00000000_10_prepare_cu_161c5839_496614prepare_kernelIfEEvNS0_6RandomE"


def understood(text: str) -> nvcc12.Call:
    return nvcc12.understood(text.split())


def test_what_torch_asks_for() -> None:
    call = understood(
        "-MD -MF a.o.d -I/x/csrc -isystem /y -c a.cu -o a.o -DNAME=1 --expt-relaxed-constexpr --compiler-options "
        "'-fPIC' -O3 -std=c++20 --threads=2 -DUSE_CUDA -gencode=arch=compute_90,code=sm_90 "
        "-gencode arch=compute_120,code=[sm_120,compute_120] -ccbin g++"
    )
    assert (call.source, call.output, call.cubin) == (Path("a.cu"), Path("a.o"), False)
    assert call.code == [("sm", 90), ("sm", 120), ("compute", 120)]
    assert call.shared == ["-I/x/csrc", "-I/y", "-DNAME=1", "-std=c++20", "-DUSE_CUDA"]
    assert call.host == ["-MD", "-MF", "a.o.d", "-fPIC", "-O3"]


def test_an_older_torch_asks_in_long_words() -> None:
    call = understood("--generate-dependencies-with-compile --dependency-output d -c -c a.cu -o a.o -arch=sm_80")
    assert call.host == ["-MD", "-MF", "d"] and call.source == Path("a.cu")


def test_what_the_budgets_ask_for() -> None:
    call = understood("-O3 -std=c++20 -Icsrc -Xptxas -v -arch=sm_86 -cubin a.cu -o a.cubin")
    assert call.cubin and call.code == [("sm", 86)] and call.ptxas == ["-v"]


@pytest.mark.parametrize("text", ["-rdc=true -c a.cu -o a.o -arch=sm_80", "-c a.cu b.cu -o a.o -arch=sm_80",
                                  "-c a.cu -o a.o", "-c a.cu -arch=sm_80", "-c a.cu -o a.o -arch=native"])  # fmt: skip
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(nvcc12.Refused):
        understood(text)


def test_kernels_have_the_names_that_clang_registers() -> None:
    ptx = f".visible .entry {MANGLED}(\n.param .u64 {MANGLED}_param_0\n)\n.entry _Z5words(\n)\n"
    name = "_ZN3frd4cuda12_GLOBAL__N_114prepare_kernelIfEEvNS0_6RandomE"
    assert nvcc12.kernels_of(nvcc12.as_clang_names(ptx)) == {name, "_Z5words"}
    assert f"{name}_param_0" in nvcc12.as_clang_names(ptx)


def test_constants_of_headers_go_unless_they_are_used() -> None:
    used, unused = ".global .align 1 .u8 _ZN1a4usedE = 1;\n", ".global .align 8 .b8 _ZN1a3notE[16];\n"
    kernel = ".entry k(\n)\n{\nld.global.u8 %r1, [_ZN1a4usedE];\n}\n"
    assert nvcc12.without_unused(unused + used + kernel) == used + kernel


@pytest.mark.skipif(not shutil.which("nm") or not shutil.which("cc"), reason="needs a compiler and binutils")
def test_registered_kernels(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text("void _ZN1a31__device_stub__drop_rows_kernelILi4EEEvv(void) {}\nvoid _ZN1a5otherEv(void) {}\n")
    subprocess.run(["cc", "-c", source, "-o", tmp_path / "a.o"], check=True)
    assert nvcc12.registered(tmp_path / "a.o") == {"_ZN1a16drop_rows_kernelILi4EEEvv"}
