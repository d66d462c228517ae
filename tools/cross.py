"""What a build for another processor needs: its compiler, its torch to link against, and what Python is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

MACHINE = "aarch64"
COMPILER = "aarch64-linux-gnu"
PLATFORM = f"manylinux_2_28_{MACHINE}"

AUDITWHEEL = f"""
import platform
platform.machine = lambda: "{MACHINE}"
from auditwheel.main import main
raise SystemExit(main())
"""
"""auditwheel, which knows the platforms of the processor alone that it believes to run on."""


def obstacle() -> str | None:
    """Why nothing can be built for it here; None where it can."""
    if shutil.which(f"{COMPILER}-g++") is None:
        return f"there is no {COMPILER}-g++ (Debian, Ubuntu: package g++-{COMPILER})"
    return None


def torch(folder: Path, version: str) -> Path:
    """The other processor's torch of that version, unpacked into ``folder``."""
    wheels = folder / "wheels"
    command = ("-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--platform", PLATFORM)
    subprocess.run([sys.executable, *command, "-d", wheels, f"torch=={version}"], check=True)
    (wheel,) = wheels.glob("torch-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    wheel.unlink()
    return folder / "torch"


def environment(torch: Path) -> dict[str, str]:
    """Variables under which setup.py compiles for it. Headers are the same for both processors."""
    return {
        "CC": f"{COMPILER}-gcc",
        "CXX": f"{COMPILER}-g++",
        "LDSHARED": f"{COMPILER}-gcc -shared",
        "LDCXXSHARED": f"{COMPILER}-g++ -shared",
        "LDFLAGS": f"-L{torch / 'lib'} {os.environ.get('LDFLAGS', '')}".strip(),  # where the linker passes ours over
        "_PYTHON_HOST_PLATFORM": f"linux-{MACHINE}",
        "FRD_CUDA": "0",
    }
