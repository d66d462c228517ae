"""What a build for another system needs: its compiler, its torch to link against, and what Python is told."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import macos_checks


class Target(NamedTuple):
    """A system that is built for, and not on.

    Attributes:
        name: of the step of a release, and of its folders.
        platform: of the wheel, and of the torch that it is linked against.
        host: what Python calls the system.
        obstacle: why nothing can be built for it here; None where it can.
        compilers: variables that name what compiles and links, given the folder of its torch and one to write into.
    """

    name: str
    platform: str
    host: str
    obstacle: Callable[[], str | None]
    compilers: Callable[[Path, Path], dict[str, str]]

    def environment(self, torch: Path, folder: Path) -> dict[str, str]:
        """Variables under which setup.py compiles for it. torch's headers are the same for every system."""
        return {**self.compilers(torch, folder), "_PYTHON_HOST_PLATFORM": self.host, "FRD_CUDA": "0"}

    def torch(self, folder: Path, version: str) -> None:
        """Its torch of that version, unpacked into ``folder``."""
        wheels = folder / "wheels"
        command = ("-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--platform", self.platform)
        subprocess.run([sys.executable, *command, "-d", wheels, f"torch=={version}"], check=True)
        (wheel,) = wheels.glob("torch-*.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder)
        wheel.unlink()


# ----------------------------------------------------------------------------------------------------------------------
# Linux on aarch64, by Debian's compiler
# ----------------------------------------------------------------------------------------------------------------------

GCC = "aarch64-linux-gnu"

AUDITWHEEL = """
import platform
platform.machine = lambda: "aarch64"
from auditwheel.main import main
raise SystemExit(main())
"""
"""auditwheel, which knows the platforms of the processor alone that it believes to run on."""


def no_gcc() -> str | None:
    if shutil.which(f"{GCC}-g++") is None:
        return f"there is no {GCC}-g++ (Debian, Ubuntu: package g++-{GCC})"
    return None


def gcc(torch: Path, folder: Path) -> dict[str, str]:
    return {
        "CC": f"{GCC}-gcc",
        "CXX": f"{GCC}-g++",
        "LDSHARED": f"{GCC}-gcc -shared",
        "LDCXXSHARED": f"{GCC}-g++ -shared",
        "LDFLAGS": f"-L{torch / 'lib'} {os.environ.get('LDFLAGS', '')}".strip(),  # where the linker passes ours over
    }


# ----------------------------------------------------------------------------------------------------------------------
# macOS on arm64, by zig's clang and linker
# ----------------------------------------------------------------------------------------------------------------------

ZIG_TARGET = f"aarch64-macos.{'.'.join(map(str, macos_checks.OLDEST))}"

ZIG_CXX_FLAGS = (
    # zig's libc++ is newer than the one of the oldest macOS: with these its headers take nothing that is not there yet.
    "-U_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS", "-D_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS=1",
    "-fno-sized-deallocation",
)  # fmt: skip


def no_zig() -> str | None:
    if importlib.util.find_spec("ziglang") is None:
        return f"{sys.executable} has no ziglang (pip install ziglang)"
    return None


def zig(torch: Path, folder: Path) -> dict[str, str]:
    def command(name: str, *words: str) -> str:
        # A file of its own, named as torch wants a compiler to be named.
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join((sys.executable, "-m", "ziglang", *words))} "$@"\n')
        path.chmod(0o755)
        return str(path)

    (folder / "libmacos-c++.tbd").write_text(macos_checks.cxx_stub(torch / "lib"))
    compilers = {
        "CC": command("clang", "cc", "-target", ZIG_TARGET),
        "CXX": command("clang++", "c++", "-target", ZIG_TARGET, *ZIG_CXX_FLAGS),
    }
    # Python's functions are those of the program that loads the library, whatever it is. zig would put a libc++ of its
    # own into it, whose exceptions torch could not catch.
    link = "-shared -undefined dynamic_lookup -nostdlib++"
    return {
        **compilers,
        "LDSHARED": f"{compilers['CC']} {link}",
        "LDCXXSHARED": f"{compilers['CXX']} {link}",
        "LDFLAGS": f"-L{torch / 'lib'} -L{folder} -lmacos-c++",
        # Of this build alone: what an earlier one left there would be taken for the result of this one.
        "ZIG_GLOBAL_CACHE_DIR": str(folder / "cache"),
        "ZIG_LOCAL_CACHE_DIR": str(folder / "cache"),
    }


AARCH64 = Target("aarch64", "manylinux_2_28_aarch64", "linux-aarch64", no_gcc, gcc)
MACOS = Target("macos", "macosx_11_0_arm64", "macosx-11.0-arm64", no_zig, zig)
TARGETS = (AARCH64, MACOS)
