"""The GPU's libraries: which of them are built, each with which toolkit and for which architectures."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path
from typing import Any

MAJORS = ("12", "13")
"""The major versions of CUDA for which there can be a library."""

ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
"""What a library is built for where there is no GPU to ask. CUDA 12 has them all from 12.8 on."""

COMPRESSION = {"12": [], "13": ["--compress-mode=size"]}
"""Of machine code. Drivers older than CUDA 12.4, which can run a library for CUDA 12, do not know the stronger one."""


def release_of(toolkit: Path) -> str:
    """The version of CUDA of a toolkit, as in "12.8"."""
    command = [toolkit / "bin" / "nvcc", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else "?"


def toolkits(major: str) -> list[Path]:
    """Folders with an nvcc, the likeliest first: CUDA12_HOME or CUDA13_HOME, CUDA_HOME, that of the nvcc on the PATH, and
    pip's packages beside torch.
    """
    import torch
    from torch.utils import cpp_extension

    beside_torch = Path(torch.__file__).parents[1] / "nvidia" / f"cu{major}"
    homes = (os.environ.get(f"CUDA{major}_HOME"), os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME, beside_torch)
    found = []
    for nvcc in (Path(home) / "bin" / "nvcc" for home in homes if home):
        if nvcc.exists():
            # It may be a wrapper that lies elsewhere than the toolkit, which nvcc itself knows.
            dry = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
            if top := re.search(r"TOP=(.*)", dry.stderr):
                found.append(Path(top[1]).resolve())
    return found


def toolkit_for(major: str) -> Path | str:
    """The toolkit for one major version of CUDA, or why there is none."""
    found = toolkits(major)
    if not found:
        return f"there is no nvcc in CUDA{major}_HOME or CUDA_HOME, on the PATH or among pip's packages"
    for toolkit in found:
        if release_of(toolkit).split(".")[0] == major:
            return toolkit
    return f"the nvcc in {found[0]} is of CUDA {release_of(found[0])}, and CUDA {major} is wanted"


def wanted(wish: str) -> tuple[list[str], bool]:
    """What FRD_CUDA asks for: major versions of CUDA, and whether it is an error where one cannot be built."""
    import torch

    of_torch = [torch.version.cuda.split(".")[0]] if torch.version.cuda else []
    if wish in ("", "0", "1"):
        return ([] if wish == "0" else of_torch), wish == "1"
    majors = wish.split(",")
    if not set(majors) <= set(MAJORS):
        raise SystemExit(f"FRD_CUDA should be 0, 1 or of {', '.join(MAJORS)} with commas between, got {wish!r}")
    return majors, True


def libraries() -> tuple[dict[str, Path], str | None]:
    """The toolkits to build with, by the major version of CUDA, and why there is none where there is none.

    FRD_CUDA says what is wanted.

    Raises:
        SystemExit: what is asked for cannot be built.
    """
    import torch

    wish = os.environ.get("FRD_CUDA", "")
    if wish == "0":
        return {}, "FRD_CUDA=0"
    majors, insisted = wanted(wish)
    found = {major: toolkit_for(major) for major in majors}
    obstacles = [said for said in found.values() if isinstance(said, str)]
    if torch.version.cuda is None:
        obstacles = [f"torch {torch.__version__} is built without CUDA"]
    if obstacles and insisted:
        raise SystemExit(f"FRD_CUDA={wish}, but {obstacles[0]}")
    if obstacles:
        return {}, obstacles[0]
    return {major: toolkit for major, toolkit in found.items() if isinstance(toolkit, Path)}, None


def extension(major: str, toolkit: Path, cxx: Sequence[str], nvcc: Sequence[str], link: Sequence[str]) -> Any:
    """One library, with the options given for the compiler, nvcc and the linker."""
    from torch.utils import cpp_extension

    cpp_extension.CUDA_HOME = str(toolkit)
    made = cpp_extension.CUDAExtension(
        f"fused_rnn_dropout._cuda{major}",
        ["csrc/bind/module.cpp", *sorted(glob("csrc/bind/cuda_*.cpp") + glob("csrc/cuda/**/*.c*", recursive=True))],
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        include_dirs=[os.path.abspath("csrc")],
        py_limited_api=True,
        extra_compile_args={
            "cxx": [*cxx, "-DUSE_CUDA"],
            "nvcc": ["-O3", "-std=c++20", "--threads=2", *COMPRESSION[major], *nvcc, "-DUSE_CUDA"],
        },
        # -s: the table of symbols would name nvcc's temporary files, which are others each time.
        extra_link_args=[f"-l:libcudart.so.{major}", "-Wl,-s", *link],
    )
    # pip's toolkit has no libcudart.so without a version. Whether torch asks for it at all is torch's own affair.
    made.libraries = [name for name in made.libraries if name != "cudart"]
    made.major, made.toolkit = major, str(toolkit)
    return made


def build_ext(extensions: Iterable[Any]) -> type:
    """torch's command, that builds each of these with its own toolkit.

    torch refuses a toolkit of another major version than its own. The stable ABI leaves nothing in a library for which
    that would matter, so one torch serves for both.
    """
    import torch
    from torch.utils import cpp_extension

    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    of_torch = (torch.version.cuda or "").split(".")[0]
    if any(getattr(each, "major", of_torch) != of_torch for each in extensions):
        cpp_extension._check_cuda_version = lambda *_: None

    class BuildExtension(cpp_extension.BuildExtension):
        def build_extension(self, ext: Any) -> None:
            cpp_extension.CUDA_HOME = getattr(ext, "toolkit", None)
            super().build_extension(ext)

    return BuildExtension
