"""A toolkit of CUDA 12 out of pip's packages, and the check that CUDA's sources keep to it.

    python tools/cuda12.py             # makes build/cuda12/toolkit, and says where it is
    python tools/cuda12.py --check     # and parses every source for the host, with warnings as errors

The toolkit can be used as CUDA12_HOME of setup.py, and as CUDA_HOME of tools/compile_cuda.py. Its nvcc is
tools/nvcc12.py. Needs clang++ of 19 or later (FRD_CLANGXX names another than clang++-19) and pip.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "cuda12"
HOME = FOLDER / "toolkit"
VERSION = "12.9"
PACKAGES = (
    *(f"nvidia-cuda-{name}-cu12=={VERSION}.*" for name in ("nvcc", "nvrtc", "runtime", "cccl")),
    "nvidia-curand-cu12==10.3.10.*",  # of CUDA 12.9; clang includes its headers
    "nvidia-cuda-nvcc==13.0.*",  # for fatbinary, which the one of CUDA 12 lacks
)
CLANG = os.environ.get("FRD_CLANGXX", "clang++-19")
# clang has no __grid_constant__ on the host's side.
WARNINGS = (
    *("-std=c++20", "-O3", "-Icsrc", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-unknown-cuda-version", "-Wno-unknown-attributes"),
)


def toolkit() -> Path:
    """Its folder, made where it is not there yet."""
    made = HOME
    if not (made / "finished").exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
        packages = FOLDER / "packages"
        command = ("-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, *PACKAGES)
        subprocess.run([sys.executable, *command], check=True)
        for name in ("cuda_nvcc", "cuda_nvrtc", "cuda_runtime", "cuda_cccl", "curand"):
            shutil.copytree(packages / "nvidia" / name, made, dirs_exist_ok=True)
        shutil.copy2(packages / "nvidia" / "cu13" / "bin" / "fatbinary", made / "bin")
        shutil.rmtree(packages)
        # For NVRTC integers of 64 bits are long long, for the host long, which shows in the names of kernels.
        integers = made / "include" / "cuda" / "std" / "__cuda" / "cstdint_prelude.h"
        integers.write_text(integers.read_text("utf-8").replace(" long long ", " long "), "utf-8")
        (made / "finished").touch()
    nvcc = made / "bin" / "nvcc"
    nvcc.write_text(f"#!{sys.executable}\n" + (ROOT / "tools" / "nvcc12.py").read_text("utf-8"), "utf-8")
    nvcc.chmod(0o755)
    return made


def check(home: Path) -> None:
    """Parses every source of csrc/cuda for the host. The device's side is compiled by tools/compile_cuda.py."""
    sources = sorted(path for path in (ROOT / "csrc" / "cuda").rglob("*") if path.suffix in (".cu", ".cpp"))
    cuda = (CLANG, "-x", "cuda", f"--cuda-path={home}", "--cuda-host-only")
    for source in sources:
        name = source.relative_to(ROOT)
        print(name, flush=True)
        compiler = cuda if source.suffix == ".cu" else (CLANG, "-isystem", home / "include")
        subprocess.run([*compiler, *WARNINGS, "-fsyntax-only", name], cwd=ROOT, check=True)
    print(f"{len(sources)} sources are CUDA {VERSION}'s")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="parse every source for the host")
    options = parser.parse_args()
    if shutil.which(CLANG) is None:
        raise SystemExit(f"there is no {CLANG} (Debian, Ubuntu: package clang-19); FRD_CLANGXX names another")
    home = toolkit()
    print(home)
    if options.check:
        check(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
