"""Builds ``_C`` of a copy of the checkout quickly, for the baseline instruction set alone: ``build(root)``.

Objects are kept below root/build/baseline under a fingerprint of the sources that they were made from, so that only
what a change concerns is compiled again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

STUBS = """#include "cpu/layer.h"
const frd::cpu::Kernels* frd::cpu::avx2_kernels() { return nullptr; }
const frd::cpu::Kernels* frd::cpu::avx512_kernels() { return nullptr; }
const frd::cpu::TypedKernels<frd::cpu::BFloat16>* frd::cpu::avx512_bf16_kernels() { return nullptr; }
"""
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", "-DPy_LIMITED_API=0x030A0000",
         "-DTORCH_TARGET_VERSION=0x020a000000000000")  # fmt: skip


def command() -> list[str]:
    return [*shlex.split(os.environ.get("CXX", "g++")), *FLAGS]


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the sources do not compile:\n{done.stderr[-2000:]}")


def _sources(csrc: Path) -> list[Path]:
    skip = {"isa_avx2.cpp", "isa_avx512.cpp", "isa_avx512bf16.cpp"}
    found = [*csrc.glob("bind/*.cpp"), *csrc.glob("cpu/*.cpp")]
    return sorted(path for path in found if path.name not in skip and not path.name.startswith("cuda_"))


def _read_by(source: Path, csrc: Path) -> set[Path]:
    """A source and the headers of ``csrc`` that it includes, and that these include."""
    found, waiting = set[Path](), [source]
    while waiting:
        path = waiting.pop()
        found.add(path)
        for name in re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text("utf-8"), re.M):
            waiting += {place for place in (csrc / name, path.parent / name) if place.exists()} - found
    return found


def _compile(source: Path, root: Path, includes: list[str]) -> Path:
    """The object of a source, compiled unless it is there."""
    csrc, folder = root / "csrc", root / "build" / "baseline"
    digest = hashlib.sha256()
    for path in sorted(_read_by(source, csrc)):
        digest.update(path.read_bytes() + b"\0")
    made = folder / f"{source.parent.name}-{source.stem}-{digest.hexdigest()[:16]}.o"
    if not made.exists():
        run([*command(), f"-I{csrc}", *includes, "-c", str(source), "-o", str(made)])
    return made


def build(root: Path) -> None:
    """Makes ``fused_rnn_dropout/_C.abi3.so`` below ``root`` from the sources there, for the torch of this Python.

    Raises:
        RuntimeError: they do not compile.
    """
    from torch.utils import cpp_extension

    folder = root / "build" / "baseline"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "csrc" / "cpu" / "stubs.cpp").write_text(STUBS)
    includes = [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"])]
    objects = [_compile(source, root, includes) for source in _sources(root / "csrc")]
    libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
    library = root / "fused_rnn_dropout" / "_C.abi3.so"
    library.unlink(missing_ok=True)  # a process may have loaded the one before
    run([*command(), "-shared", "-o", str(library), *map(str, objects), *libraries])
