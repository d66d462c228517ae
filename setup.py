"""Builds the compiled parts of the package: ``fused_rnn_dropout._C``, operator schemas and CPU kernels, and, where
torch is a CUDA build and an nvcc of its major version is found, ``_cuda12`` or ``_cuda13``, the same for a GPU.

They use LibTorch's stable ABI and Python's limited API, so one wheel serves every CPython >= 3.10 and torch >= 2.10,
whichever torch it was built against. No -march flag is given for the same reason: the CPU kernels choose among their
instruction sets at run time.

What stands in the way is said in one sentence, before anything is compiled: _build/checks.py. Which torch is built
against is _build/backend.py's rule.

Environment:
    FRD_CUDA: 1 fails where the GPU's library cannot be built, 0 leaves it out; unset, it is built where it can be.
    TORCH_CUDA_ARCH_LIST: the architectures it is built for; by default those of CUDA_ARCHITECTURES.
    FRD_EXTRA_CXXFLAGS: appended to the compiler's and the linker's options, as in
        ``FRD_EXTRA_CXXFLAGS="-fsanitize=address -O1"`` for a sanitizer build.
"""

import os
import re
import shlex
import subprocess
import sys
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import setuptools

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "_build"))
import checks
import readme

TORCH_TARGET = "0x020a000000000000"  # use only what torch 2.10 has
WHEEL_TAG = "cp310"  # with abi3: this CPython and every later one
NOT_BUILDING = {"sdist", "egg_info", "dist_info"}
BUILDING = {"build", "build_ext", "bdist", "bdist_wheel", "install", "develop", "editable_wheel"}
CUDA_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def say(text: str) -> None:
    """For whoever watches the build: pip shows it with -v, ``python -m build`` always."""
    print(f"fused_rnn_dropout: {text}", file=sys.stderr, flush=True)


def compiler_flags() -> list[str]:
    # -g0: Python's own flags ask for debug information, which would make up most of the library.
    flags = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    # Vectors wider than the baseline's registers are never passed between libraries, and gcc 12 takes its own
    # AVX-512 header for uninitialised.
    flags += ["-Wno-psabi", "-Wno-maybe-uninitialized"]
    return [*flags, f"-ffile-prefix-map={os.path.abspath('.')}/="]  # error messages name files


def linker_flags() -> list[str]:
    # A program without Python may load the libraries too. They call Python's functions only when they are imported, but
    # where the compiler's default is -z now, as on Ubuntu, they would look for them as soon as they are loaded.
    return ["-Wl,-z,lazy"] if sys.platform.startswith("linux") else []


def cuda_toolkit(major: str) -> Path | None:
    """The CUDA toolkit's folder: CUDA_HOME, that of the nvcc on the PATH, or pip's packages beside torch."""
    import torch
    from torch.utils import cpp_extension

    beside_torch = Path(torch.__file__).parents[1] / "nvidia" / f"cu{major}"
    for home in (os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME, beside_torch):
        nvcc = Path(home) / "bin" / "nvcc" if home else None
        if nvcc and nvcc.exists():
            # It may be a wrapper that lies elsewhere than the toolkit, which nvcc itself knows.
            dry = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
            if found := re.search(r"TOP=(.*)", dry.stderr):
                return Path(found[1]).resolve()
    return None


def cuda_obstacle(toolkit: Path | None) -> str | None:
    """Why the GPU's library cannot be built here, or None where it can."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if toolkit is None:
        return "there is no nvcc in CUDA_HOME, on the PATH or among pip's packages"
    version = subprocess.run([toolkit / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.", version)
    if found is None or found[1] != torch.version.cuda.split(".")[0]:
        return f"the nvcc in {toolkit} is of CUDA {found[1] if found else '?'}, torch of CUDA {torch.version.cuda}"
    return None


def cuda_extensions(extra: list[str]) -> list:
    """The GPU's library, in a list, or an empty list where it is not built."""
    import torch
    from torch.utils import cpp_extension

    wish = os.environ.get("FRD_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"FRD_CUDA should be 0 or 1, got {wish!r}")
    if wish == "0":
        say("the GPU's library is left out: FRD_CUDA=0")
        return []
    major = (torch.version.cuda or "").split(".")[0]
    toolkit = cuda_toolkit(major)
    obstacle = cuda_obstacle(toolkit)
    if obstacle:
        if wish == "1":
            raise SystemExit(f"FRD_CUDA=1, but {obstacle}")
        say(f"the GPU's library is left out: {obstacle}")
        return []
    cpp_extension.CUDA_HOME = str(toolkit)
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    shared = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-DUSE_CUDA"]
    extension = cpp_extension.CUDAExtension(
        f"fused_rnn_dropout._cuda{major}",
        ["csrc/bind/module.cpp", *sorted(glob("csrc/bind/cuda_*.cpp") + glob("csrc/cuda/**/*.c*", recursive=True))],
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        include_dirs=[os.path.abspath("csrc")],
        py_limited_api=True,
        extra_compile_args={
            "cxx": [*compiler_flags(), "-DUSE_CUDA", *extra],
            "nvcc": ["-O3", "-std=c++20", "--threads=2", "--compress-mode=size", *shared],
        },
        extra_link_args=[f"-l:libcudart.so.{major}", *linker_flags(), *extra],
    )
    # pip's toolkit has no libcudart.so without a version. Whether torch asks for it at all is torch's own affair.
    extension.libraries = [name for name in extension.libraries if name != "cudart"]
    return [extension]


def extensions() -> list:
    from torch.utils.cpp_extension import CppExtension

    extra = shlex.split(os.environ.get("FRD_EXTRA_CXXFLAGS", ""))
    of_the_gpu = set(glob("csrc/bind/cuda_*.cpp"))
    core = CppExtension(
        "fused_rnn_dropout._C",
        sorted(set(glob("csrc/bind/*.cpp") + glob("csrc/cpu/*.cpp")) - of_the_gpu),
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        include_dirs=[os.path.abspath("csrc")],  # absolute: ninja compiles from the build folder
        py_limited_api=True,
        extra_compile_args={"cxx": compiler_flags() + extra},
        extra_link_args=[*linker_flags(), *extra],
    )
    return [core, *cuda_extensions(extra)]


def build_arguments() -> dict:
    if problem := checks.setuptools(setuptools.__version__):
        raise SystemExit(f"error: {problem}")
    # An sdist and the metadata need no compiler and no torch, so making them must not fetch one.
    if NOT_BUILDING & set(sys.argv) and not BUILDING & set(sys.argv):
        return {}
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = None
    if problem := checks.first_problem(torch_version):
        raise SystemExit(f"error: {problem}")
    if remark := checks.untried():
        say(remark)
    import torch
    from torch.utils.cpp_extension import BuildExtension

    say(f"built against torch {torch.__version__} in {Path(torch.__file__).parent}")
    libraries = extensions()
    say("libraries: " + ", ".join(extension.name for extension in libraries))
    return {
        "ext_modules": libraries,
        "cmdclass": {"build_ext": BuildExtension},
        "options": {
            "bdist_wheel": {"py_limited_api": WHEEL_TAG},
            # setuptools compares only dates, and would pack a library that was built with other flags. ninja, which
            # is asked instead, compares the commands too, and compiles only what changed.
            "build_ext": {"force": True},
        },
    }


setuptools.setup(
    long_description=readme.description(Path("README.md").read_text("utf-8")),
    long_description_content_type="text/markdown",
    **build_arguments(),
)
