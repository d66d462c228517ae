"""Builds and loads the tests' module that runs CUDA kernels on the host: ``load()``.

It is compiled from module.cpp, operators.cpp, selftest.cu and exchange.cu beside this file, csrc/cuda/*.cu and
csrc/cuda/schedules/*.cpp as C++, and csrc/bind/cuda_*.cpp against torch's stable ABI,
with the compiler that CXX names (default c++). No CUDA toolkit is needed.

Objects are kept in build/cuda-host under a fingerprint of what they were made from: the compiler, its options, the
source and the headers of this project that it includes. So only what changed is compiled, a copy of the checkout can
take the objects along, and two processes that ask at once share one build. FRD_EXTRA_CXXFLAGS is appended to the
compiler's and the linker's options, as in setup.py.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

MODULE = "frd_cuda_host"
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "cuda-host"
INCLUDED = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
INCLUDES = (ROOT / "csrc", ROOT / "tests/cuda")
TORCH_TARGET = "0x020a000000000000"  # as in setup.py: only what torch 2.10 has

# Kernels say "#pragma unroll", which nvcc knows and g++ need not.
FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def extra_flags() -> list[str]:
    return shlex.split(os.environ.get("FRD_EXTRA_CXXFLAGS", ""))


def sources() -> list[Path]:
    """What the module is made of. New files of these folders are found by themselves."""
    return [
        ROOT / "tests/cuda/module.cpp",
        ROOT / "tests/cuda/selftest.cu",
        ROOT / "tests/cuda/exchange.cu",
        ROOT / "tests/cuda/operators.cpp",
        *sorted(ROOT.glob("csrc/cuda/*.cu")),
        *sorted(ROOT.glob("csrc/cuda/schedules/*.cpp")),
        *sorted(ROOT.glob("csrc/bind/cuda_*.cpp")),
    ]


def needs_torch(source: Path) -> bool:
    return source.parent.name == "bind" or source.name == "operators.cpp"


@functools.cache
def python_flags() -> list[str]:
    import pybind11

    return [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]


@functools.cache
def torch_flags() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    return [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *(f"-isystem{path}" for path in include_paths())]


def link_flags() -> list[str]:
    if not any(map(needs_torch, sources())):
        return []
    from torch.utils.cpp_extension import library_paths

    return [*(f"-L{path}" for path in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]


def compile_command(source: Path) -> list[str]:
    flags = [*FLAGS, "-DFRD_CUDA_ON_HOST", *(f"-I{folder}" for folder in INCLUDES)]
    flags += python_flags() if source.parent.name == "cuda" and source.name == "module.cpp" else []
    flags += torch_flags() if needs_torch(source) else []
    return [*compiler(), *flags, *extra_flags(), "-c", "-x", "c++", str(source)]


def fingerprint(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


@functools.cache
def included(path: Path) -> frozenset[Path]:
    """The files of this project that a file names in its #include "...", whatever conditions they are under."""
    named = INCLUDED.findall(path.read_text("utf-8"))
    return frozenset(
        found for name in named for folder in (path.parent, *INCLUDES) if (found := folder / name).exists()
    )


def files_of(source: Path) -> list[Path]:
    """A source and all that it includes, directly or not."""
    found, new = {source}, [source]
    while new:
        more = {path.resolve() for path in included(new.pop())} - found
        found |= more
        new += more
    return sorted(found)


def object_of(source: Path, version: str) -> Path:
    """Where the object of a source is kept. Its name has no path of this checkout's sources in it."""
    command = [part for part in compile_command(source) if not part.endswith(tuple(map(str, (source, *INCLUDES))))]
    return FOLDER / f"{source.stem}-{fingerprint(version, command, *files_of(source))}.o"


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-4000:]}")


def write(command: list[str], to: Path) -> None:
    """Runs ``command -o to`` so that a file of that name is always a whole one."""
    partial = to.with_name(f"{to.name}.partial")
    run([*command, "-o", str(partial)])
    partial.replace(to)


def stale(kept: list[Path]) -> Iterator[Path]:
    for pattern in ("*.o", "*.so", "*.partial"):
        yield from (path for path in FOLDER.glob(pattern) if path not in kept)


def build() -> Path:
    """The module's library, made anew where something that it depends on has changed."""
    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    objects = {source: object_of(source, version) for source in sources()}
    link = [*compiler(), "-shared", *map(str, objects.values()), *link_flags(), *extra_flags()]
    library = FOLDER / f"{MODULE}-{fingerprint([part.replace(str(ROOT), '') for part in link])}.so"

    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return library
        missing = [source for source, path in objects.items() if not path.exists()]
        print(f"building {library.relative_to(ROOT)}: {len(missing)} sources to compile", file=sys.stderr, flush=True)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for _ in pool.map(lambda source: write(compile_command(source), objects[source]), missing):
                pass
        write(link, library)
        for path in stale([library, *objects.values()]):
            path.unlink()
    return library


@functools.cache
def load() -> ModuleType:
    """The module, built first if need be.

    Raises:
        RuntimeError: it does not compile; the message ends with the compiler's.
    """
    library = build()
    if any(map(needs_torch, sources())):
        import torch  # noqa: F401  brings the libraries that the module is linked to
    spec = importlib.util.spec_from_file_location(MODULE, library)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    print(build())
