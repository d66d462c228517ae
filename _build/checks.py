"""What must be there before anything is compiled. Each check returns one sentence that says what to do, or None."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from outside import REQUIREMENT, supported

OLDEST_SETUPTOOLS = 77  # the first that reads license = "Apache-2.0"
OLDEST_PYTHON = (3, 10)
TARGET = sysconfig.get_platform().split("-")[0]
"""The system that is built for, as in "linux" and "macosx". In a cross build it is another than this one."""

_BUILD = "installing without --no-build-isolation brings what building needs"


def python(version: tuple[int, ...] = sys.version_info[:3]) -> str | None:
    """An interpreter that is too old."""
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return None
    return f"fused_rnn_dropout needs Python 3.10 or later, and {sys.executable} is {'.'.join(map(str, version))}"


def system(name: str = sys.platform) -> str | None:
    """A system on which it cannot be built."""
    if name == "win32":
        return (
            "fused_rnn_dropout cannot be built on Windows: its CPU kernels use the vector types of GCC and Clang, which "
            "the compiler that torch's extensions are built with there has not; build it in WSL, which is Linux"
        )
    return None


def untried(name: str = TARGET) -> str | None:
    """A remark on a system on which nobody has run it; that does not end the build."""
    if name == "linux":
        return None
    done = "For macOS on arm64 it is cross-compiled and inspected, and was" if name == "macosx" else f"On {name} it was"
    return (
        f"fused_rnn_dropout is tested on Linux alone. {done} never executed: `python -m fused_rnn_dropout doctor` says "
        "whether it works"
    )


def setuptools(version: str) -> str | None:
    """A setuptools that cannot read pyproject.toml."""
    if int(version.split(".")[0]) >= OLDEST_SETUPTOOLS:
        return None
    return (
        f"building fused_rnn_dropout needs setuptools {OLDEST_SETUPTOOLS} or later, and {sys.executable} has {version}: "
        f"pip install 'setuptools>={OLDEST_SETUPTOOLS}' ninja ({_BUILD})"
    )


def torch(version: str | None) -> str | None:
    """No torch, or one that is too old."""
    if version is None:
        return (
            f"building fused_rnn_dropout needs {REQUIREMENT}, and {sys.executable} has no torch: pip install torch first "
            f"({_BUILD})"
        )
    if not supported(version):
        return (
            f"building fused_rnn_dropout needs {REQUIREMENT}, and {sys.executable} has torch {version}: "
            "pip install --upgrade torch"
        )
    return None


def compiler(include: str | None = None) -> str | None:
    """No C++20 compiler, or no ``Python.h`` in ``include`` (by default where this interpreter's should be)."""
    command = shlex.split(os.environ.get("CXX") or "c++")
    include = sysconfig.get_path("include") if include is None else include
    if shutil.which(command[0]) is None:
        return (
            f"building fused_rnn_dropout needs a C++20 compiler, and there is no {command[0]} on the PATH: install g++ 11 "
            "or later (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or name one in CXX"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "check.cpp")
        source.write_text("#include <concepts>\ntemplate <std::integral T> T twice(T x) { return x + x; }\n")
        # Not -fsyntax-only, which not every driver of a compiler has.
        compiling = [*command, "-std=c++20", "-c", source, "-o", source.with_suffix(".o")]
        tried = subprocess.run(compiling, capture_output=True, text=True)
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"])[0]
        return (
            f"building fused_rnn_dropout needs a C++20 compiler, and {shlex.join(command)} is none ({said}): install g++ "
            "11 or later, or name one in CXX"
        )
    if not Path(include, "Python.h").exists():
        return (
            f"building fused_rnn_dropout needs Python's headers, and there is no Python.h in {include}: install them "
            "(Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)"
        )
    return None


def first_problem(torch_version: str | None) -> str | None:
    """The first of all that stands in the way of compiling; a later check needs the earlier ones."""
    return python() or system() or torch(torch_version) or compiler()
