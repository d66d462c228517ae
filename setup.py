"""Builds the compiled parts of the package: ``fused_rnn_dropout._C``, operator schemas and CPU kernels, and, where
torch is a CUDA build and an nvcc of its major version is found, ``_cuda12`` or ``_cuda13``, the same for a GPU.

They use LibTorch's stable ABI and Python's limited API, so one wheel serves every CPython >= 3.10 and torch >= 2.10,
whichever torch it was built against. No -march flag is given for the same reason: the CPU kernels choose among their
instruction sets at run time.

What stands in the way is said in one sentence, before anything is compiled: _build/checks.py. Which torch is built
against is _build/backend.py's rule.

Environment:
    FRD_CUDA: 1 fails where the GPU's library cannot be built, 0 leaves it out; unset, it is built where it can be.
        "12,13" builds both, against one CUDA build of torch.
    CUDA12_HOME, CUDA13_HOME, CUDA_HOME: where the toolkits are.
    TORCH_CUDA_ARCH_LIST: the architectures it is built for; by default those of _build/gpu_libraries.py.
    FRD_RELEASE: 1 for what is published, whose version has no +cpu where no GPU's library is built.
    FRD_EXTRA_CXXFLAGS: appended to the compiler's and the linker's options, as in
        ``FRD_EXTRA_CXXFLAGS="-fsanitize=address -O1"`` for a sanitizer build.
"""

import os
import shlex
import sys
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import setuptools

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "_build"))
import checks
import gpu_libraries
import outside
import readme
import versions

TORCH_TARGET = "0x020a000000000000"  # use only what torch 2.10 has
WHEEL_TAG = "cp310"  # with abi3: this CPython and every later one
NOT_BUILDING = {"sdist", "egg_info", "dist_info"}
BUILDING = {"build", "build_ext", "bdist", "bdist_wheel", "install", "develop", "editable_wheel"}


def say(text: str) -> None:
    """For whoever watches the build: pip shows it with -v, ``python -m build`` always."""
    print(f"fused_rnn_dropout: {text}", file=sys.stderr, flush=True)


def compiler_flags() -> list[str]:
    # -g0: Python's own flags ask for debug information, which would make up most of the library.
    flags = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    # Vectors wider than the baseline's registers are never passed between libraries, and gcc 12 takes its own
    # AVX-512 header for uninitialised.
    flags += ["-Wno-psabi", "-Wno-maybe-uninitialized"]
    # Error messages name files, of torch's headers too: without the folders of this machine.
    folders = {os.path.abspath("."): "", outside.folder_of_torch(): "torch/"}
    return [*flags, *(f"-ffile-prefix-map={folder}/={name}" for folder, name in folders.items())]


def linker_flags() -> list[str]:
    # A program without Python may load the libraries too. They call Python's functions only when they are imported, but
    # where the compiler's default is -z now, as on Ubuntu, they would look for them as soon as they are loaded.
    return ["-Wl,-z,lazy"] if checks.TARGET == "linux" else []


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
    toolkits, obstacle = gpu_libraries.libraries()
    if obstacle:
        say(f"the GPU's library is left out: {obstacle}")
    cxx, nvcc, link = [*compiler_flags(), *extra], [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"], [*linker_flags(), *extra]
    return [core, *(gpu_libraries.extension(major, toolkit, cxx, nvcc, link) for major, toolkit in toolkits.items())]


def build_arguments() -> dict:
    if problem := checks.setuptools(setuptools.__version__):
        raise SystemExit(f"error: {problem}")
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = None
    released = os.environ.get("FRD_RELEASE") == "1"
    # An sdist needs no compiler and no torch, so making one must not fetch one. The metadata are asked for before a
    # wheel is, and have its version.
    if NOT_BUILDING & set(sys.argv) and not BUILDING & set(sys.argv):
        if "dist_info" not in sys.argv or not outside.supported(torch_version):
            return {"version": versions.public()}
        return {"version": versions.of_build(len(gpu_libraries.libraries()[0]), released)}
    if problem := checks.first_problem(torch_version):
        raise SystemExit(f"error: {problem}")
    if remark := checks.untried():
        say(remark)
    import torch

    say(f"built against torch {torch.__version__} in {Path(torch.__file__).parent}")
    libraries = extensions()
    say("libraries: " + ", ".join(extension.name for extension in libraries))
    return {
        "version": versions.of_build(len(libraries) - 1, released),
        "ext_modules": libraries,
        "cmdclass": {"build_ext": gpu_libraries.build_ext(libraries)},
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
